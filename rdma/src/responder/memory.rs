//! What a responder needs of the memory it serves. The rules (keys, bounds, epochs, rights) live behind this trait;
//! the responder only asks, and turns a refusal into the right answer on the wire.

use std::sync::Arc;

use remote_memory::{RemoteKey, Rights};

/// Why memory said no. Decides the NAK code that goes out; the connection that asked breaks either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Key unknown or expired, outside the region, or without the right: the asker's fault (NAK 0x62).
    #[error("key, bounds or rights do not permit it")]
    Access,
    /// The request makes no sense, for example a misaligned atomic: the asker's fault (NAK 0x61).
    #[error("malformed request")]
    Malformed,
    /// The memory is there but could not be reached: our fault (NAK 0x63).
    #[error("the memory could not be reached")]
    Unreachable,
    /// What the request speaks of has been replaced by its asker since. A repetition whose first answer has come gets
    /// none, as nobody waits for it; a first request is the asker's fault (NAK 0x61).
    #[error("the request speaks of what its asker has replaced")]
    Outdated,
}

/// Memory that a responder serves.
///
/// Shared by reference: the implementer brings its own synchronisation, because the same memory is changed by a
/// running machine anyway. Every access is checked by the implementer itself; [`Memory::check`] is asked in addition
/// once per message, so that a message that will fail later fails before its first byte, if it can tell.
/// What an implementer does not say is refused: memory that only `check`s and `read`s is read-only.
pub trait Memory {
    /// Whether `len` bytes from `addr` may be used with `rights`. Never called for a length of 0.
    ///
    /// # Errors
    /// The [`Refusal`] that goes to the asker.
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal>;

    /// Copies memory from `addr` on into all of `into`. Checks again: a key may end between two packets of a message.
    ///
    /// # Errors
    /// The [`Refusal`] that goes to the asker; `into` may then hold anything and is not sent.
    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal>;

    /// Copies all of `bytes` to `addr`.
    ///
    /// # Errors
    /// The [`Refusal`] that goes to the asker; nothing of `bytes` was written.
    fn write(&self, _key: RemoteKey, _addr: u64, _bytes: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::Access)
    }

    /// Replaces the 64-bit word (of this machine's byte order) at `addr` by `swap` if it is `expect`; returns what it
    /// was. `addr` is a multiple of 8; atomic with respect to every processor that maps the memory.
    ///
    /// # Errors
    /// The [`Refusal`] that goes to the asker.
    fn compare_swap(&self, _key: RemoteKey, _addr: u64, _expect: u64, _swap: u64) -> Result<u64, Refusal> {
        Err(Refusal::Access)
    }

    /// Adds `add`, modulo 2^64, to the word at `addr`; returns what it was. As [`Memory::compare_swap`] otherwise.
    ///
    /// # Errors
    /// The [`Refusal`] that goes to the asker.
    fn fetch_add(&self, _key: RemoteKey, _addr: u64, _add: u64) -> Result<u64, Refusal> {
        Err(Refusal::Access)
    }
}

macro_rules! forward {
    ($holder:ty) => {
        impl<M: Memory + ?Sized> Memory for $holder {
            fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
                (**self).check(key, addr, len, rights)
            }

            fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
                (**self).read(key, addr, into)
            }

            fn write(&self, key: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
                (**self).write(key, addr, bytes)
            }

            fn compare_swap(&self, key: RemoteKey, addr: u64, expect: u64, swap: u64) -> Result<u64, Refusal> {
                (**self).compare_swap(key, addr, expect, swap)
            }

            fn fetch_add(&self, key: RemoteKey, addr: u64, add: u64) -> Result<u64, Refusal> {
                (**self).fetch_add(key, addr, add)
            }
        }
    };
}

forward!(&M);
forward!(Arc<M>);
