//! Streaming replication between sites, all real: PostgreSQL of two or three sites, each with a data
//! directory of its own. Needs root and PostgreSQL.
#![forbid(unsafe_code)]

mod handover;
mod harness;
mod line;
mod restoring;
mod returning;
mod seeding;
mod strangers;
mod streaming;
mod synchronous;
mod tls;
