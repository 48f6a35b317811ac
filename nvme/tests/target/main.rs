//! The target over real TCP on the loopback, with a host made of the codec alone.

mod admin;
mod client;
mod data;
mod faults;
mod protocol;
mod reservations;
