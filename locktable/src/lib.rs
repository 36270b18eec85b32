//! The lock of a machine that no hypervisor can stop: a word in its memory that others take by remote compare-and-swap,
//! and what its kernel answers.
//!
//! ```text
//!   lock     1 page   others write      one word: number, mode, lease, check
//!   locked   1 page   the target writes what stands, until when │ packets dropped, processes stopped │ which
//! interfaces
//!                                       are guarded │ which processors have settled since
//!
//!   free ──look──► looked at ──lease, release──► free
//!   free ──fence─► fenced ────lease, release──► free
//!                     └──hold──► held ────────── release ──► free        no lease: sessions may be handed over
//! ```
//!
//! While something stands, the target's kernel drops what comes in for its service addresses and what leaves from them,
//! and stops the processes of its service. A look and a fence end by themselves, so that who took them may die. A fence
//! that is *held* does not: only then may another machine answer for the addresses.
//!
//! [`layout`] is the contract, `include/locktable.h` says the same in C and decides (in the kernel), [`reference`]
//! decides the same in Rust. [`locked`] is both ends of the answers, [`taking`] how the lock is taken, as a function of
//! what was read and of the time.
//!
//! Invariants: garbage in the lock word takes no lock and ends no held one; a machine that was started anew takes no
//! word of before; nothing in either region makes its reader panic.

pub mod layout;
pub mod locked;
pub mod reference;
pub mod taking;

pub use layout::{Mode, Word};
pub use locked::{Locked, NoAnswers, Sign};
pub use reference::{Standing, Verdict};
pub use taking::{Next, Taken, Taking, Unlocked};
