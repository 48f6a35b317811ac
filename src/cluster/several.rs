//! What a user writes of several sites, and a site as everybody else looks at it: the only one of a
//! cluster, or one of several.

use std::collections::BTreeMap;

use fencing::MemberId;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names;
use super::spec::{BatonCluster, MemberSpec, NAME, SecretKey, VolumeSpec};

/// One of several sites: a volume and the members that can serve it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SiteSpec {
    /// Its name, such as that of its zone; part of the name of its Lease. `cluster` is none: that Lease holds
    /// the record of all sites.
    #[schemars(length(min = 1, max = 20), regex(pattern = NAME))]
    #[x_kube(validation = Rule::new("self != 'cluster'")
        .message("no site is called cluster: its Lease would be that of all sites"))]
    pub name: String,
    /// Its shared volume. It cannot be changed: another volume is another site.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("the volume cannot be changed: another volume is another site"))]
    pub volume: VolumeSpec,
    /// Its members: two, on two nodes, or more. Their names are unique in the whole cluster.
    #[schemars(
        length(min = 2, max = 8),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"]
        )
    )]
    #[x_kube(
        validation = Rule::new("self.all(m, has(m.number)) || !self.exists(m, has(m.number))")
            .message("give every member a number, or none"),
        validation = Rule::new("self.all(m, !has(m.number) || self.exists_one(o, has(o.number) && o.number == m.number))")
            .message("two members have the same number"),
        validation = Rule::new("self.all(m, !has(m.node) || self.exists_one(o, has(o.node) && o.node == m.node))")
            .message("two members are on the same node: it would take both with it"),
        validation = Rule::new("self.all(m, oldSelf.all(o, o.name != m.name || (has(o.number) == has(m.number) && (!has(m.number) || o.number == m.number))))")
            .message("a member's number cannot be changed: it is part of its key on the volume"),
    )]
    pub members: Vec<MemberSpec>,
    /// Whether it may ever run the primary. A site that never may only reads. Default `allowed`.
    #[serde(default)]
    pub failover: SiteFailover,
    /// Labels that a node of this site must have beside those of `spec.nodeSelector`, such as
    /// `topology.kubernetes.io/zone: a`. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// Whether a site may ever run the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SiteFailover {
    /// It may.
    #[default]
    Allowed,
    /// It only reads.
    Never,
}

/// How several sites follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationSpec {
    /// Whether commits wait for other sites. `required`: always, even for ever. `preferred`: as long as
    /// enough of them keep up. `off`: never, and a lost site may lose what was acknowledged. Default `preferred`.
    pub synchronous: SynchronousMode,
    /// For how many other sites commits wait. Default 1.
    #[schemars(with = "i32", range(min = 1, max = 4))]
    pub quorum: u8,
    /// The site that makes the database at the very first start. Default: the first that may run the primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    pub first_primary: Option<String>,
    /// The password with which replicas connect. Default: a random one in the Secret `<cluster>-replication`,
    /// key `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretKey>,
    /// How much log the primary keeps for a site that is away, such as `4GB`. Default `4GB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 16))]
    pub slot_wal_max: Option<String>,
    /// How far a replica may be behind and still be shown to readers, such as `16MB`. Default `16MB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 16))]
    pub max_lag: Option<String>,
    /// A program of the image that makes a site's database from a backup. It needs `restore_command` among
    /// `spec.postgres.parameters`. Default: none, `pg_basebackup` copies the primary's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedSpec>,
}

/// A backup tool. It runs as PostgreSQL does, without the container's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedSpec {
    /// The program, by its absolute path; no shell is between.
    #[schemars(regex(pattern = "^/"), length(max = 256))]
    pub program: String,
    /// Its arguments, with `{data_directory}` for the directory that it has to fill. No secrets.
    #[schemars(length(min = 1, max = 64))]
    pub arguments: Vec<String>,
    /// How long it may take, such as `2h`. Default `6h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16))]
    pub timeout: Option<String>,
    /// Whether `pg_basebackup` copies the primary's database where the program fails. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<bool>,
}

impl Default for ReplicationSpec {
    fn default() -> Self {
        Self {
            synchronous: SynchronousMode::default(),
            quorum: 1,
            first_primary: None,
            password_secret: None,
            slot_wal_max: None,
            max_lag: None,
            seed: None,
        }
    }
}

