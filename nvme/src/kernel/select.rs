//! Which of the kernel's disks is the namespace that is meant, and the ways to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::sysfs::{Controller, ControllerState, Disk, Subsystem};

/// What a namespace is called all over the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Identifier {
    /// Its UUID or its NGUID: both have 16 bytes.
    Long(Uuid),
    /// Its EUI-64.
    Eui64(u64),
}

/// A text that is no identifier of a namespace.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is no namespace identifier: write a UUID, an NGUID (32 hexadecimal digits) or an EUI-64 (16)"
)]
pub struct InvalidIdentifier {
    /// What was given.
    pub text: String,
}

impl FromStr for Identifier {
    type Err = InvalidIdentifier;

    /// Understands sysfs's `wwid` too: `uuid.…` and `eui.…`.
    fn from_str(text: &str) -> Result<Self, InvalidIdentifier> {
        let bare = ["uuid.", "eui.", "nguid."]
            .into_iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let parsed = if bare.len() == 16 {
            u64::from_str_radix(bare, 16).ok().map(Self::Eui64)
        } else {
            bare.parse::<Uuid>().ok().map(Self::Long)
        };
        parsed
            .filter(|id| !matches!(id, Self::Eui64(0)) && *id != Self::Long(Uuid::nil()))
            .ok_or_else(|| InvalidIdentifier {
                text: text.to_owned(),
            })
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(id) => id.fmt(f),
            Self::Eui64(id) => write!(f, "{id:016x}"),
        }
    }
}

impl TryFrom<String> for Identifier {
    type Error = InvalidIdentifier;

    fn try_from(text: String) -> Result<Self, InvalidIdentifier> {
        text.parse()
    }
}

impl From<Identifier> for String {
    fn from(id: Identifier) -> Self {
        id.to_string()
    }
}

/// A namespace of a subsystem. Whatever is given must fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Its number within the subsystem.
    pub nsid: Option<u32>,
    /// What it is called all over the world.
    pub identifier: Option<Identifier>,
}

impl Selector {
    /// Whether this disk is it.
    pub fn fits(&self, disk: &Disk) -> bool {
        let number = self.nsid.is_none_or(|nsid| disk.nsid == Some(nsid));
        number
            && self.identifier.is_none_or(|id| match id {
                Identifier::Long(id) => disk.is(id),
                Identifier::Eui64(id) => disk.eui64 == Some(id),
            })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.nsid, self.identifier) {
            (Some(nsid), None) => write!(f, "namespace {nsid}"),
            (Some(nsid), Some(id)) => write!(f, "namespace {nsid} with identifier {id}"),
            (None, Some(id)) => write!(f, "the namespace with identifier {id}"),
            (None, None) => f.write_str("any namespace"),
        }
    }
}

/// One way to a disk, as the kernel has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathView {
    /// The controller, `nvmeC`.
    pub controller: String,
    /// Its address in the transport's own format.
    pub address: Option<String>,
    /// The controller's state.
    pub state: ControllerState,
    /// Asymmetric namespace access; only with multipath and where the subsystem has it.
    pub ana_state: Option<String>,
}

impl PathView {
    /// Whether commands can travel on it.
    pub fn is_usable(&self) -> bool {
        let ana = self.ana_state.as_deref();
        self.state == ControllerState::Live
            && !matches!(
                ana,
                Some("inaccessible" | "persistent-loss" | "persistent loss" | "change")
            )
    }
}

impl fmt::Display for PathView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.controller, self.state)?;
        if let Some(ana) = &self.ana_state {
            write!(f, ", {ana}")?;
        }
        match &self.address {
            Some(address) => write!(f, " ({address})"),
            None => Ok(()),
        }
    }
}

/// All ways to a disk.
pub fn paths(subsystem: &Subsystem, disk: &Disk) -> Vec<PathView> {
    let view = |controller: &Controller, ana_state: &Option<String>| PathView {
        controller: controller.name.clone(),
        address: controller.address.clone(),
        state: controller.state.clone(),
        ana_state: ana_state.clone(),
    };
    disk.paths
        .iter()
        .filter_map(|path| {
            let controller = subsystem
                .controllers
                .iter()
                .find(|c| c.name == path.controller)?;
            Some(view(controller, &path.ana_state))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_understood_as_people_and_the_kernel_write_them() {
        let uuid = uuid::uuid!("6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0");
        for text in [
            "6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0",
            "6f1d2c3b4a5946879704a5b6c7d8e9f0",
            "uuid.6f1d2c3b-4a59-4687-9704-a5b6c7d8e9f0",
            "eui.6f1d2c3b4a5946879704a5b6c7d8e9f0",
        ] {
            assert_eq!(text.parse(), Ok(Identifier::Long(uuid)), "{text}");
        }
        for text in ["0025385b71501f2a", "eui.0025385b71501f2a"] {
            let id: Identifier = text.parse().expect("an EUI-64");
            assert_eq!(id, Identifier::Eui64(0x0025_385b_7150_1f2a));
            assert_eq!(id.to_string(), "0025385b71501f2a");
        }
        for text in [
            "",
            "1",
            "0000000000000000",
            "00000000-0000-0000-0000-000000000000",
            "nvme0n1",
        ] {
            assert!(text.parse::<Identifier>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_that_is_inaccessible_or_not_live_carries_nothing() {
        let path = |state, ana: Option<&str>| PathView {
            controller: "nvme0".to_owned(),
            address: None,
            state,
            ana_state: ana.map(str::to_owned),
        };
        assert!(path(ControllerState::Live, None).is_usable());
        assert!(path(ControllerState::Live, Some("non-optimized")).is_usable());
        assert!(!path(ControllerState::Live, Some("inaccessible")).is_usable());
        assert!(!path(ControllerState::Connecting, Some("optimized")).is_usable());
        let shown = path(ControllerState::Connecting, Some("optimized")).to_string();
        assert_eq!(shown, "nvme0 connecting, optimized");
    }
}
