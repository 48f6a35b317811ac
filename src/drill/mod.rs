//! Failover drills: writers and their ledger, faults, checks, reports.
//!
//! ```text
//! scenario ─► run ─┬─ stage, faults ─► lab (processes, links, lease, target)
//!                  ├─ writer ─► ledger ─► verify, gap
//!                  └─ check, target's audit, members' journals ─► report
//! ```

pub mod cast;
pub mod check;
pub mod expect;
pub mod faults;
pub mod gap;
pub mod ledger;
pub mod measure;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stage;
pub mod stage_error;
pub mod target;
pub mod timeline;
pub mod verify;
pub mod writer;
