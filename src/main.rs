//! Arguments, dispatch, exit codes.
#![forbid(unsafe_code)]

fn main() {}
