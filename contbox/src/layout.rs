//! The bytes of a pool of Continuation Boxes, as they lie in target memory.
//!
//! ```text
//! pool:  | header, one page | front 0 | front 1 | … | body 0 | body 1 | …      whole pages, one mapping
//! slot:  | head 256 bytes | short LWS 0 | short LWS 1 | LWS buffer 0 | LWS buffer 1 | receive log | send log |
//!        |---------------- front, 512 bytes ----------|------------------- body ---------------------------|
//! logs:  rings; the byte at stream offset o lies at log[o % log_bytes], and at sent[o % send_bytes]
//! ```
//!
//! Fronts lie side by side because a far reader wants all of them: eight come in a packet, and a packet costs what it
//! costs whatever is in it. A snapshot that is short lies in the front, so that most sessions need no further read.
//! A pool has send logs (`send_bytes` is not 0) where a spare cannot read the kernel's send queues.
//! Inside a slot, places are offsets from its front's first byte, as if the body followed it ([`Geometry::place`]).
//!
//! Little-endian, no padding, everything a multiple of 8 bytes so that a writer can use whole words. A reader far
//! away gets these bytes from a machine that stopped at an arbitrary instruction; every field says which failure it
//! guards against. What this file does not do: parse (see `reader`), write (see `export`, `shared`).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of a pool. Odd and not text throughout: neither zeroes nor a string parses.
pub const MAGIC: u64 = u64::from_le_bytes(*b"\xcbONTBOX\x93");
/// The layout this crate writes and reads. Any other is refused: a guess would be a corrupt session.
pub const VERSION: u32 = 3;
/// Bytes before the fronts: one page.
pub const HEADER_BYTES: u32 = 4096;
/// Bytes of a slot's head: identity, state and both buffers' descriptions.
pub const SLOT_HEAD_BYTES: u32 = 256;
/// Snapshots up to this length lie in the front.
pub const SHORT_LWS_BYTES: u32 = 128;
/// Bytes of a slot's front: head and both short snapshots.
pub const FRONT_BYTES: u32 = SLOT_HEAD_BYTES + 2 * SHORT_LWS_BYTES;
/// Slots one pool may have: bounds what a damaged header can make a reader fetch (128 MiB of fronts).
pub const SLOTS_MAX: u32 = 1 << 18;
/// Longest snapshot: a session's state is light-weight or it is not for a box.
pub const LWS_BYTES_MAX: u32 = 1 << 20;
/// Longest receive log of one box, and longest send log.
pub const LOG_BYTES_MAX: u32 = 1 << 24;

/// First page of the pool.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PoolHeader {
    /// [`MAGIC`]: guards against a region that is not a pool.
    pub magic: U64,
    /// [`VERSION`]: guards against an agent of another release.
    pub version: U32,
    /// [`HEADER_BYTES`]: guards against readers that place the fronts elsewhere.
    pub header_bytes: U32,
    /// Length of the pool in bytes: guards against a registration shorter than the pool.
    pub length_bytes: U64,
    /// Random name of this pool: an application that reconnects must not announce slots of another pool.
    pub pool: U64,
    /// Number of slots.
    pub slots: U32,
    /// Bytes of a slot, front and body.
    pub slot_bytes: U32,
    /// Capacity of one LWS buffer in bytes.
    pub lws_bytes: U32,
    /// Capacity of the receive log in bytes.
    pub log_bytes: U32,
    /// Capacity of the send log in bytes; 0 for none.
    pub send_bytes: U32,
    /// CRC-32 of everything before: guards against a damaged geometry, which would shift every box.
    pub check: U32,
}

