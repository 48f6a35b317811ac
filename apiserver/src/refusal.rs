//! Every way in which a request is refused, and the `Status` object that says so: the same
//! reason, code, message and details that a real API server gives.

use serde_json::{Value, json};

use crate::kinds::Kind;

/// What a refused request was about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// API group, empty for the core one.
    pub group: String,
    /// Resource (plural) where the real one names it so, else the kind.
    pub resource: String,
    /// The object's name, empty where there is none.
    pub name: String,
}

impl Subject {
    pub(crate) fn of(kind: &Kind, name: &str) -> Self {
        Self {
            group: kind.group.clone(),
            resource: kind.plural.clone(),
            name: name.to_owned(),
        }
    }

    /// `leases.coordination.k8s.io "main"`, as the messages name an object.
    fn quoted(&self) -> String {
        format!("{} \"{}\"", self.qualified(), self.name)
    }

    fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    fn details(&self) -> Value {
        let mut details = json!({});
        for (key, value) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.resource),
        ] {
            if !value.is_empty() {
                details[key] = json!(value);
            }
        }
        details
    }
}

/// One thing wrong with an object: `details.causes` of an Invalid or a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// `FieldValueInvalid` and its like.
    pub reason: &'static str,
    /// Path in the object, `spec.members`.
    pub field: String,
    /// Text without the path.
    pub message: String,
}

impl Cause {
    /// `field: Invalid value: value: message`.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, message: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {value}: {message}"),
        }
    }

    /// A field that has to be there.
    pub(crate) fn required(field: impl Into<String>, message: &str) -> Self {
        let message = if message.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {message}")
        };
        Self {
            reason: "FieldValueRequired",
            field: field.into(),
            message,
        }
    }

    /// A field that may not be set or changed so.
    pub(crate) fn forbidden(field: impl Into<String>, message: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.into(),
            message: format!("Forbidden: {message}"),
        }
    }

    /// A value of the wrong JSON type.
    pub(crate) fn type_invalid(field: impl Into<String>, found: &str, wanted: &str) -> Self {
        let field = field.into();
        let message = format!(
            "Invalid value: \"{found}\": {field} in body must be of type {wanted}: \"{found}\""
        );
        Self {
            reason: "FieldValueTypeInvalid",
            field,
            message,
        }
    }

    fn value(&self) -> Value {
        json!({ "reason": self.reason, "message": self.message, "field": self.field })
    }
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    /// 400
    #[error("{0}")]
    BadRequest(String),
    /// 401
    #[error("Unauthorized")]
    Unauthorized,
    /// 403 of authorization or admission; the text after the object's name.
    #[error("{}: {why}", forbidden_head(.subject))]
    Forbidden {
        subject: Subject,
        why: String,
        causes: Vec<Cause>,
    },
    /// 404 of an object.
    #[error("{} not found", .0.quoted())]
    NotFound(Subject),
    /// 404 of a path that nothing serves.
    #[error("the server could not find the requested resource")]
    NoSuchResource,
    /// 405
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// 406, 415
    #[error("{message}")]
    MediaType {
        code: u16,
        reason: &'static str,
        message: String,
    },
    /// 409 of a name that is taken.
    #[error("{} already exists", .0.quoted())]
    AlreadyExists(Subject),
    /// 409 of a resourceVersion or of a precondition.
    #[error("Operation cannot be fulfilled on {}: {why}", .subject.quoted())]
    Conflict { subject: Subject, why: String },
    /// 409 of a server-side apply that would take fields from their owners.
    #[error("{message}")]
    ApplyConflict { message: String, causes: Vec<Cause> },
    /// 410
    #[error("{0}")]
    Expired(String),
    /// 413
    #[error("Request entity too large: limit is {limit}")]
    TooLarge { limit: usize },
    /// 422
    #[error("{}", invalid_message(.subject, .causes))]
    Invalid {
        subject: Subject,
        causes: Vec<Cause>,
    },
    /// 429, with the seconds to wait.
    #[error("{message}")]
    TooManyRequests {
        message: String,
        retry_after: u32,
        causes: Vec<Cause>,
    },
    /// 500
    #[error("Internal error occurred: {0}")]
    Internal(String),
    /// 503
    #[error("{0}")]
    Unavailable(String),
    /// 504 of a resourceVersion that is not there yet.
    #[error("Timeout: Too large resource version: {wanted}, current: {current}")]
    TooNew { wanted: u64, current: u64 },
}

