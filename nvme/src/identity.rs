//! Who a host is to a subsystem: its NVMe Qualified Name and its 128-bit host identifier.
//!
//! Reservations belong to the host identifier (NVMe Base Specification 2.3, 8.1.24), so two nodes
//! with the same one cannot be fenced from each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An NVMe Qualified Name: 1 to 223 bytes of UTF-8 that begin with `nqn.` (NVMe Base 4.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nqn(String);

/// The longest NQN, in bytes, without its terminating zero (NVMe Base 4.5).
pub const NQN_MAX_LEN: usize = 223;

/// The well-known NQN of every Discovery subsystem (NVMe Base 4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A text that is no NVMe Qualified Name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no NVMe Qualified Name: it must begin with `nqn.` and have at most 223 bytes")]
pub struct InvalidNqn {
    /// What was given.
    pub text: String,
}

impl Nqn {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Nqn {
    type Err = InvalidNqn;

    fn from_str(text: &str) -> Result<Self, InvalidNqn> {
        let fits = text.starts_with("nqn.") && text.len() <= NQN_MAX_LEN;
        if fits && !text.contains('\0') {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidNqn {
                text: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for Nqn {
    type Error = InvalidNqn;

    fn try_from(text: String) -> Result<Self, InvalidNqn> {
        text.parse()
    }
}

impl From<Nqn> for String {
    fn from(nqn: Nqn) -> String {
        nqn.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The 128-bit host identifier to which reservations belong. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostId(pub Uuid);

impl HostId {
    /// The identifier from its 16 bytes on the wire, in the order that Linux sends them.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes on the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A host as a subsystem sees it: every controller that connects with it shares its reservations.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostIdentity {
    /// The host's NVMe Qualified Name.
    pub nqn: Nqn,
    /// The host identifier.
    pub id: HostId,
}
