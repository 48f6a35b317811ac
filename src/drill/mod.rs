//! Failover drills: writers and their ledger, faults, checks, reports.
//!
//! ```text
//! scenario ─► run ─┬─ faults ─► ground: a lab (processes, links, lease, target), or machines
//!                  ├─ writer ─► ledger ─► verify, gap
//!                  └─ check, target's audit, members' journals ─► report
//! ```

pub mod cast;
pub mod check;
pub mod expect;
pub mod faults;
pub mod gap;
pub mod ground;
pub mod lab;
pub mod ledger;
pub mod measure;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stage_error;
pub mod target;
pub mod timeline;
pub mod verify;
pub mod wait;
pub mod writer;
pub mod zones;
