//! Base Transport Header: the first 12 bytes of every RoCEv2 payload, big-endian.
//! Source: InfiniBand Architecture Specification, volume 1, "Base Transport Header".
//!
//! ```text
//!   0 opcode | 1 SE M pad:2 ver:4 | 2-3 P_Key | 4 FECN BECN resv | 5-7 dest QP | 8 A resv | 9-11 PSN
//! ```

use super::{Opcode, Psn, Truncated, be24, take};

mod field {
    use std::ops::Range;

    pub const OPCODE: usize = 0;
    pub const FLAGS: usize = 1;
    pub const PARTITION_KEY: Range<usize> = 2..4;
    pub const CONGESTION: usize = 4;
    pub const DEST_QP: Range<usize> = 5..8;
    pub const ACK_REQUEST: usize = 8;
    pub const PSN: Range<usize> = 9..12;
    pub const LEN: usize = PSN.end;
}

/// Length of the header in bytes.
pub const LEN: usize = field::LEN;

/// Place of the byte that switches may change and the ICRC therefore leaves out.
pub const CONGESTION_BYTE: usize = field::CONGESTION;

/// The full-member default partition, the only one RoCE uses.
pub const DEFAULT_PARTITION: u16 = 0xffff;

/// Membership of a partition does not count when keys are compared.
const PARTITION_MASK: u16 = 0x7fff;

const SOLICITED: u8 = 0x80;
const MIGRATED: u8 = 0x40;
const PAD_SHIFT: u32 = 4;
const PAD_MASK: u8 = 3;
const VERSION_MASK: u8 = 0xf;
const ACK_REQUEST: u8 = 0x80;

/// A view of a header.
#[derive(Clone, Copy)]
pub struct Bth<'a> {
    bytes: &'a [u8; LEN],
}

/// Lays a header over `datagram` and returns it with the bytes that follow.
///
/// # Errors
/// [`Truncated`] if `datagram` is shorter than the header.
pub fn split(datagram: &[u8]) -> Result<(Bth<'_>, &[u8]), Truncated> {
    take(datagram).map(|(bytes, rest)| (Bth { bytes }, rest))
}

impl Bth<'_> {
    /// What the packet is.
    pub fn opcode(&self) -> Opcode {
        Opcode(self.bytes[field::OPCODE])
    }

    /// Zero bytes after the payload, 0 to 3.
    pub fn pad(&self) -> usize {
        usize::from(self.bytes[field::FLAGS] >> PAD_SHIFT & PAD_MASK)
    }

    /// Version of the transport; 0.
    pub fn version(&self) -> u8 {
        self.bytes[field::FLAGS] & VERSION_MASK
    }

    /// Whether the partition is the default one, as a full or a limited member.
    pub fn is_default_partition(&self) -> bool {
        let key = &self.bytes[field::PARTITION_KEY];
        u16::from_be_bytes([key[0], key[1]]) & PARTITION_MASK == DEFAULT_PARTITION & PARTITION_MASK
    }

    /// The queue pair this is for.
    pub fn dest_qp(&self) -> u32 {
        be24(self.bytes, field::DEST_QP.start)
    }

    /// Whether the sender wants an answer to this packet.
    pub fn ack_request(&self) -> bool {
        self.bytes[field::ACK_REQUEST] & ACK_REQUEST != 0
    }

    /// The packet's sequence number.
    pub fn psn(&self) -> Psn {
        Psn::new(be24(self.bytes, field::PSN.start))
    }

    /// The owned form.
    pub fn repr(&self) -> Repr {
        Repr {
            opcode: self.opcode(),
            solicited: self.bytes[field::FLAGS] & SOLICITED != 0,
            migrated: self.bytes[field::FLAGS] & MIGRATED != 0,
            pad: self.pad(),
            dest_qp: self.dest_qp(),
            ack_request: self.ack_request(),
            psn: self.psn(),
        }
    }
}

/// A header in the default partition, version 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// What the packet is.
    pub opcode: Opcode,
    /// Whether the receiver should raise an event.
    pub solicited: bool,
    /// The migration state; ignored by everyone, zero in answers.
    pub migrated: bool,
    /// Zero bytes after the payload, 0 to 3.
    pub pad: usize,
    /// The queue pair this is for, 24 bits.
    pub dest_qp: u32,
    /// Whether an answer is wanted.
    pub ack_request: bool,
    /// Sequence number.
    pub psn: Psn,
}

impl Repr {
    /// A header without flags and padding.
    pub const fn new(opcode: Opcode, dest_qp: u32, psn: Psn) -> Self {
        Self { opcode, solicited: false, migrated: false, pad: 0, dest_qp, ack_request: false, psn }
    }

    /// The header's bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[field::OPCODE] = self.opcode.0;
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        bytes[field::FLAGS] =
            flag(self.solicited, SOLICITED) | flag(self.migrated, MIGRATED) | (self.pad as u8 & PAD_MASK) << PAD_SHIFT;
        bytes[field::PARTITION_KEY].copy_from_slice(&DEFAULT_PARTITION.to_be_bytes());
        bytes[field::DEST_QP].copy_from_slice(&self.dest_qp.to_be_bytes()[1..]);
        bytes[field::ACK_REQUEST] = flag(self.ack_request, ACK_REQUEST);
        bytes[field::PSN].copy_from_slice(&self.psn.raw().to_be_bytes()[1..]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WRITE ONLY with 3 bytes of padding for queue pair 0x123456, answer wanted, PSN 0xabcdef.
    const BYTES: [u8; LEN] = [0x0a, 0x30, 0xff, 0xff, 0x00, 0x12, 0x34, 0x56, 0x80, 0xab, 0xcd, 0xef];

    fn repr() -> Repr {
        let plain = Repr::new(Opcode::WRITE_ONLY, 0x12_3456, Psn::new(0xab_cdef));
        Repr { pad: 3, ack_request: true, ..plain }
    }

    #[test]
    fn fields_are_read_from_their_places() {
        let mut packet = BYTES.to_vec();
        packet.extend([1, 2, 3]);
        let (bth, rest) = split(&packet).unwrap();
        assert_eq!(bth.repr(), repr());
        assert_eq!((bth.version(), bth.is_default_partition(), rest), (0, true, &[1, 2, 3][..]));
    }

    #[test]
    fn fields_are_written_to_their_places() {
        assert_eq!(repr().bytes(), BYTES);
        let flags = Repr { solicited: true, migrated: true, pad: 0, ..repr() }.bytes()[1];
        assert_eq!(flags, 0xc0);
    }

    #[test]
    fn a_limited_member_is_in_the_partition_and_another_partition_is_not() {
        let mut bytes = BYTES;
        bytes[2..4].copy_from_slice(&[0x7f, 0xff]);
        assert!(split(&bytes).unwrap().0.is_default_partition());
        bytes[2..4].copy_from_slice(&[0x12, 0x34]);
        assert!(!split(&bytes).unwrap().0.is_default_partition());
    }

    #[test]
    fn a_short_packet_is_truncated() {
        assert_eq!(split(&BYTES[..11]).err(), Some(Truncated { need: 12, have: 11 }));
    }
}
