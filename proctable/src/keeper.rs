//! The agent's end of the table: its head.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{HEAD_RECORDS, MAGIC, RECORD_BYTES, VERSION_WORD, checksum, head};

/// Why a table cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// The memory is not a head and a power of two of records.
    #[error("{bytes} bytes are not {HEAD_RECORDS} records of {RECORD_BYTES} bytes and a power of two of them")]
    Memory {
        /// Its length.
        bytes: usize,
    },
}

/// The head of a table as the agent sees it; the kernel's programs write the same memory at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Keeper<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Keeper<'a> {
    /// Opens the table in `words` and says in it who the machine is and how many pages it has. Records stay.
    ///
    /// # Errors
    /// See [`KeeperError`].
    pub fn open(words: &'a [AtomicU64], target: u64, pages_total: u64) -> Result<Self, KeeperError> {
        let bytes = size_of_val(words);
        let capacity = (bytes / RECORD_BYTES).checked_sub(HEAD_RECORDS).filter(|count| count.is_power_of_two());
        let Some(capacity) = capacity.filter(|_| bytes.is_multiple_of(RECORD_BYTES)) else {
            return Err(KeeperError::Memory { bytes });
        };
        let mut said = [0; head::CHECK + 1];
        said[head::MAGIC] = MAGIC;
        said[head::VERSION] = VERSION_WORD;
        said[head::CAPACITY] = capacity as u64 | (HEAD_RECORDS as u64) << 32;
        said[head::TARGET] = target;
        said[head::PAGES_TOTAL] = pages_total;
        said[head::CHECK] = checksum(&said[..head::CHECK]);
        // The first word last: it is what the kernel's programs wait for.
        said.iter().enumerate().rev().for_each(|(index, word)| words[index].store(*word, Ordering::Release));
        Ok(Self { words })
    }

    /// Says that all processes have been gone through at `now_ns` of the monotonic clock.
    pub fn went_round(&self, now_ns: u64) {
        self.words[head::ROUND_NS].store(now_ns, Ordering::Release);
        self.words[head::ROUNDS].fetch_add(1, Ordering::Release);
    }
}
