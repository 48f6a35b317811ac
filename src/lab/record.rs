//! What a lab remembers between `up` and `up`: `lab.json`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layout::{SITES, Wanted};
use super::network::Network;
use super::ports;

/// Ports of each member.
const PORTS: usize = 4;

/// The most members that a lab has.
const MEMBERS_MAX: usize = 4;

/// What a lab remembers: `lab.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The target's port, in each site's own network if there are several.
    pub target_port: u16,
    /// The size in bytes of the namespace, of each site's if there are several.
    pub size: u64,
    /// Whether the target has a volatile write cache.
    pub volatile_cache: bool,
    /// The members, by name.
    pub members: BTreeMap<String, MemberRecord>,
    /// What only a lab of several sites has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wide: Option<Wide>,
}

/// What a lab of several sites remembers of them together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wide {
    /// The sites' networks.
    pub network: Network,
    /// How much WAL a replication slot may keep, if not the default.
    pub slot_wal_max: Option<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its site, if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Its number, 1 to 255, within its site.
    pub number: u8,
    /// Its own host identifier: two members with one could not be fenced from each other.
    pub host_id: Uuid,
    /// Where it listens for the other member.
    pub peer_port: u16,
    /// Where the link to it begins: what the other member believes is its address.
    pub link_port: u16,
    /// Where its PostgreSQL listens while it is active.
    pub postgres_port: u16,
    /// Where its HTTP API listens; 0 in a lab of an earlier version, until it comes up again.
    #[serde(default)]
    pub api_port: u16,
}

impl Wide {
    fn new(wanted: &Wanted) -> io::Result<Self> {
        Ok(Self {
            network: Network::draw()?,
            slot_wal_max: wanted.slot_wal_max.clone(),
        })
    }

    /// Draws another network if another lab has taken this one.
    pub(super) fn renew(&mut self, dir: &Path) -> io::Result<()> {
        if self.network.is_another_s(dir) {
            self.network = Network::draw()?;
        }
        Ok(())
    }
}

impl Record {
    /// The record of a new lab.
    pub(super) fn new(wanted: &Wanted) -> io::Result<Self> {
        let wide = wanted.sites.is_some_and(|sites| sites > 1);
        let named = |site: Option<&str>, name: String, number: u8| {
            let record = MemberRecord {
                site: site.map(str::to_owned),
                number,
                host_id: Uuid::new_v4(),
                peer_port: 0,
                link_port: 0,
                postgres_port: 0,
                api_port: 0,
            };
            (name, record)
        };
        let members = match wide {
            false => [("a", 1), ("b", 2)]
                .map(|(name, number)| named(None, name.to_owned(), number))
                .into(),
            true => SITES
                .into_iter()
                .flat_map(|site| [1, 2].map(|n| named(Some(site), format!("{site}{n}"), n)))
                .collect(),
        };
        let mut record = Self {
            target_port: 0,
            size: wanted.size,
            volatile_cache: wanted.volatile_cache,
            members,
            wide: wide.then(|| Wide::new(wanted)).transpose()?,
        };
        record.draw_ports()?;
        Ok(record)
    }

    /// Every port.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        let members = self
            .members
            .values()
            .flat_map(|m| [m.peer_port, m.link_port, m.postgres_port, m.api_port]);
        members.chain([self.target_port])
    }

    pub(super) fn draw_ports(&mut self) -> io::Result<()> {
        let ports: [u16; 1 + PORTS * MEMBERS_MAX] = ports::free()?;
        let [target, members @ ..] = ports;
        self.target_port = target;
        for (member, ports) in self.members.values_mut().zip(members.chunks_exact(PORTS)) {
            member.peer_port = ports[0];
            member.link_port = ports[1];
            member.postgres_port = ports[2];
            member.api_port = ports[3];
        }
        Ok(())
    }
}
