//! Mechanism: a Linux kernel's own state, read out of raw memory.
//!
//! Nothing is installed in the target and nothing is known about it beforehand: the kernel describes itself.
//!
//! ```text
//!   RAM --scan--> vmcoreinfo --addresses--> kallsyms --symbols--> BTF --member offsets--+
//!                    `--- phys_base, page-table root, KASLR offset ---> paging ---------+--> Kernel
//!   Kernel + RAM of a dead machine --> linux::task::walk, linux::tcp::walk --> (found, damage)
//! ```
//!
//! [`Kernel::discover`] runs once, while the target is healthy; it may read megabytes. What it returns is small,
//! serialisable, and all that a walk of the dead machine needs.
//!
//! Deliberately not here: any transport (callers bring a [`remote_memory::RemoteRead`]), any policy, any write.
//!
//! Invariants: nothing read is trusted: each walk is bounded by named constants, notices cycles, checks
//! back-pointers where the kernel keeps them, and returns what it found *and* what was damaged; no address outside
//! the target's RAM extents is ever asked for; offsets come from BTF by member name, never from a version number; the
//! number of round trips of a walk does not grow with the number of objects.

mod btf;
mod damage;
mod discover;
#[cfg(test)]
mod discover_tests;
mod kallsyms;
mod kernel;
mod keyed;
pub mod linux;
mod living;
mod memory;
mod paging;
mod sources;
mod vmcoreinfo;

pub use damage::{Damage, Fault};
pub use kernel::{DiscoverError, Extent, Kernel};
