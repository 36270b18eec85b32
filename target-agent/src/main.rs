//! Process in the target: eBPF sensors, boxes, registration.

fn main() {}
