//! Who plays what in a lab, from what its members say of themselves.

use super::stage_error::StageError;
use crate::control::Status;
use crate::control::zone::ServingAs;
use crate::decide::RoleName;

/// Who plays what at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The member that serves.
    pub active: String,
    /// The member that is ready to take over.
    pub standby: String,
    /// The epoch of the active.
    pub epoch: u32,
}

/// A member and what it says of itself.
pub type View<'a> = (&'a str, Result<Status, StageError>);

impl Cast {
    /// The cast, if one member serves and the other is ready.
    pub fn of(views: &[View<'_>]) -> Option<Self> {
        let own = |view: &View<'_>| view.1.as_ref().ok()?.members.first().cloned();
        let active = views.iter().find(|view| {
            let serves = view.1.as_ref().is_ok_and(serves);
            serves && own(view).is_some_and(|member| member.role == Some(RoleName::Active))
        })?;
        let standby = views.iter().find(|view| {
            own(view).is_some_and(|member| member.role == Some(RoleName::Standby) && member.ready)
        })?;
        let epoch = own(active)?.epoch?;
        Some(Cast {
            active: active.0.to_owned(),
            standby: standby.0.to_owned(),
            epoch,
        })
    }
}

/// Whether PostgreSQL serves here: writers, or the readers of another site's replica.
fn serves(status: &Status) -> bool {
    let zone = status.zone.as_ref();
    status.serving || zone.is_some_and(|zone| zone.serving_as == ServingAs::Replica)
}

/// A member's role and reason in words, or why it says nothing.
pub fn describe(name: &str, status: &Result<Status, StageError>) -> String {
    match status {
        Ok(status) => {
            let role = status.members.first().and_then(|member| member.role);
            format!("{name}: {role:?}, {}", status.reason)
        }
        Err(error) => format!("{name}: {error}"),
    }
}
