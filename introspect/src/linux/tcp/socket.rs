//! One connection as its memory claims it, and the questions a rebuilder asks about it.

use std::net::{IpAddr, SocketAddr};

use remote_memory::KernelVirt;

use super::ends::ENDS;
use crate::Damage;

/// Which connections to read. An empty list lets everything through.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TcpFilter {
    /// Local addresses wanted.
    pub addresses: Vec<IpAddr>,
    /// Local ports wanted.
    pub ports: Vec<u16>,
}

impl TcpFilter {
    /// Whether a connection with this local end is wanted.
    pub fn admits(&self, local: SocketAddr) -> bool {
        (self.ports.is_empty() || self.ports.contains(&local.port()))
            && (self.addresses.is_empty() || self.addresses.contains(&local.ip()))
    }
}

/// The states of a connection that is worth saving. Others (listening, opening from here, TIME_WAIT) are not returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum State {
    /// The client's SYN was answered, its acknowledgement not seen: perhaps it never got the answer.
    SynReceived,
    /// Both directions open.
    Established,
    /// We closed; our FIN is not acknowledged.
    FinWait1,
    /// We closed and the peer acknowledged it; the peer may still send.
    FinWait2,
    /// The peer closed; we may still send.
    CloseWait,
    /// Both closed, peer first; our FIN is not acknowledged.
    LastAck,
    /// Both closed at the same time; our FIN is not acknowledged.
    Closing,
}

impl State {
    /// The state that the kernel numbers so, if it is one of these. A request sock has a number of its own (12).
    pub fn from_kernel(raw: u64) -> Option<Self> {
        Some(match raw {
            1 => Self::Established,
            // A sock for the instructions between its request and ESTABLISHED; with TCP Fast Open for longer.
            3 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            11 => Self::Closing,
            _ => return None,
        })
    }
}

/// A stretch of the send queue: one skb, cut to what is not acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Sequence number after the last byte, and after the FIN if there is one.
    pub end_seq: u32,
    /// The bytes; none in a [`Survey`](super::Survey).
    pub bytes: Vec<u8>,
    /// Whether it was in the retransmission queue, that is, on the wire at least once as far as the kernel knew.
    pub sent: bool,
    /// Whether a FIN follows the bytes.
    pub fin: bool,
}

impl Segment {
    /// How many bytes it has, whether they were read or not.
    pub fn len(&self) -> usize {
        self.end_seq.wrapping_sub(self.seq).wrapping_sub(self.fin.into()) as usize
    }

    /// Whether it has none: a FIN alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One connection. Numbers are the kernel's own, named as there; sequence numbers are raw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpSocket {
    /// Its `struct sock`.
    pub address: KernelVirt,
    /// This machine's end. IPv4 for an IPv4-mapped IPv6 socket too.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Whether the application holds an AF_INET6 socket (dual-stack servers do, also for IPv4 peers).
    pub inet6_socket: bool,
    /// Where the connection is in its life.
    pub state: State,
    /// Whether the application has it: false while it waits in the accept queue.
    pub accepted: bool,
    /// Whether the application has closed it and the kernel alone finishes it.
    pub orphaned: bool,
    /// Whether it lives in the initial network namespace.
    pub in_init_net: bool,
    /// Bound device index, 0 for none.
    pub bound_device: u32,

    /// Oldest byte not acknowledged.
    pub snd_una: u32,
    /// Next byte to send. May lag by one skb when the machine stopped inside the transmit path, see
    /// [`TcpSocket::lock_held`].
    pub snd_nxt: u32,
    /// End of what the application has written (and of the FIN if it has closed).
    pub write_seq: u32,
    /// Next byte expected. Where the machine stopped between counting a segment and queueing it, the number from
    /// before (with a report in `damage`): the peer will send that segment again.
    pub rcv_nxt: u32,
    /// Next byte the application will read.
    pub copied_seq: u32,
    /// `rcv_nxt` when the last acknowledgement left.
    pub rcv_wup: u32,
    /// Window last advertised, in bytes.
    pub rcv_wnd: u32,
    /// Sequence number of the segment that last changed `snd_wnd`.
    pub snd_wl1: u32,
    /// Window of the peer, in bytes.
    pub snd_wnd: u32,
    /// Largest window the peer ever offered, in bytes.
    pub max_window: u32,
    /// Congestion window, in segments.
    pub snd_cwnd: u32,
    /// Segment size in use, in bytes.
    pub mss_cache: u32,
    /// The peer's maximum segment size option, in bytes.
    pub mss_clamp: u16,