/// The conflict of a write that was made from an older object.
pub(crate) const MODIFIED: &str = "the object has been modified; please apply your changes to the \
                                   latest version and try again";

impl Refusal {
    /// HTTP status.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Unauthorized => 401,
            Self::Forbidden { .. } => 403,
            Self::NotFound(_) | Self::NoSuchResource => 404,
            Self::MethodNotAllowed => 405,
            Self::MediaType { code, .. } => *code,
            Self::AlreadyExists(_) | Self::Conflict { .. } | Self::ApplyConflict { .. } => 409,
            Self::Expired(_) => 410,
            Self::TooLarge { .. } => 413,
            Self::Invalid { .. } => 422,
            Self::TooManyRequests { .. } => 429,
            Self::Internal(_) => 500,
            Self::Unavailable(_) => 503,
            Self::TooNew { .. } => 504,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NotFound(_) | Self::NoSuchResource => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::MediaType { reason, .. } => reason,
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::Conflict { .. } | Self::ApplyConflict { .. } => "Conflict",
            Self::Expired(_) => "Expired",
            Self::TooLarge { .. } => "RequestEntityTooLarge",
            Self::Invalid { .. } => "Invalid",
            Self::TooManyRequests { .. } => "TooManyRequests",
            Self::Internal(_) => "InternalError",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::TooNew { .. } => "Timeout",
        }
    }

    /// Seconds of the `Retry-After` header.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        match self {
            Self::TooManyRequests { retry_after, .. } => Some(*retry_after),
            Self::TooNew { .. } | Self::Unavailable(_) => Some(1),
            _ => None,
        }
    }

    /// The `Status` object of the answer's body and of a watch's ERROR event.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": self.reason(),
            "code": self.code(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }

    fn details(&self) -> Option<Value> {
        match self {
            Self::NotFound(subject) | Self::AlreadyExists(subject) => Some(subject.details()),
            Self::Conflict { subject, .. } => Some(subject.details()),
            Self::Forbidden {
                subject, causes, ..
            }
            | Self::Invalid { subject, causes } => {
                let mut details = subject.details();
                if !causes.is_empty() {
                    details["causes"] = causes.iter().map(Cause::value).collect();
                }
                Some(details)
            }
            Self::ApplyConflict { causes, .. } => {
                Some(json!({ "causes": causes.iter().map(Cause::value).collect::<Vec<_>>() }))
            }
            Self::TooManyRequests {
                retry_after,
                causes,
                ..
            } => {
                let mut details = json!({ "retryAfterSeconds": retry_after });
                if !causes.is_empty() {
                    details["causes"] = causes.iter().map(Cause::value).collect();
                }
                Some(details)
            }
            Self::TooNew { .. } => Some(json!({
                "causes": [{ "reason": "ResourceVersionTooLarge",
                             "message": "Too large resource version" }],
                "retryAfterSeconds": 1,
            })),
            Self::NoSuchResource | Self::MethodNotAllowed => Some(json!({})),
            Self::BadRequest(_)
            | Self::Unauthorized
            | Self::MediaType { .. }
            | Self::Expired(_)
            | Self::TooLarge { .. }
            | Self::Internal(_)
            | Self::Unavailable(_) => None,
        }
    }
}

/// A 409 for a write that lost.
pub(crate) fn conflict(kind: &Kind, name: &str, why: impl Into<String>) -> Refusal {
    Refusal::Conflict {
        subject: Subject::of(kind, name),
        why: why.into(),
    }
}

/// A 404 for an object that is not there.
pub(crate) fn not_found(kind: &Kind, name: &str) -> Refusal {
    Refusal::NotFound(Subject::of(kind, name))
}

/// A 422; `details.kind` is the kind here, as in the real answers, not the resource.
pub(crate) fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Refusal {
    let subject = Subject {
        group: kind.group.clone(),
        resource: kind.kind.clone(),
        name: name.to_owned(),
    };
    Refusal::Invalid { subject, causes }
}

fn forbidden_head(subject: &Subject) -> String {
    match (subject.resource.is_empty(), subject.name.is_empty()) {
        (true, _) => "forbidden".to_owned(),
        (false, true) => format!("{} is forbidden", subject.qualified()),
        (false, false) => format!("{} is forbidden", subject.quoted()),
    }
}

fn invalid_message(subject: &Subject, causes: &[Cause]) -> String {
    let said: Vec<String> = causes
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    let said = match said.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    format!("{} is invalid: {said}", subject.quoted())
}
