//! Whether a cluster's specification can be acted on: the condition `Accepted`. Pure. All problems are
//! named at once, each with what to do; while there is one, nothing is made or changed.
//!
//! Rules within the object are checked by the API server too (CEL); they are repeated here because an
//! object may be older than the rules.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::objects;
use crate::cluster::{BatonCluster, Site, names};

mod sites;

/// The longest name of a cluster: with a member's name it must fit a host name.
const NAME_MAX: usize = 40;

/// What beside the specification decides whether it can be acted on.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The claim of each site's volume, by name; `None` where there is none.
    pub claims: BTreeMap<String, Option<PersistentVolumeClaim>>,
    /// The keys of each Secret that the specification names; `None` where there is no such Secret.
    pub secrets: BTreeMap<String, Option<BTreeSet<String>>>,
    /// The cluster that named a claim before, by claim.
    pub rivals: BTreeMap<String, String>,
    /// The numbers that pods of members have, by member.
    pub numbers: BTreeMap<String, u8>,
    /// The number of the member that owns the volume by the site's Lease, by site.
    pub owners: BTreeMap<String, u8>,
    /// Objects with names that the cluster needs and that belong to somebody else.
    pub taken: Vec<String>,
    /// What is wrong with the settings made from the specification, one a line.
    pub settings: Vec<String>,
}

