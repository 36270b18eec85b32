//! The box service: who leases which slot, and how a reinstated socket reaches the application that will serve it.
//!
//! ```text
//!  application                                   box service (target-agent on a target, reinstate on a spare)
//!     Hello { name, ports, held, want }  ──►
//!                                        ◄──     Pool { pool, length } + fd of the pool
//!                                        ◄──     Lease { owner, slots }
//!     Want { slots }, Release { slots }  ──►
//!                                        ◄──     Testament { local, words, complete }     (to heirs, before sessions)
//!                                        ◄──     Resume { order, slot, … } + fd of the socket      (many in a row)
//!                                        ◄──     End { order, role, slot, … } + fd of a channel's end
//!     Resumed { order } | Declined       ──►
//! ```
//!
//! JSON lines over a Unix stream socket; a line that announces a descriptor has exactly one attached, in order. Boxes
//! are made and exported without the service: it may die and come back, and the application announces what it
//! holds. When the application goes, its slots are freed.

mod channel;
mod client;
mod handed;
mod handover;
mod lease;
mod message;
mod server;
mod usage;

pub use channel::{Channel, ChannelError};
pub use client::BoxClient;
pub use handed::{Handed, HandedEnd, Heir};
pub use handover::{Declined, Handover, Ordered};
pub use lease::{Leases, RECLAIM_AFTER};
pub use message::{FromApp, Held, PROTOCOL, Resume, ResumeEnd, ToApp};
pub use server::{App, BoxService};
pub use usage::{Share, Usage};
