//! What the two ends say to each other over TCP: where the memory is, queue pairs, and sums of what is there.

use control::backdoor::QueuePair;
use serde::{Deserialize, Serialize};

/// The active end asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Fill the first so many bytes of the memory with the pattern of this seed, and say where it is.
    Fill { seed: u64, len: u64 },
    /// A queue pair for this one.
    Connect(QueuePair),
    /// The checksum of so many bytes.
    Sum { offset: u64, len: u64 },
}

/// The passive end answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    Filled { base: u64, key: u32 },
    Connected(QueuePair),
    Sum(u32),
    Failed(String),
}
