//! Whether a cluster's specification can be acted on: the condition `Accepted`. Pure. All problems are
//! named at once, each with what to do; while there is one, nothing is made or changed.
//!
//! Rules within the object are checked by the API server too (CEL); they are repeated here because an
//! object may be older than the rules.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::cluster::{BatonCluster, names};

/// The longest name of a cluster: with a member's name it must fit a host name.
const NAME_MAX: usize = 40;

/// What beside the specification decides whether it can be acted on.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The claim of the volume; `None` where there is none.
    pub claim: Option<PersistentVolumeClaim>,
    /// The keys of each Secret that the specification names; `None` where there is no such Secret.
    pub secrets: BTreeMap<String, Option<BTreeSet<String>>>,
    /// Clusters that named the same claim before.
    pub rivals: Vec<String>,
    /// The numbers that pods of members have, by member.
    pub numbers: BTreeMap<String, u8>,
    /// The number of the member that owns the volume by the site's Lease.
    pub owner: Option<u8>,
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
    #[error(
        "there are {count} members, and nobody could take over: name at least two in spec.members"
    )]
    TooFewMembers {
        /// How many there are.
        count: usize,
    },
    /// Members share a name or a number.
    #[error("members share {what}: give each its own in spec.members")]
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
        "member {member} has the number {was} and shall have {now}: set spec.members' number back to {was}"
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
        "the member with number {number} owns the volume: hand over to another (kubectl baton switchover), then remove it from spec.members"
    )]
    OwnerRemoved {
        /// Its number.
        number: u8,
    },
    /// No volume, or two.
    #[error("set either spec.volume.claimName or spec.volume.template")]
    VolumeSource,
    /// Half of where to connect to.
    #[error(
        "spec.volume.address and spec.volume.subsystem go together: name both, or neither where the storage driver attaches the volume"
    )]
    TargetIncomplete,
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
            Self::VolumeSource => "VolumeSource",
            Self::TargetIncomplete => "TargetIncomplete",
            Self::ClaimMissing { .. } => "ClaimMissing",
            Self::ClaimNotShared { .. } => "ClaimNotShared",
            Self::ClaimNotBlock { .. } => "ClaimNotBlock",
            Self::ClaimLost { .. } => "ClaimLost",
            Self::ClaimInUse { .. } => "ClaimInUse",
            Self::SecretMissing { .. } => "SecretMissing",
            Self::SecretIncomplete { .. } => "SecretIncomplete",
            Self::TokenWithoutTls => "TokenWithoutTls",
            Self::NameTaken { .. } => "NameTaken",
            Self::InvalidSettings { .. } => "InvalidSettings",
        }
    }
}

/// All problems of a cluster; none means that it is accepted.
pub fn problems(cluster: &BatonCluster, around: &Surroundings) -> Vec<Problem> {
    let mut found = Vec::new();
    name(cluster, &mut found);
    members(cluster, around, &mut found);
    volume(cluster, &mut found);
    claim(cluster, around, &mut found);
    secrets(cluster, around, &mut found);
    let taken = around.taken.iter().cloned();
    found.extend(taken.map(|object| Problem::NameTaken { object }));
    let settings = around.settings.iter().cloned();
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

fn members(cluster: &BatonCluster, around: &Surroundings, found: &mut Vec<Problem>) {
    let members = &cluster.spec.members;
    if members.len() < 2 {
        let count = members.len();
        found.push(Problem::TooFewMembers { count });
    }
    let mut seen = BTreeSet::new();
    for member in members {
        if !seen.insert(&member.name) {
            let what = format!("the name {}", member.name);
            found.push(Problem::DuplicateMember { what });
        }
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
    numbers(cluster, around, found);
}

fn numbers(cluster: &BatonCluster, around: &Surroundings, found: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (number, member) in cluster.numbered() {
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
    if let Some(number) = around.owner.filter(|owner| !seen.contains(owner)) {
        found.push(Problem::OwnerRemoved { number });
    }
}

fn volume(cluster: &BatonCluster, found: &mut Vec<Problem>) {
    let volume = &cluster.spec.volume;
    if volume.claim_name.is_some() == volume.template.is_some() {
        found.push(Problem::VolumeSource);
    }
    if volume.address.is_some() != volume.subsystem.is_some() {
        found.push(Problem::TargetIncomplete);
    }
}

fn claim(cluster: &BatonCluster, around: &Surroundings, found: &mut Vec<Problem>) {
    let name = cluster.claim();
    if let Some(rival) = around.rivals.first() {
        found.push(Problem::ClaimInUse {
            name: name.clone(),
            rival: rival.clone(),
        });
    }
    let Some(claim) = &around.claim else {
        // One that is made from the template is not there yet.
        if cluster.spec.volume.claim_name.is_some() {
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
    // The peers' Secret is made where it is missing; one without the key is somebody's mistake.
    let peers = names::peer_secret(cluster.cluster());
    if let Some(Some(keys)) = around.secrets.get(&peers)
        && !keys.contains(names::PEER_SECRET_KEY)
    {
        found.push(Problem::SecretIncomplete {
            name: peers,
            setting: "the cluster",
            key: names::PEER_SECRET_KEY.to_owned(),
        });
    }
    let api = cluster.spec.api.as_ref();
    if api.is_some_and(|api| api.token_secret.is_some() && api.tls_secret.is_none()) {
        found.push(Problem::TokenWithoutTls);
    }
}
