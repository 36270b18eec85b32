//! What the client has: a slot's log, of which the last answers stay.

use contbox::continuation::Words;
use contbox::shared::Slot;

use crate::number;

/// The word of the slot's front that counts bytes. Nobody else's while the slot is but leased.
const COUNT: usize = 2;

/// One answer as the client has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// Its number, from 0.
    pub number: u64,
    /// The worker's state after its request.
    pub sum: u64,
    /// What the worker made up, if it makes anything up.
    pub stamp: u64,
}

/// Bytes of an [`Answer`].
pub const ANSWER_BYTES: u64 = 24;

/// The client's end.
#[derive(Debug)]
pub struct Outside {
    slot: Slot,
}

impl Outside {
    /// A client that has the first `answers`; which they were stays elsewhere.
    pub fn after(slot: Slot, answers: u64) -> Self {
        slot.store(COUNT, answers * ANSWER_BYTES);
        Self { slot }
    }

    /// The client that a slot has.
    pub fn at(slot: Slot) -> Self {
        Self { slot }
    }

    /// The client gets one more answer.
    pub fn tell(&self, answer: Answer) {
        let count = self.slot.load(COUNT);
        self.slot.log_fill(count, &crate::words(&[answer.number, answer.sum, answer.stamp]));
        self.slot.order();
        self.slot.store(COUNT, count + ANSWER_BYTES);
    }

    /// How many answers the client has.
    pub fn count(&self) -> u64 {
        self.slot.load(COUNT) / ANSWER_BYTES
    }

    /// How many answers the client has, and the last of them, oldest first.
    pub fn told(&self) -> (u64, Vec<Answer>) {
        let front = self.slot.front();
        let log = self.slot.bytes(self.slot.geometry().log_offset(), self.slot.geometry().log_bytes);
        told(&front, &log)
    }

    /// Which slot it is.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }
}

/// [`Outside::told`] of a slot's front and log, wherever they were read.
pub fn told(front: &[u8], log: &[u8]) -> (u64, Vec<Answer>) {
    let count = number(front, COUNT);
    // Of the oldest, half may be overwritten by the one that is being told.
    let kept = (log.len() as u64).min(count).saturating_sub(ANSWER_BYTES) / ANSWER_BYTES;
    let kept = if count < log.len() as u64 { count / ANSWER_BYTES } else { kept };
    let first = count / ANSWER_BYTES - kept;
    let answer = |at: u64| {
        let start = at * ANSWER_BYTES;
        let bytes: Vec<u8> = (start..start + ANSWER_BYTES).map(|at| log[(at % log.len() as u64) as usize]).collect();
        Answer { number: number(&bytes, 0), sum: number(&bytes, 1), stamp: number(&bytes, 2) }
    };
    (count / ANSWER_BYTES, (first..first + kept).map(answer).collect())
}
