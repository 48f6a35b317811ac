//! The initiator against scripted controllers, which do what no sound target does, and against the
//! real one.

mod queue;
mod slots;
mod target;
