//! Unpredictable 24-bit numbers for queue pairs and first sequence numbers. Not secrets: they keep packets of an old
//! connection from being taken for those of a new one. The standard library's hash keys are random enough for that
//! and need no further crate.

use std::hash::{BuildHasher, RandomState};

/// Queue pair numbers below this are reserved: 0 and 1 for management, and rxe begins at 16.
const FIRST_NUMBER: u32 = 16;

/// Exclusive end of both kinds of numbers.
const END: u32 = 1 << 24;

fn number() -> u32 {
    (RandomState::new().hash_one(std::process::id()) >> 40) as u32
}

/// A first packet sequence number.
pub(crate) fn psn() -> u32 {
    number()
}

/// A queue pair number that is not reserved.
pub(crate) fn queue_pair() -> u32 {
    FIRST_NUMBER + number() % (END - FIRST_NUMBER)
}

/// Whether a peer may have queue pair `number`.
pub(crate) fn is_queue_pair(number: u32) -> bool {
    (2..END).contains(&number)
}
