//! The operations that users of a backdoor call, and whose fault a failure is.

use crate::window::Member;
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

/// A read of the same members of many equal structs.
#[derive(Clone, Copy, Debug)]
pub struct Gather<'a> {
    /// The region in which all of them lie.
    pub key: RemoteKey,
    /// Where each struct begins.
    pub bases: &'a [u64],
    /// What is wanted of each.
    pub members: &'a [Member],
}

/// Takes the members of one struct, one behind the other: the struct's number, and what came of it.
pub type Take<'t> = dyn FnMut(usize, Result<&[u8], AccessError>) + 't;

impl Gather<'_> {
    /// Bytes of the members of one struct.
    pub fn struct_bytes(&self) -> usize {
        self.members.iter().map(|member| member.len as usize).sum()
    }

    /// Whether every member is something.
    pub(crate) fn is_sound(&self) -> bool {
        !self.members.is_empty() && self.members.iter().all(|member| member.len > 0)
    }
}

/// Structs of one batch where a carrier has no shorter way: no more memory of ours than caches hold.
const STRUCTS_PER_BATCH: usize = 2048;

/// [`RemoteRead::gather`] as batches of reads.
pub(crate) fn gather_apart<R: RemoteRead + ?Sized>(
    link: &mut R,
    wanted: &Gather<'_>,
    take: &mut Take<'_>,
) -> Result<(), LinkError> {
    if !wanted.is_sound() {
        return Err(LinkError::Misused("members without a byte are gathered"));
    }
    let bytes = wanted.struct_bytes();
    let mut came = vec![0; bytes * wanted.bases.len().min(STRUCTS_PER_BATCH)];
    for (number, bases) in wanted.bases.chunks(STRUCTS_PER_BATCH).enumerate() {
        let came = &mut came[..bytes * bases.len()];
        let outcomes = read_apart(link, &Gather { bases, ..*wanted }, came)?;
        for (index, (outcome, came)) in outcomes.into_iter().zip(came.chunks_exact(bytes)).enumerate() {
            take(number * STRUCTS_PER_BATCH + index, outcome.map(|()| came));
        }
    }
    Ok(())
}

/// One batch of them, into a room for all their members; what came of each struct.
fn read_apart<R: RemoteRead + ?Sized>(
    link: &mut R,
    wanted: &Gather<'_>,
    into: &mut [u8],
) -> Result<Vec<Result<(), AccessError>>, LinkError> {
    let mut outcomes = vec![Ok(()); wanted.bases.len()];
    let mut batch = Vec::with_capacity(wanted.bases.len() * wanted.members.len());
    let mut owners = Vec::with_capacity(batch.capacity());
    let mut rest = into;
    for (owner, base) in wanted.bases.iter().enumerate() {
        for member in wanted.members {
            let (into, later) = rest.split_at_mut(member.len as usize);
            rest = later;
            match base.checked_add(member.offset.into()) {
                Some(at) => {
                    batch.push(Read::new(RemoteAddr::new(wanted.key, at), into));
                    owners.push(owner);
                }
                None => outcomes[owner] = Err(AccessError::Refused),
            }
        }
    }
    link.read(&mut batch)?;
    for (read, owner) in batch.iter().zip(owners) {
        outcomes[owner] = outcomes[owner].and(read.outcome);
    }
    Ok(outcomes)
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

    /// Reads members of equal structs and hands each over, in the order of `wanted`. A carrier may have a shorter way
    /// for them than for as many stretches, and may ask for the next of them while `take` looks at those that came.
    ///
    /// # Errors
    /// [`LinkError`] if the path failed as a whole; what `take` has been given by then holds.
    fn gather(&mut self, wanted: &Gather<'_>, take: &mut Take<'_>) -> Result<(), LinkError> {
        gather_apart(self, wanted, take)
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

    fn gather(&mut self, wanted: &Gather<'_>, take: &mut Take<'_>) -> Result<(), LinkError> {
        (**self).gather(wanted, take)
    }
}

impl<R: RemoteRead + ?Sized> RemoteRead for Box<R> {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        (**self).read(batch)
    }

    fn gap_bytes(&self) -> u64 {
        (**self).gap_bytes()
    }

    fn gather(&mut self, wanted: &Gather<'_>, take: &mut Take<'_>) -> Result<(), LinkError> {
        (**self).gather(wanted, take)
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
