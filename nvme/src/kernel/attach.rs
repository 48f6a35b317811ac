//! Finding the namespace's block device, and connecting where nothing leads to it.
//!
//! Controllers that are already there, as a CSI driver makes them, are used as they are, but for the
//! time-outs that can be changed: a second controller to the same address would be refused.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::bounded::{NoResult, bounded};
use super::fabrics::{self, ConnectError, ConnectOptions, Connected};
use super::initiator::{Attached, LOOK, Work};
use super::sysfs::{Controller, SysfsError, attribute};
use super::{
    KernelDisk, KernelInitiator, KernelNamespace, OpenError, PathView, Selector, view::View,
};
use crate::Nqn;

/// Why there is no block device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The address has no name of a host or no port, or its host is not known.
    #[error("look up {address}")]
    Address {
        /// As configured.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// sysfs cannot be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// This kernel is connected to the subsystem as another host. Both would be paths of one disk, and
    /// a reservation of one would be used by the other.
    #[error(
        "this machine is already connected to {subsystem} as another host: {controller} has host NQN {host_nqn} and host id {host_id}; use that identity, or disconnect it (nvme disconnect -d {controller})"
    )]
    OtherHost {
        /// The subsystem.
        subsystem: Nqn,
        /// The controller.
        controller: String,
        /// Its host's name.
        host_nqn: String,
        /// Its host's identifier.
        host_id: String,
    },
    /// No connection could be made.
    #[error("connect the kernel's initiator to {address}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: ConnectError,
    },
    /// No usable block device in time.
    #[error("no usable block device of {namespace} of {subsystem} within {within:?}: {found}")]
    NoDisk {
        /// What was looked for.
        namespace: Selector,
        /// Where.
        subsystem: Nqn,
        /// The limit.
        within: Duration,
        /// What there was instead.
        found: String,
    },
    /// The device node is not the disk that sysfs names.
    #[error(
        "{} is missing or another device than the one in sysfs: is /dev the machine's devtmpfs?",
        path.display()
    )]
    Node {
        /// The device node.
        path: PathBuf,
    },
    /// The device could not be opened or identified.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl KernelInitiator {
    /// Finds the block device, connecting where no controller leads to the address, or to one where a
    /// destroyed controller was. Does nothing where it is attached already.
    ///
    /// # Errors
    /// See [`AttachError`]. A connect that did not return in time may still succeed; the next
    /// attempt finds what it made.
    pub async fn attach(&self) -> Result<KernelDisk, AttachError> {
        let within = self.options.attach_deadline;
        let deadline = Instant::now() + within;
        let mut work = self.work.lock().await;
        if let Some(disk) = self.disk().filter(KernelDisk::is_there) {
            return Ok(disk);
        }
        let attached = match timeout_at(deadline, self.look_and_connect(&mut work, deadline)).await
        {
            Ok(attached) => attached?,
            Err(_elapsed) => {
                return Err(AttachError::NoDisk {
                    namespace: self.options.namespace,
                    subsystem: self.options.subsystem.clone(),
                    within,
                    found: View::of(&self.options)?.describe(),
                });
            }
        };
        let disk = attached.disk.clone();
        self.current.send_replace(Some(Arc::new(attached)));
        Ok(disk)
    }

    async fn look_and_connect(
        &self,
        work: &mut Work,
        deadline: Instant,
    ) -> Result<Attached, AttachError> {
        let configured = self.resolve().await?;
        work.addresses.insert(configured);
        let mut tried = BTreeSet::new();
        let mut refused = None;
        loop {
            let view = View::of(&self.options)?;
            self.refuse_other_hosts(&view)?;
            let missing: Vec<_> = work
                .addresses
                .iter()
                .copied()
                .filter(|address| !view.leads_to(*address) && !tried.contains(address))
                .collect();
            for address in missing {
                tried.insert(address);
                match self.connect_to(work, address, deadline).await {
                    Ok(()) => {}
                    Err(error) => refused = Some(error),
                }
            }
            let view = View::of(&self.options)?;
            if let Some(disk) = usable(&view) {
                if let Some(error) = refused {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a path is missing"
                    );
                }
                return self.open(&view, disk).await;
            }
            if let Some(error) = refused.take()
                && view.controllers().all(|c| c.state.is_ending())
            {
                return Err(error);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn resolve(&self) -> Result<SocketAddr, AttachError> {
        let failed = |source| AttachError::Address {
            address: self.options.address.clone(),
            source,
        };
        let mut found = tokio::net::lookup_host(&self.options.address)
            .await
            .map_err(failed)?;
        found
            .next()
            .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
    }

    fn refuse_other_hosts(&self, view: &View<'_>) -> Result<(), AttachError> {
        let Some(Controller {
            name,
            host_nqn,
            host_id,
            ..
        }) = view.foreign()
        else {
            return Ok(());
        };
        Err(AttachError::OtherHost {
            subsystem: self.options.subsystem.clone(),
            controller: name.clone(),
            host_nqn: host_nqn.clone().unwrap_or_default(),
            host_id: host_id.map(|id| id.to_string()).unwrap_or_default(),
        })
    }

    /// Connects, one at a time, as the kernel itself does.
    async fn connect_to(
        &self,
        work: &mut Work,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<(), AttachError> {
        if let Some(earlier) = work.connecting.as_mut() {
            // What it made is found by the next look; why it failed is no longer of interest.
            let _ended = earlier.await;
            work.connecting = None;
        }
        let options = &self.options;
        let mut connect = ConnectOptions::new(
            options.subsystem.clone(),
            address.ip().to_string(),
            address.port(),
            options.host.clone(),
        );
        connect.time_outs = options.time_outs;
        // A little less than the whole time, so that it is not lost track of.
        let left = deadline.saturating_duration_since(Instant::now());
        let made = bounded(left.mul_f32(0.9), "nvme-connect", move || {
            fabrics::connect(&connect)
        });
        let failed = |source| AttachError::Connect { address, source };
        match made.await {
            Ok(Ok(Connected { .. })) => Ok(()),
            Ok(Err(error)) if error.is_there_already() => Ok(()),
            Ok(Err(error)) => Err(failed(error)),
            Err(NoResult::Late(later)) => {
                work.connecting = Some(later);
                Err(failed(ConnectError::Late))
            }
            Err(NoResult::NotStarted(source)) => Err(failed(ConnectError::System {
                operation: "start a thread for",
                path: PathBuf::from("nvme-connect"),
                source,
            })),
            Err(NoResult::Vanished) => Err(failed(ConnectError::Late)),
        }
    }

    async fn open(&self, view: &View<'_>, disk: KernelDisk) -> Result<Attached, AttachError> {
        if !is_node_of(&disk) {
            return Err(AttachError::Node { path: disk.path });
        }
        let options = &self.options;
        adjust(options, view);
        let keep_alive = keep_alive(view).unwrap_or(options.time_outs.keep_alive);
        let namespace =
            KernelNamespace::open(&disk.path, options.command_deadline, keep_alive).await?;
        Ok(Attached { disk, namespace })
    }
}

/// The disk that is meant, if a path to it is usable.
fn usable(view: &View<'_>) -> Option<KernelDisk> {
    let (_, disk) = view.disk()?;
    let usable = view.paths().iter().any(PathView::is_usable);
    usable.then(|| view.kernel_disk(disk)).flatten()
}

/// The keep-alive time-out that counts: the longest, as a command may be under way on any controller,
/// and zero, which is none at all, where one has it off. `None` where the kernel does not tell.
fn keep_alive(view: &View<'_>) -> Option<Duration> {
    let all = || view.controllers().filter_map(|c| c.keep_alive);
    let longest = all().max()?;
    let counts = if all().any(|kato| kato == 0) {
        0
    } else {
        longest
    };
    Some(Duration::from_secs(counts.into()))
}

/// Whether the device node has the number that sysfs gives to the disk.
fn is_node_of(disk: &KernelDisk) -> bool {
    let in_sysfs = attribute(&disk.sysfs.join("class/block").join(&disk.name), "dev");
    let node = std::fs::metadata(&disk.path).ok().map(|node| {
        let number = node.rdev();
        format!("{}:{}", libc::major(number), libc::minor(number))
    });
    in_sysfs.is_some() && in_sysfs == node
}

/// Sets the time-outs that a controller lets change. One that cannot be set leaves a slower
/// fail-over, not an unsafe one.
fn adjust(options: &super::Options, view: &View<'_>) {
    let times = &options.time_outs;
    for controller in view.controllers() {
        let at = options.sysfs.join("class/nvme").join(&controller.name);
        for (name, now, wanted) in [
            (
                "reconnect_delay",
                controller.reconnect_delay,
                times.reconnect_delay,
            ),
            (
                "fast_io_fail_tmo",
                controller.fast_io_fail,
                times.fast_io_fail,
            ),
            (
                "ctrl_loss_tmo",
                controller.controller_loss,
                times.controller_loss,
            ),
        ] {
            if now.map(u64::from) != Some(wanted.as_secs()) {
                set(&at.join(name), &wanted.as_secs().to_string());
            }
        }
        // A controller's own are there since Linux 7: its end sends one last admin command.
        let own = ["admin_timeout", "io_timeout"].map(|name| at.join(name));
        let queues = queues(&at)
            .into_iter()
            .map(|queue| queue.join("io_timeout"));
        for time_out in own.into_iter().chain(queues).filter(|path| path.exists()) {
            set(&time_out, &times.io.as_millis().to_string());
        }
    }
}

/// The request queues below a controller: those of its disks, or of its hidden paths to them.
fn queues(controller: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(controller)
        .into_iter()
        .flatten()
        .flatten();
    entries.map(|entry| entry.path().join("queue")).collect()
}

fn set(path: &Path, value: &str) {
    if let Err(error) = std::fs::write(path, value) {
        tracing::warn!(%error, path = %path.display(), value, "a time-out was not set");
    }
}
