//! Where a lab keeps what, and what it remembers between `up` and `up`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ports;

/// The names of the two members, in the order of their numbers 1 and 2.
pub const MEMBERS: [&str; 2] = ["a", "b"];

/// Ports of each member.
const PORTS: usize = 4;

/// The namespace's size in bytes if nothing else is asked for.
pub const DEFAULT_SIZE: u64 = 2 << 30;

/// The longest path of a lab's directory. A Unix socket's path ends at 107 bytes, and PostgreSQL's
/// below it needs `/a/pg/.s.PGSQL.29999`.
const DIR_MAX_LEN: usize = 80;

/// A directory cannot hold a lab, or holds none.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The path is too long for the sockets below it.
    #[error("{} is too long for the Unix sockets below it: choose a directory of at most {DIR_MAX_LEN} bytes", dir.display())]
    TooLong {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something else in the directory.
    #[error("{} holds files, but no lab: choose an empty or a new directory", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no lab.
    #[error("there is no lab in {}: start one with `baton lab up --dir {}`", dir.display(), dir.display())]
    None {
        /// The directory.
        dir: PathBuf,
    },
    /// Its record is damaged or of another version of Baton.
    #[error("{} is no record of a lab that this version understands", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file operation failed.
    #[error("{what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No PostgreSQL was found.
    #[error("no PostgreSQL from 14 on below /usr/lib/postgresql: install the package postgresql")]
    NoPostgres,
    /// PostgreSQL's operating system user is missing.
    #[error(
        "the user `postgres`, who is to run PostgreSQL, does not exist: install the package postgresql"
    )]
    NoUser,
}

/// A lab's directory and its record.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The directory, absolute, without symbolic links.
    pub dir: PathBuf,
    /// What is remembered.
    pub record: Record,
}

/// What a lab remembers: `lab.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The target's port.
    pub target_port: u16,
    /// The namespace's size in bytes.
    pub size: u64,
    /// Whether the target has a volatile write cache.
    pub volatile_cache: bool,
    /// The members, by name.
    pub members: BTreeMap<String, MemberRecord>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its number, 1 to 255.
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

impl Lab {
    /// The lab in `dir`, made if there is none.
    pub fn create(dir: &Path, size: u64, volatile_cache: bool) -> Result<Self, LayoutError> {
        let existing = dir.join("lab.json").exists();
        if !existing {
            if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(LayoutError::Foreign {
                    dir: dir.to_owned(),
                });
            }
            fs::create_dir_all(dir).map_err(failed("make the directory", dir))?;
        }
        let dir = canonical(dir)?;
        let mut lab = match existing {
            true => Self::open(&dir)?,
            false => Self {
                dir,
                record: Record::new(size).map_err(failed("find free ports for", "the lab"))?,
            },
        };
        lab.record.volatile_cache = volatile_cache;
        lab.renew_ports()?;
        lab.make_directories()?;
        lab.save()?;
        Ok(lab)
    }

    /// The lab in `dir`, which must be there.
    pub fn open(dir: &Path) -> Result<Self, LayoutError> {
        let path = dir.join("lab.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LayoutError::None {
                    dir: dir.to_owned(),
                });
            }
            Err(source) => return Err(failed("read", path)(source)),
        };
        let record =
            serde_json::from_str(&text).map_err(|source| LayoutError::Record { path, source })?;
        Ok(Self {
            dir: canonical(dir)?,
            record,
        })
    }

    /// Replaces the record; atomic, so that a reader never sees half of it.
    pub fn save(&self) -> Result<(), LayoutError> {
        let path = self.dir.join("lab.json");
        write_json(&path, &self.record).map_err(failed("write", path))
    }

    /// The file behind the namespace.
    pub fn namespace(&self) -> PathBuf {
        self.dir.join("target/namespace.img")
    }

    /// Where the target keeps reservations through a restart.
    pub fn reservations(&self) -> PathBuf {
        self.dir.join("target/reservations.json")
    }

    /// The target's control socket.
    pub fn target_socket(&self) -> PathBuf {
        self.dir.join("target/control.sock")
    }

    /// The supervisor's control socket.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.dir.join("supervisor.sock")
    }

    /// The processes that the supervisor started, and itself: for `down` after it was killed.
    pub fn processes(&self) -> PathBuf {
        self.dir.join("processes.json")
    }

    /// The directory of the lease file.
    pub fn lease_directory(&self) -> PathBuf {
        self.dir.join("lease")
    }

    /// The paths of one member.
    pub fn member<'a>(&'a self, name: &str) -> Member<'a> {
        Member {
            lab: self,
            dir: self.dir.join(name),
            name: name.to_owned(),
        }
    }

    /// Draws new ports where another process took one in the meantime.
    fn renew_ports(&mut self) -> Result<(), LayoutError> {
        let record = &self.record;
        let members = record
            .members
            .values()
            .flat_map(|m| [m.peer_port, m.link_port, m.postgres_port, m.api_port]);
        let mut used = members.chain([record.target_port]);
        let free = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if used.all(|port| port != 0 && free(port)) {
            return Ok(());
        }
        self.record
            .draw_ports()
            .map_err(failed("find free ports for", &self.dir))
    }

    fn make_directories(&self) -> Result<(), LayoutError> {
        let make =
            |path: PathBuf| fs::create_dir_all(&path).map_err(failed("make the directory", path));
        make(self.dir.join("target"))?;
        make(self.lease_directory())?;
        for name in MEMBERS {
            let member = self.member(name);
            for path in [
                member.mount_point(),
                member.bridge(),
                member.runtime(),
                member.postgres_sockets(),
            ] {
                make(path)?;
            }
            let postgres = postgres_user()?;
            let sockets = member.postgres_sockets();
            chown(&sockets, Some(postgres.0), Some(postgres.1))
                .map_err(failed("give to `postgres`", sockets))?;
            member.reach_lease(true)?;
        }
        let secret = self.dir.join("secret");
        if !secret.exists() {
            let text = format!("{}\n", Uuid::new_v4().simple());
            fs::write(&secret, text).map_err(failed("write", &secret))?;
        }
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))
            .map_err(failed("protect", &secret))
    }
}

