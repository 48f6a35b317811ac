//! Why a pod gets nothing.

use crate::attachment::whole;

/// Why a pod gets nothing, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Refusal {
    pub why: String,
    /// Another answer may come later.
    pub again: bool,
    /// It was said before: members ask several times a second.
    pub repeated: bool,
}

pub(super) fn refuse(why: impl Into<String>) -> Refusal {
    Refusal {
        why: why.into(),
        again: false,
        repeated: false,
    }
}

pub(super) fn later(why: impl Into<String>) -> Refusal {
    Refusal {
        why: why.into(),
        again: true,
        repeated: false,
    }
}

/// A text that must make sense.
pub(super) fn parsed<T: std::str::FromStr<Err: std::error::Error>>(
    what: &str,
    text: &str,
) -> Result<T, Refusal> {
    text.parse()
        .map_err(|error| refuse(format!("{what}: {}", whole(error))))
}
