//! From where a replica receives, and what PostgreSQL of a cluster with several sites is configured by.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Endpoint;

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