/// What a slot is, as an odd constant: zeroed or overwritten memory is no state at all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum SlotState {
    /// Nobody's.
    Free = 0xf4ee_0b01,
    /// Granted to an application that has no connection in it. Guards against a restarted agent granting it twice.
    Leased = 0x1ea5_0b03,
    /// A protected session.
    Open = 0x09e4_0b05,
    /// A session whose log overflowed before an export: it goes on, but nothing can resume it.
    LostLog = 0x1057_0b07,
    /// The connection has ended; what is left in the slot must not be resumed.
    Closed = 0xc105_0b09,
    /// The connection has ended, and cannot be resumed; what its box says is still true, for a [`crate::testament`].
    Kept = 0x4e97_0b0b,
    /// One end of a channel between processes, see [`crate::channel`]: no connection.
    Channel = 0xc4a2_0b0b,
}

impl SlotState {
    /// The state a word stands for, if any.
    pub fn from_word(word: u32) -> Option<Self> {
        let all = [Self::Free, Self::Leased, Self::Open, Self::LostLog, Self::Closed, Self::Kept, Self::Channel];
        all.into_iter().find(|state| *state as u32 == word)
    }
}

/// Describes one of the two LWS buffers.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BufferHead {
    /// Number of the export that filled it; its lowest bit is the buffer's index. Guards against taking an old
    /// snapshot for the newest.
    pub sequence: U64,
    /// Stream offset of the first received byte that the snapshot has not digested.
    pub lsr: U64,
    /// Stream offset of the first byte of output that the snapshot has yet to produce.
    pub lsw: U64,
    /// Bytes of LWS in the buffer.
    pub length: U32,
    /// CRC-32 of the box's generation, sequence, lsr, lsw, length and the LWS: guards against a half-written buffer
    /// and against one left by the slot's previous connection.
    pub check: U32,
}

/// The head of a slot.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SlotHead {
    /// A [`SlotState`]. Written last when a box is made and first when it goes.
    pub state: U32,
    /// The application that leases the slot (its number at the box service).
    pub owner: U32,
    /// Our end of the connection; IPv4 as IPv4-mapped IPv6.
    pub local_address: [u8; 16],
    /// The client's end.
    pub peer_address: [u8; 16],
    /// Our port.
    pub local_port: U16,
    /// The client's port.
    pub peer_port: U16,
    /// Counts the connections this slot has served: guards against mixing two of them.
    pub generation: U32,
    /// Stream offset of the first byte that this kernel socket received: not 0 after a move.
    pub base_read: U64,
    /// Stream offset of the first byte that this kernel socket was given to send.
    pub base_written: U64,
    /// CRC-32 of generation, addresses, ports and bases: guards against a box whose identity was being written.
    pub identity_check: U32,
    /// Zero.
    pub reserved: U32,
    /// Number of the newest export. The one word that publishes: the buffer `newest & 1` is whole whenever it is read.
    pub newest: U64,
    /// A connection whose output is in the send log from its first byte on has [`output_kept`] in the first of these:
    /// guards against applications that send past it. A channel has words of its own here. Keeps the buffers'
    /// descriptions on cache lines of their own.
    pub reserved_words: [U64; 6],
    /// Buffer 0.
    pub even: BufferHead,
    /// Zero.
    pub reserved_even: [U64; 4],
    /// Buffer 1.
    pub odd: BufferHead,
    /// Zero.
    pub reserved_odd: [U64; 4],
}

const _: () = assert!(size_of::<PoolHeader>() == 56);
const _: () = assert!(size_of::<BufferHead>() == 32);
const _: () = assert!(size_of::<SlotHead>() == SLOT_HEAD_BYTES as usize);
const _: () = assert!(std::mem::offset_of!(SlotHead, newest) == 72);
const _: () = assert!(std::mem::offset_of!(SlotHead, even) == 128 && std::mem::offset_of!(SlotHead, odd) == 192);

/// Where things lie in a pool: the header's numbers after they were checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    /// Number of slots, `1 ..= SLOTS_MAX`.
    pub slots: u32,
    /// Bytes of a slot, front and body.
    pub slot_bytes: u32,
    /// Capacity of one LWS buffer in bytes, a multiple of 8.
    pub lws_bytes: u32,
    /// Capacity of the receive log in bytes, a multiple of 8.
    pub log_bytes: u32,
    /// Capacity of the send log in bytes, a multiple of 8; 0 for none.
    pub send_bytes: u32,
}

