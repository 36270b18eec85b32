//! Process: samples, detects, dispatches, fences, evacuates.

fn main() {}
