//! Which driver shows the device, and what others must know of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::device::LoopBridge;
use super::ublk::{self, UblkDevice};
use super::{Backend, BridgeError, BridgeOptions, Volume};
use crate::block::{MAX_LOOP_BLOCK_SIZE, MIN_LOOP_BLOCK_SIZE};

/// What shows the block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// ublk where its driver is there and takes the device, else FUSE and loop.
    #[default]
    Auto,
    /// The ublk driver.
    Ublk,
    /// A FUSE file system and a loop device.
    Fuse,
}

/// The line with which a bridge says that its device is usable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The block device.
    pub device: PathBuf,
    /// What is behind it.
    #[serde(flatten)]
    pub behind: Behind,
}

/// What is behind a bridge's device: by this it is proven gone when the bridge has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behind {
    /// A loop device over the FUSE connection of this number, for [`super::abort`].
    #[serde(rename = "connection")]
    Fuse(u32),
    /// A ublk device.
    #[serde(rename = "ublk")]
    Ublk(UblkDevice),
}

/// A namespace shown as a block device by this process.
pub struct Bridge {
    kind: Kind,
    directory: Option<PathBuf>,
}

enum Kind {
    Fuse(LoopBridge),
    Ublk(ublk::Served),
}

impl Kind {
    async fn attach<B: Backend>(
        volume: Arc<Volume<B>>,
        options: &BridgeOptions,
    ) -> Result<Self, BridgeError> {
        let directory = options.directory.as_deref();
        let by_ublk = |volume| ublk::Served::attach(volume, directory);
        match options.driver {
            Driver::Ublk => return Ok(Self::Ublk(by_ublk(volume).await?)),
            Driver::Auto if ublk::is_offered() => match by_ublk(Arc::clone(&volume)).await {
                Ok(served) => return Ok(Self::Ublk(served)),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the ublk driver does not take the device: it becomes a loop device"
                ),
            },
            Driver::Auto | Driver::Fuse => {}
        }
        let attached = LoopBridge::attach(volume, options.name.clone()).await?;
        Ok(Self::Fuse(attached))
    }
}

impl Bridge {
    /// Shows the backend's namespace as a block device. Requests run as tasks of the current tokio
    /// runtime, which must have one thread for [`Driver::Ublk`], and must not be blocked by anybody
    /// who touches the device.
    pub async fn attach<B: Backend>(
        backend: Arc<B>,
        options: BridgeOptions,
    ) -> Result<Self, BridgeError> {
        let identified = backend.identify().await.map_err(BridgeError::Identify)?;
        let block_size = identified.block_size;
        if !(MIN_LOOP_BLOCK_SIZE..=MAX_LOOP_BLOCK_SIZE).contains(&block_size) {
            return Err(BridgeError::BlockSize { block_size });
        }
        let volume = Arc::new(Volume::new(backend, identified, options.path_loss));
        Ok(Self {
            kind: Kind::attach(volume, &options).await?,
            directory: options.directory,
        })
    }

    /// The device's path, `/dev/loopN` or `/dev/ublkbN`.
    pub fn device(&self) -> &Path {
        match &self.kind {
            Kind::Fuse(bridge) => bridge.path(),
            Kind::Ublk(bridge) => bridge.path(),
        }
    }

    /// What those must know who use the device and outlive this process.
    pub fn announcement(&self) -> Announcement {
        Announcement {
            device: self.device().to_owned(),
            behind: match &self.kind {
                Kind::Fuse(bridge) => Behind::Fuse(bridge.connection()),
                Kind::Ublk(bridge) => Behind::Ublk(bridge.device()),
            },
        }
    }

    /// Ends the device, if the end of the process alone would leave something of it.
    ///
    /// # Errors
    /// Something may be left, and is recorded.
    pub async fn close(self) -> io::Result<()> {
        match self.kind {
            // Its end is that of the process.
            Kind::Fuse(_) => Ok(()),
            Kind::Ublk(bridge) => bridge.close(self.directory.as_deref()).await,
        }
    }

    /// Waits until the kernel ended its connection to this process: the device is dead from then on.
    pub async fn ended(&mut self) {
        match &mut self.kind {
            Kind::Fuse(bridge) => bridge.ended().await,
            Kind::Ublk(bridge) => bridge.ended().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str, announcement: &Announcement) {
        let text = serde_json::to_string(announcement).expect("write");
        assert_eq!(text, line);
        let read: Announcement = serde_json::from_str(line).expect("read");
        assert_eq!(read, *announcement);
    }

    #[test]
    fn an_announcement_names_the_device_and_what_is_behind_it() {
        let by_fuse = Announcement {
            device: "/dev/loop7".into(),
            behind: Behind::Fuse(41),
        };
        said(r#"{"device":"/dev/loop7","connection":41}"#, &by_fuse);
        let ublk = UblkDevice {
            id: 3,
            token: u64::MAX,
        };
        let by_ublk = Announcement {
            device: ublk.path(),
            behind: Behind::Ublk(ublk),
        };
        let line = r#"{"device":"/dev/ublkb3","ublk":{"id":3,"token":18446744073709551615}}"#;
        said(line, &by_ublk);
    }
}
