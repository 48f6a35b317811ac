//! Baton: zero-loss failover for PostgreSQL on shared NVMe/TCP block volumes.
#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod attachment;
mod backoff;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod control;
pub mod controller;
pub mod decide;
pub mod doctor;
pub mod drill;
mod hex;
pub mod journal;
pub mod kubernetes;
pub mod lab;
pub mod lease;
pub mod member;
pub mod mount_namespace;
pub mod node_lock;
pub mod peer;
pub mod postgres;
pub mod process;
pub mod routing;
pub mod volume;
