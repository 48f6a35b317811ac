//! Wall time, for time stamps that people and clients read. Nothing in the server is decided by
//! it, except how long a token and a watch last.

use jiff::Timestamp;

/// Now, as the server's time stamps tell it.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// `2026-01-02T03:04:05Z`: the form of creationTimestamp and its like.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