/// One reason why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The name does not fit into host names.
    #[error(
        "the name {name:?} does not fit into host names: choose at most {NAME_MAX} of a-z, 0-9 and inner -"
    )]
    InvalidName {
        /// The cluster's name.
        name: String,
    },
    /// Nobody could take over.
    #[error("there are {count} members, and nobody could take over: name at least two in {place}")]
    TooFewMembers {
        /// Where they are named.
        place: String,
        /// How many there are.
        count: usize,
    },
    /// Members share a name or a number.
    #[error("members share {what}: give each its own")]
    DuplicateMember {
        /// What they share.
        what: String,
    },
    /// One node would take two members with it.
    #[error(
        "members {members} are on the node {node}, which would take both with it: choose another node for one of them"
    )]
    MembersOnOneNode {
        /// The node.
        node: String,
        /// Their names.
        members: String,
    },
    /// The number is part of the member's key on the volume.
    #[error(
        "member {member} has the number {was} and shall have {now}: set its number back to {was}"
    )]
    NumberChanged {
        /// Which.
        member: String,
        /// What its pod has.
        was: u8,
        /// What the specification says.
        now: u8,
    },
    /// The volume's owner would no longer be a member.
    #[error(
        "the member with number {number} owns the volume: hand over to another (kubectl baton switchover), then remove it from {place}"
    )]
    OwnerRemoved {
        /// Where it was named.
        place: String,
        /// Its number.
        number: u8,
    },
    /// No volume, or two.
    #[error("set either {place}.claimName or {place}.template")]
    VolumeSource {
        /// Where it is named.
        place: String,
    },
    /// Half of where to connect to.
    #[error(
        "{place}.address and {place}.subsystem go together: name both, or neither where the storage driver attaches the volume"
    )]
    TargetIncomplete {
        /// Where they are named.
        place: String,
    },
    /// One site and several at once, or none.
    #[error("set either spec.volume and spec.members, or spec.sites with at least two sites")]
    SiteForm,
    /// The name is that of the record of all sites.
    #[error(
        "no site may be called {name}: its Lease would be that of all sites, choose another name"
    )]
    SiteName {
        /// The name.
        name: String,
    },
    /// Sites with one name would have one Lease.
    #[error("two sites are called {name}: give each a name of its own")]
    DuplicateSite {
        /// The name.
        name: String,
    },
    /// A site's loss would take both volumes, and each would fence the other.
    #[error(
        "sites {sites} share the PersistentVolumeClaim {claim}: each site needs a volume of its own"
    )]
    SitesShareClaim {
        /// Their names.
        sites: String,
        /// The claim.
        claim: String,
    },
    /// Nobody could make the database.
    #[error(
        "spec.replication.firstPrimary is {name}, which is no site that may run the primary: name one of {candidates}"
    )]
    UnknownFirstPrimary {
        /// The name.
        name: String,
        /// The sites that may.
        candidates: String,
    },
    /// No site may run the primary.
    #[error("no site may run the primary: set failover to allowed for at least one of spec.sites")]
    NoCandidate,
    /// Commits would wait for ever.
    #[error(
        "spec.replication.quorum is {quorum}, but besides the primary's only {others} sites may take over: allow more of spec.sites, lower it, or set synchronous to off"
    )]
    QuorumTooLarge {
        /// For how many commits would wait.
        quorum: u8,
        /// How many there are.
        others: usize,
    },
    /// There is no such claim.
    #[error(
        "there is no PersistentVolumeClaim {name}: make it, with accessModes ReadWriteMany and volumeMode Block"
    )]
    ClaimMissing {
        /// Its name.
        name: String,
    },
    /// Only one node could attach the volume.
    #[error(
        "the PersistentVolumeClaim {name} has accessModes {modes}: the volume is attached to all members' nodes at once, make one with ReadWriteMany"
    )]
    ClaimNotShared {
        /// Its name.
        name: String,
        /// What it has.
        modes: String,
    },
    /// A filesystem is mounted by every node: two at once destroy it.
    #[error(
        "the PersistentVolumeClaim {name} has volumeMode {mode}: Baton mounts the volume itself, make one with volumeMode Block"
    )]
    ClaimNotBlock {
        /// Its name.
        name: String,
        /// What it has.
        mode: String,
    },
    /// Its volume is gone.
    #[error("the PersistentVolumeClaim {name} has lost its volume: restore the PersistentVolume")]
    ClaimLost {
        /// Its name.
        name: String,
    },
    /// Another cluster has the volume.
    #[error(
        "the PersistentVolumeClaim {name} is that of cluster {rival}: give this cluster a volume of its own"
    )]
    ClaimInUse {
        /// Its name.
        name: String,
        /// The cluster that named it first.
        rival: String,
    },
    /// There is no such Secret.
    #[error("there is no Secret {name}, which {setting} names: make it")]
    SecretMissing {
        /// Its name.
        name: String,
        /// Where it is named.
        setting: &'static str,
    },
    /// The Secret has no such key.
    #[error("the Secret {name}, which {setting} names, has no key {key}: add it")]
    SecretIncomplete {
        /// Its name.
        name: String,
        /// Where it is named.
        setting: &'static str,
        /// The key.
        key: String,
    },
    /// The token could be overheard.
    #[error("spec.api.tokenSecret needs spec.api.tlsSecret, or the token could be overheard")]
    TokenWithoutTls,
    /// An object of that name is somebody else's.
    #[error("{object} belongs to somebody else: remove it, or choose another name for the cluster")]
    NameTaken {
        /// Kind and name.
        object: String,
    },
    /// Pods would be killed in the midst of a handover.
    #[error(
        "spec.terminationGracePeriodSeconds is {grace}, and a handover with the bounds of its steps in spec.timings \
         (checkpoint, withdraw, stop_fast, stop_immediate, kill, unmount) needs {needed}: raise it, or shorten those"
    )]
    HandoverTooLong {
        /// The grace period, in seconds.
        grace: i64,
        /// The least that would do, in seconds.
        needed: u64,
    },
    /// The members would refuse these settings.
    #[error("{text}")]
    InvalidSettings {
        /// What is wrong, by the member's own words.
        text: String,
    },
}

