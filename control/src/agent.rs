//! What the agent in a target says to the backdoor of its host, over a virtio-serial port.
//!
//! The port is called [`PORT_NAME`]. The backdoor trusts nothing here: pages outside the guest's RAM or beyond the
//! limits are refused. Framing is [`crate::Channel`]'s; the agent speaks, the backdoor answers each message.

use serde::{Deserialize, Serialize};

use crate::Hello;

/// Name of the virtio-serial port, as it stands in `/sys/class/virtio-ports/*/name` of the guest.
pub const PORT_NAME: &str = "org.backdoors.agent";

/// Pages one region may have: 256 MiB of boxes, a good ten thousand.
pub const REGION_PAGES_MAX: usize = 64 * 1024;

/// Regions one agent may register.
pub const REGIONS_MAX: usize = 16;

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromAgent {
    /// Opens the conversation, also after the agent restarted; answered by [`ToAgent::Welcome`].
    Hello(Hello),
    /// Registers (or registers anew) a region made of whole pages, in order; answered by [`ToAgent::Registered`].
    Register(Registration),
}

/// A region of the target's memory that other machines may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// `sb` for the Sensor Box, `cb` for the pool of Continuation Boxes.
    pub name: String,
    /// Bytes used; at most 4096 for each page.
    pub len: u64,
    /// Guest-physical page numbers, in the order in which they form the region.
    pub pages: Vec<u64>,
    /// Whether monitors may write and use atomics while the target lives (hooks); boxes are read-only.
    pub writable: bool,
}

/// What the backdoor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum ToAgent {
    /// The backdoor's version of the messages.
    Welcome {
        /// See [`crate::VERSION`].
        version: u32,
    },
    /// The region can be reached from now on.
    Registered {
        /// Its name.
        name: String,
    },
    /// Not done, and why.
    Refused {
        /// A sentence for people.
        why: String,
    },
}
