//! One namespace: its storage behind its reservation.
//!
//! The only way to the medium leads through [`Shared::begin`], which checks the reservation and
//! notes the command as in flight, so that a preempt-and-abort can wait for it:
//!
//! ```text
//! begin (check, note) ─► [injected delay] ─► apply, count ─► drop of InFlight wakes the preempt
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use uuid::Uuid;

use super::audit::{Audit, AuditView, FenceKind, LiftReason, Operation};
use super::persistence::StateFile;
use super::reservation::{Access, Effects, ReservationTable};
use super::storage::Storage;
use crate::log_page::NotificationKind;
use crate::{HostId, ReservationReport, Status};

impl Operation {
    /// The command group of the access matrix. Flush is in the write group.
    pub fn access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            Self::Write | Self::Flush => Access::Write,
        }
    }
}

/// A namespace that all controllers share.
pub struct Shared {
    /// Namespace identifier.
    pub nsid: u32,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// UUID and NGUID.
    pub uuid: Uuid,
    /// The same for the NGUID.
    pub nguid: Uuid,
    storage: Storage,
    state: Mutex<State>,
    drained: Notify,
    /// One change of the reservation at a time, from its check to its durable state.
    changes: tokio::sync::Mutex<()>,
    persistence: Option<Arc<StateFile>>,
    reservations: bool,
}

struct State {
    table: ReservationTable,
    in_flight: HashMap<u64, HostId>,
    next_command: u64,
    audit: Audit,
}

/// A command that passed the reservation check and has not ended.
pub struct InFlight {
    namespace: Arc<Shared>,
    host: HostId,
    operation: Operation,
    command: u64,
    generation: u64,
}

/// What a reservation command leads to outside the namespace.
pub type Notifications = Vec<(HostId, NotificationKind)>;

impl Shared {
    /// A namespace; its reservation is what `persistence` has kept.
    pub fn new(
        nsid: u32,
        block_size: u32,
        (uuid, nguid): (Uuid, Uuid),
        storage: Storage,
        persistence: Option<Arc<StateFile>>,
    ) -> Self {
        let kept = persistence.as_ref().and_then(|file| file.load(nsid));
        let table = kept
            .unwrap_or_default()
            .with_can_persist(persistence.is_some());
        Self {
            nsid,
            block_size,
            uuid,
            nguid,
            storage,
            state: Mutex::new(State {
                table,
                in_flight: HashMap::new(),
                next_command: 0,
                audit: Audit::new(nsid),
            }),
            drained: Notify::new(),
            changes: tokio::sync::Mutex::default(),
            persistence,
            reservations: true,
        }
    }

    /// The same namespace, with or without reservations.
    pub fn with_reservations(self, reservations: bool) -> Self {
        Self {
            reservations,
            ..self
        }
    }

    /// Whether it has reservations.
    pub fn has_reservations(&self) -> bool {
        self.reservations
    }

    /// Size in logical blocks.
    pub fn blocks(&self) -> u64 {
        self.storage.size() / u64::from(self.block_size)
    }

    /// Whether reservations can survive a power loss.
    pub fn can_persist(&self) -> bool {
        self.persistence.is_some()
    }

    /// Bytes that a power loss would lose now.
    pub fn dirty_bytes(&self) -> usize {
        self.storage.dirty_bytes()
    }

    /// The hosts of the commands in flight, each command once.
    pub fn in_flight(&self) -> Vec<HostId> {
        self.state().in_flight.values().copied().collect()
    }

    /// Reservation Report.
    pub fn report(&self) -> ReservationReport {
        self.state().table.report()
    }

    /// The audit record.
    pub fn audit(&self) -> AuditView {
        self.state().audit.view()
    }

    /// Begins a command of this host, or refuses it for the reservation.
    pub fn begin(self: &Arc<Self>, host: HostId, operation: Operation) -> Result<InFlight, Status> {
        let generation = self.storage.generation();
        let mut state = self.state();
        if !state.table.allows(host, operation.access()) {
            state.audit.refused(host, operation);
            return Err(Status::RESERVATION_CONFLICT.dnr());
        }
        let command = state.next_command;
        state.next_command += 1;
        state.in_flight.insert(command, host);
        Ok(InFlight {
            namespace: Arc::clone(self),
            host,
            operation,
            command,
            generation,
        })
    }

