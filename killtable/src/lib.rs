//! The kill table: memory of a target in which another machine writes who is to be ended, and the target's own kernel
//! ends them.
//!
//! ```text
//!   kill_orders   33 pages   the monitor writes (one RDMA WRITE for each slot, then the word that makes it an order)
//!     page 0        head (64 bytes) │ 32 slots by user or cgroup │ reserved
//!     pages 1..33   4096 slots by process id: a hash table that the writer fills and the kernel probes
//!
//!   kill_answers  9 pages    the target writes, the monitor reads
//!     who it is │ whom it spares │ the order in force, how many it ended │ what the agent did │ a tally for each slot
//! ```
//!
//! Two regions, because rights are a page's: what the target answers cannot be forged by who gives orders.
//!
//! **An order.** Slots first, then the head without its number, then the number: one aligned word. A slot belongs to
//! the order whose number it bears and has a check of its own; so has the head. An order that was torn on its way, or
//! is half overwritten by the next, is no order, or has fewer slots; it never has others. Writing zero to the number
//! withdraws it, and its lease ends it when its writer has died.
//!
//! **What the target does not believe.** Orders come from outside. The first process, threads of the kernel, the agent
//! and the users that *its own* configuration spares are never ended, whatever stands there; nor more than the order's
//! and the slot's bound.
//!
//! [`layout`] is the contract, `include/killtable.h` says the same in C and decides (in the kernel), [`reference`]
//! decides the same in Rust, for tests and for monitors that check what they wrote. [`order`] makes orders, [`answers`]
//! takes answers apart, [`ledger`] is the agent's end of them.
//!
//! Invariants: zeroed or random memory holds no order; nothing in either region makes its reader panic.

pub mod answers;
pub mod layout;
pub mod ledger;
pub mod order;
pub mod reference;

pub use answers::{Answers, Reaction};
pub use ledger::Ledger;
pub use order::{Mark, Order, OrderError};
