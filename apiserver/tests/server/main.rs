//! The stand-in as real clients see it: kube's client, watcher and reflector, and kubectl.

mod access;
mod apply;
mod common;
mod custom;
mod discovery;
mod faults;
mod objects;
mod pods;
mod program;
mod proxy;
mod watches;
