//! The daemon of a spare.
fn main() {}
