//! [`Namespace`] over a namespace device of the kernel, `/dev/nvmeXnY`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::bounded::{NoResult, bounded};
use super::raw::{self, Outcome, Target};
use crate::command::{Command, Range, encode_ranges, feature};
use crate::identify::{Descriptors, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, cns};
use crate::reservation::{Acquire, ChangePersistence, Register, Release};
use crate::reservation_codec::{REPORT_ENTRY_LEN, REPORT_HEADER_LEN, decode_report};
use crate::{Error, Identified, Namespace, ReservationReport, ReservationType, Status};

/// Largest transfer of one passthrough command, in bytes: what every nvme-tcp device takes.
const MAX_TRANSFER: u32 = 512 * 1024;
/// Registrants for which a report makes room.
const REGISTRANTS: usize = 64;
/// How much longer than the kernel's own time-out we wait for the ioctl to return: the kernel may
/// have to reset the controller first.
const GRACE: Duration = Duration::from_secs(2);
/// What counts as quiesce time where the controller reports none (NVMe Base 2.3, 9.6.2.1).
const UNKNOWN_QUIESCE_TIME: Duration = Duration::from_secs(10);
/// Most commands that may be under way at once. Each has a thread; on a path that went silent all of
/// them wait for the kernel's time-out, and a member asks four times a second.
const MAX_UNDER_WAY: usize = 64;
/// Thread names have room for 15 bytes.
const THREAD: &str = "nvme-command";
/// Status code type 3: path related. The kernel uses it for commands that it gave up itself.
const PATH_RELATED: u16 = 3;

/// Why a device cannot be used as a namespace.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device could not be opened.
    #[error("open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The device is no NVMe namespace.
    #[error("{} is no NVMe namespace", path.display())]
    NotNvme {
        /// The device.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Opening it took too long: the kernel may be waiting for a path.
    #[error("{} did not open within {deadline:?}", path.display())]
    Deadline {
        /// The device.
        path: PathBuf,
        /// The limit.
        deadline: Duration,
    },
    /// Identify failed.
    #[error("identify the namespace")]
    Identify(#[source] Error),
}

/// A namespace device of the kernel, opened for passthrough.
pub struct KernelNamespace {
    device: Device,
    identified: Identified,
}

/// What commands need.
#[derive(Clone)]
struct Device {
    file: Arc<File>,
    under_way: Arc<Semaphore>,
    deadline: Duration,
}

impl KernelNamespace {
    /// Opens `/dev/nvmeXnY` and identifies it. `deadline` is for each command; `keep_alive` is the
    /// association's time-out, which sysfs tells and the device does not.
    ///
    /// # Errors
    /// See [`OpenError`]. Root's rights are needed for the commands.
    pub async fn open(
        path: &Path,
        deadline: Duration,
        keep_alive: Duration,
    ) -> Result<Self, OpenError> {
        let wanted = path.to_owned();
        let opened = bounded(deadline, "nvme-open", move || open(&wanted)).await;
        let (file, nsid) = match opened {
            Ok(opened) => opened?,
            Err(no_result) => return Err(not_opened(path, deadline, no_result)),
        };
        let device = Device {
            file: Arc::new(file),
            under_way: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            deadline,
        };
        let identified = identify(&device, nsid, keep_alive)
            .await
            .map_err(OpenError::Identify)?;
        Ok(Self { device, identified })
    }

    /// What Identify said when the device was opened.
    pub fn identified(&self) -> &Identified {
        &self.identified
    }

    /// The current value of a feature, as the completion's first dword (NVMe Base 2.3, 5.1.11).
    ///
    /// # Errors
    /// As every command's; a controller that has no such feature answers with a status.
    pub async fn feature(&self, feature: u8) -> Result<u32, Error> {
        let nsid = match feature {
            feature::RESERVATION_PERSISTENCE | feature::RESERVATION_NOTIFICATION_MASK => {
                self.identified.nsid
            }
            _ => 0,
        };
        let command = Command::get_features(feature, nsid);
        let device = &self.device;
        let (value, _none) = device
            .submit(Target::Admin, "Get Features", command, Vec::new())
            .await?;
        Ok(value)
    }

    async fn io(
        &self,
        name: &'static str,
        command: Command,
        data: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let device = &self.device;
        let (_value, data) = device.submit(Target::Io, name, command, data).await?;
        Ok(data)
    }

    async fn send(&self, name: &'static str, command: (Command, Vec<u8>)) -> Result<(), Error> {
        self.io(name, command.0, command.1).await?;
        Ok(())
    }
}

/// Opens for reading: root may send any command through it, while a descriptor for writing would make
/// udev probe the volume when it is closed, and some kernels refuse a mount beside it.
fn open(path: &Path) -> Result<(File, u32), OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .open(path)
        .map_err(|source| OpenError::Open {
            path: path.to_owned(),
            source,
        })?;
    let nsid = raw::namespace_id(file.as_fd()).map_err(|source| OpenError::NotNvme {
        path: path.to_owned(),
        source,
    })?;
    Ok((file, nsid))
}

