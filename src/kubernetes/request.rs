//! One request with its deadline, and what became of it.

use std::error::Error;
use std::future::Future;
use std::io;

use fencing::Mono;
use hyper_util::client::legacy;

use super::AccessError;
use crate::clock;

/// Why a request was not answered with success.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server answered, and says no. Nothing was changed.
    #[error("the API server answers {code} {reason}: {message}")]
    Refused {
        /// The HTTP status, 4xx.
        code: u16,
        /// Its reason in one word, such as `Forbidden`.
        reason: String,
        /// What it says.
        message: String,
    },
    /// No connection: nothing was sent.
    #[error("the API server cannot be reached")]
    Unsent(#[source] Box<dyn Error + Send + Sync>),
    /// The answer did not come, or it was no answer (5xx): what it asked for may have been done.
    #[error("the answer of the API server was lost")]
    Lost(#[source] Box<dyn Error + Send + Sync>),
    /// No answer by the deadline: what it asked for may yet be done.
    #[error("the API server did not answer by the deadline")]
    Overdue,
}

impl Failure {
    /// The HTTP status of an answer that says no.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unsent(_) | Self::Lost(_) | Self::Overdue => None,
        }
    }

    /// Whether the server may have done, or may yet do, what it was asked.
    pub fn may_have_effect(&self) -> bool {
        match self {
            Self::Lost(_) | Self::Overdue => true,
            Self::Refused { .. } | Self::Unsent(_) => false,
        }
    }

    /// As an error of the operating system, for those who tell no more than that.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Refused { .. } => io::ErrorKind::PermissionDenied,
            Self::Unsent(_) => io::ErrorKind::NotConnected,
            Self::Lost(_) => io::ErrorKind::ConnectionReset,
            Self::Overdue => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, self)
    }
}

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        Self::Unsent(Box::new(error))
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            // 408 is a time-out like 504: it may have been done.
            kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 408 => {
                Self::Refused {
                    code: status.code,
                    reason: status.reason,
                    message: status.message,
                }
            }
            kube::Error::Service(cause) if never_sent(cause.as_ref()) => Self::Unsent(cause),
            error @ (kube::Error::Auth(_)
            | kube::Error::BuildRequest(_)
            | kube::Error::HttpError(_)) => Self::Unsent(Box::new(error)),
            error => Self::Lost(Box::new(error)),
        }
    }
}

/// Whether it failed before there was a connection.
fn never_sent(mut error: &(dyn Error + 'static)) -> bool {
    loop {
        if let Some(error) = error.downcast_ref::<legacy::Error>() {
            return error.is_connect();
        }
        match error.source() {
            Some(source) => error = source,
            None => return false,
        }
    }
}

/// Waits for the answer until the deadline.
///
/// # Errors
/// See [`Failure`].
pub async fn within<T, E: Into<Failure>>(
    deadline: Mono,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let patience = clock::now().until(deadline);
    match tokio::time::timeout(patience, request).await {
        Ok(result) => result.map_err(Into::into),
        Err(_elapsed) => Err(Failure::Overdue),
    }
}
