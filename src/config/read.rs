//! One reader per section of the file: which settings there are, their form and their defaults.
//!
//! A reader asks for every setting of its section before it gives up, so that each mistake is noted.
//! What two settings say against each other is checked in `check.rs`.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use fencing::MemberId;
use nvme::kernel::Identifier;
use nvme::{HostId, Nqn};
use toml::{Table, Value};
use uuid::Uuid;

use crate::decide::{InvalidTimings, TimingSettings, Timings, Violation};

use super::api::{self, Api};
use super::fences;
use super::platform::{self, Kubernetes, Lease, Pooler, Store};
use super::reader::{Parsed, Problem, Section, Setting, Within};
use super::replication::{self, Replication};
use super::{
    Agent, Attached, Config, Control, Fencing, Journal, Peer, PeerMember, Postgres, Transport,
    Volume,
};

/// 16 MiB: with a line of some 2 kB for each change, weeks of an uneventful life.
const JOURNAL_MAX_BYTES: u64 = 16 << 20;

/// What could be read of a file: `None` where a setting of the section is missing or wrong. So what is
/// there can still be checked for contradictions.
pub(super) struct Draft {
    pub cluster: Option<String>,
    pub site: Option<String>,
    pub member: Option<String>,
    pub number: Option<MemberId>,
    pub runtime_dir: Option<PathBuf>,
    pub attached: Option<Attached>,
    pub fencing: Option<Fencing>,
    pub lease: Option<Lease>,
    pub peer: Option<Peer>,
    pub postgres: Option<Postgres>,
    pub timings: Option<Timings>,
    pub journal: Option<Journal>,
    pub control: Option<Control>,
    /// Outer `None`: wrong. Inner: not wanted. So the next three.
    pub api: Option<Option<Api>>,
    pub kubernetes: Option<Option<Kubernetes>>,
    pub pooler: Option<Option<Pooler>>,
    pub replication: Option<Option<Replication>>,
}

impl Draft {
    /// The configuration, if nothing is missing.
    pub fn complete(self) -> Option<Config> {
        Some(Config {
            cluster: self.cluster?,
            site: self.site?,
            member: self.member?,
            number: self.number?,
            runtime_dir: self.runtime_dir?,
            attached: self.attached?,
            fencing: self.fencing?,
            lease: self.lease?,
            peer: self.peer?,
            postgres: self.postgres?,
            timings: self.timings?,
            journal: self.journal?,
            control: self.control?,
            api: self.api?,
            kubernetes: self.kubernetes?,
            pooler: self.pooler?,
            replication: self.replication?,
        })
    }
}

/// Reads the whole file.
pub(super) fn draft(table: Table, problems: &mut Vec<Problem>) -> Draft {
    let mut top = Section::root(table, problems);
    let cluster = top.required::<Name>("cluster", "\"main\"");
    let site = top.optional("site", Name("local".to_owned()));
    let member = top.required::<Name>("member", "\"a\"");
    let number = top.required("number", "1");
    let runtime_dir = top.required::<Absolute>("runtime_dir", "\"/run/baton\"");
    let runtime_dir = runtime_dir.map(|Absolute(path)| path);
    let attached = attached(&mut top, runtime_dir.clone());
    let fencing = top.section("fencing", fences::read);
    let (store, lease) = top
        .section("lease", platform::lease)
        .unwrap_or((Store::default(), None));
    let peer = top.section("peer", peer);
    let postgres = top.section("postgres", postgres);
    let defaults = match store {
        Store::File => TimingSettings::default(),
        Store::Kubernetes => TimingSettings::kubernetes(),
    };
    let timings = top.section("timings", |section| timings(section, &defaults));
    let journal = top.section("journal", journal);
    let control = top.section("control", |section| control(section, runtime_dir.clone()));
    let api = top.optional_section("api", api::read);
    let kubernetes = top.optional_section("kubernetes", platform::kubernetes);
    let pooler = top.optional_section("pooler", platform::pooler);
    let replication = top.optional_section("replication", replication::read);
    top.finish();
    Draft {
        cluster: cluster.map(|Name(name)| name),
        site: site.map(|Name(name)| name),
        member: member.map(|Name(name)| name),
        number,
        runtime_dir,
        attached,
        fencing,
        lease,
        peer,
        postgres,
        timings,
        journal,
        control,
        api,
        kubernetes,
        pooler,
        replication,
    }
}

fn attached(top: &mut Section<'_>, runtime_dir: Option<PathBuf>) -> Option<Attached> {
    match top.optional_section("agent", agent) {
        Some(None) => top
            .section("volume", |section| volume(section, runtime_dir))
            .map(Attached::Volume),
        agent => {
            if top.take("volume").is_some() {
                let text = "not beside [agent]: the agent of the node knows the volume";
                top.problem("volume", text);
            }
            agent.flatten().map(Attached::Agent)
        }
    }
}

