//! Reservations of two targets, command by command: Linux' nvmet and Baton's own.
//!
//! ```text
//! seed ─► generate() ─► steps ─┬─► nvmet ──► answer, report ◄─ equal? ─► model with nvmet's departures
//!                              └─► Baton ──► answer, report ◄─ equal? ─► model without any
//! ```
//!
//! Each target is held against a model that predicts every status, every byte of every report and
//! every block that is read. The two models differ by the named departures of
//! [`fencing::model::Departure`] alone, so what no departure predicts fails, with the seed, the
//! steps so far and both reports. No check is loosened for anybody.

pub mod carry;
pub mod compare;
pub mod oracle;
pub mod sequence;
pub mod table;

/// Hosts of a sequence, at most.
pub const HOSTS: usize = 3;
