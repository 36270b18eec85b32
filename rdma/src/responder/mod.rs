//! The serving half of a reliable connection.

mod memory;

pub use memory::{Memory, Refusal};

/// What a responder has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// READ requests answered, duplicates included.
    pub reads: u64,
    /// Bytes those answers carried.
    pub read_bytes: u64,
    /// WRITE messages carried out whole.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Atomics executed.
    pub atomics: u64,
    /// Requests refused with an error that broke the connection.
    pub refused: u64,
    /// Packets that repeated an earlier one.
    pub duplicates: u64,
    /// Packets that came before one that was lost.
    pub out_of_order: u64,
    /// Packets dropped without an answer: malformed, outside the window, or with too much work already waiting.
    pub dropped: u64,
}
