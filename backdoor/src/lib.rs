//! The process on a target's host that gives its memory to others: serves it by RDMA, guards it, and fences the target.
//!
//! ```text
//!               ┌───────────────── backdoor ──────────────────┐
//!   monitor ──► │ control ──► target ──► fence ──► qmp        │ ──► QEMU
//!   spare   ──► │                  │                          │
//!               │ rdma ──► memory (guard + guest_ram) ────────│ ──► the guest's RAM, by mmap
//!               │            ▲                                │
//!               │            └── agent_port (registrations) ◄─│ ◄── agent in the guest, virtio-serial
//!               └─────────────────────────────────────────────┘
//! ```
//!
//! To be read at one sitting, in this order: [`scatter`] (addresses to file offsets), [`guard`] (who may what),
//! [`guest_ram`] (finding, mapping and touching memory), [`memory`] (both together), [`qmp`] and [`fence`] (stopping a
//! machine), [`target`] (the orders), [`control`], [`agent_port`], [`metrics`], [`config`], [`daemon`].
//!
//! What it deliberately does not do: look into the memory it serves, decide when a target is ill, or release a fence
//! by itself.
//!
//! Invariants, each held by a test: no access outside a key's region and rights (`guard/properties.rs`); while a fence
//! stands only its token's key writes, and it is dead when the release returns (`tests/end_to_end.rs`); a machine runs
//! again only by a release (`tests/machine.rs`); nothing that a peer or a guest sends stops the service for others
//! (`tests/hostile.rs`).

pub mod agent_port;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fence;
pub mod guard;
pub mod guest_ram;
pub mod memory;
pub mod metrics;
pub mod qmp;
pub mod scatter;
pub mod target;
mod windows;
