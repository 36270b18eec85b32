//! The headers of atomics: AtomicETH on the request, AtomicAckETH (after an AETH) on the answer.
//! Source: "Atomic Extended Transport Header" and "Atomic Acknowledge Extended Transport Header".
//!
//! ```text
//!   request: 0-7 address | 8-11 R_Key | 12-19 swap or add | 20-27 compare       answer: 0-7 original value
//! ```

use remote_memory::RemoteKey;

use super::{Truncated, be32, be64, take};

mod field {
    use std::ops::Range;

    pub const ADDR: Range<usize> = 0..8;
    pub const KEY: Range<usize> = 8..12;
    pub const SWAP_OR_ADD: Range<usize> = 12..20;
    pub const COMPARE: Range<usize> = 20..28;
    pub const LEN: usize = COMPARE.end;
}

/// Length of the request's header in bytes.
pub const LEN: usize = field::LEN;

/// Length of the answer's header in bytes.
pub const ACK_LEN: usize = size_of::<u64>();

/// The owned form of the request's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Address of the word; a multiple of 8.
    pub addr: u64,
    /// Names the region.
    pub key: RemoteKey,
    /// The new value of a CMP_SWAP, or what a FETCH_ADD adds.
    pub swap_or_add: u64,
    /// What a CMP_SWAP compares with; 0 in a FETCH_ADD.
    pub compare: u64,
}

/// Takes the request's header off the front of `bytes`.
///
/// # Errors
/// [`Truncated`] if it is not all there.
pub fn split(bytes: &[u8]) -> Result<(Repr, &[u8]), Truncated> {
    let (header, rest) = take::<LEN>(bytes)?;
    let repr = Repr {
        addr: be64(header, field::ADDR.start),
        key: RemoteKey::new(be32(header, field::KEY.start)),
        swap_or_add: be64(header, field::SWAP_OR_ADD.start),
        compare: be64(header, field::COMPARE.start),
    };
    Ok((repr, rest))
}

/// Takes the original value off the front of `bytes`.
///
/// # Errors
/// [`Truncated`] if it is not all there.
pub fn split_ack(bytes: &[u8]) -> Result<(u64, &[u8]), Truncated> {
    take(bytes).map(|(value, rest)| (u64::from_be_bytes(*value), rest))
}

impl Repr {
    /// The header's bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[field::ADDR].copy_from_slice(&self.addr.to_be_bytes());
        bytes[field::KEY].copy_from_slice(&self.key.raw().to_be_bytes());
        bytes[field::SWAP_OR_ADD].copy_from_slice(&self.swap_or_add.to_be_bytes());
        bytes[field::COMPARE].copy_from_slice(&self.compare.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_agree_with_the_literal_bytes() {
        #[rustfmt::skip]
        let bytes = [
            0, 0, 0, 0, 0, 0, 0x20, 0x08, // address
            0, 0, 0x13, 0x50, // key
            0, 0, 0, 0, 0, 0, 0, 0x2a, // swap
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, // compare
        ];
        let repr = Repr { addr: 0x2008, key: RemoteKey::new(0x1350), swap_or_add: 42, compare: u64::MAX - 1 };
        assert_eq!(split(&bytes), Ok((repr, &[][..])));
        assert_eq!(repr.bytes(), bytes);
        assert_eq!(split(&bytes[1..]), Err(Truncated { need: 28, have: 27 }));
    }

    #[test]
    fn the_answer_is_one_big_endian_word() {
        assert_eq!(split_ack(&[0, 0, 0, 0, 0, 0, 1, 2, 3]), Ok((0x102, &[3][..])));
        assert_eq!(split_ack(&[0; 7]), Err(Truncated { need: 8, have: 7 }));
    }
}
