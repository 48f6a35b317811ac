//! One direction of a line: a thread that takes frames from one device, keeps them for as long as
//! the line is to take, and gives them to the other. A thread, because it must neither wait for the
//! supervisor's other work nor delay it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
    recv, send, setsockopt, socket as open, sockopt,
};
use tokio::sync::watch;

use super::frame;
use super::shape::{Queue, Shape};
use crate::clock;

/// The longest frame: a packet of the greatest length, with its header.
const FRAME_MAX: usize = (1 << 16) + 14;

/// How much the kernel keeps for us while the thread does not run, in bytes. With less, a burst
/// would be lost that no line loses.
const RECEIVE_BUFFER: usize = 32 << 20;

/// How often an idle thread looks whether the line is still there.
const IDLE: Duration = Duration::from_millis(100);

/// How many frames are taken before those that have arrived are passed on.
const BURST: usize = 64;

/// A packet socket on a device of this thread's network namespace. It stays there.
pub(super) fn socket(device: &str) -> io::Result<OwnedFd> {
    let is_it = |interface: &nix::ifaddrs::InterfaceAddress| {
        let address = interface.address.as_ref();
        let family = address.and_then(|address| address.family());
        interface.interface_name == device && family == Some(AddressFamily::Packet)
    };
    let found = getifaddrs()?
        .find(is_it)
        .and_then(|interface| interface.address);
    let address: LinkAddr = found
        .as_ref()
        .and_then(|address| address.as_link_addr())
        .copied()
        .ok_or_else(|| io::Error::other(format!("there is no network device {device}")))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = open(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        SockProtocol::EthAll,
    )?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// Carries frames until the sender of `shape` is gone.
pub(super) fn start(
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    shape: watch::Receiver<Shape>,
) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("wan".to_owned());
    thread.spawn(move || {
        if let Err(error) = carry(&from, &to, &shape) {
            tracing::error!(%error, "a line between sites ended");
        }
    })
}

fn carry(from: &OwnedFd, to: &OwnedFd, shape: &watch::Receiver<Shape>) -> Result<(), Errno> {
    let mut chance = rand::rng();
    let mut queue = Queue::default();
    let mut buffer = vec![0; FRAME_MAX];
    while shape.has_changed().is_ok() {
        let now = clock::now();
        let current = *shape.borrow();
        if current.cut {
            queue.clear();
        }
        while let Some(mut frame) = queue.arrived(now) {
            frame::complete(&mut frame);
            match send(to.as_raw_fd(), &frame, MsgFlags::empty()) {
                // no room in the device's queue, or the device is down: lost, as on any line
                Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENETDOWN) => {}
                Err(Errno::ENXIO | Errno::ENODEV) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let wait = queue.next(now).map_or(IDLE, |next| next.min(IDLE));
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        let (now, current) = (clock::now(), *shape.borrow());
        for _ in 0..BURST {
            match recv(from.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => queue.accept(&buffer[..length], &current, now, &mut chance),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
