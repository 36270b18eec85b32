//! Proof: virtual machines, faults, clients, scenarios.

fn main() {}
