//! All sites of a cluster, and what its record says of them, as plain facts. Pure.

use k8s_openapi::api::coordination::v1::Lease;

use super::view::{MemberView, Record, SiteView};
use crate::decide::zone::ClusterRecord;

/// What is known of the primary's site.
#[derive(Clone, Debug, PartialEq)]
pub enum Zones {
    /// There is one site only.
    One,
    /// There is no record yet: this site makes the database.
    Unmade(Option<String>),
    /// The record of all sites.
    Known(Box<ClusterRecord>),
    /// There is a Lease for it, and it makes no sense. That is never "there is none".
    Unreadable(String),
}

impl Zones {
    /// Of several sites, from the Lease with the record, if there is one. `first`: the site that makes
    /// the database.
    pub fn of(lease: Option<&Lease>, first: Option<String>) -> Self {
        match Record::of(lease) {
            Record::None => Self::Unmade(first),
            Record::Unreadable(why) => Self::Unreadable(why),
            Record::Known(record) => match record.cluster {
                Some(record) => Self::Known(record),
                None => Self::Unreadable("it is a site's lease, not a cluster's record".to_owned()),
            },
        }
    }

    /// Whether the primary is at this site.
    pub fn is_primary(&self, site: &str) -> bool {
        match self {
            Self::One => true,
            Self::Unmade(first) => first.as_deref() == Some(site),
            Self::Known(record) => record.primary.0 == site,
            Self::Unreadable(_) => false,
        }
    }
}

/// A cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterView {
    /// Its sites, in the order of the specification.
    pub sites: Vec<SiteView>,
    /// Which of them has the primary.
    pub zones: Zones,
}

impl ClusterView {
    /// The site with the primary; none where that is unknown or no site of the specification.
    pub fn primary(&self) -> Option<&SiteView> {
        self.sites.iter().find(|site| site.primary)
    }

    /// The members of all sites, with their sites.
    pub fn members(&self) -> impl Iterator<Item = (&SiteView, &MemberView)> {
        let sites = self.sites.iter();
        sites.flat_map(|site| site.members.iter().map(move |member| (site, member)))
    }

    /// The sites in the order in which their pods may be replaced: that of the primary last.
    pub fn primary_last(&self) -> impl Iterator<Item = &SiteView> {
        let replicas = self.sites.iter().filter(|site| !site.primary);
        replicas.chain(self.primary())
    }
}