impl Record {
    fn new(size: u64) -> io::Result<Self> {
        let member = |(name, number): (&str, u8)| {
            let record = MemberRecord {
                number,
                host_id: Uuid::new_v4(),
                peer_port: 0,
                link_port: 0,
                postgres_port: 0,
                api_port: 0,
            };
            (name.to_owned(), record)
        };
        let members = MEMBERS.into_iter().zip(1..).map(member).collect();
        let mut record = Self {
            target_port: 0,
            size,
            volatile_cache: false,
            members,
        };
        record.draw_ports()?;
        Ok(record)
    }

    fn draw_ports(&mut self) -> io::Result<()> {
        let ports: [u16; 1 + PORTS * MEMBERS.len()] = ports::free()?;
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

/// The paths of one member.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    lab: &'a Lab,
    /// Everything of this member.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
}

impl Member<'_> {
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

    /// The lease file, through the member's own symbolic link.
    pub fn lease(&self) -> PathBuf {
        self.dir.join("lease/lease.json")
    }

    /// Its host's NVMe Qualified Name.
    pub fn host_nqn(&self) -> String {
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", self.record().host_id)
    }

    /// Its record.
    pub fn record(&self) -> &MemberRecord {
        &self.lab.record.members[&self.name]
    }

    /// Where clients reach its PostgreSQL.
    pub fn postgres(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.record().postgres_port).into()
    }

    /// Where its HTTP API is.
    pub fn api(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.record().api_port).into()
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

/// User and group of PostgreSQL's operating system user.
pub fn postgres_user() -> Result<(u32, u32), LayoutError> {
    let user = nix::unistd::User::from_name("postgres").ok().flatten();
    let user = user.ok_or(LayoutError::NoUser)?;
    Ok((user.uid.as_raw(), user.gid.as_raw()))
}

/// The programs of the newest PostgreSQL from 14 on, where Debian and Ubuntu put them.
pub fn postgres_bin() -> Result<PathBuf, LayoutError> {
    let root = Path::new("/usr/lib/postgresql");
    let version =
        |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    let versions = fs::read_dir(root)
        .map_err(|_| LayoutError::NoPostgres)?
        .filter_map(version);
    let bin = |version: u32| root.join(version.to_string()).join("bin");
    let newest = versions
        .filter(|v| *v >= 14 && bin(*v).join("postgres").exists())
        .max();
    newest.map(bin).ok_or(LayoutError::NoPostgres)
}

/// Writes a JSON file under another name first, so that a reader never sees half of it.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let next = path.with_extension("next");
    fs::write(
        &next,
        serde_json::to_vec_pretty(value).map_err(io::Error::other)?,
    )?;
    fs::rename(next, path)
}

fn canonical(dir: &Path) -> Result<PathBuf, LayoutError> {
    let dir = dir.canonicalize().map_err(failed("find", dir))?;
    match dir.as_os_str().len() > DIR_MAX_LEN {
        true => Err(LayoutError::TooLong { dir }),
        false => Ok(dir),
    }
}

fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> LayoutError {
    let path = path.into();
    move |source| LayoutError::Io { what, path, source }
}
