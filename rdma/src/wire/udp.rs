//! UDP header, as far as RoCEv2 needs it: ports and length are covered by the ICRC, the checksum is 0.
//! Source: RFC 768.
//!
//! ```text
//!   0-1 source port | 2-3 destination port | 4-5 length | 6-7 checksum
//! ```

use super::{Truncated, take};

mod field {
    use std::ops::Range;

    pub const SOURCE: Range<usize> = 0..2;
    pub const DESTINATION: Range<usize> = 2..4;
    pub const LENGTH: Range<usize> = 4..6;
    pub const CHECKSUM: Range<usize> = 6..8;
    pub const LEN: usize = CHECKSUM.end;
}

/// Length of the header in bytes.
pub const LEN: usize = field::LEN;

/// Place of the checksum, which the ICRC leaves out.
pub(super) const CHECKSUM: std::ops::Range<usize> = field::CHECKSUM;

/// The owned form; the checksum is always 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length of header and payload in bytes.
    pub length: u16,
}

/// Takes the header off `bytes`; returns it, its raw bytes, and what it says is its payload.
///
/// # Errors
/// [`Truncated`] if the header or the payload it announces is not all there.
pub fn split(bytes: &[u8]) -> Result<(Repr, &[u8; LEN], &[u8]), Truncated> {
    let (header, rest) = take::<LEN>(bytes)?;
    let word = |range: std::ops::Range<usize>| u16::from_be_bytes([header[range.start], header[range.start + 1]]);
    let repr = Repr { source: word(field::SOURCE), destination: word(field::DESTINATION), length: word(field::LENGTH) };
    let announced = usize::from(repr.length);
    match announced.checked_sub(LEN).and_then(|len| rest.get(..len)) {
        Some(payload) => Ok((repr, header, payload)),
        None => Err(Truncated { need: announced.max(LEN), have: bytes.len() }),
    }
}

impl Repr {
    /// The header's bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[field::SOURCE].copy_from_slice(&self.source.to_be_bytes());
        bytes[field::DESTINATION].copy_from_slice(&self.destination.to_be_bytes());
        bytes[field::LENGTH].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; LEN] = [0xc0, 0xde, 0x12, 0xb7, 0x00, 0x0a, 0x00, 0x00];

    #[test]
    fn both_directions_agree_with_the_literal_bytes() {
        let repr = Repr { source: 0xc0de, destination: 4791, length: 10 };
        assert_eq!(repr.bytes(), BYTES);
        let mut packet = BYTES.to_vec();
        packet.extend([1, 2, 3]); // the third byte is Ethernet padding
        assert_eq!(split(&packet), Ok((repr, &BYTES, &[1, 2][..])));
    }

    #[test]
    fn a_length_beyond_the_packet_is_truncated() {
        assert_eq!(split(&BYTES), Err(Truncated { need: 10, have: 8 }));
        let mut short = BYTES;
        short[5] = 7;
        assert_eq!(split(&short), Err(Truncated { need: 8, have: 8 }));
    }
}
