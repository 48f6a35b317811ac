//! `[replication]`: the other sites of the cluster, and how they follow each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::Value;

use super::platform::Lease;
use super::read::{Absolute, Draft, Name};
use super::reader::{Section, Setting, Within};
use super::seed::{self, SeedCommand};
use super::{Config, Endpoint};
use crate::decide::zone::{SiteName, Synchronous, ZoneConfig};
use crate::postgres::replication::OWN;

/// `sslmode` as libpq takes it.
const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Values of `synchronous_commit` with which a commit waits until another site has flushed it.
const WAITING: [&str; 5] = ["on", "true", "yes", "1", "remote_apply"];

/// `[replication]`: there are several sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replication {
    /// Where the cluster's record is: a file in a directory that all sites share, or the name of a
    /// Lease in the namespace of `lease`.
    pub record: String,
    /// Whether commits wait for other sites.
    pub synchronous: Synchronous,
    /// For how many.
    pub quorum: u8,
    /// The site that makes the database at the very first start.
    pub first_primary: String,
    /// The role as which replicas connect.
    pub user: String,
    /// The file with its password, readable to its owner alone.
    pub password_file: PathBuf,
    /// As libpq's `sslmode`.
    pub sslmode: String,
    /// The certificates by which a primary's is verified, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_certificate: Option<PathBuf>,
    /// `max_slot_wal_keep_size`: how much log is kept for a site that is away.
    pub slot_wal_max: String,
    /// How far a replica may be behind and still be shown to readers, in bytes.
    #[serde(serialize_with = "as_size")]
    pub max_lag: u64,
    /// What makes this site's database, before a copy of the primary's is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedCommand>,
    /// All sites.
    pub sites: Vec<Site>,
}

/// `[[replication.sites]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Its lease: a file, or the name of a Lease in the namespace of `lease`.
    pub lease: String,
    /// PostgreSQL of its members.
    pub hosts: Vec<Endpoint>,
    /// Whether it may ever run the primary.
    pub failover: Failover,
}

/// Whether a site may ever run the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Failover {
    /// It may.
    Allowed,
    /// It only reads.
    Never,
}

impl Setting for Failover {
    fn read(value: Value) -> Result<Self, String> {
        match String::read(value)?.as_str() {
            "allowed" => Ok(Self::Allowed),
            "never" => Ok(Self::Never),
            other => Err(format!("{other:?} is neither \"allowed\" nor \"never\"")),
        }
    }
}

impl Setting for Synchronous {
    fn read(value: Value) -> Result<Self, String> {
        match String::read(value)?.as_str() {
            "required" => Ok(Self::Required),
            "preferred" => Ok(Self::Preferred),
            "off" => Ok(Self::Off),
            other => Err(format!(
                "{other:?} is none of \"required\", \"preferred\" and \"off\""
            )),
        }
    }
}

/// A list of `host:port`.
struct Hosts(Vec<Endpoint>);

impl Setting for Hosts {
    fn read(value: Value) -> Result<Self, String> {
        let hosts = Vec::<String>::read(value)?;
        if hosts.is_empty() {
            return Err("must name at least one host:port".to_owned());
        }
        let parsed = hosts.iter().map(|host| host.parse::<Endpoint>());
        let parsed: Result<Vec<_>, _> = parsed.collect();
        parsed.map(Self).map_err(|error| error.to_string())
    }
}

/// A number of bytes, as PostgreSQL writes it: `16MB`.
struct Size(u64);

