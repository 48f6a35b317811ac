//! `host:port`, as one writes the place where something listens.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host, by name or address, and a TCP port. Names are looked up at each connection, because
/// behind a name the address may change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// A text that is no `host:port`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is no address: write \"host:port\", such as \"10.0.0.5:4420\" or \"[fd00::5]:4420\""
)]
pub struct InvalidEndpoint {
    /// What was given.
    pub text: String,
}

impl Endpoint {
    /// The host: a name or an address, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port; 0 asks the system for a free one and is only of use when listening.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        parse(text).ok_or_else(|| InvalidEndpoint {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<Endpoint> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let valid = match bare {
        Some(inside) => matches!(inside.parse(), Ok(IpAddr::V6(_))),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    valid.then(|| Endpoint {
        host: bare.unwrap_or(host).to_owned(),
        port,
    })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidEndpoint;

    fn try_from(text: String) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.to_string()
    }
}

impl From<std::net::SocketAddr> for Endpoint {
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_refuses_the_rest() {
        for good in [
            "127.0.0.1:4420",
            "[fd00::5]:1",
            "storage.example:4420",
            "a_b-c:65535",
        ] {
            assert_eq!(
                good.parse::<Endpoint>().map(|e| e.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "host",
            ":1",
            "host:",
            "host:70000",
            "fd00::5:1",
            "a b:1",
            "[x]:1",
            "h:-1",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }
}
