//! Proof: virtual machines, networks, faults, clients, scenarios.
//!
//! The testbed makes everything it needs inside a [`sandbox`], runs the real daemons as real processes in the
//! machines of a [`topology`], breaks a real guest, and checks every byte that clients get. It simulates nothing.

pub mod bench;
pub mod campaign;
pub mod capture;
pub mod client;
pub mod demo;
pub mod fault;
pub mod guest;
pub mod interop;
pub mod pair;
pub mod plot;
pub mod sandbox;
pub mod scenario;
pub mod timeline;
pub mod topology;
pub mod torn;
pub mod vm;