impl Problem {
    /// The reason in the condition and the Event.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidName",
            Self::TooFewMembers { .. } => "TooFewMembers",
            Self::DuplicateMember { .. } => "DuplicateMember",
            Self::MembersOnOneNode { .. } => "MembersOnOneNode",
            Self::NumberChanged { .. } => "NumberChanged",
            Self::OwnerRemoved { .. } => "OwnerRemoved",
            Self::VolumeSource { .. } => "VolumeSource",
            Self::TargetIncomplete { .. } => "TargetIncomplete",
            Self::SiteForm => "SiteForm",
            Self::SiteName { .. } => "SiteName",
            Self::DuplicateSite { .. } => "DuplicateSite",
            Self::SitesShareClaim { .. } => "SitesShareClaim",
            Self::UnknownFirstPrimary { .. } => "UnknownFirstPrimary",
            Self::NoCandidate => "NoCandidate",
            Self::QuorumTooLarge { .. } => "QuorumTooLarge",
            Self::ClaimMissing { .. } => "ClaimMissing",
            Self::ClaimNotShared { .. } => "ClaimNotShared",
            Self::ClaimNotBlock { .. } => "ClaimNotBlock",
            Self::ClaimLost { .. } => "ClaimLost",
            Self::ClaimInUse { .. } => "ClaimInUse",
            Self::SecretMissing { .. } => "SecretMissing",
            Self::SecretIncomplete { .. } => "SecretIncomplete",
            Self::TokenWithoutTls => "TokenWithoutTls",
            Self::NameTaken { .. } => "NameTaken",
            Self::HandoverTooLong { .. } => "HandoverTooLong",
            Self::InvalidSettings { .. } => "InvalidSettings",
        }
    }
}

/// All problems of a cluster; none means that it is accepted.
pub fn problems(cluster: &BatonCluster, around: &Surroundings) -> Vec<Problem> {
    let mut found = Vec::new();
    name(cluster, &mut found);
    sites::between(cluster, &mut found);
    let between_sites = found.len();
    for site in cluster.sites() {
        members(&site, around, &mut found);
        volume(&site, &mut found);
        claim(&site, around, &mut found);
    }
    secrets(cluster, around, &mut found);
    let taken = around.taken.iter().cloned();
    found.extend(taken.map(|object| Problem::NameTaken { object }));
    if let Err(short) = objects::shortened(cluster) {
        found.push(Problem::HandoverTooLong {
            grace: cluster.spec.termination_grace_period_seconds,
            needed: short.needed,
        });
    }
    // Members would say the same of what is between sites, in words that are not the specification's.
    let told = cluster.has_several_sites() && between_sites > 0;
    let settings = around.settings.iter().filter(|_| !told).cloned();
    found.extend(settings.map(|text| Problem::InvalidSettings { text }));
    found
}

fn name(cluster: &BatonCluster, found: &mut Vec<Problem>) {
    let name = cluster.cluster();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    let fits = name.len() <= NAME_MAX && name.chars().all(allowed) && !name.ends_with('-');
    if !(fits && begins) {
        let name = name.to_owned();
        found.push(Problem::InvalidName { name });
    }
}

fn members(site: &Site<'_>, around: &Surroundings, found: &mut Vec<Problem>) {
    let members = site.members;
    if members.len() < 2 {
        let (count, place) = (members.len(), site.place("members"));
        found.push(Problem::TooFewMembers { place, count });
    }
    let mut nodes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for member in members {
        if let Some(node) = &member.node {
            nodes.entry(node).or_default().push(&member.name);
        }
    }
    for (node, on_it) in nodes.into_iter().filter(|(_, on_it)| on_it.len() > 1) {
        found.push(Problem::MembersOnOneNode {
            node: node.to_owned(),
            members: on_it.join(" and "),
        });
    }
    numbers(site, around, found);
}

fn numbers(site: &Site<'_>, around: &Surroundings, found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (number, member) in site.numbered() {
        let now = number.number();
        if !seen.insert(now) {
            let what = format!("the number {now}");
            found.push(Problem::DuplicateMember { what });
        }
        match around.numbers.get(&member.name) {
            Some(&was) if was != now => found.push(Problem::NumberChanged {
                member: member.name.clone(),
                was,
                now,
            }),
            Some(_) | None => {}
        }
    }
    let owner = around.owners.get(site.name).copied();
    if let Some(number) = owner.filter(|owner| !seen.contains(owner)) {
        let place = site.place("members");
        found.push(Problem::OwnerRemoved { place, number });
    }
}

