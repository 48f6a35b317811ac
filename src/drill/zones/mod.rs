//! Drills of two sites: a whole site lost or cut off, a slow line, the way back.
//!
//! The same writers, ledger and checks as with one site, on both sites:
//!
//! ```text
//! scenario ─► run ─┬─ course ─► ground: both sites of a lab, and the line between them
//!                  ├─ writer ─► ledger ─► both sites' tables
//!                  └─ history: timelines, the cluster's record ─► report
//! ```

pub mod cast;
mod course;
pub mod ground;
mod history;
mod origin;
pub mod run;
mod samples;
pub mod scenario;
mod slots;
mod sql;
