//! How a replica's data directory came to be, by the label that PostgreSQL itself keeps of it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::sql;
use crate::drill::stage_error::StageError;

/// How long the question may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// The label of the backup or of the rewind from which a data directory was recovered; empty where it
/// was made by `initdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label(String);

/// How a former primary came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By `pg_rewind`.
    Rewound,
    /// By a new base backup.
    Copied,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rewound => "by pg_rewind",
            Self::Copied => "by a new base backup",
        })
    }
}

impl Label {
    /// That of the PostgreSQL at this address.
    pub(super) async fn of(address: SocketAddr) -> Result<Self, StageError> {
        let sql = "SELECT pg_read_file('backup_label.old', 0, 8192, true)";
        sql::value(address, sql, ASK_WITHIN).await.map(Self)
    }

    /// What is wrong if the data directory was to come to be in this way since `before`, in words.
    pub(super) fn wrong(&self, way: Way, before: &Self) -> Option<String> {
        let method = match way {
            Way::Rewound => "pg_rewind",
            Way::Copied => "streamed",
        };
        let line = format!("BACKUP METHOD: {method}");
        let right = self != before && self.0.lines().any(|found| found == line);
        (!right).then(|| {
            format!(
                "the replica was to come back {way}, but its label says {:?}",
                self.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_told_from_the_other_and_from_none() {
        let label = |text: &str| Label(text.to_owned());
        let none = label("");
        let rewound =
            label("START WAL LOCATION: 0/5\nBACKUP METHOD: pg_rewind\nBACKUP FROM: standby\n");
        let copied = label("START WAL LOCATION: 0/7\nBACKUP METHOD: streamed\n");
        assert_eq!(rewound.wrong(Way::Rewound, &none), None);
        assert_eq!(copied.wrong(Way::Copied, &rewound), None);
        assert!(rewound.wrong(Way::Copied, &none).is_some());
        assert!(
            copied.wrong(Way::Copied, &copied).is_some(),
            "it is the one of long ago"
        );
        assert!(none.wrong(Way::Rewound, &none).is_some());
    }
}
