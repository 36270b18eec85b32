//! What a carrier implements: post many, poll completions, data in one registered buffer.
//!
//! The shape is that of a verbs queue pair, so that one `post` can be one doorbell and nothing is allocated or
//! registered per operation:
//!
//! ```text
//!   post([read 4 KiB -> landing 0, read 64 B -> landing 4096, …])   one call, one doorbell, many packets
//!   poll(&mut completions)                                          until every id has come back
//!   landing()[0..4096]                                              the bytes
//! ```

use std::time::Duration;

use crate::{AccessError, LinkError, RemoteAddr, Window};

/// What a packet carries on an ordinary Ethernet (MTU 1500), in bytes.
const PACKET_BYTES: usize = 1024;

/// One operation on remote memory. Lengths are in bytes; `landing` is an offset into [`Queue::landing`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Fetch `len` bytes from `at` to `landing`.
    Read {
        /// Source.
        at: RemoteAddr,
        /// Bytes to fetch.
        len: u32,
        /// Where in the landing buffer they go.
        landing: u32,
    },
    /// Write `len` bytes, taken from `landing`, to `at`.
    Write {
        /// Destination.
        at: RemoteAddr,
        /// Bytes to write.
        len: u32,
        /// Where in the landing buffer they are.
        landing: u32,
    },
    /// Compare-and-swap on an aligned 64-bit word.
    CompareSwap {
        /// The word.
        at: RemoteAddr,
        /// The value it must have.
        expect: u64,
        /// The value it gets.
        swap: u64,
    },
    /// Fetch-and-add on an aligned 64-bit word.
    FetchAdd {
        /// The word.
        at: RemoteAddr,
        /// What is added.
        add: u64,
    },
}

/// One operation with the caller's name for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Comes back in the completion; the queue does not interpret it.
    pub id: u64,
    /// What to do.
    pub work: Work,
}

/// The end of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The caller's name for the operation.
    pub id: u64,
    /// The word's original value for atomics, 0 otherwise; or why the server refused.
    pub outcome: Result<u64, AccessError>,
}

/// One connection to the server of a target's memory.
pub trait Queue {
    /// The buffer in which reads land and from which writes are taken. Fixed for the life of the queue. Bytes under an
    /// outstanding read are undefined.
    fn landing(&self) -> &[u8];

    /// The same buffer, to place what will be written.
    fn landing_mut(&mut self) -> &mut [u8];

    /// How many operations may be outstanding.
    fn depth(&self) -> usize;

    /// Payload of one packet in bytes: reading so much more costs less than asking once more.
    fn packet_bytes(&self) -> usize {
        PACKET_BYTES
    }

    /// The window of the connection as it is now, if its server offers one.
    fn window(&self) -> Option<Window> {
        None
    }

    /// Posts as many of `requests` as there is room for, in order, and returns how many. Sends at once.
    ///
    /// # Errors
    /// [`LinkError`] if the path has failed.
    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError>;

    /// Drives the connection and takes finished operations into `completions`, waiting up to `wait` for the first.
    /// Returns how many were taken; 0 means the wait ran out.
    ///
    /// # Errors
    /// [`LinkError::Lost`] when the peer stopped answering: all outstanding operations are then void.
    fn poll(&mut self, completions: &mut [Completion], wait: Duration) -> Result<usize, LinkError>;

    /// Makes the connection usable again after a refused access or a lost peer; outstanding operations are void.
    /// A no-op where the server keeps the connection after a refusal.
    ///
    /// # Errors
    /// [`LinkError`] if the peer cannot be reached.
    fn reconnect(&mut self) -> Result<(), LinkError>;

    /// Whether a refusal leaves this queue unusable until [`Queue::reconnect`].
    fn is_broken(&self) -> bool;
}
