//! The line between two sites, as a wide-area network would be: latency, jitter, loss, a cut.
//!
//! `tc qdisc … netem` does the same, but many kernels are built without it, and a drill must not
//! measure another thing on another machine. So two network devices are joined here, frame by frame:
//! both kernels' TCP sees real latency and real loss, with its own retransmissions and keep-alives.
//!
//! ```text
//! namespace of site a         namespace of the line        namespace of site b
//!   device ══ veth ══ left ─► carrier: shape ─► right ══ veth ══ device
//!                          ◄─ carrier: shape ◄─
//! ```
//!
//! It must not know what the frames say: but for checksums that a sending kernel left to a device.

mod carrier;
mod frame;
pub mod shape;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use self::shape::Shape;
use super::network::enter;

/// A running line; dropping it ends it, as a cut.
#[derive(Debug)]
pub struct Line {
    shape: watch::Sender<Shape>,
    /// One a direction. They end by themselves once `shape` is gone.
    _carriers: [JoinHandle<()>; 2],
}

impl Line {
    /// Joins two devices of the network namespace at `namespace`, which must be up and have no
    /// address there: the kernel would answer what is only to be passed on.
    ///
    /// # Errors
    /// The namespace or a device is missing, or this process may not open packet sockets (it needs
    /// `CAP_NET_RAW` and `CAP_SYS_ADMIN`).
    pub fn join(namespace: &Path, left: &str, right: &str) -> io::Result<Self> {
        let names = [left.to_owned(), right.to_owned()];
        let sockets = enter(namespace, move || names.map(|name| carrier::socket(&name)))?;
        let [left, right] = sockets;
        let (left, right) = (Arc::new(left?), Arc::new(right?));
        let (shape, seen) = watch::channel(Shape::default());
        let carriers = [
            carrier::start(Arc::clone(&left), Arc::clone(&right), seen.clone())?,
            carrier::start(right, left, seen)?,
        ];
        Ok(Self {
            shape,
            _carriers: carriers,
        })
    }

    /// What the line does to frames from now on, in both directions. Those under way keep the time
    /// they were given, but a cut loses them too.
    pub fn set(&self, shape: Shape) {
        self.shape.send_replace(shape);
    }
}

#[cfg(test)]
mod tests;
