//! The bytes of both regions. Little-endian, no padding, naturally aligned.
//!
//! `include/locktable.h` says the same in C; `tests/decisions.rs` holds the two together.

/// The region with the lock word; its name, and that of the map it lies in.
pub const LOCK: &str = "lock";

/// The region with the answers; its name, and that of the map it lies in.
pub const LOCKED: &str = "locked";

/// Bytes of each: a page.
pub const BYTES: usize = 4096;

/// First word of the answers: guards against reading the wrong memory.
pub const MAGIC: u64 = 0xa96c_6f63_6b65_64c7;

/// Raised whenever an old reader would misread a new writer.
pub const VERSION: u64 = 1;

/// Bits of a number.
pub const NUMBER: u64 = 0x00ff_ffff;

/// In what a lease is counted.
pub const LEASE_UNIT_MS: u32 = 10;

/// The longest lease: 12 bits of that unit.
pub const LEASE_MS_MAX: u32 = 0xfff * LEASE_UNIT_MS;

/// Processors that say that they have settled; those above are not waited for.
pub const PROCESSORS: usize = 64;

/// Users and cgroups that can be marked as the service's.
pub const MARKS: usize = 16;

/// Words of the answers.
pub mod answer {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// The target's identity: another one with every boot.
    pub const TARGET: usize = 2;
    /// A bit for each processor that is watched.
    pub const PROCESSORS: usize = 3;
    /// [`super::checksum`] of the seven words before.
    pub const CHECK: usize = 7;
    /// What stands, see [`crate::Standing`].
    pub const STANDING: usize = 8;
    /// Since when, in nanoseconds of the target's monotonic clock.
    pub const SINCE_NS: usize = 9;
    /// The word that was refused last.
    pub const REFUSED: usize = 10;
    /// Why: a code of [`crate::Verdict`].
    pub const WHY: usize = 11;
    /// When the lock word was last looked at, in nanoseconds of the target's monotonic clock.
    pub const BEAT_NS: usize = 12;
    /// Packets to service addresses that were dropped, ever.
    pub const DROPPED_IN: usize = 13;
    /// Packets from service addresses that were dropped, ever.
    pub const DROPPED_OUT: usize = 14;
    /// Signals to stop that processes of the service were sent, ever.
    pub const STOPPED: usize = 15;
    /// Bits 0..16 interfaces guarded both ways, 16..32 those of them by XDP too, 32..48 service addresses.
    pub const GUARDS: usize = 16;
    /// When the agent last looked, in nanoseconds of the target's monotonic clock: who stops must be let go by
    /// somebody.
    pub const AGENT_BEAT_NS: usize = 17;
    /// The agent's process.
    pub const AGENT_PID: usize = 18;
    /// First of [`super::MARKS`] words: who is stopped.
    pub const MARKS: usize = 24;
    /// First of [`super::PROCESSORS`] words: the number that stood when the processor was last seen outside of the way
    /// out to the network.
    pub const SETTLED: usize = 64;
}

const _: () = assert!((answer::SETTLED + PROCESSORS) * 8 <= BYTES && answer::MARKS + MARKS <= answer::SETTLED);

/// What is wanted, or stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Held still to be looked at, for as long as a lease.
    Look,
    /// The same with the intent to take sessions over: it can be held.
    Fence,
    /// A fence without an end: sessions may have been handed over.
    Hold,
    /// Whatever stands is to end.
    Release,
}

impl Mode {
    pub(crate) const fn code(self) -> u64 {
        match self {
            Self::Look => 0x3,
            Self::Fence => 0x5,
            Self::Hold => 0x9,
            Self::Release => 0xe,
        }
    }

    pub(crate) const fn from_code(code: u64) -> Option<Self> {
        match code {
            0x3 => Some(Self::Look),
            0x5 => Some(Self::Fence),
            0x9 => Some(Self::Hold),
            0xe => Some(Self::Release),
            _ => None,
        }
    }
}

/// A lock word: all of it in eight bytes, so that one compare-and-swap takes the lock or does not.
///
/// Bits 0..24 number, 24..28 mode, 28..40 lease, 40..64 check over these and the machine's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Who: a random number of the caller's, not 0.
    pub number: u32,
    /// What.
    pub mode: Mode,
    /// For how long at most, in units of [`LEASE_UNIT_MS`]; of a look or a fence.
    pub lease: u16,
}

impl Word {
    /// The eight bytes, for the machine `target`.
    pub fn encode(self, target: u64) -> u64 {
        let low = u64::from(self.number) & NUMBER | self.mode.code() << 24 | u64::from(self.lease & 0xfff) << 28;
        low | checksum(&[low, target]) >> 40 << 40
    }

    /// The word behind eight bytes, if it is one of the machine `target`.
    pub fn decode(word: u64, target: u64) -> Option<Self> {
        let low = word & 0xff_ffff_ffff;
        let number = (word & NUMBER) as u32;
        if number == 0 || checksum(&[low, target]) >> 40 != word >> 40 {
            return None;
        }
        let (mode, lease) = (Mode::from_code(word >> 24 & 0xf)?, (low >> 28) as u16);
        let ends = matches!(mode, Mode::Look | Mode::Fence);
        (!ends || lease > 0).then_some(Self { number, mode, lease })
    }

    /// Its lease.
    pub fn lease_ms(self) -> u64 {
        u64::from(self.lease) * u64::from(LEASE_UNIT_MS)
    }
}

/// FNV-1a over words. Guards against accidents; who may write the word may take the lock.
pub fn checksum(words: &[u64]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    words.iter().fold(OFFSET, |sum, word| (sum ^ word).wrapping_mul(PRIME))
}
