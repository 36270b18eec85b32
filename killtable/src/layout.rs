//! The bytes of the kill table. Little-endian, no padding, naturally aligned.
//!
//! `include/killtable.h` says the same in C; `tests/decisions.rs` holds the two together.

/// The region with orders; its name, and that of the map it lies in.
pub const ORDERS: &str = "kill_orders";

/// The region with answers; its name, and that of the map it lies in.
pub const ANSWERS: &str = "kill_answers";

/// Second word of orders: guards against memory that was never written as an order.
pub const ORDERS_MAGIC: u64 = 0x9172_7264_4f6c_6cc5;

/// First word of answers: guards against reading the wrong memory.
pub const ANSWERS_MAGIC: u64 = 0xa573_6e41_6c6c_69cb;

/// Version of both. Raised whenever an old reader would misread a new writer.
pub const VERSION: u32 = 1;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 32;

/// Slots by user or cgroup; they are searched one after the other.
pub const BROAD_SLOTS: usize = 32;

/// Slots by process id: twice what one repair may end unless it is told otherwise, so that they are found quickly.
pub const PID_SLOTS: usize = 4096;

/// Places in which a process id is looked for: the search ends at the first slot that is not this order's, and at this.
pub const PROBES: usize = 64;

/// Users that an agent can spare.
pub const SPARED_MAX: usize = 14;

/// The longest an order may stand.
pub const LEASE_MS_MAX: u32 = 60_000;

/// The most that one slot may end: 24 bits.
pub const MOST_MAX: u32 = 0x00ff_ffff;

/// Bytes of the region with orders: whole pages.
pub const ORDERS_BYTES: usize = 33 * 4096;

/// Bytes of the region with answers: whole pages.
pub const ANSWERS_BYTES: usize = 9 * 4096;

/// Words of the head, from the beginning of the orders.
pub mod head {
    /// The order's number; 0: none. Written last, alone: it makes the rest an order.
    pub const NUMBER: usize = 0;
    /// [`super::ORDERS_MAGIC`].
    pub const MAGIC: usize = 1;
    /// Low half [`super::VERSION`], high half [`super::SLOT_BYTES`].
    pub const VERSION: usize = 2;
    /// The target's identity, as its answers say: guards against a machine that was started anew meanwhile.
    pub const TARGET: usize = 3;
    /// Low half: how many processes the order may end. High half: its lease in milliseconds.
    pub const BOUNDS: usize = 4;
    /// [`super::checksum`] of the seven words before: guards against a head of two orders.
    pub const CHECK: usize = 7;
    /// How many there are.
    pub const WORDS: usize = 8;
}

/// Words of a slot.
pub mod slot {
    /// Number of the order it belongs to: guards against slots of earlier orders.
    pub const NUMBER: usize = 0;
    /// Process id, user or cgroup.
    pub const KEY: usize = 1;
    /// When the process started, in nanoseconds of the target's monotonic clock: guards against another process under
    /// the same id. Zero for users and cgroups.
    pub const START_NS: usize = 2;
    /// Bits 0..24 how many it may end, 24..32 the kind, 32..64 the check: guards against a slot of two writes.
    pub const WHAT: usize = 3;
    /// How many there are.
    pub const WORDS: usize = 4;
}

/// First word of the slots by user or cgroup.
pub const BROAD_AT: usize = head::WORDS;

/// First word of the slots by process id.
pub const BY_PID_AT: usize = 4096 / 8;

