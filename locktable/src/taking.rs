//! How a lock is taken, held and released from outside: a function of what was read, of what a compare-and-swap found,
//! and of the time that is passed in. Reads and swaps are carried out by whoever has a link (`link::lock`).
//!
//! ```text
//!   look ──► swap 0 or a spent word for ours ──► look until the answer names us and all processors have settled
//!     ▲            │ somebody was quicker             │ in time: taken      │ not in time: swapped back to 0
//!     └────────────┘
//!   hold: swap the fence's word for the holding one ──► look until the answer says held.   release: the same way
//! ```
//! Only what the answers say counts: a word that was swapped in is a wish. A hold whose answer does not come is neither
//! held nor not: nothing is handed over then, and whoever asks again under the same number learns it.

use std::time::Duration;

use crate::layout::{LEASE_MS_MAX, LEASE_UNIT_MS, Mode, NUMBER, Word};
use crate::locked::Locked;
use crate::reference::{Standing, Verdict};

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A look or a fence, for a lease of so many milliseconds.
    Take(Mode, u32),
    /// A fence that stands is to be held.
    Hold,
    /// What stands is to end.
    Release,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read lock word and answers, a moment later if they were read just now; then [`Taking::looked`].
    Look,
    /// Compare-and-swap the lock word; then [`Taking::swapped`].
    Swap {
        /// What is expected there.
        expect: u64,
        /// What takes its place.
        swap: u64,
    },
    /// The goal is reached.
    Reached(Taken),
    /// It is not.
    Failed(Unlocked),
}

/// What was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Under which number.
    pub number: u32,
    /// What stands; `None` after a release.
    pub mode: Option<Mode>,
    /// The machine.
    pub target: u64,
    /// The word that says so: who takes it away must know it.
    pub word: u64,
}

/// Why the goal was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unlocked {
    /// The caller asks for what cannot be.
    #[error(
        "a lock is a look or a fence, of a number that is not 0 and a lease of {LEASE_UNIT_MS} to {LEASE_MS_MAX} ms"
    )]
    Misused,
    /// The target guards nothing.
    #[error("the target guards no interface and no address: its agent was given none (--service-address)")]
    Unguarded,
    /// Somebody else has it.
    #[error("lock {number:#x} stands there, or is about to")]
    Busy {
        /// Its number.
        number: u32,
    },
    /// The number has had its time.
    #[error("lock {number:#x} has ended: {how:?}")]
    Ended {
        /// Its number.
        number: u32,
        /// How.
        how: Option<Verdict>,
    },
    /// The target does not take the word.
    #[error("the target refuses the lock word: {0}")]
    Refused(Verdict),
    /// Nobody looked at the word in time; it was taken back.
    #[error("the target does not answer: no processor of it has looked at the lock word in time")]
    NotAnswered,
    /// The lock stands, but not all processors have been seen off the network; it was taken back.
    #[error("processors {processors:#b} of the target have not settled: one may have a packet under way")]
    Unsettled {
        /// A bit for each.
        processors: u64,
    },
    /// Whether the fence is held is not known.
    #[error("whether the fence is held is not known: the target did not answer in time")]
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Looking,
    Swapping { expect: u64, swap: u64 },
    Waiting { word: u64 },
    TakingBack { why: Unlocked },
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct Taking {
    number: u32,
    goal: Goal,
    deadline: Duration,
    stage: Stage,
    target: u64,
}

impl Taking {
    /// Begins at `now`, to end within `patience`. The number of what is held or released is that of what was taken.
    ///
    /// # Errors
    /// [`Unlocked::Misused`].
    pub fn begin(number: u32, goal: Goal, now: Duration, patience: Duration) -> Result<Self, Unlocked> {
        let is_good = match goal {
            Goal::Take(mode, lease_ms) => {
                matches!(mode, Mode::Look | Mode::Fence) && (LEASE_UNIT_MS..=LEASE_MS_MAX).contains(&lease_ms)
            }
            Goal::Hold | Goal::Release => true,
        };
        if !is_good || number == 0 || u64::from(number) > NUMBER {
            return Err(Unlocked::Misused);
        }
        Ok(Self { number, goal, deadline: now + patience, stage: Stage::Looking, target: 0 })
    }

    /// A number for a claim: whoever has the claim finds the lock again. `attempt` counts locks that have ended.
    pub fn number_of(claim: u64, attempt: u64) -> u32 {
        let number = crate::layout::checksum(&[claim, attempt]) & NUMBER;
        number.max(1) as u32
    }

    /// Lock word and answers were read.
    pub fn looked(&mut self, now: Duration, word: u64, locked: &Locked) -> Next {
        self.target = locked.target;
        match self.stage {
            Stage::Looking => self.first_look(now, word, locked),
            Stage::Waiting { word: ours } => self.await_answer(now, ours, locked),
            Stage::Swapping { expect, swap } => Next::Swap { expect, swap },
            Stage::TakingBack { why } => Next::Failed(why),
        }
    }

