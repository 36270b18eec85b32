//! The operations that users of a backdoor call, and whose fault a failure is.

use crate::{RemoteAddr, RemoteKey, Warrant};

/// Why the server of the memory refused one access. The link may need a new connection afterwards; whether it makes
/// one by itself is the carrier's business.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AccessError {
    /// Key, bounds or rights do not permit it: our request was wrong or the epoch has moved on.
    #[error("refused by the guard (key, bounds or rights)")]
    Refused,
    /// The server says the request makes no sense: a defect on one of the two sides.
    #[error("called malformed by the server")]
    Malformed,
    /// The server could not reach its own memory.
    #[error("the server could not reach the memory")]
    Unreachable,
    /// Nothing was tried, because an earlier request of the same connection failed. Ask again.
    #[error("not tried, an earlier request failed")]
    Flushed,
}

/// The path to the memory is gone or never was. Says nothing about the health of the target behind it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// No answer within the link's own time-out and retries.
    #[error("no answer over the link after {tries} tries")]
    Lost {
        /// Transmissions made.
        tries: u32,
    },
    /// The operating system here refused to send or receive.
    #[error("local network failure: {0}")]
    Local(String),
    /// The caller asked for what the link cannot do (a batch larger than the landing buffer, a bad length).
    #[error("misused: {0}")]
    Misused(&'static str),
}

/// One read of a batch: what to fetch, where to put it, how it went.
#[derive(Debug)]
pub struct Read<'a> {
    /// First byte to fetch.
    pub at: RemoteAddr,
    /// Takes the bytes; its length is the length of the read. Untouched unless the outcome is `Ok`.
    pub into: &'a mut [u8],
    /// How this read went.
    pub outcome: Result<(), AccessError>,
}

impl<'a> Read<'a> {
    /// A read that has not been tried.
    pub fn new(at: RemoteAddr, into: &'a mut [u8]) -> Self {
        Self { at, into, outcome: Err(AccessError::Flushed) }
    }
}

/// What a packet each way costs, in bytes of a larger one.
pub(crate) const GAP_BYTES: u64 = 4096;

/// Reads from a target's memory, many at a time: round trips are the cost, so batch.
pub trait RemoteRead {
    /// Carries out all reads of `batch` and returns when each has an outcome, in any order.
    ///
    /// # Errors
    /// [`LinkError`] if the path failed as a whole; outcomes are then meaningless.
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError>;

    /// Bytes between two stretches that had better be read along than asked for apart: what one stretch more costs.
    fn gap_bytes(&self) -> u64 {
        GAP_BYTES
    }

    /// Reads one stretch.
    ///
    /// # Errors
    /// The outer error is the path's, the inner one the server's.
    fn read_one(&mut self, at: RemoteAddr, into: &mut [u8]) -> Result<Result<(), AccessError>, LinkError> {
        let mut batch = [Read::new(at, into)];
        self.read(&mut batch)?;
        Ok(batch[0].outcome)
    }
}

impl<R: RemoteRead + ?Sized> RemoteRead for &mut R {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        (**self).read(batch)
    }

    fn gap_bytes(&self) -> u64 {
        (**self).gap_bytes()
    }
}

impl<R: RemoteRead + ?Sized> RemoteRead for Box<R> {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        (**self).read(batch)
    }

    fn gap_bytes(&self) -> u64 {
        (**self).gap_bytes()
    }
}

/// Why a write did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// The path failed; the write may or may not have been carried out.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The server refused; nothing was written.
    #[error("write {0}")]
    Access(#[from] AccessError),
    /// The caller's warrant is for another region or word; nothing was sent.
    #[error("no warrant for key {key:?}, address {addr:#x}, {len} bytes", key = .at.key, addr = .at.addr)]
    NoWarrant {
        /// What was to be written.
        at: RemoteAddr,
        /// How much.
        len: usize,
    },
}

/// Writes to a target's memory. Each call names the warrant it acts under.
pub trait RemoteWrite: RemoteRead {
    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// See [`WriteError`].
    fn write(&mut self, warrant: Warrant<'_>, at: RemoteAddr, bytes: &[u8]) -> Result<(), WriteError>;

    /// Writes all of `writes`, in their order, each as [`RemoteWrite::write`] does; none after one that failed.
    ///
    /// # Errors
    /// The first that failed, by its place in `writes`; those before it were written.
    fn write_all(&mut self, warrant: Warrant<'_>, writes: &[(RemoteAddr, &[u8])]) -> Result<(), (usize, WriteError)> {
        for (index, (at, bytes)) in writes.iter().enumerate() {
            self.write(warrant, *at, bytes).map_err(|error| (index, error))?;
        }
        Ok(())
    }

    /// Replaces the aligned 64-bit word at `at` by `swap` if it is `expect`; returns what it was. Atomic with respect
    /// to the target's processors if the server's memory is coherent with them (ours is).
    ///
    /// # Errors
    /// See [`WriteError`].
    fn compare_swap(&mut self, warrant: Warrant<'_>, at: RemoteAddr, expect: u64, swap: u64)
    -> Result<u64, WriteError>;

    /// Adds to the aligned 64-bit word at `at`, modulo 2^64; returns what it was.
    ///
    /// # Errors
    /// See [`WriteError`].
    fn fetch_add(&mut self, warrant: Warrant<'_>, at: RemoteAddr, add: u64) -> Result<u64, WriteError>;
}

/// Stops a caller that would leave the address space with `len` bytes from `at`.
pub(crate) fn checked_end(at: RemoteAddr, len: usize) -> Option<u64> {
    at.addr.checked_add(len as u64)
}

impl RemoteAddr {
    /// The address `bytes` further on in the same region.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        Some(Self { key: self.key, addr: self.addr.checked_add(bytes)? })
    }

    /// An address in the region of `key`.
    pub const fn new(key: RemoteKey, addr: u64) -> Self {
        Self { key, addr }
    }
}