/// Words of the answers.
pub mod answer {
    /// [`super::ANSWERS_MAGIC`].
    pub const MAGIC: usize = 0;
    /// Low half [`super::VERSION`], high half [`super::SLOT_BYTES`].
    pub const VERSION: usize = 1;
    /// Low half [`super::PID_SLOTS`], high half [`super::BROAD_SLOTS`].
    pub const SLOTS: usize = 2;
    /// The target's identity: another one with every boot.
    pub const TARGET: usize = 3;
    /// [`super::checksum`] of the seven words before.
    pub const CHECK: usize = 7;
    /// Low half: how many users are spared. High half: process id of the agent.
    pub const SPARED_AND_AGENT: usize = 8;
    /// First of the words with the spared users, two in each.
    pub const SPARED: usize = 9;
    /// Number of the order that was refused last, or whose lease ended last: it is not taken up again.
    pub const SEEN: usize = 16;
    /// Number of the order in force, 0 if none is.
    pub const ARMED: usize = 17;
    /// Number of the order refused last.
    pub const REFUSED: usize = 18;
    /// Why, see [`super::Refusal`].
    pub const WHY: usize = 19;
    /// When the order in force ends by itself, in nanoseconds of the target's monotonic clock.
    pub const UNTIL_NS: usize = 20;
    /// Low half: how many processes the order has ended. High half: the low half of its number, so that nothing need
    /// be reset, and of several processors none resets what another one has counted.
    pub const ENDED: usize = 21;
    /// How often a process of the table was met and not ended since the agent started: it is spared, or a bound was
    /// reached.
    pub const DECLINED: usize = 22;
    /// When a processor last looked at the orders, in nanoseconds of the target's monotonic clock.
    pub const BEAT_NS: usize = 23;
    /// Number for which the agent has been through all processes and found none that was left.
    pub const SWEPT: usize = 24;
    /// How often the agent has been through all processes.
    pub const SWEEPS: usize = 25;
    /// Those of [`ENDED`] that the agent ended, counted likewise.
    pub const ENDED_ASLEEP: usize = 26;
    /// Advanced by the agent whenever it looks whether there is an order.
    pub const SWEEP_BEAT: usize = 27;
    /// First of the tallies, one for each slot, broad ones first: low half how many it ended, high half the low half of
    /// the order's number.
    pub const TALLY: usize = 480;
}

const _: () = assert!(BY_PID_AT * 8 + PID_SLOTS * SLOT_BYTES == ORDERS_BYTES);
const _: () = assert!(BROAD_AT * 8 + BROAD_SLOTS * SLOT_BYTES <= BY_PID_AT * 8);
const _: () = assert!((answer::TALLY + BROAD_SLOTS + PID_SLOTS) * 8 <= ANSWERS_BYTES);
const _: () = assert!(PID_SLOTS.is_power_of_two() && slot::WORDS * 8 == SLOT_BYTES);
const _: () = assert!(answer::SPARED * 2 + SPARED_MAX == answer::SEEN * 2);

/// What a slot's key is. Codes are odd and far apart: zeroed memory has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A process by its id and start.
    Pid,
    /// All processes of a real user.
    Uid,
    /// All processes of a cgroup (version 2), by its id.
    Cgroup,
}

impl Kind {
    /// The byte in a slot.
    pub const fn code(self) -> u8 {
        match self {
            Self::Pid => 0x2d,
            Self::Uid => 0x5b,
            Self::Cgroup => 0x97,
        }
    }
}

/// Why a target does not carry out an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It was torn, or is none.
    #[error("its head does not hold together: it was torn on its way")]
    Header,
    /// It speaks another version.
    #[error("it is of another version than {VERSION}")]
    Version,
    /// It is for another machine, or for this one before it was started anew.
    #[error("it is for another machine, or for this one before it was started anew")]
    OtherTarget,
    /// It may end nobody, or has no lease, or too long a one.
    #[error("it has no bound, or no lease of at most {LEASE_MS_MAX} ms")]
    NoBound,
    /// A code that this release does not know.
    #[error("for reason {0}, which this release does not know")]
    Other(u64),
}

impl Refusal {
    /// The refusal with this code; `None` for the code of none.
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Header),
            2 => Some(Self::Version),
            3 => Some(Self::OtherTarget),
            4 => Some(Self::NoBound),
            other => Some(Self::Other(other)),
        }
    }

    /// Its code.
    pub const fn code(self) -> u64 {
        match self {
            Self::Header => 1,
            Self::Version => 2,
            Self::OtherTarget => 3,
            Self::NoBound => 4,
            Self::Other(code) => code,
        }
    }
}

/// The word in which version and slot size stand.
pub const VERSION_WORD: u64 = VERSION as u64 | (SLOT_BYTES as u64) << 32;

/// Where the search for a process id begins: another place with each order's number, so that no choice of ids crowds
/// them in all.
pub const fn home(number: u64, pid: u32) -> usize {
    let spread = (number ^ pid as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (spread >> (u64::BITS - PID_SLOTS.trailing_zeros())) as usize
}

/// The fourth word of a slot; the first three are `number`, `key` and `start_ns`.
pub fn what(number: u64, kind: Kind, key: u64, start_ns: u64, most: u32) -> u64 {
    let low = u64::from(most.min(MOST_MAX)) | u64::from(kind.code()) << 24;
    low | checksum(&[number, key, start_ns, low]) >> 32 << 32
}

/// FNV-1a over words. Guards against accidents; against a peer that lies there are the target's own bounds.
pub fn checksum(words: &[u64]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    words.iter().fold(OFFSET, |sum, word| (sum ^ word).wrapping_mul(PRIME))
}
