//! The process that watches targets through their backdoors and heals those that hang.
//!
//! ```text
//!   sample ──► detect ──► dispatch ──► fence ──► evacuate          one pinned thread per target: [`watch`]
//!     ▲           │            │          │          │
//!   [`door`]   pure core    healing    [`link`]   spares, kept warm by a thread beside it
//!              [`detect`]   modules               [`evacuate`]
//!                 └────────────┴──────────┴──────────┴──► [`journal`], [`metrics`]
//! ```
//!
//! What it reads of a target it does not believe: a box is parsed by bounded code, a box that does not parse is no
//! verdict, and no value in it makes the monitor do anything but raise an alarm that a second look must confirm.
//!
//! Invariants: the loss of the path never leads to a fence (`tests/pipeline/verdicts.rs`); nothing is taken over
//! before the fence stands, and one spare at a time is asked (`tests/pipeline/order.rs`); every verdict can be drawn
//! again from its journal (`tests/pipeline/journal.rs`); a monitor that dies half-way is succeeded by its next life or
//! by a second monitor, under the same token (`tests/pipeline/succession.rs`); a fence is
//! never released here but after a reset (`tests/pipeline/after.rs`).

pub mod absent;
pub mod after;
pub mod clock;
pub mod config;
pub mod detect;
mod dispatch;
pub mod door;
pub mod escalate;
pub mod evacuate;
pub mod fence;
pub mod fleet;
pub mod inspect;
pub mod journal;
pub mod kernel;
pub mod metrics;
pub mod operate;
pub mod partner;
pub mod quality;
pub mod recording;
pub mod repair;
pub mod sample;
mod succession;
pub mod watch;
