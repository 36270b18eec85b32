//! The formats of RoCEv2: views over received bytes, small owned representations, the invariant CRC.
//!
//! ```text
//!   IPv4 20 | UDP 8 | BTH 12 | RETH 16 / AETH 4 / AtomicETH 28 / … | payload | pad 0-3 | ICRC 4
//!                    \____________________ "InfiniBand bytes" ______________________/
//! ```
//!
//! Everything is big-endian except the ICRC. Each `split` lays a view over the front of its input after one length
//! check and returns the rest; each `Repr` writes itself into a buffer that is large enough by type. Parsing judges
//! lengths only: codes without a meaning survive it, and the state machines decide what to make of them.
//!
//! Source throughout: InfiniBand Architecture Specification, volume 1, chapter "Transport Layer", and its annex A17
//! (RoCEv2).

pub mod aeth;
pub mod atomic;
pub mod bth;
pub mod icrc;
pub mod immediate;
pub mod ipv4;
mod opcode;
pub mod packet;
mod psn;
pub mod reth;
pub mod udp;

pub use opcode::Opcode;
pub use psn::Psn;

/// Shorter than the header that should be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("truncated: {need} bytes needed, {have} there")]
pub struct Truncated {
    /// Bytes the header takes.
    pub need: usize,
    /// Bytes that are left of the packet.
    pub have: usize,
}

/// Takes the first `N` bytes off `bytes`.
pub(crate) fn take<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Truncated> {
    bytes.split_first_chunk().ok_or(Truncated { need: N, have: bytes.len() })
}

/// The big-endian number in bytes `at..at + 4`; used with constant places inside arrays only.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The big-endian number in bytes `at..at + 8`; used with constant places inside arrays only.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The 24-bit big-endian number in bytes `at..at + 3`.
pub(crate) fn be24(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]])
}
