//! ext4 on a block device and PostgreSQL on it, all real: `mkfs`, `mount`, `initdb`, `kill -9`.
//! Needs root, e2fsprogs and PostgreSQL.
#![forbid(unsafe_code)]

mod harness;
mod killed_member;
mod postgres;
mod volume;
