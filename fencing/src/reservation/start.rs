//! A member's start on the volume: register, or take over this host's earlier registration.
//!
//! Only the owner of the host's lock may run it, for a host has one registration. It never acquires
//! and never preempts: a registration under Write Exclusive harms nobody.

use nvme::reservation::ChangePersistence;
use nvme::{HostId, Status};
use serde::{Deserialize, Serialize};

use super::{Claim, Failure, Limits, Trouble};
use crate::{
    Beat, Command, KeyFlags, Mailbox, MemberEntry, MemberId, Mono, Outcome, ReservationKey,
    Sequence, Step,
};

/// The end of a successful start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Our key.
    pub key: ReservationKey,
    /// The registration that it replaced: ours before a restart, or another member's of this host.
    pub replaced: Option<ReservationKey>,
    /// Whether this host holds the reservation, from before the restart. That is no permit: it needs
    /// a fence sequence that expects ourselves.
    pub holds: bool,
    /// Registrations with our member's number on other hosts: left from before a move to this host,
    /// or a second member with our number, which then must not go on. Moving beats tell.
    pub twins: Vec<MemberEntry>,
    /// The volume as last read.
    pub mailbox: Mailbox,
}

/// Why a member could not register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StartRefused {
    /// Somebody outside the cluster registered this host.
    #[error(
        "this host ({host}) is registered with the key {key:#018x}, which is not of this cluster: \
         another program uses this host identity, or the cluster was renamed; unregister that key, \
         or give the member another host identity"
    )]
    ForeignKey {
        /// Our host.
        host: HostId,
        /// The key found.
        key: u64,
    },
    /// This host has several keys, which no target should allow.
    #[error("this host ({host}) is registered with several keys at once: the target misbehaves")]
    SeveralKeys {
        /// Our host.
        host: HostId,
    },
    /// Another member holds the volume under this very host identity.
    #[error(
        "member {holder} holds the volume under this host's identity ({host}): two nodes with one \
         host identity cannot be fenced from each other, and two members of one node hand over by \
         the host's lock; give the member its own identity, or wait for the lock"
    )]
    HostHoldsForAnother {
        /// Our host.
        host: HostId,
        /// Who holds.
        holder: MemberId,
    },
    /// Registrations do not survive a power loss although they must.
    #[error(
        "the volume's reservations do not survive a power loss of the target (it refuses PTPL, or \
         PTPLS is 0 after it was asked for): enable persistence on the target, or allow volatile reservations"
    )]
    NotPersistent,
    /// The volume has no reservations.
    #[error(
        "the volume refuses reservation commands ({status}): enable reservations on the target, or \
         choose another volume; without them no other host can be fenced"
    )]
    Unsupported {
        /// What the controller answered.
        status: Status,
    },
    /// The deadline came first.
    #[error(
        "this host could not be registered within the deadline; last trouble: {}. Check the path to \
         the volume and whether it supports reservations",
        .trouble.map_or_else(|| "none".to_owned(), |t| t.to_string())
    )]
    OutOfTime {
        /// What went wrong last.
        trouble: Option<Trouble>,
    },
    /// A sequence that had ended was asked for a further step.
    #[error("this start sequence has ended: make a new one")]
    Ended,
}

/// Registers this host as a member of the cluster; see the module.
#[derive(Debug)]
pub struct StartSequence {
    claim: Claim,
    limits: Limits,
    state: State,
    /// The key that we set, once a command of ours may have set it.
    ours: Option<ReservationKey>,
    replaced: Option<ReservationKey>,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    Sent(Command),
    Paused(Mono),
    Ended,
}

type Judged = Result<Step<Registered, StartRefused>, StartRefused>;

impl Sequence for StartSequence {
    type Proof = Registered;
    type Unproven = StartRefused;

    fn next(&mut self, now: Mono, outcome: Option<Outcome>) -> Step<Registered, StartRefused> {
        let judged = match self.state {
            State::Ended => Err(StartRefused::Ended),
            State::Start => self.send(Command::Report, now),
            State::Paused(until) if now < until => Ok(Step::WaitUntil(until)),
            State::Paused(_) => self.send(Command::Report, now),
            State::Sent(command) => self.absorb(command, outcome.unwrap_or(Outcome::Unknown), now),
        };
        judged.unwrap_or_else(|refused| {
            self.state = State::Ended;
            Step::Unproven(refused)
        })
    }

    fn deadline(&self) -> Mono {
        self.limits.deadline
    }
}

impl StartSequence {
    /// Registers the claim's member; the claim's epoch is the newest that it knows of. Of the limits,
    /// the deadline, the pause and the required persistence count.
    pub fn new(claim: Claim, limits: Limits) -> Self {
        Self {
            claim,
            limits,
            state: State::Start,
            ours: None,
            replaced: None,
            trouble: None,
        }
    }

