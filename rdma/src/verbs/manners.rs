//! What an adapter is asked for in other ways than the rest, because of how Linux' rxe asks.
//!
//! * rxe answers a repeated WRITE with an ACK for the last operation that it has carried out. If that is an atomic
//!   whose own answer is still on its way, an asking rxe takes this ACK for the end of the atomic, with no number in
//!   it. So an atomic waits until the WRITEs ahead of it have ended.
//! * An asking rxe counts each packet that was lost of a WRITE as one of the peer's last chances, however far it has
//!   come since: a long one over a path that loses packets ends the connection. So it is handed over in pieces. One
//!   that is refused leaves those before it written.
//!
//! Source: `rxe_resp.c` (`duplicate_request`) and `rxe_comp.c` (`check_ack`, `COMPST_ERROR_RETRY`) of Linux 6.1 and
//! 6.12; `testbed run interop --directions rxe-to-rxe` shows both.

/// `RXE_VENDOR_ID` in `rxe_param.h`: nobody else's, since nobody was given it.
const RXE: u32 = 0x00ff_ffff;

/// Packets of a piece. Seven losses end a connection: of so many packets one in twenty may be lost.
const PIECE_PACKETS: usize = 16;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// Whether atomics wait for WRITEs.
    pub atomics_wait: bool,
    /// Packets of a WRITE, at most.
    write_packets: Option<usize>,
}

impl Manners {
    /// Those that the adapter of `vendor` needs.
    pub fn of(vendor: u32) -> Self {
        let is_rxe = vendor == RXE;
        Self { atomics_wait: is_rxe, write_packets: is_rxe.then_some(PIECE_PACKETS) }
    }

    /// Bytes of each piece of a WRITE of `len` in packets of `packet` bytes, of which there may be `depth` at most.
    pub fn piece_bytes(&self, len: usize, packet: usize, depth: usize) -> usize {
        let whole = len.max(1);
        let Some(packets) = self.write_packets else { return whole };
        let least = whole.div_ceil(depth.max(1)).next_multiple_of(packet);
        (packets * packet).max(least).min(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rxe_is_asked_in_pieces() {
        let (rxe, other) = (Manners::of(0x00ff_ffff), Manners::of(0x02c9));
        assert_eq!(other.piece_bytes(8 << 20, 4096, 16), 8 << 20);
        assert_eq!(rxe.piece_bytes(8 << 20, 4096, 4096), 16 * 4096);
        assert_eq!(rxe.piece_bytes(100, 256, 4096), 100);
        assert_eq!((rxe.piece_bytes(0, 256, 16), other.piece_bytes(0, 256, 16)), (1, 1));
        assert!(rxe.atomics_wait && !other.atomics_wait);
    }

    #[test]
    fn a_small_queue_has_longer_pieces_of_whole_packets() {
        let piece = Manners::of(RXE).piece_bytes((8 << 20) + 5, 1024, 64);
        assert_eq!((piece, ((8usize << 20) + 5).div_ceil(piece)), (129 * 1024, 64));
    }
}
