//! What is done in a cell: operations that follow from its seed, and what each has to bring.
//!
//! Operations take effect in the order in which they are posted, which is what [`remote_memory::Queue`]'s users rely
//! on; so the model is changed when an operation is made, and what a READ has to bring is what it holds then.

use rand::{Rng, SeedableRng, rngs::StdRng};
use remote_memory::{RemoteAddr, RemoteKey, Work};
use serde::{Deserialize, Serialize};

use super::words::{REGION_BYTES, pattern};

/// What a cell does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// READs of its size.
    Read,
    /// WRITEs of its size.
    Write,
    /// Compare-and-swaps, a quarter of which must fail.
    CmpSwap,
    /// Fetch-and-adds.
    FetchAdd,
    /// All of them in turn, on the same few places: sizes up to its own.
    Mixed,
}

/// A cell, as the active end is told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What is done.
    pub kind: Kind,
    /// Bytes of each READ or WRITE.
    pub size: u32,
    /// Operations.
    pub count: u32,
    /// Path MTU, in bytes.
    pub mtu: u16,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Cell {
    /// Bytes of the memory that it works on: some for small ones to be in different places, not all of it, because an
    /// emulated guest takes its time to fill it.
    pub fn region_bytes(&self) -> usize {
        (2 * self.size as usize).next_multiple_of(4096).clamp(2 * MIXED_BYTES, REGION_BYTES)
    }
}

/// Words that atomics work on, and where mixed operations are: few places, so that they meet.
const ATOMIC_WORDS: u64 = 8;
const MIXED_BYTES: usize = 1 << 16;

/// An operation and what has to come of it.
#[derive(Debug)]
pub struct Step {
    /// The operation; its landing place is what it was made for.
    pub work: Work,
    /// What a READ has to bring.
    pub expected: Vec<u8>,
    /// What an atomic has to find.
    pub original: u64,
}

/// The memory as it has to be after the operations that were made.
#[derive(Debug)]
pub struct Model {
    bytes: Vec<u8>,
    base: u64,
    key: RemoteKey,
    random: StdRng,
    /// What may have changed: the first byte, and the one behind the last.
    touched: (usize, usize),
}

impl Model {
    /// The memory of `cell` at `base` under `key`, with the pattern of its seed.
    pub fn new(cell: &Cell, base: u64, key: RemoteKey) -> Self {
        let (seed, len) = (cell.seed, cell.region_bytes());
        let bytes = (0..len / size_of::<u64>()).flat_map(|index| pattern(seed, index).to_ne_bytes()).collect();
        Self { bytes, base, key, random: StdRng::seed_from_u64(seed), touched: (len, 0) }
    }

    /// Makes the next operation of `cell`; bytes of a WRITE are put into `landing`, the part of the landing buffer
    /// that begins at `landing_at`.
    pub fn step(&mut self, cell: &Cell, landing: &mut [u8], landing_at: u32) -> Step {
        let kind = match cell.kind {
            Kind::Mixed => [Kind::Read, Kind::Write, Kind::CmpSwap, Kind::FetchAdd][self.random.random_range(0..4)],
            kind => kind,
        };
        match kind {
            Kind::Read | Kind::Mixed => {
                let (offset, len) = self.place(cell);
                let work = Work::Read { at: self.at(offset), len: len as u32, landing: landing_at };
                Step { work, expected: self.bytes[offset..offset + len].to_vec(), original: 0 }
            }
            Kind::Write => {
                let (offset, len) = self.place(cell);
                self.random.fill(&mut landing[..len]);
                self.bytes[offset..offset + len].copy_from_slice(&landing[..len]);
                self.touch(offset, len);
                let work = Work::Write { at: self.at(offset), len: len as u32, landing: landing_at };
                Step { work, expected: vec![], original: 0 }
            }
            Kind::CmpSwap => {
                let (offset, original) = self.word();
                let fails = self.random.random_range(0..4) == 0;
                let (expect, swap) = (if fails { !original } else { original }, self.random.random());
                self.put(offset, if fails { original } else { swap });
                let work = Work::CompareSwap { at: self.at(offset), expect, swap };
                Step { work, expected: vec![], original }
            }
            Kind::FetchAdd => {
                let (offset, original) = self.word();
                let add: u64 = self.random.random();
                self.put(offset, original.wrapping_add(add));
                Step { work: Work::FetchAdd { at: self.at(offset), add }, expected: vec![], original }
            }
        }
    }

    /// Offset, length and checksum of what may have changed, with a margin that must not have.
    pub fn changed(&self) -> (u64, u64, u32) {
        const MARGIN: usize = 8192;
        let (first, end) = self.touched;
        let (first, end) = (first.saturating_sub(MARGIN), (end + MARGIN).min(self.bytes.len()));
        let range = first.min(end)..end;
        (range.start as u64, range.len() as u64, crc32fast::hash(&self.bytes[range]))
    }

    /// Where a READ or WRITE of `cell` goes, and how long it is: at any byte, not only where words begin.
    fn place(&mut self, cell: &Cell) -> (usize, usize) {
        let size = cell.size as usize;
        if cell.kind == Kind::Mixed {
            let len = self.random.random_range(0..=size);
            (self.random.random_range(0..=MIXED_BYTES.max(len) - len), len)
        } else {
            (self.random.random_range(0..=self.bytes.len() - size), size)
        }
    }

    fn word(&mut self) -> (usize, u64) {
        let offset = self.random.random_range(0..ATOMIC_WORDS) as usize * size_of::<u64>();
        let bytes = self.bytes[offset..].first_chunk().expect("the words are inside");
        (offset, u64::from_ne_bytes(*bytes))
    }

    fn put(&mut self, offset: usize, word: u64) {
        self.bytes[offset..offset + size_of::<u64>()].copy_from_slice(&word.to_ne_bytes());
        self.touch(offset, size_of::<u64>());
    }

    fn touch(&mut self, offset: usize, len: usize) {
        let (first, end) = self.touched;
        self.touched = (first.min(offset), end.max(offset + len));
    }

    fn at(&self, offset: usize) -> RemoteAddr {
        RemoteAddr::new(self.key, self.base + offset as u64)
    }
}