    /// Whether timestamps were negotiated.
    pub timestamps: bool,
    /// Whether window scaling was negotiated.
    pub window_scaling: bool,
    /// Whether selective acknowledgement was negotiated.
    pub sack: bool,
    /// Shift of the windows the peer sends.
    pub snd_wscale: u8,
    /// Shift of the windows we send.
    pub rcv_wscale: u8,
    /// What is added to our clock to make a timestamp.
    pub tsoffset: u32,
    /// Whether timestamps count microseconds instead of milliseconds (kernels from 6.7, by route feature).
    pub timestamps_in_us: bool,
    /// The peer's newest timestamp.
    pub ts_recent: u32,
    /// Clock at the last packet, in microseconds of the target's monotonic clock.
    pub tcp_mstamp_us: u64,
    /// Departure time of the last packet sent, in nanoseconds of the target's monotonic clock.
    pub tcp_wstamp_ns: u64,

    /// Sequence space acknowledged by the peer since the connection opened; see [`TcpSocket::written_offset`].
    pub bytes_acked: u64,
    /// Sequence space received in order since the connection opened; see [`TcpSocket::read_offset`].
    pub bytes_received: u64,
    /// Whether [`TcpSocket::read_offset`] can be relied on. `bytes_received` and `rcv_nxt` are written one after the
    /// other: a machine stopped between the two has one that does not fit the other, and only the client's SYN, which a
    /// listener with TCP_SAVE_SYN keeps, tells by how much. Without it, the offset of a socket that somebody held is in
    /// doubt.
    pub read_offset_certain: bool,

    /// A thread of the target held the socket (`sk_lock.owned`) or its spinlock: the state may be torn, and `snd_nxt`
    /// may lag behind what is on the wire by the first unsent segment.
    pub lock_held: bool,
    /// `RCV_SHUTDOWN` (1) and `SEND_SHUTDOWN` (2).
    pub shutdown: u8,
    /// Urgent data is pending: cannot be rebuilt.
    pub urgent: bool,
    /// Somebody in the target was already checkpointing it.
    pub repair: bool,
    /// An upper-layer protocol (kernel TLS) owns it: cannot be rebuilt.
    pub has_ulp: bool,
    /// A subflow of Multipath TCP: cannot be rebuilt.
    pub is_mptcp: bool,

    /// What the peer has not acknowledged, from `snd_una` to `write_seq`, in order.
    pub send_queue: Vec<Segment>,
    /// What the application has not read, from `copied_seq` to `rcv_nxt`.
    pub receive_queue: Vec<u8>,
    /// Whether our FIN has its sequence number: it is queued, sent or acknowledged.
    pub fin_queued: bool,
    /// Whether the peer has closed its direction and all of it was received.
    pub fin_received: bool,
    /// Whether `send_queue` is whole: contiguous from `snd_una` to `write_seq`, every byte read.
    pub send_queue_complete: bool,
    /// Whether `receive_queue` is whole: contiguous from `copied_seq` to `rcv_nxt`, every byte read.
    pub receive_queue_complete: bool,
    /// What was not as it should be.
    pub damage: Vec<Damage>,
}

impl TcpSocket {
    /// Stream offset (bytes since the connection opened) of the next byte the application would read.
    ///
    /// `bytes_received` counts all sequence space from the first byte on: no SYN (both kinds of opening set `rcv_nxt`
    /// past it without counting), but the FIN. A socket made by TCP_REPAIR starts at 0. See
    /// [`TcpSocket::read_offset_certain`].
    pub fn read_offset(&self) -> u64 {
        let waiting = u64::from(self.rcv_nxt.wrapping_sub(self.copied_seq));
        let fin_consumed = self.fin_received && waiting == 0;
        self.bytes_received.saturating_sub(waiting + u64::from(fin_consumed))
    }

    /// Stream offset (bytes since the connection opened) of the next byte the application would write.
    ///
    /// `bytes_acked` counts all sequence space acknowledged: the FIN, and of a connection that *this* machine opened
    /// the SYN too, so that the result is then one too high. A server's sockets (made past their SYN) and those made
    /// by TCP_REPAIR start at 0, and nothing in a socket tells which kind it is.
    pub fn written_offset(&self) -> u64 {
        let unacknowledged = u64::from(self.write_seq.wrapping_sub(self.snd_una));
        self.bytes_acked.saturating_add(unacknowledged).saturating_sub(self.fin_queued.into())
    }

    /// Whether memory contradicts itself about whose connection this is.
    pub fn ends_doubtful(&self) -> bool {
        self.damage.iter().any(|damage| damage.part == ENDS)
    }

    /// Whether this crate vouches for the ends and both queues and nothing makes the connection impossible to rebuild.
    pub fn usable(&self) -> bool {
        self.send_queue_complete
            && self.receive_queue_complete
            && !self.ends_doubtful()
            && !(self.urgent || self.repair || self.has_ulp || self.is_mptcp)
    }
}
