//! The one view of a namespace that fencing, the member and the bridge share, whether the
//! user-space initiator or the kernel carries the commands.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::reservation::{Acquire, ChangePersistence, Register, Release, ReservationReport};
use crate::{Error, ReservationType};

/// What Identify says of a namespace and its controller (NVMe Base 2.3, 5.1.13; NVM Command Set 4.1.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identified {
    /// Namespace identifier within its subsystem.
    pub nsid: u32,
    /// Namespace Globally Unique Identifier; nil when the target reports none.
    pub nguid: Uuid,
    /// Namespace UUID; nil when the target reports none.
    pub uuid: Uuid,
    /// Size in logical blocks.
    pub blocks: u64,
    /// Logical block size in bytes, a power of two of at least 512.
    pub block_size: u32,
    /// RESCAP: bit 0 PTPL, bits 1 to 6 the types, bit 7 IEKEY as of NVMe 1.3; 0 without reservations.
    pub reservation_capabilities: u8,
    /// Whether the controller has a volatile write cache (VWC bit 0): Flush is needed.
    pub volatile_write_cache: bool,
    /// Largest data transfer of one command, in bytes.
    pub max_transfer: u32,
    /// How long a controller takes at most to stop its commands after the host is gone
    /// (CQT, NVMe Base 2.3, 9.6.2.1); 10 s where it reports none.
    pub quiesce_time: Duration,
    /// The keep-alive time-out of this association.
    pub keep_alive_timeout: Duration,
    /// Serial number, model number and firmware revision, trimmed.
    pub serial: String,
    /// Model number, trimmed.
    pub model: String,
    /// Firmware revision, trimmed.
    pub firmware: String,
}

/// Commands on one namespace, each with a deadline of its carrier.
///
/// No method repeats a command whose outcome is unknown; see [`Error::outcome_unknown`].
pub trait Namespace: Send + Sync {
    /// Identify, as read when the association was made.
    fn identify(&self) -> impl Future<Output = Result<Identified, Error>> + Send;

    /// Reads `blocks` logical blocks (1 to the transfer limit) from `lba`.
    fn read(&self, lba: u64, blocks: u32) -> impl Future<Output = Result<Bytes, Error>> + Send;

    /// Writes whole logical blocks at `lba`; with `fua` they are on stable media on return.
    fn write(
        &self,
        lba: u64,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes all completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Write Zeroes; with `deallocate` the target may free the blocks.
    fn write_zeroes(
        &self,
        lba: u64,
        blocks: u32,
        deallocate: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Dataset Management, deallocate: the blocks' contents are no longer needed.
    fn deallocate(&self, lba: u64, blocks: u32) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reservation Register. Never with IEKEY.
    fn register(
        &self,
        action: Register,
        persistence: ChangePersistence,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reservation Acquire with this host's current key (CRKEY).
    fn acquire(
        &self,
        action: Acquire,
        key: u64,
        kind: ReservationType,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reservation Release with this host's current key (CRKEY).
    fn release(&self, action: Release, key: u64) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reservation Report with the extended data structure.
    fn report(&self) -> impl Future<Output = Result<ReservationReport, Error>> + Send;
}
