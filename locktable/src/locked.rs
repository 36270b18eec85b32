//! The answers: what the agent says in them when it starts, and how others read them.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{BYTES, MAGIC, MARKS, Mode, PROCESSORS, VERSION, answer, checksum};
use crate::reference::{Standing, Verdict};

const MARK_UID: u64 = 0x5b;
const MARK_CGROUP: u64 = 0x97;
const MARK_KEY: u64 = 0x00ff_ffff_ffff_ffff;

/// Why memory holds no answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswers {
    /// Too few bytes.
    #[error("{have} bytes are no answers of {BYTES}")]
    Short {
        /// How many there are.
        have: usize,
    },
    /// Something else lies there.
    #[error("no answers to a lock lie there (found {found:#x}): the agent has not made any")]
    Magic {
        /// What was found.
        found: u64,
    },
    /// Another release's.
    #[error("the lock is of another version than {VERSION}")]
    Version,
    /// The head was damaged.
    #[error("the head of the answers is damaged")]
    Damaged,
}

/// Answers, as one read brought them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// The target's identity: another one with every boot.
    pub target: u64,
    /// What stands.
    pub standing: Standing,
    /// Since when, in nanoseconds of the target's monotonic clock.
    pub since_ns: u64,
    /// The word that was refused last, and why.
    pub refused: Option<(u64, Verdict)>,
    /// When the lock word was last looked at, in nanoseconds of the target's monotonic clock.
    pub beat_ns: u64,
    /// Packets to service addresses that were dropped, ever.
    pub dropped_in: u64,
    /// Packets from service addresses that were dropped, ever.
    pub dropped_out: u64,
    /// Signals to stop that processes of the service were sent, ever.
    pub stopped: u64,
    /// Interfaces that are guarded both ways.
    pub interfaces: u16,
    /// Service addresses.
    pub addresses: u16,
    processors: u64,
    settled: Vec<u64>,
}

impl Locked {
    /// Takes answers apart.
    ///
    /// # Errors
    /// See [`NoAnswers`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoAnswers> {
        if bytes.len() < BYTES {
            return Err(NoAnswers::Short { have: bytes.len() });
        }
        let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if words[answer::MAGIC] != MAGIC {
            return Err(NoAnswers::Magic { found: words[answer::MAGIC] });
        }
        if words[answer::VERSION] != VERSION {
            return Err(NoAnswers::Version);
        }
        if checksum(&words[..answer::CHECK]) != words[answer::CHECK] {
            return Err(NoAnswers::Damaged);
        }
        let why = Verdict::from_code(words[answer::WHY]);
        Ok(Self {
            target: words[answer::TARGET],
            standing: Standing::decode(words[answer::STANDING]),
            since_ns: words[answer::SINCE_NS],
            refused: why.map(|why| (words[answer::REFUSED], why)).filter(|(word, _)| *word != 0),
            beat_ns: words[answer::BEAT_NS],
            dropped_in: words[answer::DROPPED_IN],
            dropped_out: words[answer::DROPPED_OUT],
            stopped: words[answer::STOPPED],
            interfaces: words[answer::GUARDS] as u16,
            addresses: (words[answer::GUARDS] >> 32) as u16,
            processors: words[answer::PROCESSORS],
            settled: words[answer::SETTLED..][..PROCESSORS].to_vec(),
        })
    }

    /// Whether lock `number` stands, and as what.
    pub fn stands(&self, number: u32) -> Option<Mode> {
        match self.standing {
            Standing::Stands { number: standing, mode, .. } if standing == number => Some(mode),
            _ => None,
        }
    }

    /// Whether every processor has been seen outside of the way out to the network since lock `number` stands: what was
    /// let through before is in the queues of the interface by then, or gone.
    pub fn has_settled(&self, number: u32) -> bool {
        self.unsettled(number) == 0
    }

    /// The processors that have not, a bit for each.
    pub fn unsettled(&self, number: u32) -> u64 {
        let is_missing = |cpu: &usize| self.processors >> cpu & 1 == 1 && self.settled[*cpu] != u64::from(number);
        (0..PROCESSORS).filter(is_missing).fold(0, |bits, cpu| bits | 1 << cpu)
    }
}

/// Whose processes are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Those of a real user.
    Uid(u32),
    /// Those of a cgroup (version 2), by its id.
    Cgroup(u64),
}

/// Why there is no sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The memory has another length.
    #[error("answers have {BYTES} bytes, not {have}")]
    Memory {
        /// Its length.
        have: usize,
    },
    /// More users and cgroups than there is room for.
    #[error("{count} users and cgroups to stop; the lock has room for {MARKS}")]
    TooManyMarks {
        /// How many.
        count: usize,
    },
}

/// The agent's end of the answers; the kernel's programs write the same memory at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Sign<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Sign<'a> {
    /// Says who the machine is, which `processors` are watched, and whom a lock stops. What stands, goes on standing.
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn put(
        words: &'a [AtomicU64],
        target: u64,
        processors: &[u32],
        marks: &[Mark],
        agent: u32,
    ) -> Result<Self, SignError> {
        if size_of_val(words) != BYTES {
            return Err(SignError::Memory { have: size_of_val(words) });
        }
        if marks.len() > MARKS {
            return Err(SignError::TooManyMarks { count: marks.len() });
        }
        let mark = |mark: Option<&Mark>| match mark {
            Some(Mark::Uid(uid)) => MARK_UID << 56 | u64::from(*uid),
            Some(Mark::Cgroup(id)) => MARK_CGROUP << 56 | id & MARK_KEY,
            None => 0,
        };
        for (index, place) in words[answer::MARKS..][..MARKS].iter().enumerate() {
            place.store(mark(marks.get(index)), Ordering::Release);
        }
        words[answer::AGENT_PID].store(agent.into(), Ordering::Release);
        let mut head = [0; answer::CHECK + 1];
        head[answer::MAGIC] = MAGIC;
        head[answer::VERSION] = VERSION;
        head[answer::TARGET] = target;
        let bit = |cpu: &u32| 1u64.checked_shl(*cpu).unwrap_or(0);
        head[answer::PROCESSORS] = processors.iter().map(bit).fold(0, |all, one| all | one);
        head[answer::CHECK] = checksum(&head[..answer::CHECK]);
        // The first word last: it is what the kernel's programs wait for.
        head.iter().enumerate().rev().for_each(|(index, word)| words[index].store(*word, Ordering::Release));
        Ok(Self { words })
    }

    /// Says what is guarded.
    pub fn guards(&self, interfaces: u16, by_xdp: u16, addresses: u16) {
        let word = u64::from(interfaces) | u64::from(by_xdp) << 16 | u64::from(addresses) << 32;
        self.words[answer::GUARDS].store(word, Ordering::Release);
    }

    /// Says that the agent is at its place.
    pub fn beat(&self, now_ns: u64) {
        self.words[answer::AGENT_BEAT_NS].store(now_ns, Ordering::Release);
    }

    /// What stands.
    pub fn standing(&self) -> Standing {
        Standing::decode(self.words[answer::STANDING].load(Ordering::Acquire))
    }
}
