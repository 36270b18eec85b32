//! One TCP connection as plain values: everything that is needed to go on with it in another kernel.
//!
//! ```text
//!   send:     snd_una            snd_nxt              write_seq
//!             |-- sent, unacked --|-- never sent ------|            `sending` holds snd_una..write_seq
//!   receive:  copied_seq          rcv_wup     rcv_nxt
//!             |-- unread, ack sent -|-- no ack -|                   `receiving` holds copied_seq..rcv_nxt
//! ```
//!
//! Sequence numbers are raw (modulo 2^32) and compare only inside a window, see [`distance`]. Congestion state, RTT and
//! out-of-order data are left behind on purpose: no kernel takes the first two, and the client resends the third.

use std::{net::SocketAddr, time::Duration};

/// Bytes one queue may hold. The kernel's own limit for a send or receive buffer is far below; more is garbage.
pub const QUEUE_BYTES_MAX: usize = 256 << 20;

/// The largest window scale TCP knows (RFC 7323).
pub const WINDOW_SCALE_MAX: u8 = 14;

/// Added to every TSval, in milliseconds: covers the clearing of its low bit and the rounding of clocks.
const TIMESTAMP_MARGIN_MS: u32 = 2;

/// What every rebuilt socket has room for: the largest window without scaling. Its buffers are larger.
const ROOM_BYTES_MIN: u32 = u16::MAX as u32;

/// How far `to` lies after `from`, modulo 2^32.
pub const fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from)
}

/// A connection as its kernel knew it. FINs have places in sequence space and no bytes: they are flags here, and no
/// number below counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Our end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// First byte sent that the client has not acknowledged.
    pub snd_una: u32,
    /// First byte never sent; may lag by one segment if the processor was stopped while sending.
    pub snd_nxt: u32,
    /// The bytes from `snd_una` to the end of what the application wrote; none while they are [`Snapshot::unread`].
    pub sending: Vec<u8>,
    /// How many such bytes there are that were not read yet: see [`Snapshot::give`].
    pub unread: usize,
    /// Next byte expected from the client.
    pub rcv_nxt: u32,
    /// The bytes the application has not read, up to `rcv_nxt`.
    pub receiving: Vec<u8>,
    /// `rcv_nxt` when the last acknowledgement left.
    pub rcv_wup: u32,
    /// Window promised then, in bytes.
    pub rcv_wnd: u32,
    /// Sequence number of the last segment that updated the send window.
    pub snd_wl1: u32,
    /// The client's window, in bytes from `snd_una`.
    pub snd_wnd: u32,
    /// The largest window the client ever offered, in bytes.
    pub max_window: u32,
    /// Window scales (the client's, ours), if negotiated.
    pub scales: Option<(u8, u8)>,
    /// Whether selective acknowledgements were negotiated.
    pub sack: bool,
    /// If timestamps were negotiated: a TSval (in milliseconds) not below any the client has seen, valid when the
    /// order to take over arrived.
    pub timestamp: Option<u32>,
    /// The client's maximum segment size.
    pub mss_clamp: u16,
    /// The application has closed our direction: our FIN follows `sending`, whether sent, acknowledged or not.
    pub closed: bool,
    /// The client's FIN was received, at `rcv_nxt`.
    pub peer_closed: bool,
}

impl Snapshot {
    /// Bytes from `snd_una` to the end of what the application wrote.
    pub fn queued(&self) -> usize {
        self.sending.len() + self.unread
    }

    /// Takes the bytes that were not read yet.
    ///
    /// # Errors
    /// Their number is another than was measured; nothing has changed then.
    pub fn give(&mut self, bytes: Vec<u8>) -> Result<(), usize> {
        if bytes.len() != self.queued() {
            return Err(bytes.len());
        }
        (self.sending, self.unread) = (bytes, 0);
        Ok(())
    }

    /// The sequence number after the last byte the application wrote.
    pub fn write_seq(&self) -> u32 {
        self.snd_una.wrapping_add(self.queued() as u32)
    }

    /// The sequence number of the first byte the application has not read.
    pub fn copied_seq(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.receiving.len() as u32)
    }

    /// The number that acknowledges all that was received, the client's FIN too.
    pub fn acknowledgement(&self) -> u32 {
        self.rcv_nxt.wrapping_add(self.peer_closed.into())
    }

    /// Bytes the client may send from `rcv_nxt` on: what was promised to it, and at least what is there anyway. A dead
    /// kernel that was short of memory had promised nothing.
    pub fn receive_room(&self) -> u32 {
        let received = distance(self.rcv_wup, self.rcv_nxt) as i32;
        let left = i64::from(self.rcv_wnd) - i64::from(received);
        u32::try_from(left).unwrap_or(0).max(ROOM_BYTES_MIN)
    }

    /// The TSval to use `elapsed` after the order to take over arrived, if timestamps were negotiated.
    pub fn timestamp_after(&self, elapsed: Duration) -> Option<u32> {
        self.timestamp.map(|value| value.wrapping_add(elapsed.as_millis() as u32).wrapping_add(TIMESTAMP_MARGIN_MS))
    }

    /// The TSval of what is said beside a live socket: never after that of what the socket says next, which a client
    /// would then take for older (RFC 7323, 5).
    pub fn timestamp_beside(&self, elapsed: Duration) -> Option<u32> {
        self.timestamp.map(|value| value.wrapping_add((elapsed.as_millis() as u32).saturating_sub(1)))
    }

    /// How many bytes there are to send when the connection goes on at `start`; `None` if it is not inside the queue.
    pub fn left_from(&self, start: u32) -> Option<usize> {
        self.queued().checked_sub(distance(self.snd_una, start) as usize)
    }

    /// The bytes to send when the connection goes on at `start`; `None` if `start` is not inside the queue, or its
    /// bytes were not read yet.
    pub fn sending_from(&self, start: u32) -> Option<&[u8]> {
        self.sending.get(distance(self.snd_una, start) as usize..).filter(|_| self.unread == 0)
    }
}
