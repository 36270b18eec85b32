//! A spare's side: connections out of bytes that come from a machine that is dead, mad or both.
//!
//! Three rounds of remote reads, however many connections there are: the header ([`Table::parse`]), all tails
//! ([`Table::head`], [`Connection::parse`]), then what is unread ([`Connection::unread`]).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::header::halves;
use crate::layout::{
    self, HEAD_BYTES, MAGIC, OPEN, RING_BYTES, SLOT_BYTES, SLOTS_MAX, VERSION, checksum, flag, record, tail,
};

/// Why bytes are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    /// Fewer bytes than a header has.
    #[error("table of connections truncated: {have} bytes")]
    Truncated {
        /// Bytes there.
        have: usize,
    },
    /// Something else, or no agent has written it.
    #[error("no table of connections: magic {found:#018x}")]
    Magic {
        /// What was in its place.
        found: u64,
    },
    /// Another release's: run the same release on target and spare.
    #[error("table of connections of version {found}, this program reads {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Damaged, or it contradicts its region.
    #[error("impossible header of a table of connections: {slots} slots")]
    Header {
        /// As it says.
        slots: u32,
    },
}

/// Why a slot with a connection cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSlot {
    /// Fewer bytes than were asked for.
    #[error("slot of a connection truncated: {have} bytes")]
    Truncated {
        /// Bytes there.
        have: usize,
    },
    /// Its ends were damaged.
    #[error("identity of a connection: checksum {found:#018x}, computed {computed:#018x}")]
    Identity {
        /// As stored.
        found: u64,
        /// As computed.
        computed: u64,
    },
    /// Neither record is whole.
    #[error("no whole record of the connection of {peer}")]
    NoRecord {
        /// The client's end.
        peer: SocketAddr,
    },
}

/// Where the slots of a table are: the header's numbers after they were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// How many there are, the header's among them.
    pub slots: u32,
}

/// Bytes of the header that [`Table::parse`] needs.
pub const HEADER_BYTES: usize = 8 * layout::header::WORDS;

impl Table {
    /// Parses the header of a region of `region_bytes`.
    ///
    /// # Errors
    /// See [`BadTable`].
    pub fn parse(bytes: &[u8], region_bytes: u64) -> Result<Self, BadTable> {
        let words: [u64; layout::header::WORDS] = words(bytes).ok_or(BadTable::Truncated { have: bytes.len() })?;
        let (magic, version) = (words[layout::header::MAGIC], words[layout::header::VERSION]);
        if magic != MAGIC {
            return Err(BadTable::Magic { found: magic });
        }
        if version as u32 != VERSION {
            return Err(BadTable::Version { found: version as u32 });
        }
        let (slots, rings) = (words[layout::header::SLOTS] as u32, (words[layout::header::SLOTS] >> 32) as u32);
        let checked = checksum(MAGIC, &words[..layout::header::CHECK]) == words[layout::header::CHECK];
        let fits = u64::from(slots) * u64::from(SLOT_BYTES) <= region_bytes;
        let known = version == halves(VERSION, SLOT_BYTES) && rings == RING_BYTES;
        if checked && fits && known && (2..=SLOTS_MAX).contains(&slots) {
            Ok(Self { slots })
        } else {
            Err(BadTable::Header { slots })
        }
    }

    /// Where the part of slot `slot` lies that [`Connection::parse`] needs.
    pub fn head(&self, slot: u32) -> Range<u64> {
        let start = u64::from(slot) * u64::from(SLOT_BYTES) + u64::from(RING_BYTES);
        start..start + u64::from(HEAD_BYTES)
    }

    /// The slots for connections.
    pub fn connections(&self) -> Range<u32> {
        1..self.slots
    }
}

/// What a record says. Numbers are the kernel's own, named as there; sequence numbers are raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "see layout::record, and Linux' struct tcp_sock")]
pub struct Record {
    pub number: u64,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub rcv_wup: u32,
    pub rcv_wnd: u32,
    pub snd_wl1: u32,
    pub snd_wnd: u32,
    pub max_window: u32,
    pub snd_cwnd: u32,
    pub mss_cache: u32,
    pub tsoffset: u32,
    pub ts_recent: u32,
    pub tcp_mstamp_us: u64,
    pub tcp_wstamp_ns: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub taken: u32,
    pub mss_clamp: u16,
    pub snd_wscale: u8,
    pub rcv_wscale: u8,
    pub state: u8,
    pub shutdown: u8,
    pub flags: u16,
    pub bound_device: u32,
}

