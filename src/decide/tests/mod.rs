//! Tables of decisions: one test for each rule. [`Scene`] is one member with what it sees.

mod absence;
mod copying;
mod owner;
mod restart;
mod standby;

use std::collections::BTreeSet;

use fencing::{
    Beat, ClusterTag, Epoch, Foreign, Holder, KeyFlags, Mailbox, MemberEntry, MemberId, Mono,
    ReservationKey,
};
use nvme::{HostId, ReservationType};

use super::memory::Role;
use super::*;

pub fn member(number: u8) -> MemberId {
    MemberId::new(number).unwrap()
}

pub fn epoch(number: u32) -> Epoch {
    Epoch::new(number).unwrap()
}

pub fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

/// One member, its memory, what it sees and its clock.
pub struct Scene {
    pub config: Config,
    pub memory: Memory,
    pub seen: Observation,
    pub now: u64,
    pub beat: u16,
    pub last: Option<Decision>,
}

impl Scene {
    /// A process that has just begun, as member `number` of `count`.
    pub fn new(number: u8, count: u8) -> Self {
        let members: BTreeSet<_> = (1..=count).map(member).collect();
        let config = Config {
            member: member(number),
            members,
            bootstrap: member(1),
            timings: Timings::default(),
            routed: false,
            zone: None,
        };
        let unknown = || "not yet".to_owned();
        let since = Mono::from_millis(1_000);
        let seen = Observation {
            mailbox: Seen::Unknown {
                since,
                cause: unknown(),
            },
            lease: Seen::Unknown {
                since,
                cause: unknown(),
            },
            peers: Default::default(),
            platform: Default::default(),
            local: Local {
                incarnation: Incarnation(u64::from(number)),
                host: host(number),
                device: Device::Absent,
                mount: Mount::Unmounted,
                postgres: Postgres::Stopped,
                former_writer: false,
                permit: None,
                agent_away: None,
            },
            running: None,
            finished: None,
            request: None,
            stopping: false,
            zone: None,
        };
        Self {
            config,
            memory: Memory::default(),
            seen,
            now: 1_000,
            beat: 0,
            last: None,
        }
    }

    /// Member 2 of 2, ready, while member 1 owns epoch 5.
    pub fn standby() -> Self {
        let mut scene = Self::new(2, 2);
        scene.read_volume(Some((1, 5, KeyFlags::NONE)));
        scene.read_lease(Some((5, 1)));
        scene.decide();
        assert_eq!(scene.begun(), Some(Work::RebuildDevice));
        scene.seen.local.device = Device::Attached { made: 1 };
        scene.end(Outcome::Done);
        assert!(matches!(scene.begun(), Some(Work::Register { .. })));
        scene.end(Outcome::Done);
        scene.pass(1);
        assert!(
            matches!(scene.reason(), Reason::OwnerLives { .. }),
            "{:?}",
            scene.reason()
        );
        scene
    }

    /// Member 1 of 2, serving epoch 5.
    pub fn active() -> Self {
        let mut scene = Self::new(1, 2);
        scene.read_volume(Some((
            2,
            4,
            KeyFlags {
                clean: true,
                ..KeyFlags::NONE
            },
        )));
        scene.read_lease(Some((4, 2)));
        scene.decide();
        scene.seen.local.device = Device::Attached { made: 1 };
        scene.end(Outcome::Done);
        scene.end(Outcome::Done);
        scene.pass(1);
        scene.take_over_to_the_end(5);
        assert_eq!(scene.reason(), &Reason::Serving);
        scene
    }

    pub fn take_over_to_the_end(&mut self, number: u32) {
        assert!(
            matches!(self.begun(), Some(Work::ClaimLease { .. })),
            "{:?}",
            self.last
        );
        self.read_lease(Some((number, self.config.member.number())));
        self.end(Outcome::Done);
        self.end_fence(number);
        assert_eq!(self.begun(), Some(Work::PrepareVolume));
        self.end(Outcome::Volume(VolumeFacts::Ours { clean: true }));
        assert_eq!(
            self.begun(),
            Some(Work::Mount {
                epoch: epoch(number)
            })
        );
        self.seen.local.mount = Mount::Mounted;
        self.end(Outcome::Done);
        assert_eq!(
            self.begun(),
            Some(Work::StartPostgres {
                epoch: epoch(number)
            })
        );
        self.seen.local.postgres = Postgres::Running;
        self.end(Outcome::Done);
        self.pass(10);
    }

    pub fn end_fence(&mut self, number: u32) {
        assert!(
            matches!(self.begun(), Some(Work::Fence { .. })),
            "{:?}",
            self.last
        );
        let me = self.config.member.number();
        let permit = PermitFacts {
            epoch: epoch(number),
            key: key(me, number, KeyFlags::NONE, 0),
            proven_at: Mono::from_millis(self.now),
        };
        self.seen.local.permit = Some(permit);
        self.end(Outcome::Fenced(permit));
        self.now += 1;
        self.read_volume(Some((me, number, KeyFlags::NONE)));
    }

