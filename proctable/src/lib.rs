//! The process table: what a target's kernel says of its processes in memory that another machine reads.
//!
//! ```text
//!   processes   1 page of head, then records of 64 bytes: a hash table by process id
//!     head        who the machine is │ free memory │ how often somebody found no room │ who keeps it, and when last
//!     record      life (id, sequence, state) │ parent, user │ start │ cgroup │ name │ memory │ depth, flags, check
//! ```
//!
//! eBPF programs of the target write it at a fork, an exec, an exit and at the ticks of whoever runs; its agent goes
//! through all processes when it starts and once a second, for those that were there before and for what changes while
//! somebody sleeps. One READ brings all of it. It is the evidence of healing modules where the rest of the target's
//! memory cannot be read.
//!
//! [`layout`] is the contract; `include/proctable.h` says the same in C and has the writer, with the rule of publishing
//! above it. [`table`] is the reader, [`keeper`] the agent's end of the head.
//!
//! What it does not have: threads, and anything of a process that is not needed to judge it.
//!
//! Invariants: a record is believed only if its check holds, so zeroed or random memory holds no process and a torn
//! record is none; nothing in the table makes its reader panic, loop or allocate beyond its length; a table that has
//! not all processes says so.

pub mod keeper;
pub mod layout;
pub mod table;

pub use keeper::Keeper;
pub use table::{NoTable, Record, Table};
