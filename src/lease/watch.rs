//! Tells when the lease may have changed: a file by inotify where that works, and by a timer everywhere.
//!
//! A hint only: who is told reads the record and judges it. A lost hint costs one interval. Inotify
//! has a thread of its own, because looking up a path on a hung file system hangs.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::watch;

/// How often a hint is given without any event: other machines' changes to a shared directory
/// cause none here. Also how long the thread outlives its receiver.
const POLL: Duration = Duration::from_secs(1);

/// Receives hints. The watching ends some time after it is dropped.
#[derive(Debug)]
pub struct LeaseWatch {
    hints: watch::Receiver<u64>,
}

impl LeaseWatch {
    /// Without a thread the timer alone gives hints.
    pub(super) fn start(directory: &Path, name: &OsStr) -> Self {
        let (sender, hints) = watch::channel(0);
        let (directory, name) = (directory.to_owned(), name.to_owned());
        let thread = std::thread::Builder::new().name("lease-watch".to_owned());
        if let Err(error) = thread.spawn(move || run(&directory, &name, &sender)) {
            tracing::warn!(%error, "no thread to watch the lease: polling only");
        }
        Self { hints }
    }

    /// Hints of a store that has its own way to learn of changes.
    pub(super) fn of(hints: watch::Receiver<u64>) -> Self {
        Self { hints }
    }

    /// Waits until the record may have changed since the last call; not longer than a second.
    /// Cancel-safe.
    pub async fn changed(&mut self) {
        let hint = async {
            if self.hints.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(POLL, hint).await;
    }
}

fn run(directory: &Path, name: &OsStr, hints: &watch::Sender<u64>) {
    while !hints.is_closed() {
        let watching = watch_directory(directory).ok();
        // What changed before the watch was in place caused no event.
        hints.send_modify(|count| *count += 1);
        while !hints.is_closed() {
            match next_event(watching.as_ref(), name) {
                Event::Record => hints.send_modify(|count| *count += 1),
                Event::Other if watching.is_some() => {}
                Event::Other | Event::Lost => break,
            }
        }
    }
}

fn watch_directory(directory: &Path) -> nix::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let events = AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CLOSE_WRITE
        | LOST
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(directory, events)?;
    Ok(inotify)
}

/// After these the directory under the path may be another one.
const LOST: AddWatchFlags = AddWatchFlags::IN_MOVE_SELF.union(AddWatchFlags::IN_DELETE_SELF);

enum Event {
    /// Something happened to the lease file.
    Record,
    /// Something happened to another file, or nothing within [`POLL`].
    Other,
    /// The watch is over.
    Lost,
}

/// Waits for events, [`POLL`] at most.
fn next_event(watching: Option<&Inotify>, name: &OsStr) -> Event {
    let timeout = PollTimeout::try_from(POLL).unwrap_or(PollTimeout::MAX);
    let mut waiting: Vec<_> = watching
        .iter()
        .map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut waiting, timeout) {
        Ok(0) | Err(Errno::EINTR) => return Event::Other,
        Ok(_) => {}
        Err(_) => return Event::Lost,
    }
    let Some(Ok(events)) = watching.map(Inotify::read_events) else {
        return Event::Lost;
    };
    let lost = LOST | AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_UNMOUNT;
    if events.iter().any(|event| event.mask.intersects(lost)) {
        Event::Lost
    } else if events
        .iter()
        .any(|event| event.name.as_deref() == Some(name))
    {
        Event::Record
    } else {
        Event::Other
    }
}