impl Record {
    fn of(words: [u64; record::WORDS]) -> Self {
        let low = |index: usize| words[index] as u32;
        let high = |index: usize| (words[index] >> 32) as u32;
        let (taken, state) = (words[record::TAKEN_MSS_SCALES], words[record::STATE_FLAGS_DEVICE]);
        Self {
            number: words[record::NUMBER],
            snd_una: low(record::SND_UNA_NXT),
            snd_nxt: high(record::SND_UNA_NXT),
            write_seq: low(record::WRITE_SEQ_RCV_NXT),
            rcv_nxt: high(record::WRITE_SEQ_RCV_NXT),
            copied_seq: low(record::COPIED_SEQ_RCV_WUP),
            rcv_wup: high(record::COPIED_SEQ_RCV_WUP),
            rcv_wnd: low(record::RCV_WND_SND_WL1),
            snd_wl1: high(record::RCV_WND_SND_WL1),
            snd_wnd: low(record::SND_WND_MAX_WINDOW),
            max_window: high(record::SND_WND_MAX_WINDOW),
            snd_cwnd: low(record::SND_CWND_MSS_CACHE),
            mss_cache: high(record::SND_CWND_MSS_CACHE),
            tsoffset: low(record::TSOFFSET_TS_RECENT),
            ts_recent: high(record::TSOFFSET_TS_RECENT),
            tcp_mstamp_us: words[record::MSTAMP_US],
            tcp_wstamp_ns: words[record::WSTAMP_NS],
            bytes_acked: words[record::BYTES_ACKED],
            bytes_received: words[record::BYTES_RECEIVED],
            taken: taken as u32,
            mss_clamp: (taken >> 32) as u16,
            snd_wscale: (taken >> 48) as u8,
            rcv_wscale: (taken >> 56) as u8,
            state: state as u8,
            shutdown: (state >> 8) as u8,
            flags: (state >> 16) as u16,
            bound_device: (state >> 32) as u32,
        }
    }

    /// Whether `flag`, one of [`layout::flag`], is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether the socket is an AF_INET6 one.
    pub fn is_inet6(&self) -> bool {
        self.has(flag::INET6)
    }
}

/// A connection, as its slot claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its slot.
    pub slot: u32,
    /// Our end; IPv4 for an IPv4-mapped address.
    pub local: SocketAddr,
    /// The client's.
    pub peer: SocketAddr,
    /// Sequence number of the client's first byte.
    pub first_received: u32,
    /// Sequence number of our first byte.
    pub first_sent: u32,
    /// Whether an application has it.
    pub accepted: bool,
    /// Stream offset below which the ring may have been overwritten.
    pub overwritten: u64,
    /// The newest whole record.
    pub record: Record,
}

impl Connection {
    /// Parses the bytes of [`Table::head`]; `None` if the slot is nobody's.
    ///
    /// # Errors
    /// See [`BadSlot`].
    pub fn parse(slot: u32, bytes: &[u8]) -> Result<Option<Self>, BadSlot> {
        const WORDS: usize = HEAD_BYTES as usize / 8;
        let words: [u64; WORDS] = words(bytes).ok_or(BadSlot::Truncated { have: bytes.len() })?;
        if words[tail::STATE] != OPEN {
            return Ok(None);
        }
        let computed = checksum(MAGIC, &words[tail::GENERATION..tail::IDENTITY_CHECK]);
        let found = words[tail::IDENTITY_CHECK];
        if found != computed {
            return Err(BadSlot::Identity { found, computed });
        }
        let ports = words[tail::PORTS];
        let address = |at: usize, port: u16| {
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(&words[at].to_le_bytes());
            octets[8..].copy_from_slice(&words[at + 1].to_le_bytes());
            SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(), port)
        };
        let (local, peer) = (address(tail::LOCAL, ports as u16), address(tail::PEER, (ports >> 16) as u16));
        let generation = words[tail::GENERATION];
        let whole = |parity: usize| {
            let at = tail::RECORDS + parity * record::WORDS;
            let mut record = [0; record::WORDS];
            record.copy_from_slice(&words[at..at + record::WORDS]);
            let numbered = record[record::NUMBER] != 0 && record[record::NUMBER] & 1 == parity as u64;
            let checked = checksum(generation, &record[..record::CHECK]) == record[record::CHECK];
            (numbered && checked).then(|| Record::of(record))
        };
        let newest = [whole(0), whole(1)].into_iter().flatten().max_by_key(|record| record.number);
        let record = newest.ok_or(BadSlot::NoRecord { peer })?;
        Ok(Some(Self {
            slot,
            local,
            peer,
            first_received: words[tail::FIRST] as u32,
            first_sent: (words[tail::FIRST] >> 32) as u32,
            accepted: words[tail::ACCEPTED] != 0,
            overwritten: words[tail::OVERWRITTEN],
            record,
        }))
    }

    /// How many bytes are in the ring: from `copied_seq` to `taken`. `None` if it cannot hold them, or they may have
    /// been overwritten; `offset` is the stream offset of the first one.
    pub fn unread_bytes(&self, offset: u64) -> Option<u32> {
        let length = self.record.taken.wrapping_sub(self.record.copied_seq);
        let there = length == 0 || offset >= self.overwritten;
        (length <= RING_BYTES && there).then_some(length)
    }

    /// Where these `length` bytes lie in the region; the second stretch is empty unless they wrap.
    pub fn unread(&self, length: u32) -> [Range<u64>; 2] {
        let place = self.record.copied_seq.wrapping_sub(self.first_received) % RING_BYTES;
        let first = length.min(RING_BYTES - place);
        let ring = u64::from(self.slot) * u64::from(SLOT_BYTES);
        let start = ring + u64::from(place);
        [start..start + u64::from(first), ring..ring + u64::from(length.saturating_sub(first).min(RING_BYTES))]
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (words, _) = bytes.get(..8 * N)?.as_chunks::<8>();
    let mut all = [0; N];
    all.iter_mut().zip(words).for_each(|(into, word)| *into = u64::from_le_bytes(*word));
    Some(all)
}
