//! Streaming replication between sites, as PostgreSQL does it: configured, watched, switched, seeded,
//! brought back.
//!
//! Every function is one action with a deadline and an outcome. Which site's PostgreSQL is the primary,
//! which replicas it waits for and when one is promoted is decided elsewhere.

mod configure;
mod defend;
mod diverged;
mod facts;
mod floor;
mod look;
mod origin;
mod place;
mod program;
mod progress;
mod promote;
mod rejoin;
mod reload;
mod remote;
mod replay;
mod restore;
mod role;
mod seed;
mod slots;
mod source;
mod timelines;
mod tls;

pub use configure::ConfigureError;
pub(crate) use configure::OWN;
pub(super) use configure::{defaults, hba, own, prepare, write_passfile};
pub use defend::PutRight;
pub use diverged::{DIVERGED_DIRECTORY, Diverged};
pub use facts::{Facts, Follower, Position, Probe, Slot, WalStatus};
pub use floor::{FloorError, floor};
pub use origin::OriginError;
pub(crate) use place::is_rewinding;
pub use place::{PlaceError, old_copies};
pub use program::ProgramError;
pub use progress::{CopiedBy, Progress, Shown};
pub use promote::PromoteError;
pub use rejoin::{Rejoin, RejoinError, Rejoined, rejoin};
pub use reload::{ReloadError, enforced_from, receive, reload, set_names, stop_receiving};
pub use remote::{ProbeError, Remote, probe};
pub use replay::ReplayError;
pub use restore::RestoreError;
pub use seed::{Reseeded, SeedError, Seeding, basebackup, reseed};
pub use slots::SlotChanges;
pub use source::{PasswordError, Replication, Serving, Source, read_password};
pub use timelines::reserve_timelines;
pub use tls::TlsError;

/// What the names of Baton's slots and of its replicas' connections begin with.
pub const NAME_PREFIX: &str = "baton_";

/// The name of a site's slot, and of its connection, at the primary: `baton_` and the site's name with
/// `_` for whatever PostgreSQL does not take in a slot's name.
pub fn name_of(site: &str) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    NAME_PREFIX.chars().chain(site.chars().map(plain)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_slot_may_be_called() {
        assert_eq!(name_of("eu-West.1"), "baton_eu_west_1");
        assert_eq!(name_of("ä"), "baton__");
    }
}