    fn absorb(&mut self, command: Command, outcome: Outcome, now: Mono) -> Judged {
        match (command, outcome) {
            (Command::Report, Outcome::Report(report)) => {
                self.judge(Mailbox::read(&report, self.claim.cluster), now)
            }
            (Command::Report, outcome) => {
                let failure = Failure::of(outcome).unwrap_or(Failure::Unknown);
                self.failed(Trouble::Report(failure), failure, now)
            }
            (Command::Replace { .. }, outcome) => match Failure::of(outcome) {
                None => self.send(Command::Report, now),
                Some(failure) => self.failed(Trouble::Replace(failure), failure, now),
            },
            (
                Command::Register { .. }
                | Command::PreemptAndAbort { .. }
                | Command::Acquire { .. },
                outcome,
            ) => match Failure::of(outcome) {
                None => self.send(Command::Report, now),
                Some(failure) => self.failed(Trouble::Register(failure), failure, now),
            },
        }
    }

    /// What no retry can cure ends the sequence at once.
    fn failed(&mut self, trouble: Trouble, failure: Failure, now: Mono) -> Judged {
        let changes = !matches!(trouble, Trouble::Report(_));
        match failure {
            Failure::Refused(status) if status.code() == Status::INVALID_OPCODE => {
                Err(StartRefused::Unsupported { status })
            }
            // Our key is never zero, so it is CPTPL that the target does not take.
            Failure::Refused(status)
                if changes
                    && self.limits.require_persistence
                    && status.code() == Status::INVALID_FIELD =>
            {
                Err(StartRefused::NotPersistent)
            }
            Failure::Refused(_) | Failure::NotSent | Failure::Unknown => self.pause(trouble, now),
        }
    }

    fn judge(&mut self, mailbox: Mailbox, now: Mono) -> Judged {
        let host = self.claim.host;
        if let Some(foreign) = mailbox.foreign.iter().find(|f| f.host == host) {
            let key = foreign.key;
            return Err(StartRefused::ForeignKey { host, key });
        }
        let mut own = mailbox.members.iter().filter(|m| m.host == host).copied();
        match (own.next(), own.next()) {
            (_, Some(_)) => Err(StartRefused::SeveralKeys { host }),
            (None, None) => {
                let persistence = self.persistence();
                // A first beat that differs from one registration to the next, so that a command
                // that names an older key of ours cannot fit this one.
                let key = self.key(KeyFlags::NONE, first_beat(now));
                self.ours = Some(key);
                self.send(Command::Register { key, persistence }, now)
            }
            (Some(entry), None) if self.ours == Some(entry.key) => {
                drop(own);
                self.finish(entry, mailbox)
            }
            (Some(entry), None) => self.replace(entry, now),
        }
    }

    fn replace(&mut self, entry: MemberEntry, now: Mono) -> Judged {
        if entry.holder && entry.key.member != self.claim.member {
            return Err(StartRefused::HostHoldsForAnother {
                host: entry.host,
                holder: entry.key.member,
            });
        }
        let mut new = self.key(KeyFlags::NONE, entry.key.beat.next());
        // A holder's epoch names its ownership and stays; a standby's only ever grows.
        // The same goes for what the holder's key says of the volume.
        if entry.holder {
            new.epoch = entry.key.epoch;
            new.flags.clean = entry.key.flags.clean;
            new.flags.draining = entry.key.flags.draining;
        } else {
            new.epoch = entry.key.epoch.max(self.claim.epoch);
        }
        self.replaced.get_or_insert(entry.key);
        self.ours = Some(new);
        let command = Command::Replace {
            current: entry.key,
            new,
            persistence: self.persistence(),
        };
        self.send(command, now)
    }

    fn finish(&mut self, entry: MemberEntry, mailbox: Mailbox) -> Judged {
        if self.limits.require_persistence && !mailbox.persistent {
            return Err(StartRefused::NotPersistent);
        }
        let twins = mailbox.of_member(self.claim.member);
        let twins = twins
            .filter(|m| m.host != self.claim.host)
            .copied()
            .collect();
        self.state = State::Ended;
        Ok(Step::Proven(Registered {
            key: entry.key,
            replaced: self.replaced,
            holds: entry.holder,
            twins,
            mailbox,
        }))
    }

    fn key(&self, flags: KeyFlags, beat: Beat) -> ReservationKey {
        ReservationKey {
            cluster: self.claim.cluster,
            member: self.claim.member,
            epoch: self.claim.epoch,
            flags,
            beat,
        }
    }

    fn persistence(&self) -> ChangePersistence {
        if self.limits.require_persistence {
            ChangePersistence::Persistent
        } else {
            ChangePersistence::Unchanged
        }
    }

    fn pause(&mut self, trouble: Trouble, now: Mono) -> Judged {
        self.trouble = Some(trouble);
        let until = now + self.limits.retry_pause;
        if until >= self.limits.deadline {
            return Err(self.out_of_time());
        }
        self.state = State::Paused(until);
        Ok(Step::WaitUntil(until))
    }

    fn send(&mut self, command: Command, now: Mono) -> Judged {
        if now >= self.limits.deadline {
            return Err(self.out_of_time());
        }
        self.state = State::Sent(command);
        Ok(Step::Send(command))
    }

    fn out_of_time(&self) -> StartRefused {
        StartRefused::OutOfTime {
            trouble: self.trouble,
        }
    }
}

fn first_beat(now: Mono) -> Beat {
    let modulus = u64::from(Beat::MODULUS);
    Beat::new((now.as_millis() % modulus) as u16)
}
