//! A namespace in memory, for tests of what stands above a namespace.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::bridge::{Backend, Change, Unflushed};
use crate::reservation::{Acquire, ChangePersistence, Register, Release};
use crate::{Error, Identified, Namespace, ReservationReport, ReservationType, Status};

/// What is wrong with the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Every write ends with Reservation Conflict.
    WritesConflict,
    /// No write is ever answered.
    WritesHang,
    /// The next write breaks the connection and makes a new association, once.
    NextWriteBreaks,
}

/// Sparse blocks. Reservation commands are refused as unsupported.
pub(crate) struct MemoryNamespace {
    blocks: u64,
    block_size: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    content: HashMap<u64, Bytes>,
    /// What is left when the volatile cache is lost.
    durable: HashMap<u64, Bytes>,
    unflushed: Option<Weak<dyn Unflushed>>,
    repeated: usize,
    fault: Option<Fault>,
    association: u64,
    flushes: u32,
}

impl MemoryNamespace {
    pub(crate) fn new(blocks: u64, block_size: u32) -> Self {
        Self {
            blocks,
            block_size,
            state: Mutex::default(),
        }
    }

    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// As if the target had lost power, and the connection had been made again.
    pub(crate) fn lose_cache(&self) {
        let unflushed = {
            let mut state = self.state();
            state.content = state.durable.clone();
            state.association += 1;
            state.unflushed.as_ref().and_then(Weak::upgrade)
        };
        let Some(unflushed) = unflushed else {
            return;
        };
        let mut outcome = Ok(());
        let association = self.state().association;
        for change in unflushed.begin(association) {
            if self.state().fault == Some(Fault::WritesConflict) {
                outcome = Err(refused("Write", Status::RESERVATION_CONFLICT));
                break;
            }
            match change {
                Change::Write { lba, data } => self.store(lba, &data),
                Change::Zeroes { lba, blocks, .. } => self.erase(lba, blocks),
            }
            self.state().repeated += 1;
        }
        unflushed.end(outcome);
    }

    /// How many changes were made again on new connections.
    pub(crate) fn repeated(&self) -> usize {
        self.state().repeated
    }

    fn store(&self, lba: u64, data: &Bytes) {
        let size = self.block_size as usize;
        let mut state = self.state();
        for (n, at) in (lba..).take(data.len() / size).enumerate() {
            let block = data.slice(n * size..(n + 1) * size);
            state.content.insert(at, block);
        }
    }

    fn erase(&self, lba: u64, blocks: u32) {
        let end = lba + u64::from(blocks);
        let mut state = self.state();
        state.content.retain(|at, _| !(lba..end).contains(at));
    }

    pub(crate) fn flushes(&self) -> u32 {
        self.state().flushes
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn before_write(&self, command: &'static str) -> Result<(), Error> {
        let fault = self.state().fault;
        match fault {
            None => Ok(()),
            Some(Fault::WritesConflict) => Err(refused(command, Status::RESERVATION_CONFLICT)),
            Some(Fault::WritesHang) => std::future::pending().await,
            Some(Fault::NextWriteBreaks) => {
                let mut state = self.state();
                state.fault = None;
                state.association += 1;
                Err(Error::ConnectionLost { command })
            }
        }
    }
}

fn refused(command: &'static str, status: Status) -> Error {
    Error::Status {
        command,
        status: status.dnr(),
    }
}

impl Namespace for MemoryNamespace {
    async fn identify(&self) -> Result<Identified, Error> {
        Ok(Identified {
            nsid: 1,
            nguid: Uuid::nil(),
            uuid: Uuid::nil(),
            blocks: self.blocks,
            block_size: self.block_size,
            reservation_capabilities: 0,
            volatile_write_cache: true,
            max_transfer: 128 * 1024,
            quiesce_time: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
            serial: String::new(),
            model: "memory".to_owned(),
            firmware: String::new(),
        })
    }

    async fn read(&self, lba: u64, blocks: u32) -> Result<Bytes, Error> {
        let state = self.state();
        let mut data = BytesMut::new();
        for at in lba..lba + u64::from(blocks) {
            match state.content.get(&at) {
                Some(block) => data.extend_from_slice(block),
                None => data.resize(data.len() + self.block_size as usize, 0),
            }
        }
        Ok(data.freeze())
    }

    async fn write(&self, lba: u64, data: Bytes, _fua: bool) -> Result<(), Error> {
        self.before_write("Write").await?;
        let size = self.block_size as usize;
        assert!(data.len() <= 128 * 1024 && data.len().is_multiple_of(size));
        self.store(lba, &data);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Error> {
        let mut state = self.state();
        state.flushes += 1;
        state.durable = state.content.clone();
        Ok(())
    }

    async fn write_zeroes(&self, lba: u64, blocks: u32, _deallocate: bool) -> Result<(), Error> {
        self.before_write("Write Zeroes").await?;
        self.erase(lba, blocks);
        Ok(())
    }

    async fn deallocate(&self, lba: u64, blocks: u32) -> Result<(), Error> {
        self.write_zeroes(lba, blocks, true).await
    }

    async fn register(&self, _: Register, _: ChangePersistence) -> Result<(), Error> {
        Err(refused("Reservation Register", Status::INVALID_OPCODE))
    }

    async fn acquire(&self, _: Acquire, _: u64, _: ReservationType) -> Result<(), Error> {
        Err(refused("Reservation Acquire", Status::INVALID_OPCODE))
    }

    async fn release(&self, _: Release, _: u64) -> Result<(), Error> {
        Err(refused("Reservation Release", Status::INVALID_OPCODE))
    }

    async fn report(&self) -> Result<ReservationReport, Error> {
        Err(refused("Reservation Report", Status::INVALID_OPCODE))
    }
}

impl Backend for MemoryNamespace {
    fn association(&self) -> u64 {
        self.state().association
    }

    fn repeat_on_reconnect(&self, unflushed: Weak<dyn Unflushed>) {
        self.state().unflushed = Some(unflushed);
    }

    async fn usable(&self, _path_loss: Duration) -> bool {
        true
    }
}
