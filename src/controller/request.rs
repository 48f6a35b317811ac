//! One request to the API server, with a deadline, and its answer as an outcome.

use std::future::Future;
use std::time::Duration;

/// How long the API server may take for one answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// A request that came to nothing. Nothing is known of its effect where it was a write.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server refused, or could not be asked.
    #[error("{attempt}")]
    Failed {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{attempt}: no answer within {DEADLINE:?}")]
    Late {
        /// What was attempted.
        attempt: String,
    },
}

impl RequestError {
    /// The HTTP status that the API server answered with.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { attempt: _, source } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Late { attempt: _ } => None,
        }
    }
}

/// Asks, and waits for the answer until the deadline.
///
/// # Errors
/// There was none, or it was a refusal.
pub async fn ask<T>(
    attempt: impl FnOnce() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(RequestError::Failed {
            attempt: attempt(),
            source: Box::new(source),
        }),
        Err(_) => Err(RequestError::Late { attempt: attempt() }),
    }
}

/// What became of a write that somebody else may have been faster with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is as asked.
    Done,
    /// The object is not what it was when it was looked at (409), or gone (404): look again.
    Outdated,
}

/// A lost race is an outcome, not an error.
///
/// # Errors
/// All else.
pub fn raced<T>(answer: Result<T, RequestError>) -> Result<Written, RequestError> {
    Ok(match won(answer)? {
        Some(_) => Written::Done,
        None => Written::Outdated,
    })
}

/// As [`raced`], with what the API server answers; `None` where somebody else was faster.
///
/// # Errors
/// As [`raced`].
pub fn won<T>(answer: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(None),
        Err(error) => Err(error),
    }
}
