//! The simulated volume: fencing's reservation model in front of a log of records.
//!
//! ext4 and PostgreSQL are reduced to what matters here: a session (one mount) appends records to
//! numbered slots, flushes, and acknowledges. A new session reads the slots from the first to the end
//! of the unbroken row and goes on behind it.

use std::collections::BTreeMap;

use fencing::model::{Access, CommandId, DrainId, Executed, Model, Quirks};
use fencing::{Command, Outcome};
use nvme::reservation::{ChangePersistence, Register};
use nvme::{HostId, Status};

/// One mount, numbered through the whole run.
pub type Session = u64;

/// One write or flush of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// A record into a slot.
    Record {
        session: Session,
        slot: usize,
        record: u64,
    },
    /// Metadata or a page: its content does not matter, that it is applied does.
    Page { session: Session },
    /// A mount's first write.
    Mount { session: Session },
    /// Makes everything before it durable.
    Flush { session: Session },
}

impl Io {
    pub fn session(&self) -> Session {
        match self {
            Self::Record { session, .. }
            | Self::Page { session }
            | Self::Mount { session }
            | Self::Flush { session } => *session,
        }
    }
}

/// What is on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Blank,
    Unfinished,
    Ours { clean: bool },
}

/// What a host sends to the target.
#[derive(Clone, Debug)]
pub enum What {
    Reservation(Command),
    Unregister(u64),
    Io(Io),
}

/// What becomes of it there.
pub enum Accepted {
    /// The answer is ready.
    Answer(Outcome),
    /// A preempt-and-abort that waits.
    Draining(DrainId),
    /// A write that is being carried out.
    Began(CommandId),
}

pub struct Target {
    pub model: Model,
    pub up: bool,
    /// Registrations survive a restart.
    pub persistent: bool,
    /// Unflushed writes are lost with the power.
    pub volatile: bool,
    pub format: Format,
    /// The newest session that was mounted.
    pub newest: Session,
    slots: Vec<Option<(Session, u64)>>,
    /// What a power loss would bring back: slots as they were at the last flush.
    unflushed: BTreeMap<usize, Option<(Session, u64)>>,
    pub acknowledged: Vec<(usize, (Session, u64))>,
    /// Writes that were refused because their host did not hold.
    pub refused: u64,
    /// Sessions that have begun to read, and whether another's write took effect since.
    pub mounting: BTreeMap<Session, bool>,
    /// When each host's key changed last.
    pub key_moved: BTreeMap<HostId, u64>,
}

impl Target {
    pub fn new(quirks: Quirks, persistent: bool, volatile: bool) -> Self {
        Self {
            model: Model::new(quirks),
            up: true,
            persistent,
            volatile,
            format: Format::Blank,
            newest: 0,
            slots: Vec::new(),
            unflushed: BTreeMap::new(),
            acknowledged: Vec::new(),
            refused: 0,
            mounting: BTreeMap::new(),
            key_moved: BTreeMap::new(),
        }
    }

    pub fn accept(&mut self, host: HostId, what: &What, now: u64) -> Accepted {
        let before = self.model.key_of(host);
        let accepted = match what {
            What::Reservation(command) => match self.model.execute(host, command) {
                Executed::Completed(outcome) => Accepted::Answer(outcome),
                Executed::Draining(drain) => Accepted::Draining(drain),
            },
            What::Unregister(key) => {
                let action = Register::Unregister { key: *key };
                let result = self
                    .model
                    .register(host, action, ChangePersistence::Unchanged);
                Accepted::Answer(match result {
                    Ok(()) => Outcome::Done,
                    Err(status) => Outcome::Refused(status),
                })
            }
            What::Io(_) => match self.model.begin(host, Access::Write) {
                Ok(command) => Accepted::Began(command),
                Err(status) => {
                    self.refused += 1;
                    Accepted::Answer(Outcome::Refused(status))
                }
            },
        };
        if self.model.key_of(host) != before {
            self.key_moved.insert(host, now);
        }
        accepted
    }

    /// A write takes effect. The error names the invariant that it breaks.
    pub fn apply(&mut self, io: &Io) -> Result<(), String> {
        self.invariant_one_writer(io)?;
        match *io {
            Io::Mount { session } => {
                self.newest = session;
                self.format = Format::Ours { clean: false };
            }
            Io::Record {
                session,
                slot,
                record,
            } => {
                if self.slots.len() <= slot {
                    self.slots.resize(slot + 1, None);
                }
                if self.volatile {
                    let before = self.slots[slot];
                    self.unflushed.entry(slot).or_insert(before);
                }
                self.slots[slot] = Some((session, record));
            }
            Io::Page { session: _ } => {}
            Io::Flush { session: _ } => self.unflushed.clear(),
        }
        Ok(())
    }

    /// Only the newest mounted session's writes take effect, from the moment its mount begins to read.
    fn invariant_one_writer(&mut self, io: &Io) -> Result<(), String> {
        let newest = self.newest;
        for (_, disturbed) in self
            .mounting
            .iter_mut()
            .filter(|(s, _)| **s != io.session())
        {
            *disturbed = true;
        }
        if let Io::Mount { session } = io {
            let disturbed = self.mounting.remove(session) == Some(true);
            self.mounting.retain(|other, _| other > session);
            if *session < newest || disturbed {
                return Err(format!(
                    "invariant_one_writer: session {session} was mounted while {newest} wrote"
                ));
            }
            return Ok(());
        }
        if io.session() == newest {
            return Ok(());
        }
        Err(format!(
            "invariant_one_writer: {io:?} took effect after session {newest} was mounted"
        ))
    }

    pub fn acknowledge(&mut self, slot: usize, session: Session, record: u64) {
        self.acknowledged.push((slot, (session, record)));
    }

    /// What a starting PostgreSQL replays: the end of the unbroken row of records.
    pub fn end_of_log(&self) -> usize {
        self.slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len())
    }

    pub fn invariant_acknowledged_kept(&self) -> Result<(), String> {
        let end = self.end_of_log();
        for (slot, record) in &self.acknowledged {
            let found = self.slots.get(*slot).copied().flatten();
            if *slot >= end || found != Some(*record) {
                return Err(format!(
                    "invariant_acknowledged_kept: slot {slot} acknowledged {record:?}, holds {found:?}"
                ));
            }
        }
        Ok(())
    }

    /// Power goes: what was unflushed in a volatile cache is gone.
    pub fn lose_power(&mut self) {
        for (slot, before) in std::mem::take(&mut self.unflushed) {
            self.slots[slot] = before;
        }
    }

    /// Registrations go unless they persist; commands under way are gone.
    pub fn restart(&mut self) {
        if !self.persistent {
            self.model.forget();
        }
        let under_way: Vec<_> = self.model.in_flight().map(|(id, ..)| id).collect();
        for id in under_way {
            self.model.finish(id);
        }
    }
}

/// What a host is told when its write is refused.
pub fn is_conflict(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(status) if *status == Status::RESERVATION_CONFLICT.dnr())
}