impl Geometry {
    /// The default box: 24 KiB, of which 16 KiB log and two snapshots of up to 3840 bytes.
    pub const fn standard(slots: u32) -> Self {
        Self { slots, slot_bytes: 24 << 10, lws_bytes: 3840, log_bytes: 16 << 10, send_bytes: 0 }
    }

    /// Boxes with the given capacities (rounded up to whole words), bodies rounded up to whole cache lines.
    pub const fn with(slots: u32, lws_bytes: u32, log_bytes: u32) -> Self {
        let lws_bytes = lws_bytes.next_multiple_of(8);
        let log_bytes = log_bytes.next_multiple_of(8);
        let slot_bytes = (FRONT_BYTES + 2 * lws_bytes + log_bytes).next_multiple_of(64);
        Self { slots, slot_bytes, lws_bytes, log_bytes, send_bytes: 0 }
    }

    /// This geometry with a send log of so many bytes (rounded up to whole cache lines) in each box.
    #[must_use]
    pub const fn keeping_output(self, send_bytes: u32) -> Self {
        let send_bytes = send_bytes.next_multiple_of(64);
        Self { slot_bytes: self.slot_bytes - self.send_bytes + send_bytes, send_bytes, ..self }
    }

    /// This geometry with as many slots as fit into a mapping of `length` bytes.
    #[must_use]
    pub const fn filling(self, length: u64) -> Self {
        let slots = length.saturating_sub(HEADER_BYTES as u64) / self.slot_bytes as u64;
        let slots = if slots > SLOTS_MAX as u64 { SLOTS_MAX } else { slots as u32 };
        let all = Self { slots, ..self };
        // Fronts and bodies are each filled up to whole pages, which may cost the last slots their place.
        let over = all.length_bytes().saturating_sub(length).div_ceil(self.slot_bytes as u64);
        Self { slots: slots.saturating_sub(over as u32), ..self }
    }

    /// Whether the numbers describe a pool at all.
    pub const fn is_sound(&self) -> bool {
        let logs = self.log_bytes as u64 + self.send_bytes as u64;
        let need = FRONT_BYTES as u64 + 2 * self.lws_bytes as u64 + logs;
        0 < self.slots
            && self.slots <= SLOTS_MAX
            && self.lws_bytes <= LWS_BYTES_MAX
            && 0 < self.log_bytes
            && self.log_bytes <= LOG_BYTES_MAX
            && self.send_bytes <= LOG_BYTES_MAX
            && self.send_bytes.is_multiple_of(8)
            && self.lws_bytes.is_multiple_of(8)
            && self.log_bytes.is_multiple_of(8)
            && self.slot_bytes.is_multiple_of(8)
            && need <= self.slot_bytes as u64
    }

    /// Length of the pool in bytes, whole pages.
    pub const fn length_bytes(&self) -> u64 {
        (self.bodies() + self.slots as u64 * self.body_bytes()).next_multiple_of(4096)
    }

    /// Where the bodies begin: on a page of their own.
    const fn bodies(&self) -> u64 {
        (HEADER_BYTES as u64 + self.slots as u64 * FRONT_BYTES as u64).next_multiple_of(4096)
    }

    const fn body_bytes(&self) -> u64 {
        self.slot_bytes as u64 - FRONT_BYTES as u64
    }

    /// Where the front of slot `slot` lies in the pool.
    pub const fn front(&self, slot: u32) -> Range<u64> {
        let start = HEADER_BYTES as u64 + slot as u64 * FRONT_BYTES as u64;
        start..start + FRONT_BYTES as u64
    }

