//! `/dev/ublk-control`: makes devices, starts them, tells of them, takes them away.
//!
//! Every call waits for the kernel: for [`Control::start`] it waits for the queue's thread.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::abi::{ANY_ID, ControlCommand, DeviceInfo, F_USER_COPY, Parameters, op};
use super::raw;

/// Where the driver takes its commands.
pub(super) const CONTROL: &str = "/dev/ublk-control";

/// An open control device.
pub(super) struct Control {
    device: File,
}

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        let device = File::options().read(true).write(true).open(CONTROL)?;
        Ok(Self { device })
    }

    fn run(&self, op: u32, command: ControlCommand, buffer: &[u8]) -> io::Result<Vec<u8>> {
        raw::control(self.device.as_fd(), op, command, buffer.to_vec())
    }

    fn asked(&self, op: u32, command: ControlCommand, info: &DeviceInfo) -> io::Result<DeviceInfo> {
        let told = self.run(op, command, info.as_bytes())?;
        DeviceInfo::read_from_bytes(&told).map_err(|_| io::Error::other("a short answer"))
    }

    /// Adds a device with its character device, and gives its number.
    pub(super) fn add(&self, wanted: &DeviceInfo) -> io::Result<u32> {
        let added = self.asked(op::ADD_DEV, ControlCommand::new(ANY_ID, 0), wanted)?;
        if added.flags & F_USER_COPY != 0 {
            return Ok(added.id);
        }
        self.delete(added.id)?;
        let why = "the kernel's ublk cannot copy through the character device (Linux 6.5)";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    pub(super) fn set_parameters(&self, id: u32, told: &Parameters) -> io::Result<()> {
        let command = ControlCommand::new(id, 0);
        self.run(op::SET_PARAMS, command, told.as_bytes()).map(drop)
    }

    /// Makes the block device. Waits until this process has fetched every tag; a kernel that scans
    /// for partitions reads from the device before this returns.
    pub(super) fn start(&self, id: u32) -> io::Result<()> {
        let server = u64::from(std::process::id());
        let command = ControlCommand::new(id, server);
        self.run(op::START_DEV, command, &[]).map(drop)
    }

    /// What the kernel knows of the device with this number; `None` if there is none.
    pub(super) fn info(&self, id: u32) -> io::Result<Option<DeviceInfo>> {
        let command = ControlCommand::new(id, 0);
        match self.asked(op::GET_DEV_INFO, command, &DeviceInfo::new_zeroed()) {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stops and deletes the device; its number is free when the last one who has it open is gone.
    /// Waits for requests that are under way, and before Linux 6.9 for that last one too.
    pub(super) fn delete(&self, id: u32) -> io::Result<()> {
        let command = ControlCommand::new(id, 0);
        let deleted = match self.run(op::DEL_DEV_ASYNC, command, &[]) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.run(op::DEL_DEV, command, &[])
            }
            deleted => deleted,
        };
        match deleted {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            deleted => deleted.map(drop),
        }
    }
}
