//! A namespace as a block device of the kernel's ublk driver (Documentation/block/ublk.rst).
//!
//! ```text
//! ext4 ─► /dev/ublkbN ─► (io_uring) ─► this process ─► Backend ─► NVMe/TCP target
//! ```
//!
//! Without any of the recovery flags a device ends with its server: the kernel fails what waits and
//! removes the disk, whatever ended the process. What it keeps, [`UblkDevice::remove`] takes away.
//!
//! On the crate `io-uring` alone, with the driver's structures written out in `abi.rs`: `libublk`
//! needs libclang to be built, and brings an asynchronous runtime of its own beside tokio.
//!
//! The file system on the device must not be mounted in this process's mount namespace, and nobody
//! may touch the device from this runtime's thread; it is started from another one.

mod abi;
mod control;
mod queue;
mod raw;
mod remains;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::abi::{DeviceInfo, Geometry};
use self::control::Control;
use self::queue::Queue;
use super::{Backend, BridgeError, Volume};

pub use self::remains::{Left, UblkDevice};

/// Requests in flight, as many as a loop device has.
const DEPTH: u16 = 128;
/// Largest read or write of one request, in bytes, as the FUSE file system has.
const MAX_BYTES: u32 = 1 << 20;
/// Most blocks of one discard or write of zeroes: what one NVMe command can name.
const MAX_ZEROES_BLOCKS: u64 = 1 << 16;
/// How long the kernel may take to let go of a device whose server has ended.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);

/// Whether this kernel offers ublk now: its driver is there.
pub fn is_offered() -> bool {
    Path::new(control::CONTROL).exists()
}

/// A namespace shown as a block device by this process.
pub(super) struct Served {
    path: PathBuf,
    device: UblkDevice,
    server: JoinHandle<io::Result<()>>,
}

impl Served {
    /// Adds, records and starts a device. A record in `directory` of an earlier one says what must be
    /// taken away before.
    pub(super) async fn attach<B: Backend>(
        volume: Arc<Volume<B>>,
        directory: Option<&Path>,
    ) -> Result<Self, BridgeError> {
        let flavor = Handle::current().runtime_flavor();
        if flavor != RuntimeFlavor::CurrentThread {
            let why = io::Error::other("the runtime has several threads");
            return Err(failed("fetch requests")(why));
        }
        if let Some(directory) = directory {
            let removed = remove_recorded(directory).await;
            removed.map_err(failed("take an earlier device away"))?;
        }
        let geometry = geometry(&volume);
        let directory = directory.map(Path::to_owned);
        let device = off_the_thread(move || add(geometry, directory.as_deref())).await?;
        match serve(device, volume).await {
            Ok(server) => Ok(Self {
                path: device.path(),
                device,
                server,
            }),
            Err(error) => {
                undo(device).await;
                Err(error)
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn device(&self) -> UblkDevice {
        self.device
    }

    /// Ends the device as the end of the process would, and deletes what the kernel keeps of it. What
    /// was not flushed is lost.
    pub(super) async fn close(self, directory: Option<&Path>) -> io::Result<()> {
        if !self.server.is_finished() {
            self.server.abort();
            // Only the end counts: with it the ring is closed.
            let _ended = self.server.await;
        }
        let left = self.device.remove_within(Left::Held, RELEASED_WITHIN);
        if left.await? == Left::Served {
            return Err(io::Error::other("the kernel does not let go of the device"));
        }
        directory.map_or(Ok(()), UblkDevice::forget)
    }

    /// Waits until the kernel took the device away, or the queue broke.
    pub(super) async fn ended(&mut self) {
        match (&mut self.server).await {
            Ok(Ok(())) => tracing::info!("the ublk device was taken away"),
            Ok(Err(error)) => tracing::error!(%error, "the ublk queue broke"),
            Err(error) => tracing::error!(%error, "the ublk queue's task ended"),
        }
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> BridgeError {
    move |source| BridgeError::Ublk { step, source }
}

fn geometry<B: Backend>(volume: &Volume<B>) -> Geometry {
    Geometry {
        size: volume.size(),
        block_size: volume.block_size(),
        volatile_cache: volume.has_volatile_cache(),
        max_bytes: MAX_BYTES,
        max_zeroes_bytes: MAX_ZEROES_BLOCKS * u64::from(volume.block_size()),
    }
}

/// Calls that wait for the kernel, which may wait for the queue.
async fn off_the_thread<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, BridgeError> + Send + 'static,
) -> Result<T, BridgeError> {
    let called = tokio::task::spawn_blocking(call).await;
    called.map_err(|error| failed("run the set-up")(io::Error::other(error)))?
}

fn add(geometry: Geometry, directory: Option<&Path>) -> Result<UblkDevice, BridgeError> {
    let control = Control::open().map_err(failed("open the control device"))?;
    let token = Uuid::new_v4().as_u64_pair().0;
    let added = control.add(&DeviceInfo::wanted(DEPTH, MAX_BYTES, token));
    let id = added.map_err(failed("add a device"))?;
    let device = UblkDevice { id, token };
    let recorded = match directory {
        Some(directory) => device.record(&remains::record_in(directory)),
        None => Ok(()),
    };
    let set = recorded
        .map_err(failed("record the device"))
        .and_then(|()| {
            let set = control.set_parameters(id, &geometry.parameters());
            set.map_err(failed("set the device's parameters"))
        });
    if set.is_err()
        && let Err(error) = control.delete(id)
    {
        tracing::warn!(id, %error, "a ublk device is left");
    }
    set.map(|()| device)
}

/// An earlier bridge with this directory was killed, and so was everybody who knew of its device.
async fn remove_recorded(directory: &Path) -> io::Result<()> {
    let Some(earlier) = UblkDevice::recorded(directory)? else {
        return Ok(());
    };
    match earlier.remove_within(Left::Held, RELEASED_WITHIN).await? {
        Left::Held | Left::Nothing => UblkDevice::forget(directory),
        Left::Served => Err(io::Error::other("it is still served")),
    }
}

async fn serve<B: Backend>(
    device: UblkDevice,
    volume: Arc<Volume<B>>,
) -> Result<JoinHandle<io::Result<()>>, BridgeError> {
    let channel = File::options()
        .read(true)
        .write(true)
        .open(device.channel());
    let channel = channel.map_err(failed("open the character device"))?;
    let queue = Queue::open(channel, DEPTH, volume).map_err(failed("fetch requests"))?;
    let mut server = tokio::spawn(queue.serve());
    let start = off_the_thread(move || {
        let control = Control::open().map_err(failed("open the control device"))?;
        control.start(device.id).map_err(failed("start the device"))
    });
    // The kernel starts no device that has no server, it waits for one.
    let started = tokio::select! {
        started = start => started,
        ended = &mut server => {
            let ended = ended.map_err(io::Error::other).and_then(|ended| ended);
            let why = ended.err().unwrap_or_else(|| io::Error::other("the device was taken away"));
            return Err(failed("fetch requests")(why));
        }
    };
    if started.is_err() {
        server.abort();
        // Only the end counts: with it the ring is closed.
        let _ended = (&mut server).await;
    }
    started.map(|()| server)
}

/// Takes away a device that was not started, as far as that is possible.
async fn undo(device: UblkDevice) {
    let left = device.remove_within(Left::Held, RELEASED_WITHIN).await;
    if !matches!(left, Ok(Left::Held | Left::Nothing)) {
        tracing::warn!(id = device.id, ?left, "a ublk device is left");
    }
}
