//! Calls that may hang in the kernel, each on a thread of its own.
//!
//! Not in the runtime's pool: a handful of ioctls on a dead path would fill it, and the runtime would
//! wait for them at its end.

use std::io;
use std::time::Duration;

use tokio::sync::oneshot;

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum NoResult<T> {
    /// It has not returned: it may still have its effect. Its result can be waited for.
    Late(oneshot::Receiver<T>),
    /// No thread could be started: it was not made.
    NotStarted(io::Error),
    /// Its thread panicked.
    Vanished,
}

/// Runs `call` on a thread called `name` and waits for it at most for `deadline`.
pub(super) async fn bounded<T: Send + 'static>(
    deadline: Duration,
    name: &'static str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoResult<T>> {
    let (sender, mut result) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody may wait any more.
            let _unheard = sender.send(call());
        })
        .map_err(NoResult::NotStarted)?;
    match tokio::time::timeout(deadline, &mut result).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(NoResult::Vanished),
        Err(_elapsed) => Err(NoResult::Late(result)),
    }
}
