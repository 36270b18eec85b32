//! A value that one side publishes and the other reads remotely, at any moment, with the writer stopped anywhere.
//!
//! ```text
//!   word 0        words 1 .. n+1        word n+1
//!   sequence      payload               checksum
//! ```
//!
//! Writer: sequence := odd; payload; checksum; sequence := even. Every store is a relaxed atomic store ordered by
//! release fences, so the target's processor makes them visible in this order. Reader: takes all words in one read
//! and accepts them only if the sequence is even *and* the checksum over sequence and payload holds. The sequence
//! alone would not do: RDMA promises no order inside one read. A torn read is normal: read again.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The words that surround the payload.
const FRAME_WORDS: usize = 2;

/// The value was being written, or never was. Not an error of anybody: read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("torn read")]
pub struct TornRead;

/// A cell of `N` payload words over shared memory.
#[derive(Debug)]
pub struct Published<'a, const N: usize> {
    words: &'a [AtomicU64],
    _payload: PhantomData<[u64; N]>,
}

impl<'a, const N: usize> Published<'a, N> {
    /// Bytes a cell takes.
    pub const BYTES: usize = (N + FRAME_WORDS) * size_of::<u64>();

    /// Lays a cell over `words`, or `None` if they are too few.
    pub fn over(words: &'a [AtomicU64]) -> Option<Self> {
        Some(Self { words: words.get(..N + FRAME_WORDS)?, _payload: PhantomData })
    }

    /// Publishes `value`. One writer at a time; a second one would need a lock, and a lock would need the system.
    pub fn publish(&mut self, value: &[u64; N]) {
        let sequence = (self.words[0].load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.words[0].store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words[1..=N].iter().zip(value) {
            word.store(*value, Ordering::Relaxed);
        }
        self.words[N + 1].store(checksum(sequence, value), Ordering::Relaxed);
        self.words[0].store(sequence, Ordering::Release);
    }

    /// Takes a value out of the bytes that one remote read brought.
    ///
    /// # Errors
    /// [`TornRead`] if the bytes are too few or no published value.
    pub fn parse(bytes: &[u8]) -> Result<[u64; N], TornRead> {
        let word = |index: usize| {
            let at = index * size_of::<u64>();
            bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).ok_or(TornRead)
        };
        let sequence = word(0)?;
        let mut value = [0; N];
        for (index, value) in value.iter_mut().enumerate() {
            *value = word(index + 1)?;
        }
        let whole = sequence & 1 == 0 && sequence != 0 && word(N + 1)? == checksum(sequence, &value);
        whole.then_some(value).ok_or(TornRead)
    }
}

/// FNV-1a over words: cheap enough for a hot path, and a torn payload does not keep it by accident.
fn checksum<const N: usize>(sequence: u64, value: &[u64; N]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    value.iter().fold((OFFSET ^ sequence).wrapping_mul(PRIME), |sum, word| (sum ^ word).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[AtomicU64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    #[test]
    fn a_published_value_reads_back_and_zeroes_do_not() {
        let words: [AtomicU64; 5] = Default::default();
        assert_eq!(Published::<3>::parse(&bytes(&words)), Err(TornRead));
        let mut cell = Published::<3>::over(&words).unwrap();
        cell.publish(&[1, 2, 3]);
        assert_eq!(Published::<3>::parse(&bytes(&words)), Ok([1, 2, 3]));
        cell.publish(&[4, 5, 6]);
        assert_eq!(Published::<3>::parse(&bytes(&words)), Ok([4, 5, 6]));
    }

    #[test]
    fn every_mixture_of_two_values_is_refused() {
        let snapshot = |value| {
            let words: [AtomicU64; 5] = Default::default();
            let mut cell = Published::<3>::over(&words).unwrap();
            cell.publish(&[9, 9, 9]);
            cell.publish(value);
            bytes(&words)
        };
        let (old, new) = (snapshot(&[1, 2, 3]), snapshot(&[4, 5, 6]));
        for mask in 1..(1 << 5) - 1 {
            let mixed: Vec<u8> =
                (0..40).map(|byte| if mask >> (byte / 8) & 1 == 1 { new[byte] } else { old[byte] }).collect();
            if mixed != old && mixed != new {
                assert_eq!(Published::<3>::parse(&mixed), Err(TornRead), "mask {mask:#b}");
            }
        }
    }
}
