//! Where a lab keeps what, and what it remembers between `up` and `up`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::record::Record;
use super::site::{Member, Site};

/// The namespace's size in bytes if nothing else is asked for.
pub const DEFAULT_SIZE: u64 = 2 << 30;

/// The names of a lab's sites, if it has several.
pub const SITES: [&str; 2] = ["a", "b"];

/// The longest path of a lab's directory. A Unix socket's path ends at 107 bytes, and PostgreSQL's
/// below it needs `/a1/pg/.s.PGSQL.29999`.
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
    /// The lab has another number of sites than was asked for.
    #[error("the lab in {} has {has} {}: choose another directory, or leave out --sites", dir.display(), if *has == 1 { "site" } else { "sites" })]
    Sites {
        /// The directory.
        dir: PathBuf,
        /// How many it has.
        has: u8,
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

/// What a lab is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The size in bytes of each site's volume, if it is made now.
    pub size: u64,
    /// Whether the targets have a volatile write cache.
    pub volatile_cache: bool,
    /// How many sites, 1 or 2; none for as many as the lab has, and 1 if it is made now.
    pub sites: Option<u8>,
    /// With several sites, how much WAL a replication slot may keep, if not the default
    /// (`replication.slot_wal_max`).
    pub slot_wal_max: Option<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            size: DEFAULT_SIZE,
            volatile_cache: false,
            sites: None,
            slot_wal_max: None,
        }
    }
}

impl Lab {
    /// The lab in `dir`, made if there is none.
    pub fn create(dir: &Path, wanted: &Wanted) -> Result<Self, LayoutError> {
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
                record: Record::new(wanted)
                    .map_err(failed("find free ports and addresses for", "the lab"))?,
            },
        };
        let has = if lab.record.wide.is_some() { 2 } else { 1 };
        if wanted.sites.is_some_and(|sites| sites != has) {
            return Err(LayoutError::Sites { dir: lab.dir, has });
        }
        lab.record.volatile_cache = wanted.volatile_cache;
        if let Some(wide) = &mut lab.record.wide {
            wide.slot_wal_max.clone_from(&wanted.slot_wal_max);
        }
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

    /// Its sites; the only one of most labs has no name.
    pub fn sites(&self) -> Vec<Site<'_>> {
        match self.record.wide {
            None => vec![Site::new(self, None)],
            Some(_) => SITES.map(|name| Site::new(self, Some(name))).to_vec(),
        }
    }

    /// The site of this name, the only one if none is given.
    pub fn site(&self, name: Option<&str>) -> Option<Site<'_>> {
        self.sites().into_iter().find(|site| site.name == name)
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
        Member::new(self, name)
    }

    /// Draws new ports, or another network, where somebody else took one in the meantime.
    fn renew_ports(&mut self) -> Result<(), LayoutError> {
        let failed = failed("find free ports and addresses for", &self.dir);
        if let Some(wide) = &mut self.record.wide {
            // nobody else's ports lie in the sites' own networks
            return wide.renew(&self.dir).map_err(failed);
        }
        let free = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if self.record.ports().all(|port| port != 0 && free(port)) {
            return Ok(());
        }
        self.record.draw_ports().map_err(failed)
    }

    fn make_directories(&self) -> Result<(), LayoutError> {
        let make =
            |path: PathBuf| fs::create_dir_all(&path).map_err(failed("make the directory", path));
        make(self.lease_directory())?;
        for site in self.sites() {
            make(site.target())?;
        }
        for name in self.record.members.keys() {
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
        make_secret(&self.secret())?;
        make_secret(&self.replication_password())
    }

    /// What the members of a site prove to each other who they are by.
    pub fn secret(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// The password by which a replica connects to the primary.
    pub fn replication_password(&self) -> PathBuf {
        self.dir.join("replication-password")
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

/// A random secret that nobody else may read, made if it is not there.
fn make_secret(path: &Path) -> Result<(), LayoutError> {
    if !path.exists() {
        let text = format!("{}\n", Uuid::new_v4().simple());
        fs::write(path, text).map_err(failed("write", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect", path))
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

pub(super) fn failed(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> LayoutError {
    let path = path.into();
    move |source| LayoutError::Io { what, path, source }
}
