//! The queue: takes requests from the kernel, has each served by a task, commits the results.
//!
//! ```text
//! kernel ─► completion (tag) ─► descriptor ─► task: Volume, copy ─► result ─► commit and fetch ─► kernel
//! ```
//!
//! The kernel takes commands for a tag only from the thread that fetched it first. So this runs on a
//! runtime of one thread; the ring itself (`IORING_SETUP_SINGLE_ISSUER`) refuses any other.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::IoUring;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::abi::{self, IoCommand, RESULT_ABORT, RESULT_REQUEST, Request, op};
use super::raw::{self, Descriptors};
use crate::bridge::{Backend, Volume};

/// A served queue of one device.
pub(super) struct Queue<B> {
    ring: AsyncFd<IoUring>,
    device: Arc<File>,
    descriptors: Descriptors,
    volume: Arc<Volume<B>>,
    results: UnboundedReceiver<Outcome>,
    tell: UnboundedSender<Outcome>,
    /// The requests under way: they end with the queue, and let go of the device.
    tasks: JoinSet<()>,
}

/// What became of a request: a number of bytes, or a negative error number.
struct Outcome {
    tag: u16,
    result: i32,
}

impl<B: Backend> Queue<B> {
    /// Fetches every tag, so that the device can be started. Must be called on the thread that will
    /// poll [`Self::serve`].
    pub(super) fn open(device: File, depth: u16, volume: Arc<Volume<B>>) -> io::Result<Self> {
        let descriptors = Descriptors::map(&device, depth)?;
        // No interruption when a request arrives while this thread is busy: its next system call
        // is soon enough.
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(u32::from(depth))?;
        for tag in 0..depth {
            let command = IoCommand::new(tag, 0);
            raw::queue(&mut ring, device.as_fd(), op::FETCH, tag, command)?;
        }
        ring.submit()?;
        let (tell, results) = unbounded_channel();
        Ok(Self {
            ring: raw::watch(ring)?,
            device: Arc::new(device),
            descriptors,
            volume,
            results,
            tell,
            tasks: JoinSet::new(),
        })
    }

    /// Serves until the kernel takes the device away.
    pub(super) async fn serve(mut self) -> io::Result<()> {
        loop {
            while let Ok(outcome) = self.results.try_recv() {
                self.commit(&outcome)?;
            }
            while self.tasks.try_join_next().is_some() {}
            submit(self.ring.get_ref())?;
            if !self.take()? {
                return Ok(());
            }
            tokio::select! {
                // Cleared before the completions are taken: later ones set it again.
                ready = self.ring.readable() => ready?.clear_ready(),
                Some(outcome) = self.results.recv() => self.commit(&outcome)?,
            }
        }
    }

    /// Gives a result to the kernel, and with it the tag for its next request.
    fn commit(&mut self, outcome: &Outcome) -> io::Result<()> {
        let Outcome { tag, result } = *outcome;
        let command = IoCommand::new(tag, result);
        let (ring, device) = (self.ring.get_mut(), self.device.as_fd());
        raw::queue(ring, device, op::COMMIT_AND_FETCH, tag, command)
    }

    /// Begins all requests that have arrived. `false` when the device goes away.
    fn take(&mut self) -> io::Result<bool> {
        loop {
            let next = self.ring.get_mut().completion().next();
            let Some(entry) = next else {
                return Ok(true);
            };
            let tag = entry.user_data() as u16;
            match entry.result() {
                RESULT_REQUEST => self.begin(tag),
                RESULT_ABORT => return Ok(false),
                error => return Err(io::Error::from_raw_os_error(-error)),
            }
        }
    }

    /// Runs one request as a task of its own, so that requests overlap and finish in any order.
    fn begin(&mut self, tag: u16) {
        let described = self.descriptors.read(tag);
        let request = described.map_or(Request::Unknown, |described| described.request());
        let answer = Answer {
            tag,
            result: -libc::EIO,
            tell: self.tell.clone(),
        };
        let (volume, device) = (Arc::clone(&self.volume), Arc::clone(&self.device));
        self.tasks.spawn(async move {
            let mut answer = answer;
            answer.result = match serve(&volume, &device, tag, request).await {
                Ok(bytes) => i32::try_from(bytes).unwrap_or(-libc::EIO),
                Err(errno) => -errno,
            };
        });
    }
}

/// Tells the result when it is dropped: a task that panics fails its request and leaves nobody
/// waiting.
struct Answer {
    tag: u16,
    result: i32,
    tell: UnboundedSender<Outcome>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let (tag, result) = (self.tag, self.result);
        // Nobody listens any more when the device is gone.
        let _ = self.tell.send(Outcome { tag, result });
    }
}

fn submit(ring: &IoUring) -> io::Result<()> {
    loop {
        match ring.submit() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            submitted => return submitted.map(drop),
        }
    }
}

/// The number of bytes, or an error number for the block layer.
async fn serve<B: Backend>(
    volume: &Volume<B>,
    device: &File,
    tag: u16,
    request: Request,
) -> Result<u32, i32> {
    match request {
        Request::Read { offset, length } => {
            let data = volume.read(offset, length).await?;
            copied(device.write_all_at(&data, abi::buffer(tag)))?;
            Ok(length)
        }
        Request::Write {
            offset,
            length,
            durable,
        } => {
            let mut data = vec![0; length as usize];
            copied(device.read_exact_at(&mut data, abi::buffer(tag)))?;
            let data = Bytes::from(data);
            match durable {
                true => volume.write_durable(offset, data).await?,
                false => volume.write(offset, data).await?,
            }
            Ok(length)
        }
        Request::Flush => volume.flush().await.map(|()| 0),
        Request::Zeroes {
            offset,
            length,
            deallocate,
        } => {
            let zeroed = volume.write_zeroes(offset, length, deallocate).await;
            zeroed.map(|()| 0)
        }
        Request::Unknown => Err(libc::EOPNOTSUPP),
    }
}

/// Data could not be copied between the request and this process: it fails, whatever the reason.
fn copied(outcome: io::Result<()>) -> Result<(), i32> {
    outcome.map_err(|error| {
        tracing::warn!(%error, "the data of a request could not be copied");
        libc::EIO
    })
}
