//! The unsafe part: handing commands to the kernel, and the memory in which it describes requests.

#![allow(
    unsafe_code,
    reason = "io_uring submissions and mmap name memory that the compiler cannot check"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::{IntoBytes, transmute};

use super::abi::{ControlCommand, IoCommand, IoDescriptor};

/// `UBLKSRV_CMD_BUF_OFFSET`, plus the first queue's share of the area: none.
const DESCRIPTORS_OFFSET: libc::off_t = 0;

/// Runs one command of the control device to its end. `buffer` is what the command reads or fills;
/// it is given back.
pub(super) fn control(
    device: BorrowedFd<'_>,
    op: u32,
    mut command: ControlCommand,
    mut buffer: Vec<u8>,
) -> io::Result<Vec<u8>> {
    // A ring for this command alone: one that was not submitted goes away with it.
    let mut ring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(1)?;
    command.length = u16::try_from(buffer.len()).map_err(io::Error::other)?;
    command.address = buffer.as_mut_ptr() as u64;
    let mut bytes = [0; 80];
    bytes[..size_of::<ControlCommand>()].copy_from_slice(command.as_bytes());
    let entry = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), op).cmd(bytes);
    // SAFETY: the command names `buffer` alone, with its length. It is moved nowhere and freed only
    // after the command's completion, or never; the descriptor is open for the whole call.
    unsafe { ring.submission().push(&entry.build()) }.map_err(io::Error::other)?;
    loop {
        if let Some(done) = ring.completion().next() {
            return match done.result() {
                error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                _ => Ok(buffer),
            };
        }
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                // The kernel may have the command, and so the buffer, for ever.
                std::mem::forget(buffer);
                return Err(error);
            }
            _ => {}
        }
    }
}

/// Queues a command of the character device, to be submitted by the caller. The completion carries
/// the request's tag.
pub(super) fn queue(
    ring: &mut IoUring,
    device: BorrowedFd<'_>,
    op: u32,
    tag: u16,
    command: IoCommand,
) -> io::Result<()> {
    let entry = opcode::UringCmd16::new(types::Fd(device.as_raw_fd()), op)
        .cmd(transmute!(command))
        .build()
        .user_data(u64::from(tag));
    // SAFETY: the command names no memory (`IoCommand` has no buffer), so nothing needs to outlive
    // it. A descriptor that was closed before the submission would fail the command.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)
}

/// Watches the ring for completions, on the current runtime.
pub(super) fn watch(ring: IoUring) -> io::Result<AsyncFd<IoUring>> {
    // SAFETY: the ring owns its descriptor, which stays the same and open as long as the ring, and
    // the ring is owned by the value returned.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}

/// The requests of one queue, in memory that the kernel writes and this process reads.
pub(super) struct Descriptors {
    address: NonNull<IoDescriptor>,
    bytes: usize,
    depth: u16,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for Descriptors {}

impl Descriptors {
    /// Maps those of the first queue.
    pub(super) fn map(device: impl AsFd, depth: u16) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|page| usize::try_from(page).ok());
        let page = page.ok_or_else(|| io::Error::other("no page size"))?;
        // The kernel takes no other length.
        let bytes = (usize::from(depth) * size_of::<IoDescriptor>()).next_multiple_of(page);
        // SAFETY: a new mapping, at an address of the kernel's choice, replaces none; it is
        // read-only, and lives until `drop`.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                device.as_fd().as_raw_fd(),
                DESCRIPTORS_OFFSET,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("no address"))?;
        Ok(Self {
            address,
            bytes,
            depth,
        })
    }

    /// The request of this tag; what it says holds from the completion of a fetch to the next
    /// commit. `None` for a tag that the queue does not have.
    pub(super) fn read(&self, tag: u16) -> Option<IoDescriptor> {
        if tag >= self.depth {
            return None;
        }
        // SAFETY: `tag` is below the depth for which the area was mapped, and the mapping lives as
        // long as `self`. Volatile, as the kernel writes there; whatever it writes is a valid value.
        Some(unsafe { self.address.add(usize::from(tag)).read_volatile() })
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping made in `map`, and with `self` its
        // last user is gone. A failure would leave it mapped, which harms nobody.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}
