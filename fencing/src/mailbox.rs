//! The volume as a mailbox: a reservation report read as what the members say through their keys.
//!
//! It only sorts what the report says; it draws no conclusion about life or death.

use nvme::reservation::Registrant;
use nvme::{HostId, ReservationReport, ReservationType};
use serde::{Deserialize, Serialize};

use crate::{ClusterTag, Epoch, MemberId, ReservationKey};

/// A registration of a member of our cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemberEntry {
    /// The host that registered. Two members on one host share its one registration.
    pub host: HostId,
    /// What its key says; `key.member` says whose it is.
    pub key: ReservationKey,
    /// Whether this host holds the reservation.
    pub holder: bool,
}

/// A registration that is not of our cluster: another cluster's, or another program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Foreign {
    /// The host that registered.
    pub host: HostId,
    /// Its key, as on the wire.
    pub key: u64,
    /// Whether this host holds the reservation.
    pub holder: bool,
}

/// Who holds the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Holder {
    /// Nobody. Absence is danger, never permission.
    Nobody,
    /// One member of our cluster.
    Member(MemberEntry),
    /// One host that is not of our cluster.
    Foreign(Foreign),
    /// Several hosts, which an all-registrants type allows: how many.
    Several(usize),
    /// There is a reservation, and no entry of the report holds it (a report cut short).
    Missing,
}

/// A reservation report, sorted by whose each registration is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailbox {
    /// GEN of the report.
    pub generation: u32,
    /// PTPLS: whether registrations survive a power loss of the target.
    pub persistent: bool,
    /// The reservation's type; `None` when nobody holds.
    pub reservation: Option<ReservationType>,
    /// Who holds it.
    pub holder: Holder,
    /// Registrations of our cluster, one per host and key, by host.
    pub members: Vec<MemberEntry>,
    /// All others, one per host and key, by host.
    pub foreign: Vec<Foreign>,
}

impl Mailbox {
    /// Sorts `report` for the cluster with this tag.
    ///
    /// A host with several controllers has several entries, which are taken together: it holds if
    /// any of them does.
    pub fn read(report: &ReservationReport, cluster: ClusterTag) -> Self {
        let mut members = Vec::new();
        let mut foreign = Vec::new();
        for entry in one_per_host_and_key(report) {
            match ReservationKey::unpack(entry.key).filter(|key| key.cluster == cluster) {
                Some(key) => members.push(MemberEntry {
                    host: entry.host,
                    key,
                    holder: entry.holder,
                }),
                None => foreign.push(Foreign {
                    host: entry.host,
                    key: entry.key,
                    holder: entry.holder,
                }),
            }
        }
        Self {
            generation: report.generation,
            persistent: report.persistent,
            reservation: report.reservation,
            holder: holder(report, &members, &foreign),
            members,
            foreign,
        }
    }

    /// This host's registration, where its key is of our cluster.
    pub fn of_host(&self, host: HostId) -> Option<&MemberEntry> {
        self.members.iter().find(|m| m.host == host)
    }

    /// All registrations with this member's number: more than one is a double member or a member
    /// that came back as another host.
    pub fn of_member(&self, member: MemberId) -> impl Iterator<Item = &MemberEntry> {
        self.members.iter().filter(move |m| m.key.member == member)
    }

    /// Whether any host is registered with this key, of our cluster or not.
    pub fn has_key(&self, key: ReservationKey) -> bool {
        self.members.iter().any(|m| m.key == key)
    }

    /// The newest epoch that any member's key names; [`Epoch::ZERO`] without members. A claim must
    /// be newer, or it may repeat the epoch of an attempt that failed halfway.
    pub fn newest_epoch(&self) -> Epoch {
        let epochs = self.members.iter().map(|m| m.key.epoch);
        epochs.max().unwrap_or(Epoch::ZERO)
    }

    /// The member that holds, if one does.
    pub fn holding_member(&self) -> Option<&MemberEntry> {
        match &self.holder {
            Holder::Member(entry) => Some(entry),
            Holder::Nobody | Holder::Foreign(_) | Holder::Several(_) | Holder::Missing => None,
        }
    }
}

fn one_per_host_and_key(report: &ReservationReport) -> Vec<Registrant> {
    let mut entries = report.registrants.clone();
    entries.sort_by_key(|r| (r.host, r.key));
    entries.dedup_by(|later, kept| {
        let same = (later.host, later.key) == (kept.host, kept.key);
        kept.holder |= same && later.holder;
        same
    });
    entries
}