    /// Carries out a reservation command: changes a copy of the table, makes it durable, shows it,
    /// and, if it aborts, waits until the victims' commands have ended.
    pub async fn change(
        self: &Arc<Self>,
        host: HostId,
        kind: Option<FenceKind>,
        change: impl FnOnce(&mut ReservationTable) -> Result<Effects, Status>,
    ) -> Result<Notifications, Status> {
        let alone = self.changes.lock().await;
        let mut table = self.state().table.clone();
        let was_persistent = table.persistent();
        let effects = change(&mut table)?;
        if effects.changed && (was_persistent || table.persistent()) {
            // Order: durable first, then visible, then completed.
            self.save(table.clone()).await?;
        }
        let waiting = self.show(table, &effects);
        drop(alone);
        self.ended(&waiting).await;
        if let Some(kind) = kind {
            self.record_fences(host, kind, &effects);
        }
        Ok(effects.notify)
    }

    async fn save(&self, table: ReservationTable) -> Result<(), Status> {
        let Some(file) = self.persistence.clone() else {
            return Ok(());
        };
        let nsid = self.nsid;
        let saved = tokio::task::spawn_blocking(move || file.save(nsid, &table)).await;
        match saved {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(namespace = nsid, %error, "reservation state not saved");
                Err(Status::INTERNAL_ERROR)
            }
            Err(_) => Err(Status::INTERNAL_ERROR),
        }
    }

    /// Makes the table the one that is checked from now on; returns the commands to wait for.
    fn show(&self, table: ReservationTable, effects: &Effects) -> Vec<u64> {
        let mut state = self.state();
        let State {
            table: current,
            in_flight,
            audit,
            ..
        } = &mut *state;
        *current = table;
        audit.lift(
            |host| current.allows(host, Access::Write),
            LiftReason::Allowed,
        );
        if !effects.abort {
            return Vec::new();
        }
        let victim = |host: &HostId| effects.removed.iter().any(|(removed, _)| removed == host);
        in_flight
            .iter()
            .filter(|(_, host)| victim(host))
            .map(|(command, _)| *command)
            .collect()
    }

    /// Waits until none of these commands is in flight.
    async fn ended(&self, commands: &[u64]) {
        loop {
            let drained = self.drained.notified();
            let pending = {
                let state = self.state();
                commands
                    .iter()
                    .any(|command| state.in_flight.contains_key(command))
            };
            if !pending {
                return;
            }
            drained.await;
        }
    }

    fn record_fences(&self, by: HostId, kind: FenceKind, effects: &Effects) {
        let mut state = self.state();
        let State { table, audit, .. } = &mut *state;
        for victim in &effects.removed {
            // Another command may have let it in again while this one waited.
            if !table.allows(victim.0, Access::Write) {
                audit.fenced(*victim, by, kind);
            }
        }
    }

    /// Forgets all reservations, as a target does that restarts without having kept them.
    pub async fn forget_reservations(&self) -> Result<(), Status> {
        let alone = self.changes.lock().await;
        let table = ReservationTable::new(self.can_persist());
        self.save(table.clone()).await?;
        self.replace(table);
        drop(alone);
        Ok(())
    }

    /// The power goes: unflushed writes are lost, and reservations that are not persistent.
    pub async fn power_loss(&self) {
        let alone = self.changes.lock().await;
        self.storage.power_loss();
        let mut table = self.state().table.clone();
        table.power_loss();
        self.replace(table);
        drop(alone);
    }

    fn replace(&self, table: ReservationTable) {
        let mut state = self.state();
        let State {
            table: current,
            audit,
            ..
        } = &mut *state;
        *current = table;
        audit.lift(
            |host| current.allows(host, Access::Write),
            LiftReason::Forgotten,
        );
    }

    /// Writes everything back and syncs: for an orderly stop.
    pub fn sync(&self) -> io::Result<()> {
        self.storage.flush()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// Reads `length` bytes at `offset`.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let data = self.namespace.storage.read(offset, length)?;
        self.applied();
        Ok(data)
    }

    /// Writes; with `fua` the data is on the medium on return.
    pub fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        self.namespace
            .storage
            .write(offset, data, self.generation)?;
        self.applied();
        if fua {
            self.namespace.storage.flush()
        } else {
            Ok(())
        }
    }

    /// Zeros ranges of (offset, length) in bytes.
    pub fn write_zeros(&self, ranges: &[(u64, u64)], fua: bool) -> io::Result<()> {
        for (offset, length) in ranges {
            self.namespace
                .storage
                .write_zeros(*offset, *length, self.generation)?;
        }
        self.applied();
        if fua {
            self.namespace.storage.flush()
        } else {
            Ok(())
        }
    }

    /// Makes all completed writes durable; an error if the power was lost since the command began.
    pub fn flush(&self) -> io::Result<()> {
        self.namespace.storage.flush()?;
        if self.namespace.storage.generation() != self.generation {
            return Err(io::Error::other("the power was lost"));
        }
        self.applied();
        Ok(())
    }

    fn applied(&self) {
        self.namespace
            .state()
            .audit
            .applied(self.host, self.operation);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.namespace.state().in_flight.remove(&self.command);
        self.namespace.drained.notify_waiters();
    }
}
