//! The target over real TCP on the loopback, with a host made of the codec alone.

mod client;
mod data;
