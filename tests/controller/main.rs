//! The controller against an API server: the stand-in, or the one that KUBECONFIG names. No pod is run:
//! the tests play the members by writing what members write, labels, readiness and the Lease.

mod access;
mod definition;
mod election;
mod good;
mod leaving;
mod refused;
mod rollout;
mod world;
mod zones;
