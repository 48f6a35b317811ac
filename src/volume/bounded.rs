//! System calls that may hang for ever, given a deadline.
//!
//! `mount`, `umount` and `syncfs` wait in the kernel for the volume; when its path is gone nothing
//! can end them, not even SIGKILL. So each runs on a thread of its own (not in the runtime's blocking
//! pool, which the runtime would wait for at its end) and its caller learns "stuck", not nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

/// What became of a call within its deadline.
#[derive(Debug)]
#[must_use]
pub enum Bounded<T> {
    /// It returned.
    Done(T),
    /// It has not returned yet: it may still have its effect at any later time.
    Stuck(Pending<T>),
}

/// A call that has not returned; awaiting it waits for its result, without a bound.
#[derive(Debug)]
pub struct Pending<T> {
    what: &'static str,
    result: oneshot::Receiver<T>,
}

/// The call's thread ended without a result: it panicked.
#[derive(Debug, thiserror::Error)]
#[error("{what} ended without a result")]
pub struct Vanished {
    /// What was called.
    pub what: &'static str,
}

/// Why a bounded call has no result now.
#[derive(Debug, thiserror::Error)]
pub enum BoundedError {
    /// No thread could be started for it.
    #[error("starting {what}")]
    Spawn {
        /// What was to be called.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended without a result.
    #[error(transparent)]
    Vanished(#[from] Vanished),
}

impl<T> Pending<T> {
    /// What was called.
    pub fn what(&self) -> &'static str {
        self.what
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Vanished>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let what = self.what;
        Pin::new(&mut self.result)
            .poll(context)
            .map(|result| result.map_err(|_| Vanished { what }))
    }
}

/// Runs `call` on a thread of its own and waits for it at most for `deadline`.
///
/// `what` names the call in errors and in the thread's name.
pub async fn within<T: Send + 'static>(
    deadline: Duration,
    what: &'static str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<Bounded<T>, BoundedError> {
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(what.to_owned())
        .spawn(move || {
            // The receiver may be gone: then nobody wants to know any more.
            let _ = sender.send(call());
        })
        .map_err(|source| BoundedError::Spawn { what, source })?;
    let mut pending = Pending { what, result };
    match tokio::time::timeout(deadline, &mut pending).await {
        Ok(result) => Ok(Bounded::Done(result?)),
        Err(_elapsed) => Ok(Bounded::Stuck(pending)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stuck_call_is_reported_and_can_be_awaited_later() {
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let call = move || blocked.recv().is_ok();
        let Bounded::Stuck(pending) = within(Duration::from_millis(5), "test", call)
            .await
            .unwrap()
        else {
            panic!("it cannot have returned");
        };
        release.send(()).unwrap();
        assert!(pending.await.unwrap());
    }

    #[tokio::test]
    async fn a_panic_is_no_result() {
        let result = within(Duration::from_secs(5), "test", || panic!("on purpose")).await;
        assert!(matches!(result, Err(BoundedError::Vanished(_))));
    }
}
