//! Which site runs the primary and which the replica, and who plays what within each.

use crate::control::Status;
use crate::control::zone::{ServingAs, ZoneStatus};
use crate::drill::cast::{Cast, View, describe};

/// How many sites there are.
pub const SITES: usize = 2;

/// Both sites at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneCast {
    /// Which site runs the primary: its place among the lab's sites.
    pub primary: usize,
    /// The cluster's term.
    pub term: u64,
    /// Who plays what at each site.
    pub sites: [Cast; SITES],
}

impl ZoneCast {
    /// The cast, if each site has an active that serves and a standby that is ready, one of them as
    /// primary and the other as its replica, and every commit is confirmed to be on both.
    pub fn of(views: &[Vec<View<'_>>; SITES]) -> Option<Self> {
        let casts = [Cast::of(&views[0])?, Cast::of(&views[1])?];
        let zones: Vec<_> = casts
            .iter()
            .zip(views)
            .map(|(cast, views)| zone_of(cast, views))
            .collect::<Option<_>>()?;
        let is = |wanted: ServingAs| zones.iter().position(|zone| zone.serving_as == wanted);
        let (primary, replica) = (is(ServingAs::Primary)?, is(ServingAs::Replica)?);
        // both know of the same term, so that neither is about to turn round
        let same = zones[primary].term == zones[replica].term;
        let settled = same && promises(zones[primary]) && zones[primary].failover.safe;
        settled.then(|| Self {
            primary,
            term: zones[primary].term,
            sites: casts,
        })
    }

    /// The place of the replica's site.
    pub fn replica(&self) -> usize {
        1 - self.primary
    }
}

/// Whether every commit is confirmed to be on another site, by the record that a member saw.
pub fn promises(zone: &ZoneStatus) -> bool {
    zone.sync
        .as_ref()
        .is_some_and(|sync| sync.need > 0 && sync.confirmed)
}

fn zone_of<'a>(cast: &Cast, views: &'a [View<'_>]) -> Option<&'a ZoneStatus> {
    let (_, status) = views.iter().find(|(name, _)| *name == cast.active)?;
    status.as_ref().ok()?.zone.as_ref()
}

/// Whether a member serves in one of the sites' roles.
pub fn serves_as(status: &Status, wanted: ServingAs) -> bool {
    status
        .zone
        .as_ref()
        .is_some_and(|zone| zone.serving_as == wanted)
}

/// All members' words, for a person.
pub fn describe_all(views: &[Vec<View<'_>>; SITES]) -> String {
    let members = views.iter().flatten();
    let words = members.map(|(name, status)| {
        let zone = status.as_ref().ok().and_then(|status| status.zone.as_ref());
        let zone = zone.map(|zone| {
            let ZoneStatus {
                serving_as,
                term,
                failover,
                ..
            } = zone;
            format!(
                " ({serving_as:?} in term {term}, failover: {})",
                failover.why
            )
        });
        describe(name, status) + &zone.unwrap_or_default()
    });
    words.collect::<Vec<_>>().join("; ")
}
