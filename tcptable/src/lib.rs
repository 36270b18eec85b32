//! The table of TCP connections: memory of a target in which its own kernel keeps what going on with its services'
//! connections elsewhere takes, for whoever can read this memory and nothing else of the target.
//!
//! ```text
//!   region `tcp`, one slot of 68 KiB for each connection; the first slot has the header in its place
//!     | header …                    |
//!     | ring, 64 KiB | tail, 4 KiB  |   tail: | identity | even record | odd record | zero |
//!     | ring         | tail         |
//!   ring: the byte that the client sent at stream offset o lies at ring[o % 65536], from `copied_seq` to `taken`
//! ```
//!
//! **Who writes.** eBPF programs of the target's kernel (`target-agent/src/bpf/mirror.bpf.c`), while they hold the
//! connection's socket: one writer for each slot. The agent writes the header.
//!
//! **What a stop leaves.** Two records are written in turn, each with a number and a check that covers it and the
//! connection it belongs to: of a target that stopped anywhere, the newest record that is whole counts, and if that is
//! the one before the last, it says what was true when the last segment left. Bytes are in the ring before a record
//! counts them.
//!
//! What this crate does not do: read memory, or decide what becomes of a connection (`reinstate`).
//!
//! [`layout`] is the contract, `include/tcptable.h` says the same in C, [`reader`] takes the table apart, [`header`] is
//! the agent's part of it. Invariants: zeroed or random memory holds no connection; nothing in it makes a reader panic.

pub mod header;
pub mod layout;
pub mod reader;

pub use reader::{BadSlot, BadTable, Connection, Table};