    /// Where the body of slot `slot` lies in the pool.
    pub const fn body(&self, slot: u32) -> Range<u64> {
        let start = self.bodies() + slot as u64 * self.body_bytes();
        start..start + self.body_bytes()
    }

    /// Where the byte at `offset` inside slot `slot` lies in the pool.
    pub const fn place(&self, slot: u32, offset: u32) -> u64 {
        match offset.checked_sub(FRONT_BYTES) {
            None => self.front(slot).start + offset as u64,
            Some(in_body) => self.body(slot).start + in_body as u64,
        }
    }

    /// Offset of a snapshot of `length` bytes with number `index` inside a slot.
    pub const fn lws_offset(&self, index: u64, length: u32) -> u32 {
        let odd = (index & 1) as u32;
        if length <= SHORT_LWS_BYTES {
            SLOT_HEAD_BYTES + odd * SHORT_LWS_BYTES
        } else {
            FRONT_BYTES + odd * self.lws_bytes
        }
    }

    /// Offset of the receive log inside a slot.
    pub const fn log_offset(&self) -> u32 {
        FRONT_BYTES + 2 * self.lws_bytes
    }

    /// The stretches of the log, as offsets inside it, that hold stream offsets `from .. to`; the second one is empty
    /// unless the range wraps. `to - from` must not exceed the log.
    pub const fn log_stretches(&self, from: u64, to: u64) -> [Range<u32>; 2] {
        stretches(self.log_bytes, from, to)
    }

    /// Offset of the send log inside a slot.
    pub const fn send_offset(&self) -> u32 {
        self.log_offset() + self.log_bytes
    }

    /// As [`Geometry::log_stretches`], of the send log, if there is one.
    pub const fn send_stretches(&self, from: u64, to: u64) -> [Range<u32>; 2] {
        stretches(self.send_bytes, from, to)
    }

    /// The header that announces this geometry.
    pub fn header(&self, pool: u64) -> PoolHeader {
        let mut header = PoolHeader {
            magic: MAGIC.into(),
            version: VERSION.into(),
            header_bytes: HEADER_BYTES.into(),
            length_bytes: self.length_bytes().into(),
            pool: pool.into(),
            slots: self.slots.into(),
            slot_bytes: self.slot_bytes.into(),
            lws_bytes: self.lws_bytes.into(),
            log_bytes: self.log_bytes.into(),
            send_bytes: self.send_bytes.into(),
            check: 0.into(),
        };
        header.check = header.computed_check().into();
        header
    }
}

/// Stretches of a ring of `bytes` for stream offsets `from .. to`.
const fn stretches(bytes: u32, from: u64, to: u64) -> [Range<u32>; 2] {
    let length = (to - from) as u32;
    let start = (from % bytes as u64) as u32;
    let first = if length < bytes - start { length } else { bytes - start };
    [start..start + first, 0..length - first]
}

impl PoolHeader {
    /// What `check` has to be.
    pub fn computed_check(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..std::mem::offset_of!(Self, check)])
    }
}

impl SlotHead {
    /// What `identity_check` has to be.
    pub fn computed_identity_check(&self) -> u32 {
        const IDENTITY: Range<usize> =
            std::mem::offset_of!(SlotHead, local_address)..std::mem::offset_of!(SlotHead, identity_check);
        crc32fast::hash(&self.as_bytes()[IDENTITY])
    }

    /// The description of buffer `index & 1`.
    pub fn buffer(&self, index: u64) -> &BufferHead {
        if index & 1 == 0 { &self.even } else { &self.odd }
    }
}

impl BufferHead {
    /// What `check` has to be for these LWS bytes in a box of this generation.
    pub fn computed_check(&self, generation: u32, lws: &[u8]) -> u32 {
        const DESCRIBED: usize = std::mem::offset_of!(BufferHead, check);
        let mut fixed = [0; 4 + DESCRIBED];
        fixed[..4].copy_from_slice(&generation.to_le_bytes());
        fixed[4..].copy_from_slice(&self.as_bytes()[..DESCRIBED]);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&fixed);
        hasher.update(lws);
        hasher.finalize()
    }
}

