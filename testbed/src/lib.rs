//! Proof: virtual machines, faults, clients, scenarios.