    /// A compare-and-swap found `was`.
    pub fn swapped(&mut self, now: Duration, was: u64) -> Next {
        match self.stage {
            Stage::Swapping { expect, swap } if was == expect || was == swap => {
                self.stage = Stage::Waiting { word: swap };
                Next::Look
            }
            Stage::Swapping { .. } if now < self.deadline => {
                self.stage = Stage::Looking;
                Next::Look
            }
            Stage::TakingBack { why } => Next::Failed(why),
            _ => Next::Failed(Unlocked::NotAnswered),
        }
    }

    fn word(&self, mode: Mode, lease_ms: u32) -> u64 {
        Word { number: self.number, mode, lease: (lease_ms / LEASE_UNIT_MS) as u16 }.encode(self.target)
    }

    fn wanted(&self) -> u64 {
        match self.goal {
            Goal::Take(mode, lease_ms) => self.word(mode, lease_ms),
            Goal::Hold => self.word(Mode::Hold, 0),
            Goal::Release => self.word(Mode::Release, 0),
        }
    }

    fn first_look(&mut self, now: Duration, word: u64, locked: &Locked) -> Next {
        if let Some(over) = self.outcome(self.wanted(), locked) {
            return over;
        }
        if self.goal != Goal::Release && (locked.interfaces == 0 || locked.addresses == 0) {
            return Next::Failed(Unlocked::Unguarded);
        }
        if now >= self.deadline {
            return Next::Failed(Unlocked::NotAnswered);
        }
        let there = Word::decode(word, self.target);
        let is_ours = there.is_some_and(|there| there.number == self.number);
        match (locked.standing, self.goal) {
            (Standing::Stands { number, .. }, _) if number != self.number => Next::Failed(Unlocked::Busy { number }),
            (Standing::Free { last, how }, _) if last == self.number => {
                Next::Failed(Unlocked::Ended { number: last, how })
            }
            // Not taken up yet, or asked again.
            _ if word == self.wanted() => {
                self.stage = Stage::Waiting { word };
                Next::Look
            }
            (Standing::Stands { .. }, Goal::Take(..)) => {
                self.stage = Stage::Waiting { word };
                Next::Look
            }
            (Standing::Stands { .. }, Goal::Hold) if !is_ours => {
                Next::Failed(Unlocked::Ended { number: self.number, how: Some(Verdict::Withdrawn) })
            }
            // A held fence keeps its number whatever has become of the word.
            (Standing::Stands { .. }, Goal::Hold | Goal::Release) => self.swap(word),
            (Standing::Free { .. }, Goal::Hold | Goal::Release) => {
                Next::Failed(Unlocked::Ended { number: self.number, how: None })
            }
            (Standing::Free { last, .. }, Goal::Take(..)) => match there {
                Some(Word { number, mode: Mode::Look | Mode::Fence, .. }) if number != last => {
                    Next::Failed(Unlocked::Busy { number })
                }
                _ => self.swap(word),
            },
        }
    }

    fn swap(&mut self, expect: u64) -> Next {
        let swap = self.wanted();
        self.stage = Stage::Swapping { expect, swap };
        Next::Swap { expect, swap }
    }

    /// What the answers say of the goal, if they do.
    fn outcome(&self, word: u64, locked: &Locked) -> Option<Next> {
        let reached = |mode| Next::Reached(Taken { number: self.number, mode, target: self.target, word });
        match (self.goal, locked.standing) {
            (Goal::Take(mode, _), _) if locked.stands(self.number) == Some(mode) && locked.has_settled(self.number) => {
                Some(reached(Some(mode)))
            }
            (Goal::Hold, _) if locked.stands(self.number) == Some(Mode::Hold) => Some(reached(Some(Mode::Hold))),
            (Goal::Release, Standing::Free { last, .. }) if last == self.number => Some(reached(None)),
            _ => None,
        }
    }

    fn await_answer(&mut self, now: Duration, word: u64, locked: &Locked) -> Next {
        if let Some(over) = self.outcome(word, locked) {
            return over;
        }
        match (locked.standing, locked.refused) {
            (Standing::Free { last, how }, _) if last == self.number => {
                return Next::Failed(Unlocked::Ended { number: last, how });
            }
            (Standing::Free { .. }, Some((refused, why))) if refused == word => {
                return Next::Failed(Unlocked::Refused(why));
            }
            (Standing::Stands { number, .. }, _) if number != self.number => {
                return Next::Failed(Unlocked::Busy { number });
            }
            _ if now < self.deadline => return Next::Look,
            _ => {}
        }
        let why = match (self.goal, locked.stands(self.number)) {
            (Goal::Hold | Goal::Release, _) => return Next::Failed(Unlocked::Unknown),
            (Goal::Take(..), Some(_)) => Unlocked::Unsettled { processors: locked.unsettled(self.number) },
            (Goal::Take(..), None) => Unlocked::NotAnswered,
        };
        self.stage = Stage::TakingBack { why };
        Next::Swap { expect: word, swap: 0 }
    }
}
