//! What goes back: a status code and a JSON document.

use axum::Json;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Not done, and why: `{"error": …, "reason": …}`.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    why: String,
    /// A `Reason`, or null.
    reason: Value,
}

impl Refusal {
    /// A refusal without a reason for programs.
    pub fn new(code: StatusCode, why: String) -> Self {
        Self {
            code,
            why,
            reason: Value::Null,
        }
    }

    /// With a reason for programs.
    pub fn because(self, reason: Value) -> Self {
        Self { reason, ..self }
    }

    /// The same with the one code that a verb has for whatever was not done.
    pub fn unavailable(self) -> Self {
        let code = StatusCode::SERVICE_UNAVAILABLE;
        Self { code, ..self }
    }

    /// Its code.
    #[cfg(test)]
    pub fn code(&self) -> StatusCode {
        self.code
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { code, why, reason } = self;
        let mut response = (code, Json(json!({"error": why, "reason": reason}))).into_response();
        if code == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// Done: `{"message": …}`.
pub(super) fn done(message: &str) -> Response {
    Json(json!({"message": message})).into_response()
}
