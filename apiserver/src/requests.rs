//! The log of every request, for tests that count them or compare them with what was granted.

use jiff::Timestamp;

/// One request, as it was answered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RequestLog {
    /// When it was answered (a watch: when it began).
    pub at: Timestamp,
    /// User of the token, `system:anonymous` without one, empty if the token was not known.
    pub user: String,
    /// Which of the user's clients: the pod that the token is bound to, or the token's label.
    pub client: String,
    /// get, list, watch, create, update, patch, delete, deletecollection; the HTTP method in small
    /// letters for paths that are no resources.
    pub verb: String,
    /// API group, empty for the core one.
    pub group: String,
    /// Resource (plural), empty for paths that are no resources.
    pub resource: String,
    /// `status`, `eviction`, … or empty.
    pub subresource: String,
    /// Namespace, empty if the request names none.
    pub namespace: String,
    /// Name, empty for collections and creations.
    pub name: String,
    /// HTTP status of the answer; 0 if a fault kept the answer back.
    pub code: u16,
    /// Path and query.
    pub path: String,
    /// What the client says that it is.
    pub user_agent: String,
}
