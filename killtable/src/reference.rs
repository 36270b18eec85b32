//! What the kernel decides by a table, said once more in Rust: `tests/decisions.rs` holds `include/killtable.h` against
//! it, and a monitor reads its own order back with it.

use crate::layout::{
    BROAD_AT, BROAD_SLOTS, BY_PID_AT, Kind, LEASE_MS_MAX, ORDERS_BYTES, ORDERS_MAGIC, PID_SLOTS, PROBES, Refusal,
    VERSION_WORD, checksum, head, home, slot,
};
use crate::order::Mark;

/// What is known of a process when it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its real user.
    pub uid: u32,
    /// The user whose rights it has.
    pub effective_uid: u32,
    /// Whether it is a thread of the kernel.
    pub is_kernel: bool,
    /// When it started, in nanoseconds of the machine's monotonic clock.
    pub start_ns: u64,
    /// Its cgroup (version 2).
    pub cgroup: u64,
}

/// Whom a target does not end, whatever an order says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// Users.
    pub uids: Vec<u32>,
    /// The agent's process.
    pub agent: u32,
}

impl Spared {
    /// Whether `process` may be ended at all.
    pub fn may_end(&self, process: &Process) -> bool {
        let is_spared = |uid| self.uids.contains(&uid);
        process.pid > 1
            && !process.is_kernel
            && process.pid != self.agent
            && !is_spared(process.uid)
            && !is_spared(process.effective_uid)
    }
}

/// The words of a region with orders.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a>(&'a [u8]);

impl<'a> Orders<'a> {
    /// Lays them over `bytes`; `None` if these are too few.
    pub fn over(bytes: &'a [u8]) -> Option<Self> {
        Some(Self(bytes.get(..ORDERS_BYTES)?))
    }

    fn word(&self, index: usize) -> u64 {
        let bytes = self.0.get(index * 8..).and_then(<[u8]>::first_chunk).copied();
        u64::from_le_bytes(bytes.unwrap_or_default())
    }

    /// The number that stands there.
    pub fn number(&self) -> u64 {
        self.word(head::NUMBER)
    }

    /// Why order `number` is not taken up by the machine `target`; `None` if it is.
    pub fn refusal(&self, number: u64, target: u64) -> Option<Refusal> {
        let mut words = [0; head::WORDS];
        words.iter_mut().enumerate().for_each(|(index, word)| *word = self.word(index));
        words[head::NUMBER] = number;
        let reserved = words[head::BOUNDS + 1..head::CHECK].iter().any(|word| *word != 0);
        if checksum(&words[..head::CHECK]) != words[head::CHECK] || words[head::MAGIC] != ORDERS_MAGIC || reserved {
            return Some(Refusal::Header);
        }
        if words[head::VERSION] != VERSION_WORD {
            return Some(Refusal::Version);
        }
        if words[head::TARGET] != target {
            return Some(Refusal::OtherTarget);
        }
        let (most, lease_ms) = (words[head::BOUNDS] as u32, (words[head::BOUNDS] >> 32) as u32);
        (most == 0 || lease_ms == 0 || lease_ms > LEASE_MS_MAX).then_some(Refusal::NoBound)
    }

    /// The slot of order `number` that means `process`.
    pub fn find(&self, number: u64, process: &Process) -> Option<usize> {
        let first = home(number, process.pid);
        for at in (0..PROBES).map(|probe| (first + probe) % PID_SLOTS) {
            let words = self.slot(BY_PID_AT + at * slot::WORDS);
            if words[slot::NUMBER] != number {
                break;
            }
            if holds(words, Kind::Pid, process.pid.into(), process.start_ns) {
                return Some(BROAD_SLOTS + at);
            }
        }
        for at in 0..BROAD_SLOTS {
            let words = self.slot(BROAD_AT + at * slot::WORDS);
            if words[slot::NUMBER] != number {
                break;
            }
            if holds(words, Kind::Uid, process.uid.into(), 0) || holds(words, Kind::Cgroup, process.cgroup, 0) {
                return Some(at);
            }
        }
        None
    }

    /// Whether `mark` stands in order `number`, whole: what a monitor that reads its order back wants to know.
    pub fn names(&self, number: u64, index: usize, mark: Mark) -> bool {
        let (kind, key, start_ns) = mark.parts();
        let at = match index.checked_sub(BROAD_SLOTS) {
            Some(pid) => BY_PID_AT + pid * slot::WORDS,
            None => BROAD_AT + index * slot::WORDS,
        };
        let words = self.slot(at);
        words[slot::NUMBER] == number && holds(words, kind, key, start_ns)
    }

    fn slot(&self, at: usize) -> [u64; slot::WORDS] {
        std::array::from_fn(|word| self.word(at + word))
    }
}

fn holds(words: [u64; slot::WORDS], kind: Kind, key: u64, start_ns: u64) -> bool {
    let what = words[slot::WHAT];
    let low = what & u64::from(u32::MAX);
    words[slot::KEY] == key
        && words[slot::START_NS] == start_ns
        && (what >> 24) as u8 == kind.code()
        && checksum(&[words[slot::NUMBER], key, start_ns, low]) >> 32 == what >> 32
}
