//! What the kernel decides by a lock word, said once more in Rust: `tests/decisions.rs` holds `include/locktable.h`
//! against it, and tests of those who take the lock have it for a target.

use crate::layout::{Mode, NUMBER, Word};

/// What stands: one word, so that it changes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing. Who has had the lock last, and how that ended, if anybody did.
    Free {
        /// Its number; 0 if nobody has had it.
        last: u32,
        /// How it ended.
        how: Option<Verdict>,
    },
    /// A lock.
    Stands {
        /// Its number.
        number: u32,
        /// What it is; never [`Mode::Release`].
        mode: Mode,
        /// When it ends by itself, in milliseconds of the target's monotonic clock; without meaning if held.
        until_ms: u64,
    },
}

/// What a look at the lock word came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// All is as it was.
    #[error("nothing has changed")]
    Same,
    /// A lock stands from now on.
    #[error("it was taken")]
    Taken,
    /// A fence is held from now on.
    #[error("it is held")]
    Held,
    /// It is no lock: torn, garbage, or for another machine.
    #[error("the word is no lock of this machine")]
    BadWord,
    /// A fence was to be held that does not stand (any more).
    #[error("the fence that was to be held does not stand")]
    TooLate,
    /// Its holder has ended it.
    #[error("it was released")]
    Released,
    /// The word has gone, or became something else.
    #[error("its word was taken away")]
    Withdrawn,
    /// Its lease has ended.
    #[error("its lease has ended")]
    LeaseEnded,
    /// A held fence was ended by its holder.
    #[error("the held fence was released")]
    HeldReleased,
}

const VERDICTS: [Verdict; 9] = [
    Verdict::Same,
    Verdict::Taken,
    Verdict::Held,
    Verdict::BadWord,
    Verdict::TooLate,
    Verdict::Released,
    Verdict::Withdrawn,
    Verdict::LeaseEnded,
    Verdict::HeldReleased,
];

impl Verdict {
    /// The verdict with this code.
    pub fn from_code(code: u64) -> Option<Self> {
        VERDICTS.get(usize::try_from(code).ok()?).copied()
    }

    /// Its code.
    pub fn code(self) -> u64 {
        VERDICTS.iter().position(|one| *one == self).unwrap_or_default() as u64
    }
}

impl Standing {
    /// Out of its word. A mode that is not known is taken for a held fence: nobody may go on then.
    pub fn decode(word: u64) -> Self {
        let (number, rest) = ((word & NUMBER) as u32, word >> 28);
        match (word >> 24 & 0xf, Mode::from_code(word >> 24 & 0xf)) {
            (0, _) => Self::Free { last: number, how: Verdict::from_code(rest).filter(|_| number != 0) },
            (_, mode) => Self::Stands { number, mode: mode.unwrap_or(Mode::Hold), until_ms: rest },
        }
    }

    /// Its word.
    pub fn encode(self) -> u64 {
        match self {
            Self::Free { last, how } => u64::from(last) | how.map_or(0, Verdict::code) << 28,
            Self::Stands { number, mode, until_ms } => u64::from(number) | mode.code() << 24 | until_ms << 28,
        }
    }

    /// What stands after a look at the lock word.
    pub fn next(self, word: u64, target: u64, now_ms: u64) -> (Self, Verdict) {
        let wanted = Word::decode(word, target);
        match self {
            Self::Free { last, .. } => match wanted {
                None if word == 0 => (self, Verdict::Same),
                None => (self, Verdict::BadWord),
                Some(wanted) if wanted.number == last || wanted.mode == Mode::Release => (self, Verdict::Same),
                Some(Word { mode: Mode::Hold, .. }) => (self, Verdict::TooLate),
                Some(Word { number, mode, .. }) => {
                    let until_ms = now_ms + wanted.map_or(0, Word::lease_ms);
                    (Self::Stands { number, mode, until_ms }, Verdict::Taken)
                }
            },
            Self::Stands { number, mode, until_ms } => {
                let of_holder = wanted.filter(|wanted| wanted.number == number).map(|wanted| wanted.mode);
                let verdict = match (mode, of_holder) {
                    (Mode::Hold, Some(Mode::Release)) => Verdict::HeldReleased,
                    (Mode::Hold, _) => return (self, Verdict::Same),
                    _ if now_ms >= until_ms => Verdict::LeaseEnded,
                    (mode, Some(wanted)) if wanted == mode => return (self, Verdict::Same),
                    (Mode::Fence, Some(Mode::Hold)) => {
                        return (Self::Stands { number, mode: Mode::Hold, until_ms: 0 }, Verdict::Held);
                    }
                    (_, Some(Mode::Release)) => Verdict::Released,
                    _ => Verdict::Withdrawn,
                };
                (Self::Free { last: number, how: Some(verdict) }, verdict)
            }
        }
    }
}
