//! What is wrong between several sites: how they are written, their names and volumes, and whether enough of
//! them may run the primary. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::Problem;
use crate::cluster::{BatonCluster, Site, SiteFailover, SynchronousMode, names};

/// What is wrong between sites, and with the names of all members.
pub(super) fn between(cluster: &BatonCluster, found: &mut Vec<Problem>) {
    let spec = &cluster.spec;
    let one = spec.volume.is_some() && !spec.members.is_empty();
    let rest = spec.volume.is_some() || !spec.members.is_empty() || spec.sites.len() < 2;
    let mixed = match cluster.has_several_sites() {
        true => rest,
        false => !one || spec.replication.is_some(),
    };
    if mixed {
        found.push(Problem::SiteForm);
    }
    let sites = cluster.sites();
    let mut seen = BTreeSet::new();
    for member in sites.iter().flat_map(|site| site.members) {
        if !seen.insert(&member.name) {
            let what = format!("the name {}", member.name);
            found.push(Problem::DuplicateMember { what });
        }
    }
    if cluster.has_several_sites() {
        places(&sites, found);
        candidates(cluster, found);
    }
}

/// Each site has a name and a volume of its own.
fn places(sites: &[Site<'_>], found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    let mut claims: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for site in sites {
        let name = site.name.to_owned();
        if name == names::EVERY_SITE {
            found.push(Problem::SiteName { name });
        } else if !seen.insert(site.name) {
            found.push(Problem::DuplicateSite { name });
        }
        claims.entry(site.claim()).or_default().push(site.name);
    }
    for (claim, on_it) in claims.into_iter().filter(|(_, on_it)| on_it.len() > 1) {
        let sites = on_it.join(" and ");
        found.push(Problem::SitesShareClaim { sites, claim });
    }
}

/// Whether there are enough sites that may run the primary.
fn candidates(cluster: &BatonCluster, found: &mut Vec<Problem>) {
    let wanted = cluster.replication();
    let sites = cluster.spec.sites.iter();
    let candidates: Vec<_> = sites
        .filter(|site| site.failover == SiteFailover::Allowed)
        .map(|site| site.name.as_str())
        .collect();
    match cluster.first_primary() {
        None => found.push(Problem::NoCandidate),
        Some(name) if !candidates.contains(&name.as_str()) => {
            found.push(Problem::UnknownFirstPrimary {
                name,
                candidates: candidates.join(", "),
            });
        }
        Some(_) => {}
    }
    let others = candidates.len().saturating_sub(1);
    if wanted.synchronous != SynchronousMode::Off && usize::from(wanted.quorum) > others {
        let quorum = wanted.quorum;
        found.push(Problem::QuorumTooLarge { quorum, others });
    }
}
