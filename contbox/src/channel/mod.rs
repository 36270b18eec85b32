//! Sessions that span processes: pipes and Unix sockets between them, which survive their machine with both ends.
//!
//! ```text
//!        process A                     kernel                      process B
//!   ┌──────────────────┐    ┌───────────────────────────┐    ┌──────────────────┐
//!   │ application      │    │ frames not read yet       │    │      application │
//!   │ writes up to w ──┼───►│ ══════════════════════►   ├───►│── reads up to r  │
//!   │ record: w        │    └───────────────────────────┘    │ record: r, log   │
//!   └──────────────────┘       and one the other way         └──────────────────┘
//! ```
//! Each process has a record of its own for its end of a channel and exports at its own moments; each export is atomic,
//! as a connection's is. When the machine is dead, both go on from where they last exported, which need not be the same
//! place: [`Plan`] says what the reader is given again and what the writer produces for nobody.
//!
//! | module | idea |
//! |---|---|
//! | [`frame`] | bytes that say where they lie, since the kernel does not count them |
//! | [`record`] | one end in its slot, and a spare's side of it |
//! | [`plan`] | log, kernel's buffer and both snapshots become what either end gets |
//! | [`wire`] | pipes in packet mode and Unix stream sockets |
//! | [`end`] | the API of a process: read, write, export |
//! | [`joint`] | which channels belong to a connection, in the snapshot of that |
//! | [`found`] | both ends out of a dead machine, and laying them down elsewhere |
//!
//! # What an application promises
//!
//! From an export on the same input gives the same output, as of any session. Where that is not so (the time, chance,
//! an answer of somebody who keeps no log) the export before says that a non-deterministic [`Interval`] follows:
//! output is then held back in the process, in no kernel and no box, until the next export, which holds it. Where such
//! intervals begin must itself follow from the input: a process that goes on from an earlier export comes by there
//! again, after it has produced again what was seen of the interval before. A process that reads from several places
//! reads them in an order that follows from what it read, or in such an interval.
//!
//! A process with a connection and a channel has two records and one state. It exports the connection's with the
//! channel's two offsets inside ([`joint`]), then the channel's: [`EndImage::at`] puts a stop between the two right.
//! The channel's record names the connection's box ([`Place`]), so that neither can claim the other alone. A channel
//! that is opened is named by an export of the connection once the other end has its record (it has if it has spoken),
//! and one that is to be closed is named no longer by the last before: what a snapshot does not name, whoever goes on
//! from it opens anew.
//!
//! What this does not do: it carries no descriptors, and it is not for more than two processes at one channel.

pub mod end;
pub mod found;
pub mod frame;
pub mod joint;
pub mod plan;
pub mod record;
pub mod wire;

pub use end::{ChannelEnd, EndError, ImportError, Interval};
pub use found::{FoundChannel, LaidChannel};
pub use joint::Standing;
pub use plan::{Loss, Plan};
pub use record::{EndImage, EndPlan, File, Identity, Place, read_end, role};
pub use wire::{Descriptors, Wire};
