//! What a target says of the orders it got. It is a claim like everything read from a target: it ends a wait, and it is
//! written into journals; whether the culprits are gone is looked at in the process table.

use crate::layout::{
    ANSWERS_BYTES, ANSWERS_MAGIC, BROAD_SLOTS, PID_SLOTS, Refusal, SPARED_MAX, VERSION, VERSION_WORD, answer, checksum,
};

/// Why memory holds no answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswers {
    /// Too few bytes.
    #[error("{have} bytes are no answers of {ANSWERS_BYTES}")]
    Short {
        /// How many there are.
        have: usize,
    },
    /// Something else lies there.
    #[error("no kill table lies there (found {found:#x}): the agent has not made one")]
    Magic {
        /// What was found.
        found: u64,
    },
    /// Another release's.
    #[error("the kill table is of another version or size than {VERSION}")]
    Version,
    /// The head was damaged.
    #[error("the head of the answers is damaged")]
    Damaged,
}

/// Answers, as one read brought them. Words that change at any moment may be of different moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The target's identity: another one with every boot.
    pub target: u64,
    /// Users that it never ends processes of.
    pub spared_uids: Vec<u32>,
    /// Number of the order in force, 0 if none is.
    pub armed: u64,
    /// Number of the order refused last, and why.
    pub refused: Option<(u64, Refusal)>,
    /// How often a process of the table was met and not ended, ever.
    pub declined: u64,
    /// Number for which the agent found nobody left.
    pub swept: u64,
    /// When a processor last looked, in nanoseconds of the target's monotonic clock.
    pub beat_ns: u64,
    ended: u64,
    ended_asleep: u64,
    tallies: Vec<u64>,
}

/// What a target makes of the order that it was given last: the few words of its [`Answers`] that one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// Number of the order in force, 0 if none is.
    pub armed: u64,
    /// Number of the order refused last, and why.
    pub refused: Option<(u64, Refusal)>,
}

impl Reaction {
    /// Where it lies in the answers, in bytes from their beginning.
    pub const AT: usize = answer::ARMED * 8;

    /// How many bytes it has.
    pub const BYTES: usize = (answer::WHY + 1 - answer::ARMED) * 8;

    /// Takes it apart.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let words = bytes.as_chunks().0;
        let word = |index: usize| u64::from_le_bytes(words[index - answer::ARMED]);
        let refused = Refusal::from_code(word(answer::WHY)).map(|why| (word(answer::REFUSED), why));
        Self { armed: word(answer::ARMED), refused }
    }
}

impl Answers {
    /// Takes answers apart.
    ///
    /// # Errors
    /// See [`NoAnswers`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoAnswers> {
        if bytes.len() < ANSWERS_BYTES {
            return Err(NoAnswers::Short { have: bytes.len() });
        }
        let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if words[answer::MAGIC] != ANSWERS_MAGIC {
            return Err(NoAnswers::Magic { found: words[answer::MAGIC] });
        }
        if words[answer::VERSION] != VERSION_WORD || words[answer::SLOTS] != slots_word() {
            return Err(NoAnswers::Version);
        }
        if checksum(&words[..answer::CHECK]) != words[answer::CHECK] {
            return Err(NoAnswers::Damaged);
        }
        let half = |index: usize| (words[index / 2] >> (index % 2 * 32)) as u32;
        let spared = (half(answer::SPARED_AND_AGENT * 2) as usize).min(SPARED_MAX);
        let first = answer::SPARED * 2;
        let refused = Refusal::from_code(words[answer::WHY]).map(|why| (words[answer::REFUSED], why));
        Ok(Self {
            target: words[answer::TARGET],
            spared_uids: (first..first + spared).map(half).collect(),
            armed: words[answer::ARMED],
            refused,
            ended: words[answer::ENDED],
            ended_asleep: words[answer::ENDED_ASLEEP],
            declined: words[answer::DECLINED],
            swept: words[answer::SWEPT],
            beat_ns: words[answer::BEAT_NS],
            tallies: words[answer::TALLY..][..BROAD_SLOTS + PID_SLOTS].to_vec(),
        })
    }

    /// How many processes were ended by order `number`.
    pub fn ended(&self, number: u64) -> u32 {
        counted(self.ended, number)
    }

    /// Those of them that were asleep, and ended by the agent.
    pub fn ended_asleep(&self, number: u64) -> u32 {
        counted(self.ended_asleep, number)
    }

    /// How many processes were ended by slot `slot` of order `number`.
    pub fn ended_by(&self, number: u64, slot: usize) -> u32 {
        counted(self.tallies.get(slot).copied().unwrap_or(0), number)
    }
}

/// What `word` counts for order `number`.
pub(crate) const fn counted(word: u64, number: u64) -> u32 {
    if (word >> 32) as u32 == number as u32 { word as u32 } else { 0 }
}

/// The word that says how many slots there are.
pub(crate) const fn slots_word() -> u64 {
    PID_SLOTS as u64 | (BROAD_SLOTS as u64) << 32
}