impl Setting for Size {
    fn read(value: Value) -> Result<Self, String> {
        let text = String::read(value)?;
        let wrong = || format!("{text:?} is no size such as \"16MB\" or \"4GB\"");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit: u64 = match &text[digits..] {
            "kB" => 1 << 10,
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            "TB" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn as_size<S: serde::Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{}kB", bytes >> 10))
}

/// A size that is handed to PostgreSQL as it is written.
struct Verbatim(String);

impl Setting for Verbatim {
    fn read(value: Value) -> Result<Self, String> {
        let text = String::read(value.clone())?;
        Size::read(value).map(|_| Self(text))
    }
}

pub(super) fn read(section: &mut Section<'_>) -> Option<Replication> {
    let record = section.required::<String>("record", "\"/srv/baton/cluster.lease\"");
    let synchronous = section.optional("synchronous", Synchronous::Preferred);
    let quorum = section.optional("quorum", Within::<1, 100>(1));
    let first_primary = section.required::<Name>("first_primary", "\"a\"");
    let user = section.optional("user", "baton_replication".to_owned());
    let password_file = section.required::<Absolute>("password_file", "\"/etc/baton/replication\"");
    let sslmode = section.optional("sslmode", "prefer".to_owned());
    let root_certificate = section.optional("root_certificate", None::<Absolute>);
    let slot_wal_max = section.optional("slot_wal_max", Verbatim("4GB".to_owned()));
    let max_lag = section.optional("max_lag", Size(16 << 20));
    let seed = section.optional_section("seed", seed::read);
    let sites = section.sections("sites", |section| {
        let name = section.required::<Name>("name", "\"a\"");
        let lease = section.required::<String>("lease", "\"/srv/baton/a.lease\"");
        let hosts = section.required::<Hosts>("hosts", "[\"10.0.0.1:5432\"]");
        let failover = section.optional("failover", Failover::Allowed);
        Some(Site {
            name: name?.0,
            lease: lease?,
            hosts: hosts?.0,
            failover: failover?,
        })
    });
    Some(Replication {
        record: record?,
        synchronous: synchronous?,
        quorum: u8::try_from(quorum?.0).ok()?,
        first_primary: first_primary?.0,
        user: user?,
        password_file: password_file?.0,
        sslmode: sslmode?,
        root_certificate: root_certificate?.map(|Absolute(path)| path),
        slot_wal_max: slot_wal_max?.0,
        max_lag: max_lag?.0,
        seed: seed?,
        sites: sites?,
    })
}

/// What the section says against itself or the rest of the file.
pub(super) fn contradictions(
    known: &Replication,
    draft: &Draft,
    note: &mut impl FnMut(&str, String),
) {
    sites(known, draft, note);
    records(known, draft.lease.as_ref(), note);
    if let Some(timings) = &draft.timings
        && timings.site_detection < 3 * timings.detection
    {
        let text = format!(
            "is {:?}, must be at least 3 × detection = {:?}: a site must have had the time to fail over within \
             itself before another takes its place",
            timings.site_detection,
            3 * timings.detection
        );
        note("timings.site_detection", text);
    }
    if !SSL_MODES.contains(&known.sslmode.as_str()) {
        let modes = SSL_MODES.join(", ");
        note(
            "replication.sslmode",
            format!("{:?} is none of {modes}", known.sslmode),
        );
    }
    if let Some(command) = &known.seed {
        seed::contradictions(command, draft, note);
    }
    if let Some(postgres) = &draft.postgres {
        parameters(known, &postgres.parameters, note);
    }
}

/// PostgreSQL settings that replication between sites rests on.
fn parameters(
    known: &Replication,
    parameters: &BTreeMap<String, String>,
    note: &mut impl FnMut(&str, String),
) {
    let mut refuse = |name: &str, text: String| note(&format!("postgres.parameters.{name}"), text);
    for (name, value) in parameters {
        let plain = name.to_ascii_lowercase();
        if plain == "max_slot_wal_keep_size" {
            refuse(name, "set replication.slot_wal_max".to_owned());
        } else if OWN.contains(&plain.as_str()) {
            refuse(
                name,
                "between sites Baton sets it itself; remove it".to_owned(),
            );
        } else if plain == "synchronous_commit"
            && known.synchronous != Synchronous::Off
            && !WAITING.contains(&value.to_ascii_lowercase().as_str())
        {
            let text = format!(
                "{value:?} lets commits pass that no other site has flushed; set \"on\" or \"remote_apply\", or \
                 replication.synchronous = \"off\""
            );
            refuse(name, text);
        }
    }
}

fn sites(known: &Replication, draft: &Draft, note: &mut impl FnMut(&str, String)) {
    let names: BTreeSet<_> = known.sites.iter().map(|site| site.name.as_str()).collect();
    let several = known.sites.len() >= 2;
    if !several {
        let text = "names fewer than two sites; without other sites remove [replication]";
        note("replication.sites", text.to_owned());
    }
    let mut own = BTreeMap::new();
    let in_postgres = |site: &Site| SiteName(site.name.clone()).in_postgres();
    for site in &known.sites {
        if let Some(other) = own.insert(in_postgres(site), &site.name) {
            let text = format!(
                "{other} and {} have the same name in PostgreSQL; give one another name",
                site.name
            );
            note("replication.sites", text);
        }
    }
    if let Some(site) = &draft.site
        && !names.contains(site.as_str())
    {
        let text = format!("does not name this member's own site, {site}");
        note("replication.sites", text);
    }
    let candidates: Vec<_> = known
        .sites
        .iter()
        .filter(|site| site.failover == Failover::Allowed)
        .map(|site| site.name.as_str())
        .collect();
    if !candidates.contains(&known.first_primary.as_str()) {
        let text = format!(
            "{} is no site that may run the primary; name one of {}",
            known.first_primary,
            candidates.join(", ")
        );
        note("replication.first_primary", text);
    }
    let others = candidates.len().saturating_sub(1);
    let waits = known.synchronous != Synchronous::Off;
    if several && waits && usize::from(known.quorum) > others {
        let text = format!(
            "commits would wait for {} sites, but besides the primary's only {others} may take over: \
             allow more sites, lower it, or set synchronous = \"off\"",
            known.quorum
        );
        note("replication.quorum", text);
    }
}

/// Where the records are: each in its own place, and of the kind that `[lease]` says.
fn records(known: &Replication, lease: Option<&Lease>, note: &mut impl FnMut(&str, String)) {
    let all = known.sites.iter().map(|site| site.lease.as_str());
    let all = all.chain([known.record.as_str()]);
    let mut seen = BTreeSet::new();
    for place in all {
        if !seen.insert(place) {
            let text =
                format!("{place} is named twice: every site's lease, and the record, is its own");
            note("replication", text);
        }
        if matches!(lease, Some(Lease::File { .. })) && !Path::new(place).is_absolute() {
            note("replication", format!("{place:?} is no absolute path"));
        }
    }
}

impl Config {
    /// The sites that decisions rest on; none with one site.
    pub fn zone(&self) -> Option<ZoneConfig> {
        let replication = self.replication.as_ref()?;
        let sites = replication.sites.iter();
        let sites = sites.map(|site| {
            let may = site.failover == Failover::Allowed;
            (SiteName(site.name.clone()), may)
        });
        Some(ZoneConfig {
            site: SiteName(self.site.clone()),
            sites: sites.collect(),
            synchronous: replication.synchronous,
            quorum: replication.quorum,
            first: SiteName(replication.first_primary.clone()),
            archive: self
                .postgres
                .parameters
                .keys()
                .any(seed::is_restore_command),
        })
    }
}