fn not_opened<T>(path: &Path, deadline: Duration, no_result: NoResult<T>) -> OpenError {
    let path = path.to_owned();
    match no_result {
        NoResult::NotStarted(source) => OpenError::Open { path, source },
        NoResult::Late(_) | NoResult::Vanished => OpenError::Deadline { path, deadline },
    }
}

impl Device {
    /// Runs a command on a thread that may block, and gives its result and its data back.
    async fn submit(
        &self,
        target: Target,
        name: &'static str,
        command: Command,
        mut data: Vec<u8>,
    ) -> Result<(u32, Vec<u8>), Error> {
        let slot = self.under_way.clone().try_acquire_owned();
        let slot = slot.map_err(|_| Error::NoPath {
            command: name,
            cause: format!("{MAX_UNDER_WAY} earlier commands have not ended"),
        })?;
        let file = Arc::clone(&self.file);
        let timeout_ms = u32::try_from(self.deadline.as_millis()).unwrap_or(u32::MAX);
        let limit = self.deadline + GRACE;
        let ran = bounded(limit, THREAD, move || {
            let outcome = raw::run(file.as_fd(), target, &command, &mut data, timeout_ms);
            drop(slot);
            (outcome, data)
        });
        match ran.await {
            Ok((outcome, data)) => interpret(name, outcome).map(|value| (value, data)),
            Err(NoResult::Late(_)) => Err(Error::Deadline {
                command: name,
                deadline: limit,
            }),
            // It may have been in the ioctl.
            Err(NoResult::Vanished) => Err(Error::ConnectionLost { command: name }),
            Err(NoResult::NotStarted(source)) => Err(Error::Io {
                command: name,
                operation: "start a thread".to_owned(),
                source,
            }),
        }
    }
}

/// What the kernel's answer says of the command. Where it cannot be excluded that the controller
/// got the command, its outcome is unknown.
fn interpret(name: &'static str, outcome: Outcome) -> Result<u32, Error> {
    let source = match outcome {
        Ok((status, value)) if status.is_success() => return Ok(value),
        Ok((status, _)) if is_path_related(status) => {
            return Err(Error::ConnectionLost { command: name });
        }
        Ok((status, _)) => {
            return Err(Error::Status {
                command: name,
                status,
            });
        }
        Err(source) => source,
    };
    match source.raw_os_error() {
        // A multipath device without a usable path refuses before it sends.
        Some(libc::EWOULDBLOCK) => Err(Error::NoPath {
            command: name,
            cause: source.to_string(),
        }),
        // Checked before anything is sent: not such a device, not such a command, no right to it,
        // no memory.
        Some(
            libc::ENOTTY
            | libc::EINVAL
            | libc::EACCES
            | libc::EPERM
            | libc::EFAULT
            | libc::ENOMEM
            | libc::EBADF,
        ) => Err(Error::Io {
            command: name,
            operation: "NVMe passthrough".to_owned(),
            source,
        }),
        // EINTR is the kernel's word for a command that it cancelled; anything else is not known
        // to be harmless.
        _ => Err(Error::ConnectionLost { command: name }),
    }
}

fn is_path_related(status: Status) -> bool {
    status.code().0 >> 8 == PATH_RELATED
}

async fn identify(device: &Device, nsid: u32, keep_alive: Duration) -> Result<Identified, Error> {
    let name = "Identify";
    let ask = async |structure, nsid| {
        let command = Command::identify(structure, nsid);
        let room = vec![0; IDENTIFY_LEN];
        let (_value, data) = device.submit(Target::Admin, name, command, room).await?;
        Ok::<_, Error>(data)
    };
    let unusable = |detail: &str| Error::Protocol {
        command: name,
        detail: detail.to_owned(),
    };
    let controller = IdentifyController::decode(&ask(cns::CONTROLLER, 0).await?)
        .ok_or_else(|| unusable("short data"))?;
    let namespace = IdentifyNamespace::decode(&ask(cns::NAMESPACE, nsid).await?)
        .ok_or_else(|| unusable("short data"))?;
    let descriptors = match ask(cns::DESCRIPTORS, nsid).await {
        Ok(data) => Descriptors::decode(&data),
        Err(Error::Status { .. }) => Descriptors::default(),
        Err(error) => return Err(error),
    };
    let block_size = namespace
        .block_size()
        .ok_or_else(|| unusable("the block size is out of range"))?;
    let limit = match controller.max_transfer_exponent {
        0 => MAX_TRANSFER,
        n => 4096_u32.saturating_mul(1_u32.checked_shl(n.into()).unwrap_or(u32::MAX)),
    };
    Ok(Identified {
        nsid,
        nguid: namespace.nguid,
        uuid: descriptors.uuid,
        blocks: namespace.blocks,
        block_size,
        reservation_capabilities: namespace.reservations,
        volatile_write_cache: controller.volatile_write_cache & 1 != 0,
        max_transfer: limit.clamp(block_size, MAX_TRANSFER),
        quiesce_time: match controller.command_quiesce_time_ms {
            0 => UNKNOWN_QUIESCE_TIME,
            ms => Duration::from_millis(ms.into()),
        },
        keep_alive_timeout: keep_alive,
        serial: controller.serial,
        model: controller.model,
        firmware: controller.firmware,
    })
}

