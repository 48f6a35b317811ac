//! From where a replica receives, and what PostgreSQL of a cluster with several sites is configured by.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Endpoint;

/// Longest time, in seconds, that one host is given to answer and to authenticate. A round trip between
/// sites may take seconds when the network is ill, and a connection takes several.
const CONNECT_TIMEOUT: u32 = 10;

/// A connection whose other end is gone without a word is given up after about eight seconds, in
/// milliseconds and seconds: the site's next member is at another address.
const LIVENESS: &str =
    "keepalives=1 keepalives_idle=2 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=8000";

/// The primary of another site, as a replica reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Where PostgreSQL of that site may be: one entry per member, tried in this order.
    pub hosts: Vec<Endpoint>,
    /// The role for replication.
    pub user: String,
    /// The file whose contents are the role's password; a newline at its end does not count.
    pub password_file: PathBuf,
    /// As libpq: `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub sslmode: String,
    /// The certificates in PEM by which the server's is verified.
    pub root_certificate: Option<PathBuf>,
    /// How the primary knows this site's connection, see [`name_of`](super::name_of).
    pub application_name: String,
    /// This site's slot at the primary, see [`name_of`](super::name_of).
    pub slot: String,
}

/// What PostgreSQL of every site of a cluster with several is configured by, whatever its role: a replica
/// becomes a primary without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// The role as which other sites connect.
    pub user: String,
    /// Whether they must use TLS: connections without are refused.
    pub require_tls: bool,
    /// How much write-ahead log a slot may keep from being removed (`max_slot_wal_keep_size`, such as
    /// `4GB`; `-1` for any amount). A replica that is away for longer must be made anew.
    pub slot_wal_max: String,
}

/// How PostgreSQL runs on this volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// There is no other site.
    Alone,
    /// It accepts writes.
    Primary {
        /// `synchronous_standby_names`; empty: commits wait for no other site.
        names: String,
        /// What all sites share.
        replication: Replication,
    },
    /// It replays what another site's primary writes.
    Replica {
        /// From where it receives; `None`: from nowhere, it replays what it has.
        receive: Option<Source>,
        /// What all sites share.
        replication: Replication,
    },
}

/// Why a password cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Its file could not be read.
    #[error("reading the password in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is empty, or no single line of text.
    #[error("{} must hold the password as one line of text", path.display())]
    NoLine {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a password from its file; a newline at the end does not count.
///
/// # Errors
/// The file cannot be read, or holds something else than one line.
pub fn read_password(path: &Path) -> Result<String, PasswordError> {
    let text = fs::read_to_string(path).map_err(|source| PasswordError::Read {
        path: path.to_owned(),
        source,
    })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\r', '\0']) {
        return Err(PasswordError::NoLine {
            path: path.to_owned(),
        });
    }
    Ok(line.to_owned())
}

impl Source {
    /// `primary_conninfo`.
    pub(crate) fn conninfo(&self, passfile: &Path) -> String {
        self.connection(passfile, Some(&self.application_name), None)
    }

    /// The connection of a program, which must not be taken for the replica's own.
    pub(crate) fn program_conninfo(&self, passfile: &Path, database: Option<&str>) -> String {
        self.connection(passfile, None, database)
    }

    fn connection(&self, passfile: &Path, name: Option<&str>, database: Option<&str>) -> String {
        let join = |part: fn(&Endpoint) -> String| {
            let parts: Vec<String> = self.hosts.iter().map(part).collect();
            parts.join(",")
        };
        let mut text = String::new();
        let mut set = |key: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{key}={} ", quote(value));
        };
        set("host", &join(|endpoint| endpoint.host().to_owned()));
        set("port", &join(|endpoint| endpoint.port().to_string()));
        set("user", &self.user);
        set("passfile", &passfile.to_string_lossy());
        set("sslmode", &self.sslmode);
        if let Some(path) = &self.root_certificate {
            set("sslrootcert", &path.to_string_lossy());
        }
        if let Some(name) = name {
            set("application_name", name);
        }
        if let Some(database) = database {
            set("dbname", database);
        }
        set("connect_timeout", &CONNECT_TIMEOUT.to_string());
        text.push_str("gssencmode=disable target_session_attrs=read-write ");
        text.push_str(LIVENESS);
        text
    }

    /// The contents of libpq's password file: the role's password at any host.
    pub(crate) fn passfile(&self, password: &str) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        format!("*:*:*:{}:{}\n", escape(&self.user), escape(password))
    }
}

/// A value in a connection string of libpq.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            hosts: vec![
                "10.0.0.1:5432".parse().unwrap(),
                "[fd00::5]:5433".parse().unwrap(),
            ],
            user: r"it's:a\b".to_owned(),
            password_file: PathBuf::new(),
            sslmode: "verify-full".to_owned(),
            root_certificate: Some("/etc/a b.pem".into()),
            application_name: "baton_b".to_owned(),
            slot: "baton_b".to_owned(),
        }
    }

    #[test]
    fn values_stay_within_their_quotes() {
        let text = source().conninfo(Path::new("/run/pass"));
        let begins = r"host='10.0.0.1,fd00::5' port='5432,5433' user='it\'s:a\\b' passfile='/run/pass' sslmode='verify-full' sslrootcert='/etc/a b.pem' application_name='baton_b' ";
        assert!(text.starts_with(begins), "{text}");
        assert_eq!(
            source().passfile(r"x:y\z"),
            "*:*:*:it's\\:a\\\\b:x\\:y\\\\z\n"
        );
    }

    #[test]
    fn a_password_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        for (text, expected) in [
            ("secret\n", Some("secret")),
            ("se cret\r\n", Some("se cret")),
            (" x", Some(" x")),
            ("", None),
            ("\n", None),
            ("a\nb\n", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_password(&path).ok().as_deref(), expected, "{text:?}");
        }
    }
}