fn agent(section: &mut Section<'_>) -> Option<Agent> {
    let socket = Absolute(PathBuf::from("/run/baton/agent/agent.sock"));
    let socket = section.optional("socket", socket);
    let mount_point = section.required::<Absolute>("mount_point", "\"/var/lib/baton/volume/data\"");
    Some(Agent {
        socket: socket?.0,
        mount_point: mount_point?.0,
    })
}

fn volume(section: &mut Section<'_>, runtime_dir: Option<PathBuf>) -> Option<Volume> {
    let transport = section.optional("transport", Transport::Tcp);
    let address = section.required::<Parsed<_>>("address", "\"10.0.0.5:4420\"");
    let subsystem = section.required::<Parsed<Nqn>>("subsystem", "\"nqn.2026-11.example:main\"");
    let namespace_id = section.optional("namespace_id", Within::<1, 0xffff_fffe>(1));
    let identifier = section.optional("identifier", None::<Parsed<Identifier>>);
    let host_nqn = section.required::<Parsed<Nqn>>("host_nqn", "the line in /etc/nvme/hostnqn");
    let host_id = section.required("host_id", "the line in /etc/nvme/hostid");
    let mount_point = section.required::<Absolute>("mount_point", "\"/var/lib/baton/volume\"");
    // Where runtime_dir itself is wrong, that is the one problem to name.
    let default = runtime_dir.unwrap_or_else(|| PathBuf::from("/"));
    let directory = section.optional("directory", Absolute(default.join("bridge")));
    let require_persistence = section.optional("require_persistence", true);
    Some(Volume {
        transport: transport?,
        address: address?.0,
        subsystem: subsystem?.0,
        // In range of u32 by the type above.
        namespace_id: u32::try_from(namespace_id?.0).ok()?,
        identifier: identifier?.map(|Parsed(id)| id),
        host_nqn: host_nqn?.0,
        host_id: host_id?,
        mount_point: mount_point?.0,
        directory: directory?.0,
        require_persistence: require_persistence?,
    })
}

fn peer(section: &mut Section<'_>) -> Option<Peer> {
    let listen = section.required::<Parsed<_>>("listen", "\"0.0.0.0:7400\"");
    let secret_file = section.required::<Absolute>("secret_file", "\"/etc/baton/secret\"");
    let members = section.sections("members", |section| {
        let name = section.required::<Name>("name", "\"b\"");
        let number = section.required("number", "2");
        let address = section.required::<Parsed<_>>("address", "\"10.0.0.2:7400\"");
        Some(PeerMember {
            name: name?.0,
            number: number?,
            address: address?.0,
        })
    });
    Some(Peer {
        listen: listen?.0,
        secret_file: secret_file?.0,
        members: members?,
    })
}

fn postgres(section: &mut Section<'_>) -> Option<Postgres> {
    let bin_dir = section.required::<Absolute>("bin_dir", "\"/usr/lib/postgresql/15/bin\"");
    let port = section.optional("port", Within::<1, 65_535>(5432));
    let listen_addresses = section.optional("listen_addresses", "*".to_owned());
    let os_user = section.optional("os_user", "postgres".to_owned());
    let data_directory = section.optional("data_directory", Relative(PathBuf::from("pgdata")));
    let socket_directory = section.optional(
        "socket_directory",
        Absolute(PathBuf::from("/var/run/postgresql")),
    );
    let parameters = section.optional("parameters", Parameters::default());
    let hba = section.optional("hba", Vec::new());
    Some(Postgres {
        bin_dir: bin_dir?.0,
        // In range of u16 by the type above.
        port: u16::try_from(port?.0).ok()?,
        listen_addresses: listen_addresses?,
        os_user: os_user?,
        data_directory: data_directory?.0,
        socket_directory: socket_directory?.0,
        parameters: parameters?.0,
        hba: hba?,
    })
}

fn journal(section: &mut Section<'_>) -> Option<Journal> {
    let path = section.required::<Absolute>("path", "\"/var/lib/baton/journal.jsonl\"");
    let max_bytes = section.optional(
        "max_bytes",
        Within::<65_536, 1_099_511_627_776>(JOURNAL_MAX_BYTES),
    );
    Some(Journal {
        path: path?.0,
        max_bytes: max_bytes?.0,
    })
}

fn control(section: &mut Section<'_>, runtime_dir: Option<PathBuf>) -> Option<Control> {
    // Where runtime_dir itself is wrong, that is the one problem to name.
    let default = runtime_dir
        .unwrap_or_else(|| PathBuf::from("/"))
        .join("control.sock");
    let socket = section.optional("socket", Absolute(default));
    Some(Control { socket: socket?.0 })
}

