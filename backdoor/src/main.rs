//! Process on the target's host: serves the guest's memory, fences.

fn main() {}
