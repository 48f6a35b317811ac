//! A lab's sites and members: where each keeps what, and where it is reached.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::layout::{Lab, LayoutError, SITES, failed};
use super::network::SiteNetwork;
use super::record::MemberRecord;

/// One site: a target with its namespace, and two members.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    lab: &'a Lab,
    /// Its name; none for the only one.
    pub name: Option<&'static str>,
}

impl<'a> Site<'a> {
    /// The site of this name, which the lab has.
    pub fn new(lab: &'a Lab, name: Option<&'static str>) -> Self {
        Self { lab, name }
    }

    /// The names of its members, in the order of their numbers.
    pub fn members(&self) -> [&'static str; 2] {
        match self.name {
            None => ["a", "b"],
            Some("a") => ["a1", "a2"],
            Some(_) => ["b1", "b2"],
        }
    }

    /// What its target keeps.
    pub fn target(&self) -> PathBuf {
        match self.name {
            None => self.lab.dir.join("target"),
            Some(name) => self.lab.dir.join(format!("target-{name}")),
        }
    }

    /// The file behind the namespace.
    pub fn namespace(&self) -> PathBuf {
        self.target().join("namespace.img")
    }

    /// Where the target keeps reservations through a restart.
    pub fn reservations(&self) -> PathBuf {
        self.target().join("reservations.json")
    }

    /// The target's control socket.
    pub fn target_socket(&self) -> PathBuf {
        self.target().join("control.sock")
    }

    /// The name of its lease file in the lease store.
    pub fn lease(&self) -> String {
        format!("{}.json", self.name.unwrap_or("lease"))
    }

    /// Its network; none for the only site, which has this machine's.
    pub fn network(&self) -> Option<SiteNetwork> {
        let wide = self.lab.record.wide.as_ref()?;
        Some(wide.network.site(self.name?))
    }

    /// Where clients reach it.
    pub fn address(&self) -> IpAddr {
        self.network()
            .map_or(Ipv4Addr::LOCALHOST.into(), |network| network.ip())
    }
}

/// The paths of one member.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    lab: &'a Lab,
    /// Everything of this member.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
}

impl<'a> Member<'a> {
    pub(super) fn new(lab: &'a Lab, name: &str) -> Self {
        Self {
            lab,
            dir: lab.dir.join(name),
            name: name.to_owned(),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("member.toml")
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Its journal.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal.jsonl")
    }

    /// Where it mounts the volume, in its own mount namespace.
    pub fn mount_point(&self) -> PathBuf {
        self.dir.join("mount")
    }

    /// Where its bridge mounts FUSE.
    pub fn bridge(&self) -> PathBuf {
        self.dir.join("bridge")
    }

    /// Locks and the like.
    pub fn runtime(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// PostgreSQL's Unix socket.
    pub fn postgres_sockets(&self) -> PathBuf {
        self.dir.join("pg")
    }

    /// The lease store, through the member's own symbolic link.
    pub fn lease_store(&self) -> PathBuf {
        self.dir.join("lease")
    }

    /// Its site's lease file there.
    pub fn lease(&self) -> PathBuf {
        self.lease_store().join(self.site().lease())
    }

    /// Its site.
    pub fn site(&self) -> Site<'a> {
        let name = self.record().site.as_deref();
        let known = SITES.into_iter().find(|site| Some(*site) == name);
        Site::new(self.lab, known)
    }

    /// Its host's NVMe Qualified Name.
    pub fn host_nqn(&self) -> String {
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", self.record().host_id)
    }

    /// Its record.
    pub fn record(&self) -> &'a MemberRecord {
        &self.lab.record.members[&self.name]
    }

    /// Where clients reach its PostgreSQL.
    pub fn postgres(&self) -> SocketAddr {
        (self.site().address(), self.record().postgres_port).into()
    }

    /// Where its HTTP API is.
    pub fn api(&self) -> SocketAddr {
        (self.site().address(), self.record().api_port).into()
    }

    /// Makes the lease store reachable for this member or not: its link leads there or nowhere.
    pub fn reach_lease(&self, reachable: bool) -> Result<(), LayoutError> {
        let link = self.dir.join("lease");
        let next = self.dir.join("lease.next");
        let place = if reachable {
            "../lease"
        } else {
            "../unreachable"
        };
        let replace = || {
            drop(fs::remove_file(&next));
            symlink(place, &next)?;
            fs::rename(&next, &link)
        };
        replace().map_err(failed("replace the link", link.clone()))
    }
}
