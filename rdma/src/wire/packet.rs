//! A whole packet between UDP header and ICRC: what both state machines take and make.

use super::{Opcode, Psn, Truncated, bth, icrc, reth};

/// Payload and padding come in words of this many bytes.
const WORD: usize = 4;

/// The largest packet we send or take, ICRC included, in bytes: headers of a WRITE and 4096 bytes of payload.
pub const LEN_MAX: usize = bth::LEN + reth::LEN + 4096 + icrc::LEN;

/// A packet whose header makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// The header.
    pub header: bth::Repr,
    /// Extension headers and payload, padding removed.
    pub body: &'a [u8],
}

/// Why a packet is dropped without an answer, whoever it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its header.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// A transport version that we do not speak.
    #[error("transport version {0}")]
    Version(u8),
    /// Not the default partition.
    #[error("foreign partition")]
    Partition,
    /// A datagram, a congestion notice: nothing for a reliable connection.
    #[error("{0:?} does not belong to a reliable connection")]
    Service(Opcode),
}

/// Checks what comes before any state: header there, version, partition, service, padding.
///
/// # Errors
/// See [`Malformed`].
pub fn split(ib: &[u8]) -> Result<Packet<'_>, Malformed> {
    let (bth, body) = bth::split(ib)?;
    if bth.version() != 0 {
        return Err(Malformed::Version(bth.version()));
    }
    if !bth.is_default_partition() {
        return Err(Malformed::Partition);
    }
    if !bth.opcode().is_reliable_connection() {
        return Err(Malformed::Service(bth.opcode()));
    }
    let unpadded = body.len().checked_sub(bth.pad()).ok_or(Truncated { need: bth.pad(), have: body.len() })?;
    Ok(Packet { header: bth.repr(), body: &body[..unpadded] })
}

/// The padding of `payload` bytes.
pub const fn pad(payload: usize) -> usize {
    payload.next_multiple_of(WORD) - payload
}

/// Begins a packet in `out` whose extension headers are the parts of `extension`, then `payload` bytes. Returns where
/// the payload goes and the length of the whole, padding zeroed.
///
/// # Panics
/// If `out` is shorter than [`LEN_MAX`] and too short: buffers are ours.
pub fn begin(
    out: &mut [u8],
    header: bth::Repr,
    extension: &[&[u8]],
    payload: usize,
) -> (std::ops::Range<usize>, usize) {
    let header = bth::Repr { pad: pad(payload), ..header };
    let mut at = 0;
    for part in std::iter::once(header.bytes().as_slice()).chain(extension.iter().copied()) {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let end = at + payload + header.pad;
    out[at + payload..end].fill(0);
    (at..at + payload, end)
}

/// The sequence numbers and opcodes of packets, for traces and counters.
pub fn peek(ib: &[u8]) -> Option<(Opcode, u32, Psn)> {
    bth::split(ib).ok().map(|(bth, _)| (bth.opcode(), bth.dest_qp(), bth.psn()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_comes_back_as_it_was_made() {
        let mut out = [0xaa; LEN_MAX];
        let header = bth::Repr::new(Opcode::WRITE_LAST, 17, Psn::new(5));
        let (payload, len) = begin(&mut out, header, &[&[1, 2]], 3);
        out[payload].copy_from_slice(b"abc");
        #[rustfmt::skip]
        let expected = [
            0x08, 0x10, 0xff, 0xff, 0, 0, 0, 17, 0, 0, 0, 5, // one byte of padding
            1, 2, b'a', b'b', b'c', 0,
        ];
        assert_eq!(out[..len], expected);
        let packet = split(&out[..len]).unwrap();
        assert_eq!(packet, Packet { header: bth::Repr { pad: 1, ..header }, body: b"\x01\x02abc" });
        assert_eq!(peek(&out[..len]), Some((Opcode::WRITE_LAST, 17, Psn::new(5))));
    }

    #[test]
    fn what_is_none_of_ours_is_named() {
        let good = bth::Repr::new(Opcode::ACKNOWLEDGE, 17, Psn::new(5)).bytes();
        let check = |at: usize, byte, expected| {
            let mut bytes = good;
            bytes[at] = byte;
            assert_eq!(split(&bytes), Err(expected));
        };
        check(1, 0x03, Malformed::Version(3));
        check(3, 0x00, Malformed::Partition);
        check(0, 0x81, Malformed::Service(Opcode(0x81)));
        check(1, 0x20, Truncated { need: 2, have: 0 }.into());
        assert_eq!(split(&good[..3]), Err(Truncated { need: 12, have: 3 }.into()));
    }
}
