//! [`Namespace`] over a namespace device of the kernel, `/dev/nvmeXnY`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::raw::{self, Outcome, Target};
use crate::command::{Command, Range, encode_ranges};
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
    /// Identify failed.
    #[error("identify the namespace")]
    Identify(#[source] Error),
}

/// A namespace device of the kernel, opened for passthrough.
pub struct KernelNamespace {
    device: Arc<File>,
    identified: Identified,
    deadline: Duration,
}

impl KernelNamespace {
    /// Opens `/dev/nvmeXnY` and identifies it. `deadline` is for each command; `keep_alive` is the
    /// association's time-out, which sysfs tells and the device does not.
    pub async fn open(
        path: &Path,
        deadline: Duration,
        keep_alive: Duration,
    ) -> Result<Self, OpenError> {
        let open = |source| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(open)?;
        let nsid = raw::namespace_id(device.as_fd()).map_err(|source| OpenError::NotNvme {
            path: path.to_owned(),
            source,
        })?;
        let device = Arc::new(device);
        let identified = identify(&device, nsid, deadline, keep_alive)
            .await
            .map_err(OpenError::Identify)?;
        Ok(Self {
            device,
            identified,
            deadline,
        })
    }

    async fn io(
        &self,
        name: &'static str,
        command: Command,
        data: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        submit(&self.device, Target::Io, name, command, data, self.deadline).await
    }

    async fn send(&self, name: &'static str, command: (Command, Vec<u8>)) -> Result<(), Error> {
        self.io(name, command.0, command.1).await?;
        Ok(())
    }
}

/// Runs a command on a thread that may block, and gives its data back.
async fn submit(
    device: &Arc<File>,
    target: Target,
    name: &'static str,
    command: Command,
    mut data: Vec<u8>,
    deadline: Duration,
) -> Result<Vec<u8>, Error> {
    let device = Arc::clone(device);
    let timeout_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    let running = tokio::task::spawn_blocking(move || {
        let outcome = raw::run(device.as_fd(), target, &command, &mut data, timeout_ms);
        (outcome, data)
    });
    match timeout(deadline + GRACE, running).await {
        Ok(Ok((outcome, data))) => interpret(name, outcome).map(|()| data),
        // The thread panicked or was not run: it may have been in the ioctl.
        Ok(Err(_)) => Err(Error::ConnectionLost { command: name }),
        Err(_) => Err(Error::Deadline {
            command: name,
            deadline: deadline + GRACE,
        }),
    }
}

/// What the kernel's answer says of the command. Where it cannot be excluded that the controller
/// got the command, its outcome is unknown.
fn interpret(name: &'static str, outcome: Outcome) -> Result<(), Error> {
    let source = match outcome {
        Ok((status, _)) if status.is_success() => return Ok(()),
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

async fn identify(
    device: &Arc<File>,
    nsid: u32,
    deadline: Duration,
    keep_alive: Duration,
) -> Result<Identified, Error> {
    let name = "Identify";
    let ask = async |structure, nsid| {
        let command = Command::identify(structure, nsid);
        submit(
            device,
            Target::Admin,
            name,
            command,
            vec![0; IDENTIFY_LEN],
            deadline,
        )
        .await
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
