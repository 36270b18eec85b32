//! The agent's end of the answers: who the machine is, whom it spares, and what the agent itself has ended.
//!
//! The kernel's programs write the same memory at any moment, so all of it is atomic words. What both count (processes
//! ended by an order, and by a slot) is counted by compare-and-swap on both sides: no bound is passed in a race.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::answers::{counted, slots_word};
use crate::layout::{
    ANSWERS_BYTES, ANSWERS_MAGIC, BROAD_AT, BROAD_SLOTS, BY_PID_AT, MOST_MAX, ORDERS_BYTES, PID_SLOTS, SPARED_MAX,
    VERSION_WORD, answer, checksum, head, slot,
};

/// Why a ledger cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The memory has another length.
    #[error("orders and answers have {ORDERS_BYTES} and {ANSWERS_BYTES} bytes, not {orders} and {answers}")]
    Memory {
        /// Bytes of the orders.
        orders: usize,
        /// Bytes of the answers.
        answers: usize,
    },
    /// More users than there is room for.
    #[error("{count} users to spare; the table has room for {SPARED_MAX}")]
    TooManySpared {
        /// How many.
        count: usize,
    },
}

/// Orders and answers as the agent sees them.
#[derive(Clone, Copy, Debug)]
pub struct Ledger<'a> {
    orders: &'a [AtomicU64],
    answers: &'a [AtomicU64],
}

impl<'a> Ledger<'a> {
    /// Opens the ledger in `orders` and `answers`, and says in it who the machine is and whom it spares. An order that
    /// stands, goes on standing.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn open(
        orders: &'a [AtomicU64],
        answers: &'a [AtomicU64],
        target: u64,
        spared_uids: &[u32],
        agent: u32,
    ) -> Result<Self, LedgerError> {
        let (orders_bytes, answers_bytes) = (size_of_val(orders), size_of_val(answers));
        if orders_bytes != ORDERS_BYTES || answers_bytes != ANSWERS_BYTES {
            return Err(LedgerError::Memory { orders: orders_bytes, answers: answers_bytes });
        }
        if spared_uids.len() > SPARED_MAX {
            return Err(LedgerError::TooManySpared { count: spared_uids.len() });
        }
        let ledger = Self { orders, answers };
        let mut spared = [0; SPARED_MAX];
        spared[..spared_uids.len()].copy_from_slice(spared_uids);
        for (index, pair) in spared.as_chunks::<2>().0.iter().enumerate() {
            ledger.set(answer::SPARED + index, u64::from(pair[0]) | u64::from(pair[1]) << 32);
        }
        ledger.set(answer::SPARED_AND_AGENT, spared_uids.len() as u64 | u64::from(agent) << 32);
        let mut head = [0; answer::CHECK + 1];
        head[answer::MAGIC] = ANSWERS_MAGIC;
        head[answer::VERSION] = VERSION_WORD;
        head[answer::SLOTS] = slots_word();
        head[answer::TARGET] = target;
        head[answer::CHECK] = checksum(&head[..answer::CHECK]);
        head.iter().enumerate().for_each(|(index, word)| ledger.set(index, *word));
        Ok(ledger)
    }

    /// Number of the order in force.
    pub fn armed(&self) -> Option<u64> {
        let armed = self.answers[answer::ARMED].load(Ordering::Acquire);
        (armed != 0 && armed == self.orders[head::NUMBER].load(Ordering::Acquire)).then_some(armed)
    }

    /// Says that the agent is at its place.
    pub fn beat(&self) {
        self.answers[answer::SWEEP_BEAT].fetch_add(1, Ordering::Relaxed);
    }

    /// Says that the agent has been through all processes for order `number`, and whether nobody was left.
    pub fn swept(&self, number: u64, is_nobody_left: bool) {
        self.answers[answer::SWEEPS].fetch_add(1, Ordering::Relaxed);
        if is_nobody_left {
            self.answers[answer::SWEPT].store(number, Ordering::Release);
        }
    }

    /// Counts a process that slot `slot` of order `number` is about to end; false if a bound forbids it.
    pub fn count(&self, number: u64, slot: u32) -> bool {
        let slot = slot as usize;
        let Some(most) = self.most_of_slot(slot) else { return false };
        let most_in_all = self.orders[head::BOUNDS].load(Ordering::Relaxed) as u32;
        let is_within = self.one_more(answer::TALLY + slot, number, most);
        if is_within && self.one_more(answer::ENDED, number, most_in_all) {
            self.one_more(answer::ENDED_ASLEEP, number, u32::MAX);
            return true;
        }
        if is_within {
            self.answers[answer::TALLY + slot].fetch_sub(1, Ordering::Relaxed);
        }
        self.answers[answer::DECLINED].fetch_add(1, Ordering::Relaxed);
        false
    }

    fn one_more(&self, index: usize, number: u64, most: u32) -> bool {
        let more = |word: u64| {
            let before = counted(word, number);
            (before < most).then(|| u64::from(number as u32) << 32 | u64::from(before + 1))
        };
        self.answers[index].fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn most_of_slot(&self, index: usize) -> Option<u32> {
        let at = match index.checked_sub(BROAD_SLOTS) {
            Some(pid) if pid < PID_SLOTS => BY_PID_AT + pid * slot::WORDS,
            Some(_) => return None,
            None => BROAD_AT + index * slot::WORDS,
        };
        Some(self.orders[at + slot::WHAT].load(Ordering::Relaxed) as u32 & MOST_MAX)
    }

    fn set(&self, index: usize, word: u64) {
        self.answers[index].store(word, Ordering::Release);
    }
}
