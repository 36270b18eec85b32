//! The bytes of the process table. Little-endian, no padding, naturally aligned.
//!
//! `include/proctable.h` says the same in C; `tests/writer.rs` holds the two together.

/// The region's name, and that of the map it lies in.
pub const PROCESSES: &str = "processes";

/// First word: guards against reading the wrong memory.
pub const MAGIC: u64 = 0xb172_6f63_6c69_7395;

/// Raised whenever an old reader would misread a new writer.
pub const VERSION: u32 = 1;

/// Bytes of a record: a cache line.
pub const RECORD_BYTES: usize = 64;

/// Records that the head takes: a page.
pub const HEAD_RECORDS: usize = 64;

/// Places in which a process is looked for.
pub const PROBES: usize = 32;

/// The most records a reader takes: what process ids a kernel has unless it is told otherwise, eightfold. A head that
/// says more is damaged.
pub const CAPACITY_MAX: usize = 1 << 18;

/// The word in which version and record size stand.
pub const VERSION_WORD: u64 = VERSION as u64 | (RECORD_BYTES as u64) << 32;

/// Bytes of a table with so many records.
pub const fn table_bytes(capacity: usize) -> usize {
    (HEAD_RECORDS + capacity) * RECORD_BYTES
}

/// Words of the head.
pub mod head {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION_WORD`].
    pub const VERSION: usize = 1;
    /// Low half: how many records there are, a power of two. High half: [`super::HEAD_RECORDS`].
    pub const CAPACITY: usize = 2;
    /// The target's identity: another one with every boot.
    pub const TARGET: usize = 3;
    /// Pages of 4 KiB that the kernel manages.
    pub const PAGES_TOTAL: usize = 4;
    /// [`super::checksum`] of the seven words before.
    pub const CHECK: usize = 7;
    /// How often a process found no room, ever: if this moves, the table does not have all of them.
    pub const LEFT_OUT: usize = 8;
    /// When a processor was here last, in nanoseconds of the target's monotonic clock: guards against a table that
    /// nobody keeps.
    pub const BEAT_NS: usize = 9;
    /// Free pages.
    pub const PAGES_FREE: usize = 10;
    /// How often the agent has been through all processes. Zero: those that were there before the programs may be
    /// missing.
    pub const ROUNDS: usize = 16;
    /// When it last had.
    pub const ROUND_NS: usize = 17;
}

/// Words of a record.
pub mod record {
    /// Bits 0..32 process id, 32..56 sequence, 56..64 state. Guards against words of two writings.
    pub const LIFE: usize = 0;
    /// Low half the parent's process id, high half the real user.
    pub const FAMILY: usize = 1;
    /// When it started, in nanoseconds of the target's monotonic clock.
    pub const START_NS: usize = 2;
    /// Its cgroup (version 2).
    pub const CGROUP: usize = 3;
    /// Its name, two words.
    pub const COMM: usize = 4;
    /// Bits 0..28 resident pages, 28..56 pages that were swapped out, 56..64 what it does, as a letter of `ps`. Not in
    /// the check: it is written alone, and whole.
    pub const MEMORY: usize = 6;
    /// Bits 0..16 generations below the first process, 16..24 flags, 32..64 check.
    pub const ABOUT: usize = 7;
}

/// No process.
pub const FREE: u8 = 0;

/// A process that lives. States are odd numbers: zeroed memory has none of them.
pub const LIVE: u8 = 0x35;

/// One whose threads have all ended, and whom its parent has not buried.
pub const EXITING: u8 = 0x5b;

/// Somebody writes it at this moment.
pub const WRITING: u8 = 0xa7;

/// Flag of a thread of the kernel.
pub const KERNEL: u8 = 1;

/// A depth that is not known.
pub const NO_DEPTH: u16 = 0xffff;

/// FNV-1a over words. Guards against accidents.
pub fn checksum(words: &[u64]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    words.iter().fold(OFFSET, |sum, word| (sum ^ word).wrapping_mul(PRIME))
}

const _: () = assert!(HEAD_RECORDS * RECORD_BYTES == 4096 && CAPACITY_MAX.is_power_of_two());
