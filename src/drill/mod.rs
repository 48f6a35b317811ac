//! Failover drills: writers and their ledger, faults, checks, reports.

pub mod check;
pub mod gap;
pub mod ledger;
pub mod measure;
pub mod report;
pub mod scenario;
pub mod target;
pub mod verify;
pub mod writer;
