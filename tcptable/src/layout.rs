//! The bytes of the table. Little-endian, no padding, naturally aligned.
//!
//! `include/tcptable.h` says the same in C; `tests/same_bytes.rs` holds the two together.

/// The region, and the map it lies in.
pub const NAME: &str = "tcp";

/// First word of the table: guards against reading the wrong memory.
pub const MAGIC: u64 = 0xa974_6370_7461_628f;

/// Raised whenever an old reader would misread a new writer.
pub const VERSION: u32 = 1;

/// Bytes of a ring. A client is never promised more than that as long as its application bounds its buffer, so that
/// what is unread fits; if it does not, the session is lost, and reported.
pub const RING_BYTES: u32 = 1 << 16;

/// Bytes behind a ring.
pub const TAIL_BYTES: u32 = 4096;

/// Bytes of a slot.
pub const SLOT_BYTES: u32 = RING_BYTES + TAIL_BYTES;

/// Bytes of a tail that are of interest: identity and both records.
pub const HEAD_BYTES: u32 = 384;

/// Slots a table may have, the header's among them: bounds what a damaged header can make a reader fetch.
pub const SLOTS_MAX: u32 = 1 << 14;

/// Local ports whose connections are kept.
pub const PORTS_MAX: usize = 16;

/// State of a slot with a connection. Zero is nobody's, and so is everything else.
pub const OPEN: u64 = 0x09e4_c099_ec71_095d;

/// Words of the header, in the place of the first slot.
pub mod header {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// Low half [`super::VERSION`], high half [`super::SLOT_BYTES`].
    pub const VERSION: usize = 1;
    /// Low half: how many slots there are, this one among them. High half: [`super::RING_BYTES`].
    pub const SLOTS: usize = 2;
    /// [`super::checksum`] of the words before, begun with the magic.
    pub const CHECK: usize = 3;
    /// Where the search for a free slot begins.
    pub const HAND: usize = 4;
    /// Connections for which there was no free slot.
    pub const REFUSED: usize = 5;
    /// How many ports there are.
    pub const PORTS_COUNT: usize = 6;
    /// First of the words with ports, four in each.
    pub const PORTS: usize = 7;
    /// How many there are.
    pub const WORDS: usize = 11;
}

/// Words of a tail.
pub mod tail {
    /// [`super::OPEN`], or no connection. Written last when there is one, first when there is none any more.
    pub const STATE: usize = 0;
    /// Counts the connections the slot has had: guards against records of another one.
    pub const GENERATION: usize = 1;
    /// Two words with our address; IPv4 as IPv4-mapped IPv6.
    pub const LOCAL: usize = 2;
    /// Two words with the client's.
    pub const PEER: usize = 4;
    /// Bits 0..16 our port, 16..32 the client's.
    pub const PORTS: usize = 6;
    /// Low half: sequence number of the client's first byte. High half: of ours. Guard against counts that were torn or
    /// damaged.
    pub const FIRST: usize = 7;
    /// [`super::checksum`] of the words from generation to here, begun with the magic: guards against ends that were
    /// being written.
    pub const IDENTITY_CHECK: usize = 8;
    /// 1 once an application has it.
    pub const ACCEPTED: usize = 9;
    /// Stream offset below which bytes of the ring may have been overwritten: guards against clients that send more
    /// than they were promised.
    pub const OVERWRITTEN: usize = 10;
    /// First word of the even record, sixteen words; the odd one follows.
    pub const RECORDS: usize = 16;
}

/// Words of a record. Where there are two halves, the name of the low one comes first.
pub mod record {
    /// Counts the records of a connection, from 1; its lowest bit is the record's place.
    pub const NUMBER: usize = 0;
    /// `snd_una`, `snd_nxt`.
    pub const SND_UNA_NXT: usize = 1;
    /// `write_seq`, `rcv_nxt`.
    pub const WRITE_SEQ_RCV_NXT: usize = 2;
    /// `copied_seq`, `rcv_wup`.
    pub const COPIED_SEQ_RCV_WUP: usize = 3;
    /// `rcv_wnd`, `snd_wl1`.
    pub const RCV_WND_SND_WL1: usize = 4;
    /// `snd_wnd`, `max_window`.
    pub const SND_WND_MAX_WINDOW: usize = 5;
    /// `snd_cwnd`, `mss_cache`.
    pub const SND_CWND_MSS_CACHE: usize = 6;
    /// `tsoffset`, `ts_recent`.
    pub const TSOFFSET_TS_RECENT: usize = 7;
    /// `tcp_mstamp`, in microseconds.
    pub const MSTAMP_US: usize = 8;
    /// Of what leaves next, in nanoseconds.
    pub const WSTAMP_NS: usize = 9;
    /// `bytes_acked`.
    pub const BYTES_ACKED: usize = 10;
    /// `bytes_received`.
    pub const BYTES_RECEIVED: usize = 11;
    /// Bits 0..32 the sequence number up to which the client's bytes are in the ring or were read, 32..48 `mss_clamp`,
    /// 48..56 `snd_wscale`, 56..64 `rcv_wscale`.
    pub const TAKEN_MSS_SCALES: usize = 12;
    /// Bits 0..8 the state as the kernel numbers it, 8..16 `sk_shutdown`, 16..32 [`super::flag`]s, 32..64 the device.
    pub const STATE_FLAGS_DEVICE: usize = 13;
    /// [`super::checksum`] of the words before, begun with the generation: guards against a record that was being
    /// written and against one of another connection.
    pub const CHECK: usize = 15;
    /// How many there are.
    pub const WORDS: usize = 16;
}

/// Flags of a record.
pub mod flag {
    /// Timestamps were negotiated.
    pub const TIMESTAMPS: u16 = 1 << 0;
    /// Window scaling was negotiated.
    pub const SCALING: u16 = 1 << 1;
    /// Selective acknowledgement was negotiated.
    pub const SACK: u16 = 1 << 2;
    /// Timestamps count microseconds.
    pub const MICROSECONDS: u16 = 1 << 3;
    /// Urgent data is pending.
    pub const URGENT: u16 = 1 << 4;
    /// Somebody checkpoints it.
    pub const REPAIR: u16 = 1 << 5;
    /// An upper-layer protocol owns it.
    pub const UPPER_LAYER: u16 = 1 << 6;
    /// A subflow of Multipath TCP.
    pub const MPTCP: u16 = 1 << 7;
    /// The application has closed it.
    pub const ORPHANED: u16 = 1 << 8;
    /// The application holds an AF_INET6 socket.
    pub const INET6: u16 = 1 << 9;
    /// It lives in the initial network namespace.
    pub const INIT_NET: u16 = 1 << 10;
}

/// FNV-1a by words, begun with `start`: against accidents, not against forgers.
pub fn checksum(start: u64, words: &[u64]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    std::iter::once(&start).chain(words).fold(OFFSET, |sum, word| (sum ^ word).wrapping_mul(PRIME))
}

/// Bytes of a region with `connections` slots beside the header's.
pub const fn region_bytes(connections: u32) -> u64 {
    (connections as u64 + 1) * SLOT_BYTES as u64
}