fn holder(report: &ReservationReport, members: &[MemberEntry], foreign: &[Foreign]) -> Holder {
    if report.reservation.is_none() {
        return Holder::Nobody;
    }
    let of_us = members.iter().filter(|m| m.holder).copied();
    let of_others = foreign.iter().filter(|f| f.holder).copied();
    let mut holders = of_us
        .map(Holder::Member)
        .chain(of_others.map(Holder::Foreign));
    match (holders.next(), holders.count()) {
        (None, _) => Holder::Missing,
        (Some(holder), 0) => holder,
        (Some(_), more) => Holder::Several(more + 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Beat, KeyFlags};

    fn host(number: u8) -> HostId {
        HostId::from_bytes([number; 16])
    }

    fn key(cluster: ClusterTag, member: u8) -> ReservationKey {
        ReservationKey {
            cluster,
            member: MemberId::new(member).unwrap(),
            epoch: Epoch::ZERO,
            flags: KeyFlags::NONE,
            beat: Beat::ZERO,
        }
    }

    fn entry(host_number: u8, key: u64, holder: bool) -> Registrant {
        Registrant {
            controller: 0xffff,
            holder,
            host: host(host_number),
            key,
        }
    }

    fn report(
        reservation: Option<ReservationType>,
        registrants: Vec<Registrant>,
    ) -> ReservationReport {
        ReservationReport {
            generation: 1,
            reservation,
            persistent: true,
            registrants,
        }
    }

    #[test]
    fn several_controllers_of_one_host_are_one_registration() {
        let us = ClusterTag::of("lab");
        let raw = key(us, 1).pack();
        let entries = vec![
            entry(1, raw, false),
            entry(2, 7, false),
            entry(1, raw, true),
        ];
        let report = report(Some(ReservationType::WriteExclusive), entries);
        let mailbox = Mailbox::read(&report, us);
        assert_eq!(mailbox.members.len(), 1);
        assert_eq!(mailbox.foreign.len(), 1);
        assert_eq!(mailbox.holding_member(), Some(&mailbox.members[0]));
    }

    #[test]
    fn each_kind_of_holder_is_told_apart() {
        let us = ClusterTag::of("lab");
        let other = ClusterTag::of("other");
        let ours = key(us, 1).pack();
        let all = Some(ReservationType::WriteExclusiveAllRegistrants);
        let one = Some(ReservationType::WriteExclusive);
        let read = |kind, entries| Mailbox::read(&report(kind, entries), us).holder;

        assert_eq!(read(None, vec![entry(1, ours, false)]), Holder::Nobody);
        assert_eq!(read(one, vec![entry(1, ours, false)]), Holder::Missing);
        assert!(matches!(
            read(one, vec![entry(2, key(other, 1).pack(), true)]),
            Holder::Foreign(_)
        ));
        assert_eq!(
            read(all, vec![entry(1, ours, true), entry(2, 9, true)]),
            Holder::Several(2)
        );
    }

    proptest! {
        #[test]
        fn every_registration_is_sorted_once(
            entries in proptest::collection::vec((0u8..4, 0u8..3, 0u8..3, any::<bool>()), 0..12),
            held in any::<bool>(),
        ) {
            let us = ClusterTag::of("lab");
            let tags = [us, ClusterTag::of("other"), ClusterTag::of("third")];
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(host, tag, member, holder)| {
                    let raw = if member == 0 { 5 } else { key(tags[tag as usize], member).pack() };
                    entry(host, raw, holder)
                })
                .collect();
            let kind = held.then_some(ReservationType::WriteExclusiveAllRegistrants);
            let report = report(kind, entries);
            let mailbox = Mailbox::read(&report, us);
            let mut pairs: Vec<_> = report.registrants.iter().map(|r| (r.host, r.key)).collect();
            pairs.sort();
            pairs.dedup();
            prop_assert_eq!(mailbox.members.len() + mailbox.foreign.len(), pairs.len());
            for member in &mailbox.members {
                prop_assert_eq!(member.key.cluster, us);
                prop_assert!(pairs.contains(&(member.host, member.key.pack())));
            }
            let holders = mailbox.members.iter().filter(|m| m.holder).count()
                + mailbox.foreign.iter().filter(|f| f.holder).count();
            let expected = match (held, holders) {
                (false, _) => matches!(mailbox.holder, Holder::Nobody),
                (true, 0) => matches!(mailbox.holder, Holder::Missing),
                (true, 1) => matches!(mailbox.holder, Holder::Member(_) | Holder::Foreign(_)),
                (true, n) => mailbox.holder == Holder::Several(n),
            };
            prop_assert!(expected);
        }
    }
}