/// Whether commits wait for other sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SynchronousMode {
    /// Always.
    Required,
    /// As long as enough of them keep up.
    #[default]
    Preferred,
    /// Never.
    Off,
}

/// A site with its volume and members: the only one, or one of several.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The cluster.
    pub cluster: &'a BatonCluster,
    /// Its name.
    pub name: &'a str,
    /// Its volume.
    pub volume: &'a VolumeSpec,
    /// Its members.
    pub members: &'a [MemberSpec],
    /// What is written of it, where it is one of several.
    pub own: Option<&'a SiteSpec>,
}

impl Site<'_> {
    /// The members with their numbers: where the site gives none, a member's place in the list, from 1.
    /// Members whose number is none (a list that is too long) are left out; the API server accepts no
    /// such list.
    pub fn numbered(&self) -> Vec<(MemberId, &MemberSpec)> {
        let members = self.members.iter().enumerate();
        members
            .filter_map(|(place, member)| {
                let number = match member.number {
                    Some(number) => number,
                    None => u8::try_from(place + 1).ok()?,
                };
                Some((MemberId::new(number)?, member))
            })
            .collect()
    }

    /// The member with this pod, and its number.
    pub fn member_of_pod(&self, pod: &str) -> Option<(MemberId, &MemberSpec)> {
        let cluster = self.cluster.cluster();
        self.numbered()
            .into_iter()
            .find(|(_, member)| names::pod(cluster, &member.name) == pod)
    }

    /// The claim of the shared volume: the one that is named, or the one made from the template.
    pub fn claim(&self) -> String {
        let cluster = self.cluster.cluster();
        match (&self.volume.claim_name, self.own) {
            (Some(name), _) => name.clone(),
            (None, None) => names::volume_claim(cluster),
            (None, Some(own)) => names::volume_claim(&names::of_site(cluster, &own.name)),
        }
    }

    /// Its Lease.
    pub fn lease(&self) -> String {
        names::lease(self.cluster.cluster(), self.name)
    }

    /// Where this site is written, for people: the path of a setting of it.
    pub fn place(&self, setting: &str) -> String {
        match self.own {
            None => format!("spec.{setting}"),
            Some(own) => format!("spec.sites[{}].{setting}", own.name),
        }
    }
}

impl BatonCluster {
    /// Its sites, in the order of the specification. None only where that contradicts itself.
    pub fn sites(&self) -> Vec<Site<'_>> {
        let spec = &self.spec;
        if spec.sites.is_empty() {
            let only = spec.volume.iter().map(|volume| Site {
                cluster: self,
                name: &spec.site,
                volume,
                members: &spec.members,
                own: None,
            });
            return only.collect();
        }
        let several = spec.sites.iter().map(|own| Site {
            cluster: self,
            name: &own.name,
            volume: &own.volume,
            members: &own.members,
            own: Some(own),
        });
        several.collect()
    }

    /// The site and the member with this pod, and the member's number.
    pub fn member_of_pod(&self, pod: &str) -> Option<(Site<'_>, MemberId, String)> {
        self.sites().into_iter().find_map(|site| {
            let (number, member) = site.member_of_pod(pod)?;
            let name = member.name.clone();
            Some((site, number, name))
        })
    }

    /// Whether it has several sites.
    pub fn has_several_sites(&self) -> bool {
        !self.spec.sites.is_empty()
    }

    /// How its sites follow each other.
    pub fn replication(&self) -> ReplicationSpec {
        self.spec.replication.clone().unwrap_or_default()
    }

    /// The site that makes the database at the very first start; none where no site may.
    pub fn first_primary(&self) -> Option<String> {
        let named = self.replication().first_primary;
        named.or_else(|| {
            let mut sites = self.spec.sites.iter();
            let first = sites.find(|site| site.failover == SiteFailover::Allowed)?;
            Some(first.name.clone())
        })
    }

    /// Where the password of the replicas is.
    pub fn replication_password(&self) -> SecretKey {
        let named = self.replication().password_secret;
        named.unwrap_or_else(|| SecretKey {
            name: names::replication_secret(self.cluster()),
            key: names::REPLICATION_SECRET_KEY.to_owned(),
        })
    }
}
