//! The contract of the control plane: who says what to whom, and how a message is framed.
//!
//! ```text
//!   monitor ──► backdoor      connect a queue pair, list regions, fence, release      (TCP)
//!   spare   ──► backdoor      the same, under the fence token the monitor gave it     (TCP)
//!   agent   ──► backdoor      register the pages of a box pool                        (virtio-serial)
//!   monitor ──► reinstate     prepare for a target, evacuate it                       (TCP)
//! ```
//!
//! One connection per pair of peers; a message is a 4-byte big-endian length and that many bytes of JSON. Bulk data
//! never travels here. Every conversation starts with a [`Hello`]; a peer of another [`VERSION`] is turned away with
//! a sentence it can print. Nothing in this crate opens a socket or looks at a clock.

pub mod agent;
pub mod backdoor;
mod framing;
pub mod reinstate;

use serde::{Deserialize, Serialize};

pub use framing::{Channel, FrameError, MESSAGE_BYTES_MAX};

/// Version of the messages. Raised whenever an old peer would misread a new one.
pub const VERSION: u32 = 2;

/// The first message of every conversation, from the side that connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The speaker's [`VERSION`].
    pub version: u32,
    /// Who speaks, for logs: `monitor@host`, `reinstate@host`, `agent`.
    pub name: String,
}

impl Hello {
    /// A greeting in this version.
    pub fn new(name: impl Into<String>) -> Self {
        Self { version: VERSION, name: name.into() }
    }
}
