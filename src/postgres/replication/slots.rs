//! A site's slots for the other sites.

use std::collections::BTreeSet;
use std::time::Duration;

use super::NAME_PREFIX;
use super::facts::{Slot, WalStatus};
use crate::clock;
use crate::postgres::session::{Session, SessionError, literal};

/// What was done to the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotChanges {
    /// Made; each keeps write-ahead log from now on.
    pub created: BTreeSet<String>,
    /// Dropped, because their site is not configured, or lost and to be made anew.
    pub dropped: BTreeSet<String>,
    /// To be dropped, but a connection uses them.
    pub in_use: BTreeSet<String>,
}

impl Session {
    /// Makes the slots in `names` that are missing, and drops others whose name is Baton's. A lost slot is made
    /// anew only if `renew` names it: its replica then needs a base backup. On a replica, with no names: drops
    /// what is left of its time as a primary.
    pub async fn ensure_slots(
        &self,
        names: &BTreeSet<String>,
        renew: &BTreeSet<String>,
        deadline: Duration,
    ) -> Result<SlotChanges, SessionError> {
        let ends = clock::now() + deadline;
        let left = || clock::now().until(ends);
        let slots = self.facts(left()).await?.slots;
        let mut changes = SlotChanges::default();
        let is_lost = |slot: &Slot| slot.wal_status == Some(WalStatus::Lost);
        for (name, slot) in &slots {
            let wanted = names.contains(name) && !(is_lost(slot) && renew.contains(name));
            if wanted {
                continue;
            }
            if slot.active {
                changes.in_use.insert(name.clone());
                continue;
            }
            let drop = format!("SELECT pg_drop_replication_slot({})", literal(name));
            self.execute("dropping a slot", &drop, left()).await?;
            changes.dropped.insert(name.clone());
        }
        let exists = |name: &&String| slots.contains_key(*name) && !changes.dropped.contains(*name);
        let missing: Vec<&String> = names.iter().filter(|name| !exists(name)).collect();
        for name in missing {
            debug_assert!(
                name.starts_with(NAME_PREFIX),
                "{name} would never be dropped"
            );
            let create = format!(
                "SELECT pg_create_physical_replication_slot({}, true)",
                literal(name)
            );
            self.execute("making a slot", &create, left()).await?;
            changes.created.insert(name.clone());
        }
        Ok(changes)
    }
}