/// The settings are those of [`TimingSettings`], by its own serde: each one given is tried in the
/// place of its default, so that every wrong one is named.
fn timings(section: &mut Section<'_>, defaults: &TimingSettings) -> Option<Timings> {
    let defaults = Table::try_from(defaults).ok()?;
    let mut settings = Some(defaults.clone());
    for name in defaults.keys() {
        let Some(value) = section.take(name) else {
            continue;
        };
        let mut one = defaults.clone();
        one.insert(name.clone(), value.clone());
        match one.try_into::<TimingSettings>() {
            Ok(_) => {
                settings.as_mut().map(|all| all.insert(name.clone(), value));
            }
            Err(error) => {
                section.problem(name, error.message());
                settings = None;
            }
        }
    }
    let settings = settings?.try_into::<TimingSettings>().ok()?;
    Timings::new(settings)
        .map_err(|InvalidTimings(violations)| {
            for violation in violations {
                section.problem(violation.setting, rule(&violation));
            }
        })
        .ok()
}

/// A violated rule without the setting's name, which the problem carries itself.
fn rule(violation: &Violation) -> String {
    let text = violation.to_string();
    let name = format!("timings.{} ", violation.setting);
    text.strip_prefix(&name).map_or(text.clone(), str::to_owned)
}

/// A name of a cluster, site or member: it becomes a file name, a DNS label and a Kubernetes name.
pub(super) struct Name(pub String);

impl Setting for Name {
    fn read(value: Value) -> Result<Self, String> {
        let text = String::read(value)?;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if text.len() <= 63 && edges && text.chars().all(allowed) {
            Ok(Self(text))
        } else {
            Err(format!(
                "{text:?} is no name: write 1 to 63 of a-z, 0-9 and inner -"
            ))
        }
    }
}

/// An absolute path without `..`.
pub(super) struct Absolute(pub PathBuf);

impl Setting for Absolute {
    fn read(value: Value) -> Result<Self, String> {
        let path = PathBuf::from(String::read(value)?);
        let plain = path.components().all(|part| part != Component::ParentDir);
        if path.is_absolute() && plain {
            Ok(Self(path))
        } else {
            Err(format!(
                "{} must be an absolute path without ..",
                path.display()
            ))
        }
    }
}

/// A path below another one: relative, without `..`.
struct Relative(PathBuf);

impl Setting for Relative {
    fn read(value: Value) -> Result<Self, String> {
        let path = PathBuf::from(String::read(value)?);
        if path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            Ok(Self(path))
        } else {
            let shown = path.display();
            Err(format!(
                "{shown} must be relative to the volume's mount point, without . and .."
            ))
        }
    }
}

impl Setting for MemberId {
    fn read(value: Value) -> Result<Self, String> {
        let Within(number) = Within::<1, 255>::read(value)?;
        u8::try_from(number)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| "must be 1 to 255".to_owned())
    }
}

impl Setting for HostId {
    fn read(value: Value) -> Result<Self, String> {
        let text = String::read(value)?;
        match text.parse::<Uuid>() {
            Ok(id) if !id.is_nil() => Ok(Self(id)),
            Ok(_) => Err("must not be all zeroes; make one with uuidgen".to_owned()),
            Err(_) => Err(format!("{text:?} is no UUID; make one with uuidgen")),
        }
    }
}

impl Setting for Transport {
    fn read(value: Value) -> Result<Self, String> {
        match String::read(value)?.as_str() {
            "tcp" => Ok(Self::Tcp),
            "kernel" => Ok(Self::Kernel),
            other => Err(format!("{other:?} is unknown: write \"tcp\" or \"kernel\"")),
        }
    }
}

/// PostgreSQL's own settings; numbers and booleans may be written bare.
#[derive(Default)]
struct Parameters(BTreeMap<String, String>);

impl Setting for Parameters {
    fn read(value: Value) -> Result<Self, String> {
        let Value::Table(table) = value else {
            return Err("must be a table, [postgres.parameters]".to_owned());
        };
        let mut parameters = BTreeMap::new();
        for (name, value) in table {
            let text = match value {
                Value::String(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Boolean(on) => if on { "on" } else { "off" }.to_owned(),
                // `pg_stat_statements.max = 5000` reads as a table within the table.
                Value::Table(_) => {
                    return Err(format!("put quotes around the whole name: \"{name}.…\""));
                }
                Value::Datetime(_) | Value::Array(_) => {
                    return Err(format!("{name} must be text, a number, true or false"));
                }
            };
            parameters.insert(name, text);
        }
        Ok(Self(parameters))
    }
}
