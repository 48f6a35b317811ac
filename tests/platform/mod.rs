//! A small data centre that runs pods: scheduler, kubelets and kube-proxy, through the API alone. Shared by
//! the suites `kube`, whose nodes are directories of one machine, and `vm`, whose nodes are virtual machines.

#![allow(dead_code, reason = "each suite uses its part")]

pub mod api;
pub mod cluster;
pub mod container;
pub mod kubelet;
pub mod manifests;
pub mod network;
pub mod places;
pub mod proxy;
pub mod scheduler;
pub mod writes;
