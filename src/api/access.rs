//! Who may use a verb: over TLS, whoever shows the token.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Office;
use super::answer::Refusal;
use crate::config;

/// The scheme of RFC 6750; schemes are compared without case (RFC 9110, 11.1).
const SCHEME: &str = "bearer";

/// A header for the bare token. `Authorization` does not get through the proxy of a Kubernetes API
/// server, which takes it for itself.
pub const TOKEN_HEADER: &str = "x-baton-token";

/// What is needed for a verb.
pub(super) struct Access {
    encrypted: bool,
    token_file: Option<PathBuf>,
}

impl Access {
    /// As configured.
    pub fn of(settings: &config::Api) -> Self {
        Self {
            encrypted: settings.tls().is_some(),
            token_file: settings.token_file.clone(),
        }
    }

    /// Whether the request may use a verb. The token is read each time, so that it can be changed
    /// while the member runs.
    fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let forbidden = |why: &str| Refusal::new(StatusCode::FORBIDDEN, why.to_owned());
        if !self.encrypted {
            return Err(forbidden(
                "verbs are answered over TLS only: set api.certificate_file, api.key_file and api.token_file",
            ));
        }
        let Some(file) = &self.token_file else {
            return Err(forbidden("verbs need a token: set api.token_file"));
        };
        let token = std::fs::read(file).map_err(|error| {
            let text = format!("cannot read api.token_file ({error})");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text)
        })?;
        let token = token.trim_ascii();
        if !token.is_empty() && shown(headers).is_some_and(|shown| same(shown, token)) {
            return Ok(());
        }
        let text = "show the token of api.token_file: Authorization: Bearer …";
        Err(Refusal::new(StatusCode::UNAUTHORIZED, text.to_owned()))
    }
}

fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(token) = headers.get(TOKEN_HEADER) {
        return Some(token.as_bytes().trim_ascii());
    }
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    let named = scheme.eq_ignore_ascii_case(SCHEME.as_bytes());
    let token = token.strip_prefix(b" ")?;
    named.then_some(token.trim_ascii())
}

/// Compares in a time that depends on neither: digests have one length, and all of it is looked at.
fn same(shown: &[u8], token: &[u8]) -> bool {
    let (shown, token) = (Sha256::digest(shown), Sha256::digest(token));
    shown.as_slice().ct_eq(token.as_slice()).into()
}

/// Somebody who may use a verb. Taken before the body is read.
pub(super) struct Operator;

impl FromRequestParts<Arc<Office>> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        office: &Arc<Office>,
    ) -> Result<Self, Self::Rejection> {
        office.access.check(&parts.headers).map(|()| Self)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        let token = b"0123456789abcdef";
        let cases: [(&str, bool); 8] = [
            ("Bearer 0123456789abcdef", true),
            ("bearer  0123456789abcdef ", true),
            ("Bearer 0123456789abcde", false),
            ("Bearer 0123456789abcdef0", false),
            ("Bearer", false),
            ("Bearer ", false),
            ("Basic 0123456789abcdef", false),
            ("Bearer0123456789abcdef", false),
        ];
        for (header, expected) in cases {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
            let found = shown(&headers).is_some_and(|shown| same(shown, token));
            assert_eq!(found, expected, "{header:?}");
        }
        for (header, expected) in [("0123456789abcdef", true), ("0123456789abcde", false)] {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static(TOKEN_HEADER),
                header.parse().unwrap(),
            )]);
            let found = shown(&headers).is_some_and(|shown| same(shown, token));
            assert_eq!(found, expected, "{header:?}");
        }
    }
}