/// What says of a box of this generation that its send log has all output.
pub const fn output_kept(generation: u32) -> u64 {
    0x4ee9_5a11_0000_0001 ^ (generation as u64) << 1
}

/// An address as it is stored.
pub fn address_bytes(address: &SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address as it was stored; IPv4-mapped addresses come back as IPv4.
pub fn address_from(bytes: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(bytes).to_canonical(), port)
}

/// The form in which two ends of a connection compare: an IPv4 client of a dual-stack socket is an IPv4 client, and
/// scope and flow label are no part of an identity.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_geometry_is_sound_and_made_of_pages() {
        assert_eq!(Geometry::with(1, 3840, 16 << 10), Geometry::standard(1));
        for slots in [1, 7, 8, 200, 10_900] {
            let geometry = Geometry::standard(slots);
            assert!(geometry.is_sound());
            assert_eq!(geometry.length_bytes() % 4096, 0);
            assert_eq!(geometry.filling(geometry.length_bytes()), geometry);
            assert_eq!(geometry.filling(geometry.length_bytes() - 4096).slots, slots - 1);
        }
    }

    #[test]
    fn no_two_bytes_of_a_pool_share_a_place() {
        let geometry = Geometry::with(9, 136, 64);
        let mut all: Vec<_> = (0..9).flat_map(|slot| [geometry.front(slot), geometry.body(slot)]).collect();
        all.sort_by_key(|part| part.start);
        assert!(all[0].start == u64::from(HEADER_BYTES) && all[17].end <= geometry.length_bytes());
        assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let at = |offset| geometry.place(3, offset);
        assert_eq!((at(0), at(FRONT_BYTES - 1)), (geometry.front(3).start, geometry.front(3).end - 1));
        assert_eq!((at(FRONT_BYTES), at(geometry.slot_bytes - 1)), (geometry.body(3).start, geometry.body(3).end - 1));
        let lws = [(0, 128), (1, 128), (0, 129), (1, 136)].map(|(index, length)| geometry.lws_offset(index, length));
        assert_eq!(lws, [256, 384, 512, 512 + 136]);
        assert_eq!(geometry.log_offset(), 512 + 2 * 136);
    }

    #[test]
    fn a_send_log_lies_behind_everything_else() {
        let (without, with) = (Geometry::with(9, 136, 64), Geometry::with(9, 136, 64).keeping_output(100));
        assert_eq!((with.send_bytes, with.slot_bytes), (128, without.slot_bytes + 128));
        assert!(with.is_sound() && with.send_offset() + with.send_bytes <= with.slot_bytes);
        assert_eq!(with.send_offset(), without.log_offset() + without.log_bytes);
        assert_eq!(with.send_stretches(120, 140), [120..128, 0..12]);
        assert_eq!(with.keeping_output(0), without);
        assert!(!Geometry { send_bytes: 256, ..with }.is_sound());
    }

    #[test]
    fn zeroes_are_no_state() {
        assert_eq!(SlotState::from_word(0), None);
        assert_eq!(SlotState::from_word(u32::MAX), None);
        assert_eq!(SlotState::from_word(SlotState::Open as u32), Some(SlotState::Open));
    }

    #[test]
    fn log_stretches_wrap_once() {
        let geometry = Geometry::with(1, 8, 16);
        assert_eq!(geometry.log_stretches(3, 7), [3..7, 0..0]);
        assert_eq!(geometry.log_stretches(14, 30), [14..16, 0..14]);
        assert_eq!(geometry.log_stretches(16, 32), [0..16, 0..0]);
    }

    #[test]
    fn addresses_of_both_families_survive() {
        for text in ["10.77.0.4:4711", "[fd77::4]:80", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(address_from(address_bytes(&address), address.port()), address);
        }
    }
}
