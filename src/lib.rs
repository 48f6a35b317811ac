//! Baton: zero-loss failover for PostgreSQL on shared NVMe/TCP block volumes.
#![forbid(unsafe_code)]