impl Namespace for KernelNamespace {
    async fn identify(&self) -> Result<Identified, Error> {
        Ok(self.identified.clone())
    }

    async fn read(&self, lba: u64, blocks: u32) -> Result<Bytes, Error> {
        let size = self.identified.block_size;
        let command = Command::read(self.identified.nsid, lba, blocks, size);
        let data = vec![0; (blocks * size) as usize];
        Ok(self.io("Read", command, data).await?.into())
    }

    async fn write(&self, lba: u64, data: Bytes, fua: bool) -> Result<(), Error> {
        let size = self.identified.block_size;
        let blocks = (data.len() / size as usize) as u32;
        let command = Command::write(self.identified.nsid, lba, blocks, size, fua);
        self.send("Write", (command, data.to_vec())).await
    }

    async fn flush(&self) -> Result<(), Error> {
        let command = Command::flush(self.identified.nsid);
        self.send("Flush", (command, Vec::new())).await
    }

    async fn write_zeroes(&self, lba: u64, blocks: u32, deallocate: bool) -> Result<(), Error> {
        let command = Command::write_zeroes(self.identified.nsid, lba, blocks, deallocate);
        self.send("Write Zeroes", (command, Vec::new())).await
    }

    async fn deallocate(&self, lba: u64, blocks: u32) -> Result<(), Error> {
        let ranges = [Range { lba, blocks }];
        let command = Command::deallocate(self.identified.nsid, 1);
        self.send("Dataset Management", (command, encode_ranges(&ranges)))
            .await
    }

    async fn register(
        &self,
        action: Register,
        persistence: ChangePersistence,
    ) -> Result<(), Error> {
        let nsid = self.identified.nsid;
        let command = Command::reservation_register(nsid, action, false, persistence);
        self.send("Reservation Register", command).await
    }

    async fn acquire(&self, action: Acquire, key: u64, kind: ReservationType) -> Result<(), Error> {
        let command = Command::reservation_acquire(self.identified.nsid, action, key, kind);
        self.send("Reservation Acquire", command).await
    }

    async fn release(&self, action: Release, key: u64) -> Result<(), Error> {
        let command = Command::reservation_release(self.identified.nsid, action, key);
        self.send("Reservation Release", command).await
    }

    async fn report(&self) -> Result<ReservationReport, Error> {
        let name = "Reservation Report";
        let length = REPORT_HEADER_LEN + REGISTRANTS * REPORT_ENTRY_LEN;
        let command = Command::reservation_report(self.identified.nsid, length as u32);
        let data = self.io(name, command, vec![0; length]).await?;
        decode_report(&data).map_err(|error| Error::Protocol {
            command: name,
            detail: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(number: u16) -> Outcome {
        Ok((Status(number), 0))
    }

    fn errno(number: i32) -> Outcome {
        Err(io::Error::from_raw_os_error(number))
    }

    #[test]
    fn the_do_not_retry_bit_does_not_hide_a_conflict() {
        for number in [0x083, 0x4083] {
            let error = interpret("Write", status(number)).expect_err("a conflict");
            assert!(error.is_conflict() && !error.outcome_unknown());
        }
        assert!(interpret("Write", status(0)).is_ok());
    }

    #[test]
    fn what_the_kernel_gave_up_itself_has_an_unknown_outcome() {
        // Host Pathing Error, Command Aborted By Host, the same with DNR.
        for number in [0x370, 0x371, 0x4371] {
            let error = interpret("Reservation Acquire", status(number)).expect_err("given up");
            assert!(error.outcome_unknown(), "{error}");
        }
        for number in [libc::EINTR, libc::EIO, libc::ENODEV, libc::ETIMEDOUT] {
            let error = interpret("Reservation Acquire", errno(number)).expect_err("given up");
            assert!(error.outcome_unknown(), "{error}");
        }
    }

    #[test]
    fn what_was_refused_before_it_was_sent_had_no_effect() {
        let no_path = interpret("Flush", errno(libc::EWOULDBLOCK)).expect_err("no path");
        assert!(matches!(no_path, Error::NoPath { .. }));
        for number in [libc::EACCES, libc::ENOTTY, libc::EINVAL] {
            let error = interpret("Flush", errno(number)).expect_err("refused");
            assert!(!error.outcome_unknown());
        }
    }

    #[tokio::test]
    async fn other_files_are_no_namespaces() {
        let file = tempfile::NamedTempFile::new().expect("make a file");
        let second = Duration::from_secs(1);
        let opened = KernelNamespace::open(file.path(), second, second).await;
        assert!(matches!(opened, Err(OpenError::NotNvme { .. })));
    }
}