    /// A report that begins now, with the holder (member, epoch, flags) and everybody registered.
    pub fn read_volume(&mut self, holder: Option<(u8, u32, KeyFlags)>) {
        let numbers = self.config.members.iter().map(|member| member.number());
        let members: Vec<MemberEntry> = numbers
            .map(|number| match holder {
                Some((holding, epoch, flags)) if holding == number => MemberEntry {
                    host: host(number),
                    key: key(number, epoch, flags, self.beat),
                    holder: true,
                },
                _ => MemberEntry {
                    host: host(number),
                    key: key(number, 5, KeyFlags::NONE, 7),
                    holder: false,
                },
            })
            .collect();
        let found = members.iter().find(|entry| entry.holder).copied();
        let value = Mailbox {
            generation: 1,
            persistent: true,
            reservation: found.map(|_| ReservationType::WriteExclusive),
            holder: found.map_or(Holder::Nobody, Holder::Member),
            members,
            foreign: Vec::new(),
        };
        self.seen.mailbox = Seen::Known {
            value,
            at: Mono::from_millis(self.now),
        };
    }

    /// The lease says that this member claimed this epoch.
    pub fn read_lease(&mut self, record: Option<(u32, u8)>) {
        let value = record.map(|(number, holder)| Lease {
            version: LeaseVersion(format!("{number}/{holder}")),
            record: LeaseRecord {
                epoch: epoch(number),
                newest: epoch(number),
                holder: Some(member(holder)),
                incarnation: Incarnation(u64::from(holder)),
                sequence: 0,
                clean: false,
                planned: false,
                initialized: true,
                paused: false,
                cluster: None,
            },
        });
        self.seen.lease = Seen::Known {
            value,
            at: Mono::from_millis(self.now),
        };
    }

    pub fn paused(&mut self) {
        if let Seen::Known {
            value: Some(lease),
            at: _,
        } = &mut self.seen.lease
        {
            lease.record.paused = true;
            lease.version.0.push_str("/paused");
        }
    }

    /// A heartbeat of `number` arrives, changed from "a standby with nothing".
    pub fn hear(&mut self, number: u8, change: impl FnOnce(&mut Heartbeat)) {
        let mut heartbeat = Heartbeat {
            member: member(number),
            incarnation: Incarnation(u64::from(number)),
            sequence: self.now,
            role: RoleName::Standby,
            epoch: epoch(5),
            custody: Custody::Nothing,
            ready: true,
            reachable: true,
            volume: true,
            failed: false,
            stuck: false,
            handover: None,
            heard: Default::default(),
        };
        change(&mut heartbeat);
        let known = Seen::Known {
            value: heartbeat,
            at: Mono::from_millis(self.now),
        };
        self.seen.peers.insert(member(number), known);
    }

    pub fn decide(&mut self) -> &Decision {
        let now = Mono::from_millis(self.now);
        let decision = decide(&self.config, &self.memory, &self.seen, now);
        let again = decide(&self.config, &self.memory, &self.seen, now);
        assert_eq!(decision, again, "the same input gave two decisions");
        self.memory = decision.memory.clone();
        self.last.insert(decision)
    }

    /// Time goes by in looks of 250 ms; volume and lease are read as they were, with the same beat.
    pub fn pass(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.now = end.min(self.now + 250);
            let at = Mono::from_millis(self.now);
            if let Seen::Known { value: _, at: read } = &mut self.seen.mailbox {
                *read = at;
            }
            if let Seen::Known { value: _, at: read } = &mut self.seen.lease {
                *read = at;
            }
            self.decide();
            if self.begun().is_some() {
                return;
            }
        }
    }

    /// As [`Scene::pass`], with the holder's key moving at every look.
    pub fn pass_with_beats(&mut self, millis: u64, holder: (u8, u32, KeyFlags)) {
        let end = self.now + millis;
        while self.now < end && self.begun().is_none() {
            self.beat += 1;
            self.read_volume(Some(holder));
            self.pass(250);
        }
    }

    /// The step under way ends like this.
    pub fn end(&mut self, outcome: Outcome) {
        let issued = self.memory.issued.as_ref().expect("a step is under way");
        let id = issued.id;
        self.now += 1;
        let at = Mono::from_millis(self.now);
        self.seen.finished = Some(Finished { id, at, outcome });
        self.decide();
    }

    /// The step that the last decision began.
    pub fn begun(&self) -> Option<Work> {
        let decision = self.last.as_ref()?;
        decision.actions.iter().find_map(|action| match action {
            Action::Begin(step) => Some(step.work.clone()),
            _ => None,
        })
    }

    pub fn reason(&self) -> &Reason {
        &self.last.as_ref().expect("decided").reason
    }

    pub fn role(&self) -> RoleName {
        self.memory.role.name()
    }

    pub fn evidence(&self) -> Option<Evidence> {
        match &self.memory.role {
            Role::TakingOver(takeover) => Some(takeover.evidence.clone()),
            _ => None,
        }
    }

    pub fn ask(&mut self, ask: Ask) {
        self.seen.request = Some(Request {
            id: RequestId(1),
            ask,
        });
        self.decide();
    }

    pub fn answer(&self) -> Option<Answer> {
        let decision = self.last.as_ref()?;
        decision.actions.iter().find_map(|action| match action {
            Action::Answer { request: _, answer } => Some(answer.clone()),
            _ => None,
        })
    }

    pub fn beats(&self) -> bool {
        let decision = self.last.as_ref().expect("decided");
        decision
            .actions
            .iter()
            .any(|action| matches!(action, Action::Beat { .. }))
    }
}

pub fn key(number: u8, of_epoch: u32, flags: KeyFlags, beat: u16) -> ReservationKey {
    ReservationKey {
        cluster: ClusterTag::of("table"),
        member: member(number),
        epoch: epoch(of_epoch),
        flags,
        beat: Beat::new(beat),
    }
}
