//! IPv4 header, as far as RoCEv2 needs it. Source: RFC 791.
//!
//! ```text
//!   0 ver ihl | 1 TOS | 2-3 total length | 4-5 id | 6-7 flags, fragment | 8 TTL | 9 protocol | 10-11 checksum
//!   12-15 source | 16-19 destination | options
//! ```

use std::net::Ipv4Addr;

use super::{Truncated, be32, take};

mod field {
    use std::ops::Range;

    pub const VERSION_IHL: usize = 0;
    pub const TOS: usize = 1;
    pub const TOTAL_LENGTH: Range<usize> = 2..4;
    pub const ID: Range<usize> = 4..6;
    pub const FLAGS_FRAGMENT: Range<usize> = 6..8;
    pub const TTL: usize = 8;
    pub const PROTOCOL: usize = 9;
    pub const CHECKSUM: Range<usize> = 10..12;
    pub const SOURCE: Range<usize> = 12..16;
    pub const DESTINATION: Range<usize> = 16..20;
    pub const LEN: usize = DESTINATION.end;
}

/// Length of a header without options in bytes; RoCEv2 packets have none.
pub const LEN: usize = field::LEN;

/// The protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

const VERSION_4_NO_OPTIONS: u8 = 0x45;
const DONT_FRAGMENT: u16 = 0x4000;
/// More-fragments flag and fragment offset: set in any part of a fragmented packet.
const FRAGMENT_MASK: u16 = 0x3fff;

/// What changes on the way and is therefore left out of the ICRC.
pub(super) fn mask_variant(header: &mut [u8; LEN]) {
    header[field::TOS] = 0xff;
    header[field::TTL] = 0xff;
    header[field::CHECKSUM].fill(0xff);
}

/// The fields that matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Header and payload in bytes.
    pub total_length: u16,
    /// Identification; 0 from an unconnected Linux UDP socket with DF, a counter from rxe.
    pub id: u16,
    /// Whether the packet must not be fragmented.
    pub dont_fragment: bool,
    /// Protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

/// Why a packet is none of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unusable {
    /// Shorter than its header says.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// Not version 4, or with options.
    #[error("not an IPv4 header of 20 bytes: starts with {0:#04x}")]
    Version(u8),
    /// A part of a fragmented packet.
    #[error("fragment")]
    Fragment,
}

/// Takes the header off `bytes`; returns it, its raw bytes, and what it says is its payload.
///
/// # Errors
/// See [`Unusable`].
pub fn split(bytes: &[u8]) -> Result<(Repr, &[u8; LEN], &[u8]), Unusable> {
    let (header, rest) = take::<LEN>(bytes)?;
    if header[field::VERSION_IHL] != VERSION_4_NO_OPTIONS {
        return Err(Unusable::Version(header[field::VERSION_IHL]));
    }
    let word = |range: std::ops::Range<usize>| u16::from_be_bytes([header[range.start], header[range.start + 1]]);
    let flags = word(field::FLAGS_FRAGMENT);
    if flags & FRAGMENT_MASK != 0 {
        return Err(Unusable::Fragment);
    }
    let repr = Repr {
        total_length: word(field::TOTAL_LENGTH),
        id: word(field::ID),
        dont_fragment: flags & DONT_FRAGMENT != 0,
        protocol: header[field::PROTOCOL],
        source: Ipv4Addr::from(be32(header, field::SOURCE.start)),
        destination: Ipv4Addr::from(be32(header, field::DESTINATION.start)),
    };
    let announced = usize::from(repr.total_length);
    match announced.checked_sub(LEN).and_then(|len| rest.get(..len)) {
        Some(payload) => Ok((repr, header, payload)),
        None => Err(Truncated { need: announced.max(LEN), have: bytes.len() }.into()),
    }
}

impl Repr {
    /// The header's bytes with TOS, TTL and checksum 0: right for the ICRC, which leaves these out; the kernel fills
    /// in what goes on the wire.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[field::VERSION_IHL] = VERSION_4_NO_OPTIONS;
        bytes[field::TOTAL_LENGTH].copy_from_slice(&self.total_length.to_be_bytes());
        bytes[field::ID].copy_from_slice(&self.id.to_be_bytes());
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        bytes[field::FLAGS_FRAGMENT].copy_from_slice(&flags.to_be_bytes());
        bytes[field::PROTOCOL] = self.protocol;
        bytes[field::SOURCE].copy_from_slice(&self.source.octets());
        bytes[field::DESTINATION].copy_from_slice(&self.destination.octets());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const BYTES: [u8; 24] = [
        0x45, 0, 0, 22, 0x12, 0x34, 0x40, 0, 0, 17, 0, 0, // 22 bytes in all, id, DF, UDP
        192, 0, 2, 1, 192, 0, 2, 2,
        7, 8, 0, 0, // two bytes of payload, two of Ethernet padding
    ];

    #[test]
    fn both_directions_agree_with_the_literal_bytes() {
        let repr = Repr {
            total_length: 22,
            id: 0x1234,
            dont_fragment: true,
            protocol: PROTOCOL_UDP,
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: Ipv4Addr::new(192, 0, 2, 2),
        };
        let (read, raw, payload) = split(&BYTES).unwrap();
        assert_eq!((read, raw.as_slice(), payload), (repr, &BYTES[..LEN], &[7, 8][..]));
        assert_eq!(repr.bytes(), BYTES[..LEN]);
    }

    #[test]
    fn options_fragments_and_lies_are_refused() {
        let check = |at: usize, byte, expected| {
            let mut bytes = BYTES;
            bytes[at] = byte;
            assert_eq!(split(&bytes).err(), Some(expected));
        };
        check(0, 0x46, Unusable::Version(0x46));
        check(0, 0x65, Unusable::Version(0x65));
        check(6, 0x20, Unusable::Fragment);
        check(7, 1, Unusable::Fragment);
        check(3, 25, Truncated { need: 25, have: 24 }.into());
        check(3, 19, Truncated { need: 20, have: 24 }.into());
    }
}
