//! The contract for reaching another machine's memory: addresses, rights, batched operations.
//!
//! Everything that watches, repairs or recovers a target is written against these types; everything that carries
//! bytes (our own RoCEv2 requester, libibverbs, a saved image) implements them. The crate does no I/O and knows
//! neither a kernel nor a wire format.
//!
//! Two layers:
//!
//! * [`Queue`] is what a carrier implements: requests are posted many at once and completions polled, data land in
//!   one buffer that is registered once. It fits a verbs queue pair as it fits our own requester, and it allocates
//!   nothing per operation.
//! * [`RemoteRead`] and [`RemoteWrite`] are what users call: a batch of reads that returns when all have an outcome,
//!   and writes that demand a [`Warrant`]. [`Blocking`] makes them from any queue.
//!
//! Invariants: addresses are newtypes without arithmetic operators; a write needs a warrant, which only a fence or a
//! registered hook gives out; one refused access never hides the outcome of the others in its batch.

mod address;
mod blocking;
pub mod delay;
pub mod faults;
mod gather;
pub mod image;
mod merge;
mod operation;
mod published;
mod queue;
pub mod trace;
mod warrant;
pub mod window;

pub use address::{GuestPhys, KernelVirt, PAGE_BYTES, Region, RemoteAddr, RemoteKey, Rights};
pub use blocking::Blocking;
pub use operation::{AccessError, Gather, LinkError, Read, RemoteRead, RemoteWrite, Take, WriteError};
pub use published::{Published, TornRead};
pub use queue::{Completion, Queue, Request, Work};
pub use warrant::{Epoch, Fenced, HookWord, Warrant};
pub use window::{Member, Window};
