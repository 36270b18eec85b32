//! The memory that is worked on: words that an adapter or our responder changes, and the pattern they begin with.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rdma::responder::{Memory, Refusal};
use remote_memory::{RemoteKey, Rights};

/// Bytes of the memory: the longest message that rxe carries, and some more.
pub const REGION_BYTES: usize = (8 << 20) + (1 << 16);

const WORD: usize = size_of::<u64>();

/// Bytes that are copied at a time to be summed up.
const PIECE_BYTES: usize = 4096;

/// The memory, there for good: adapters want it so.
pub fn region() -> &'static [AtomicU64] {
    (0..REGION_BYTES / WORD).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

/// The word with this index of a memory that begins with `seed`: no two alike, so that misplaced data show.
pub fn pattern(seed: u64, index: usize) -> u64 {
    let mixed = (seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ index as u64
}

/// Fills the memory with the pattern of `seed`.
pub fn fill(words: &[AtomicU64], seed: u64) {
    for (index, word) in words.iter().enumerate() {
        word.store(pattern(seed, index), Relaxed);
    }
}

/// Checksum of `len` bytes from `offset` on, which are inside.
pub fn sum(words: &[AtomicU64], offset: usize, len: usize) -> u32 {
    let (mut hash, mut piece, mut done) = (crc32fast::Hasher::new(), [0; PIECE_BYTES], 0);
    while done < len {
        let part = (len - done).min(PIECE_BYTES);
        copy_out(words, offset + done, &mut piece[..part]);
        hash.update(&piece[..part]);
        done += part;
    }
    hash.finalize()
}

fn copy_out(words: &[AtomicU64], offset: usize, mut into: &mut [u8]) {
    let (mut index, mut within) = (offset / WORD, offset % WORD);
    while !into.is_empty() {
        let part = (WORD - within).min(into.len());
        let bytes = words[index].load(Relaxed).to_ne_bytes();
        let (now, rest) = into.split_at_mut(part);
        now.copy_from_slice(&bytes[within..within + part]);
        (into, index, within) = (rest, index + 1, 0);
    }
}

/// Only the responder's thread writes, so a word of which a part is written needs no atomic change.
fn copy_in(words: &[AtomicU64], offset: usize, mut from: &[u8]) {
    let (mut index, mut within) = (offset / WORD, offset % WORD);
    while !from.is_empty() {
        let part = (WORD - within).min(from.len());
        let mut bytes = words[index].load(Relaxed).to_ne_bytes();
        bytes[within..within + part].copy_from_slice(&from[..part]);
        words[index].store(u64::from_ne_bytes(bytes), Relaxed);
        (from, index, within) = (&from[part..], index + 1, 0);
    }
}

/// The memory as our responder serves it: under one key, from address 0 on.
pub struct Served {
    pub words: &'static [AtomicU64],
    pub key: RemoteKey,
}

impl Served {
    fn place(&self, key: RemoteKey, addr: u64, len: u64) -> Result<usize, Refusal> {
        let end = addr.checked_add(len).ok_or(Refusal::Access)?;
        let is_inside = key == self.key && end <= size_of_val(self.words) as u64;
        if is_inside { Ok(addr as usize) } else { Err(Refusal::Access) }
    }

    fn word(&self, key: RemoteKey, addr: u64) -> Result<&AtomicU64, Refusal> {
        Ok(&self.words[self.place(key, addr, WORD as u64)? / WORD])
    }
}

impl Memory for Served {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, _rights: Rights) -> Result<(), Refusal> {
        self.place(key, addr, len).map(drop)
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        copy_out(self.words, self.place(key, addr, into.len() as u64)?, into);
        Ok(())
    }

    fn write(&self, key: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        copy_in(self.words, self.place(key, addr, bytes.len() as u64)?, bytes);
        Ok(())
    }

    fn compare_swap(&self, key: RemoteKey, addr: u64, expect: u64, swap: u64) -> Result<u64, Refusal> {
        Ok(self.word(key, addr)?.compare_exchange(expect, swap, Relaxed, Relaxed).unwrap_or_else(|now| now))
    }

    fn fetch_add(&self, key: RemoteKey, addr: u64, add: u64) -> Result<u64, Refusal> {
        Ok(self.word(key, addr)?.fetch_add(add, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_and_come_out_at_any_place() {
        let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
        fill(&words, 7);
        let mut model: Vec<u8> = (0..8).flat_map(|index| pattern(7, index).to_ne_bytes()).collect();
        for (offset, len) in [(0, 64), (3, 2), (5, 9), (8, 8), (17, 40), (63, 1), (10, 0)] {
            let bytes: Vec<u8> = (0..len).map(|byte| byte as u8 ^ 0xa5).collect();
            copy_in(&words, offset, &bytes);
            model[offset..offset + len].copy_from_slice(&bytes);
            let mut all = [0; 64];
            copy_out(&words, 0, &mut all);
            assert_eq!(all, *model, "{len} bytes at {offset}");
            assert_eq!(sum(&words, offset, len), crc32fast::hash(&model[offset..offset + len]));
        }
    }
}
