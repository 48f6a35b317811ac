//! What the kernel keeps of a device whose server is gone, and taking that away.
//!
//! The block device goes with its server: the kernel fails every request, also those that nobody
//! answered, and removes the disk; a file system on it is shut down (`ublk_ch_release` in
//! `drivers/block/ublk_drv.c`). The character device and the number stay, until somebody deletes
//! them, and the number until the last one closes what it had open: a mount of the old disk keeps it.
//!
//! Numbers are given out again. So each device carries a random token, which the kernel keeps
//! (`ublksrv_flags`); and while its character device is held open, its number cannot be another's.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::abi::{DeviceInfo, STATE_DEAD};
use super::control::Control;
use crate::block;

/// How often it is looked how far a device is gone.
const LOOK: Duration = Duration::from_millis(5);

/// Which device it is, also among those that have had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UblkDevice {
    /// The number in the names of its nodes.
    pub id: u32,
    /// Random; kept by the kernel as long as the device.
    pub token: u64,
}

/// How far a device is gone; what is further is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Its server lives, or the kernel is still failing its requests.
    Served,
    /// It is deleted, its disk gone for good; somebody still has the old one open, or mounted.
    Held,
    /// No superblock, no open file and no number is left of it.
    Nothing,
}

impl UblkDevice {
    /// The block device's node.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkb{}", self.id))
    }

    /// The character device's node.
    pub(super) fn channel(&self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkc{}", self.id))
    }

    /// Deletes what is left of the device if its server is gone, and says how far that has come.
    /// Another device of the same number is left alone. Needs root.
    ///
    /// # Errors
    /// What the system said; the device may still be there.
    pub fn remove(&self) -> io::Result<Left> {
        let control = match Control::open() {
            Ok(control) => control,
            // Without the driver there is no device.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Left::Nothing),
            Err(error) => return Err(error),
        };
        let Some(info) = self.found(&control)? else {
            return Ok(Left::Nothing);
        };
        if info.state != STATE_DEAD {
            return Ok(Left::Served);
        }
        let held = match File::options().read(true).write(true).open(self.channel()) {
            Ok(held) => held,
            Err(error) if block::is_gone(&error) => return self.held(&control),
            // One process may have it open: the server, or the kernel on its behalf.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(Left::Served),
            Err(error) => return Err(error),
        };
        if self.found(&control)?.is_some() {
            control.delete(self.id)?;
        }
        drop(held);
        self.held(&control)
    }

    /// Does that until it is gone as far as `wanted`, or has had `within` for it, and says how far it
    /// is. The kernel tells nobody, so it is looked at again and again.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub async fn remove_within(self, wanted: Left, within: Duration) -> io::Result<Left> {
        let until = Instant::now() + within;
        loop {
            // A deletion may wait for the kernel.
            let removed = tokio::task::spawn_blocking(move || self.remove()).await;
            let left = removed.map_err(io::Error::other)??;
            if left >= wanted || Instant::now() >= until {
                return Ok(left);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The device, if the number is still its own.
    fn found(&self, control: &Control) -> io::Result<Option<DeviceInfo>> {
        let info = control.info(self.id)?;
        Ok(info.filter(|info| info.token == self.token))
    }

    fn held(&self, control: &Control) -> io::Result<Left> {
        Ok(match self.found(control)? {
            Some(_) => Left::Held,
            None => Left::Nothing,
        })
    }

    /// Writes to a file which device it is, for whoever comes when nobody else remembers.
    pub(super) fn record(&self, file: &Path) -> io::Result<()> {
        // Whole or not at all: this process may be killed at any moment.
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, file)
    }

    /// The device of which a bridge left a record in its directory; `None` without a record.
    ///
    /// # Errors
    /// The record cannot be read, or is not one.
    pub fn recorded(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(record_in(directory)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the record out of a bridge's directory; none there is as good.
    pub fn forget(directory: &Path) -> io::Result<()> {
        match std::fs::remove_file(record_in(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Where a bridge records its device.
pub(super) fn record_in(directory: &Path) -> PathBuf {
    directory.join("ublk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_until_it_is_forgotten() {
        let directory = tempfile::tempdir().expect("make a directory");
        let device = UblkDevice {
            id: 3,
            token: u64::MAX - 1,
        };
        assert_eq!(UblkDevice::recorded(directory.path()).expect("look"), None);
        device.record(&record_in(directory.path())).expect("write");
        let recorded = UblkDevice::recorded(directory.path()).expect("read");
        assert_eq!(recorded, Some(device));
        for _ in 0..2 {
            UblkDevice::forget(directory.path()).expect("forget");
        }
        assert_eq!(UblkDevice::recorded(directory.path()).expect("look"), None);
    }
}
