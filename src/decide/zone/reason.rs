//! Why a decision between sites is what it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::record::{Degraded, Position, SiteName};

/// Why a site's active waits, acts or holds back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZoneReason {
    /// The cluster's record cannot be read: nothing is started without it.
    RecordUnknown,
    /// The record was there and is gone.
    RecordLost,
    /// The record is an older copy of what it was.
    RecordOlder,
    /// There is no record yet: the first site makes the database.
    WaitingForFirst(SiteName),
    /// The record is being written.
    Recording,
    /// The record names another database system.
    OtherSystem,
    /// Bringing the data directory in line with the record.
    Aligning,
    /// Making a new copy of the primary's database.
    Seeding(SiteName),
    /// Starting, or changing how PostgreSQL runs.
    Changing,
    /// The primary, and its promise stands.
    InSync,
    /// The primary; commits wait until enough sites have caught up.
    AwaitingSync,
    /// The primary; nothing is promised.
    NotInSync(Degraded),
    /// Another site has been promoted.
    Superseded {
        /// Which.
        by: SiteName,
        /// In which term.
        term: u64,
    },
    /// A replica that follows.
    Following(SiteName),
    /// A replica that does not receive at the moment.
    NotReceiving(SiteName),
    /// The primary's site is silent, and this one must not take over.
    NotSafe(Unsafe),
    /// The primary's site is silent; this one has stopped to follow it and waits.
    CutOff,
    /// Becoming the primary.
    Promoting,
    /// The primary moves to another site.
    Moving(SiteName),
}

/// Why a site must not be promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unsafe {
    /// The primary's site lives.
    PrimaryLives,
    /// The record cannot be read.
    RecordUnknown,
    /// The record is gone, or an older copy of what it was.
    RecordLost,
    /// Nothing was promised.
    NotInSync(Option<Degraded>),
    /// The primary has begun anew, and what it showed then is not confirmed.
    Unconfirmed,
    /// This site is not among those that commits wait for.
    NotSynchronous,
    /// This site's configuration says so.
    Never,
    /// That site's configuration says so.
    NotOffered(SiteName),
    /// Automatic failover is paused.
    Paused,
    /// Other sites follow the old primary still: it may yet acknowledge.
    OthersFollow(Vec<SiteName>),
    /// Another site has received more.
    Behind {
        /// Which.
        site: SiteName,
        /// How far it is.
        at: Position,
    },
    /// The copy here was restored, and has not yet received all that the one before had acknowledged.
    Restored {
        /// It must have received this.
        floor: Position,
    },
    /// Nobody has received anything of this term.
    NoPosition,
    /// Its replica does not follow, or does not keep up.
    NotFollowing(SiteName),
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrimaryLives => f.write_str("the primary's site shows signs of life"),
            Self::RecordUnknown => f.write_str("the cluster's record cannot be read"),
            Self::RecordLost => {
                f.write_str("the cluster's record is gone, or an older copy of what it was")
            }
            Self::NotInSync(Some(why)) => write!(
                f,
                "acknowledged writes may be missing here: synchronous replication is off ({why})"
            ),
            Self::NotInSync(None) => {
                f.write_str("acknowledged writes may be missing here: nothing was promised")
            }
            Self::Unconfirmed => f.write_str(
                "the primary began anew, and it is not confirmed that what it showed then is here",
            ),
            Self::NotSynchronous => {
                f.write_str("this site is not among those that commits wait for")
            }
            Self::Never => f.write_str("this site is configured with failover = \"never\""),
            Self::NotOffered(site) => {
                write!(f, "site {site} is configured with failover = \"never\"")
            }
            Self::Paused => f.write_str("automatic failover is paused"),
            Self::OthersFollow(sites) => {
                let names: Vec<_> = sites.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "the old primary may still acknowledge writes with {}",
                    names.join(", ")
                )
            }
            Self::Behind { site, at } => write!(f, "site {site} has received more, up to {at}"),
            Self::NotFollowing(site) => {
                write!(f, "site {site} does not follow, or does not keep up")
            }
            Self::Restored { floor } => write!(
                f,
                "this copy was made anew and has not yet received everything that the former copy had \
                 acknowledged, up to {floor}"
            ),
            Self::NoPosition => f.write_str("no site has received anything of this term"),
        }
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet => f.write_str("no replica has caught up yet"),
            Self::Behind(sites) => {
                let names: Vec<_> = sites.iter().map(ToString::to_string).collect();
                write!(f, "{} did not keep up", names.join(", "))
            }
            Self::Off => f.write_str("it is off by configuration"),
        }
    }
}

impl fmt::Display for ZoneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecordUnknown => f.write_str(
                "the cluster's record cannot be read: whether another site was promoted is unknown",
            ),
            Self::RecordLost => f.write_str(
                "the cluster's record is gone, so nobody can tell which site leads: bring the lease store \
                 back, or say which with failover --site --allow-data-loss",
            ),
            Self::RecordOlder => f.write_str(
                "the cluster's record is an older copy of what it was, and nothing follows from it: restore \
                 the newest, or say which site leads with failover --site --allow-data-loss",
            ),
            Self::WaitingForFirst(site) => {
                write!(f, "waiting for site {site} to make the database")
            }
            Self::Recording => f.write_str("writing the cluster's record"),
            Self::OtherSystem => f.write_str(
                "this volume holds another database system than the cluster's record names: \
                 attach the right volume, or empty it",
            ),
            Self::Aligning => f.write_str("bringing the data directory in line with the primary"),
            Self::Seeding(site) => write!(f, "copying the database from site {site}"),
            Self::Changing => f.write_str("changing how PostgreSQL runs"),
            Self::InSync => f.write_str("serving; another site has every acknowledged write"),
            Self::AwaitingSync => f.write_str("serving; commits wait for another site"),
            Self::NotInSync(why) => write!(f, "serving without another site: {why}"),
            Self::Superseded { by, term } => {
                write!(f, "site {by} was promoted (term {term})")
            }
            Self::Following(site) => write!(f, "following site {site}"),
            Self::NotReceiving(site) => write!(f, "site {site} is not reached"),
            Self::NotSafe(why) => write!(f, "no failover to this site: {why}"),
            Self::CutOff => f.write_str("the primary's site is silent; following it no more"),
            Self::Promoting => f.write_str("becoming the primary"),
            Self::Moving(site) => write!(f, "the primary moves to site {site}"),
        }
    }
}