fn volume(site: &Site<'_>, found: &mut Vec<Problem>) {
    let volume = site.volume;
    let place = || site.place("volume");
    if volume.claim_name.is_some() == volume.template.is_some() {
        found.push(Problem::VolumeSource { place: place() });
    }
    if volume.address.is_some() != volume.subsystem.is_some() {
        found.push(Problem::TargetIncomplete { place: place() });
    }
}

fn claim(site: &Site<'_>, around: &Surroundings, found: &mut Vec<Problem>) {
    let name = site.claim();
    if let Some(rival) = around.rivals.get(&name) {
        found.push(Problem::ClaimInUse {
            name: name.clone(),
            rival: rival.clone(),
        });
    }
    let Some(Some(claim)) = around.claims.get(&name) else {
        // One that is made from the template is not there yet.
        if site.volume.claim_name.is_some() {
            found.push(Problem::ClaimMissing { name });
        }
        return;
    };
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    if !modes.iter().any(|mode| mode == "ReadWriteMany") {
        let modes = if modes.is_empty() {
            "none".to_owned()
        } else {
            modes.join(", ")
        };
        let name = name.clone();
        found.push(Problem::ClaimNotShared { name, modes });
    }
    let mode = spec.volume_mode.unwrap_or_else(|| "Filesystem".to_owned());
    if mode != "Block" {
        let name = name.clone();
        found.push(Problem::ClaimNotBlock { name, mode });
    }
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if phase == Some("Lost") {
        found.push(Problem::ClaimLost { name });
    }
}

/// The Secrets that a specification names: setting, Secret, key.
pub fn named_secrets(cluster: &BatonCluster) -> Vec<(&'static str, String, String)> {
    let spec = &cluster.spec;
    let mut named = Vec::new();
    if let Some(pooler) = &spec.pooler {
        let secret = &pooler.password_secret;
        let setting = "spec.pooler.passwordSecret";
        named.push((setting, secret.name.clone(), secret.key.clone()));
    }
    if let Some(secret) = cluster.replication().password_secret {
        let setting = "spec.replication.passwordSecret";
        named.push((setting, secret.name, secret.key));
    }
    let api = spec.api.as_ref();
    if let Some(secret) = api.and_then(|api| api.token_secret.as_ref()) {
        let setting = "spec.api.tokenSecret";
        named.push((setting, secret.name.clone(), secret.key.clone()));
    }
    if let Some(secret) = api.and_then(|api| api.tls_secret.as_ref()) {
        for key in ["tls.crt", "tls.key"] {
            named.push(("spec.api.tlsSecret", secret.clone(), key.to_owned()));
        }
    }
    named
}

fn secrets(cluster: &BatonCluster, around: &Surroundings, found: &mut Vec<Problem>) {
    for (setting, name, key) in named_secrets(cluster) {
        match around.secrets.get(&name) {
            None | Some(None) => {
                let problem = Problem::SecretMissing { name, setting };
                if !found.contains(&problem) {
                    found.push(problem);
                }
            }
            Some(Some(keys)) if !keys.contains(&key) => {
                found.push(Problem::SecretIncomplete { name, setting, key });
            }
            Some(Some(_)) => {}
        }
    }
    // These are made where they are missing; one without its key is somebody's mistake.
    let name = cluster.cluster();
    let mut ours = vec![(names::peer_secret(name), names::PEER_SECRET_KEY)];
    if cluster.has_several_sites() && cluster.replication().password_secret.is_none() {
        let replication = names::replication_secret(name);
        ours.push((replication, names::REPLICATION_SECRET_KEY));
    }
    for (name, key) in ours {
        if let Some(Some(keys)) = around.secrets.get(&name)
            && !keys.contains(key)
        {
            found.push(Problem::SecretIncomplete {
                name,
                setting: "the cluster",
                key: key.to_owned(),
            });
        }
    }
    let api = cluster.spec.api.as_ref();
    if api.is_some_and(|api| api.token_secret.is_some() && api.tls_secret.is_none()) {
        found.push(Problem::TokenWithoutTls);
    }
}
