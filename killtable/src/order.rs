//! Makes orders: the writes that name who is to be ended, in the sequence that makes a torn order none.
//!
//! ```text
//!   withdraw (number := 0) ──► head but its number, slots ──► number         each an RDMA WRITE of one queue pair,
//!                                                                            carried out in this sequence
//! ```
//! The number is the last word and the only one that changes anything. A kernel that looks in between sees number 0, or
//! a number whose head does not hold, or slots that are not that number's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::layout::{
    BROAD_AT, BROAD_SLOTS, BY_PID_AT, Kind, LEASE_MS_MAX, MOST_MAX, ORDERS_MAGIC, PID_SLOTS, PROBES, VERSION_WORD,
    checksum, head, home, slot, what,
};

/// Bytes between two pieces of a body that are sent along as zeros rather than begun anew behind: a zeroed slot is no
/// order's, and a target whose adapter is a program answers each WRITE, whose processors thousands may want.
const GAP_BYTES_MAX: usize = 16 << 10;

/// Numbers that are tried before a set of process ids is called crowded.
const NUMBERS_TRIED: u64 = 16;

/// Who is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Mark {
    /// A process, and the children it has after the order is in force.
    Pid {
        /// Its id.
        pid: u32,
        /// When it started, in nanoseconds of the target's monotonic clock.
        start_ns: u64,
    },
    /// Every process of a real user.
    Uid {
        /// The user.
        uid: u32,
    },
    /// Every process of a cgroup (version 2).
    Cgroup {
        /// Its id: the inode of its folder.
        id: u64,
    },
}

impl Mark {
    /// Kind, key and start, as a slot has them.
    pub const fn parts(self) -> (Kind, u64, u64) {
        match self {
            Self::Pid { pid, start_ns } => (Kind::Pid, pid as u64, start_ns),
            Self::Uid { uid } => (Kind::Uid, uid as u64, 0),
            Self::Cgroup { id } => (Kind::Cgroup, id, 0),
        }
    }
}

/// Why no order can be made: the caller's fault, all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It would do nothing.
    #[error("the order names nobody")]
    Empty,
    /// A bound of zero, or a lease that is none or too long.
    #[error("an order ends at least one process and stands for 1 to {LEASE_MS_MAX} ms")]
    Bounds,
    /// More users and cgroups than there are slots.
    #[error("more than {BROAD_SLOTS} users and cgroups")]
    TooManyBroad,
    /// More process ids than there are slots, or such that they do not fit.
    #[error("{pids} process ids do not fit into {PID_SLOTS} slots")]
    Crowded {
        /// How many there are.
        pids: usize,
    },
}

/// An order, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    number: u64,
    head: [u64; head::WORDS],
    /// Slots with their words, by their first word in the orders.
    slots: BTreeMap<usize, [u64; slot::WORDS]>,
    /// Slot numbers in the order of the marks.
    placed: Vec<usize>,
}

impl Order {
    /// Makes an order for the machine `target`, which its answers name.
    ///
    /// `number` should be drawn at random; it is changed if process ids do not fit with it. `most` bounds what the
    /// order ends in all, each mark what it ends by itself: a process and its later children count as one mark's.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn new(number: u64, target: u64, marks: &[(Mark, u32)], most: u32, lease_ms: u32) -> Result<Self, OrderError> {
        if marks.is_empty() {
            return Err(OrderError::Empty);
        }
        if most == 0 || lease_ms == 0 || lease_ms > LEASE_MS_MAX {
            return Err(OrderError::Bounds);
        }
        let pids = marks.iter().filter(|(mark, _)| matches!(mark, Mark::Pid { .. })).count();
        if marks.len() - pids > BROAD_SLOTS {
            return Err(OrderError::TooManyBroad);
        }
        let numbers = (0..NUMBERS_TRIED).map(|step| number.wrapping_add(step)).filter(|number| *number as u32 != 0);
        let placed = numbers.map(|number| (number, place(number, marks))).find(|(_, placed)| placed.is_some());
        let Some((number, Some((slots, placed)))) = placed else { return Err(OrderError::Crowded { pids }) };
        let mut head = [0; head::WORDS];
        head[head::NUMBER] = number;
        head[head::MAGIC] = ORDERS_MAGIC;
        head[head::VERSION] = VERSION_WORD;
        head[head::TARGET] = target;
        head[head::BOUNDS] = u64::from(most) | u64::from(lease_ms) << 32;
        head[head::CHECK] = checksum(&head[..head::CHECK]);
        Ok(Self { number, head, slots, placed })
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// For each mark, in the order in which they were given, its slot: an index into the tallies of the answers.
    pub fn slots(&self) -> &[usize] {
        &self.placed
    }

    /// The write that withdraws whatever stands there: the offset in the region, and the bytes.
    pub fn withdrawal() -> (u64, [u8; 8]) {
        (head::NUMBER as u64 * 8, [0; 8])
    }

    /// The writes before the last: the head but its number, and all slots, as few as there can be.
    pub fn body(&self) -> Vec<(u64, Vec<u8>)> {
        let mut writes = vec![(head::MAGIC as u64 * 8, bytes(&self.head[head::MAGIC..]))];
        for (at, words) in &self.slots {
            let (at, bytes) = (*at as u64 * 8, bytes(words));
            match writes.last_mut() {
                Some((begin, before)) if (at - *begin) as usize <= before.len() + GAP_BYTES_MAX => {
                    before.resize((at - *begin) as usize, 0);
                    before.extend(bytes);
                }
                _ => writes.push((at, bytes)),
            }
        }
        writes
    }

    /// Bytes of the region up to the end of its last slot.
    pub fn len_bytes(&self) -> usize {
        let last = self.slots.last_key_value().map_or(0, |(at, _)| at + slot::WORDS);
        last.max(head::WORDS) * 8
    }

    /// The last write, which makes it an order.
    pub fn commit(&self) -> (u64, [u8; 8]) {
        (head::NUMBER as u64 * 8, self.number.to_le_bytes())
    }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

type Placed = (BTreeMap<usize, [u64; slot::WORDS]>, Vec<usize>);

/// Finds a place for every mark. `None` if a process id would lie further from its home than it is looked for.
fn place(number: u64, marks: &[(Mark, u32)]) -> Option<Placed> {
    let (mut slots, mut placed, mut broad) = (BTreeMap::new(), Vec::with_capacity(marks.len()), 0);
    for (mark, most) in marks {
        let (kind, key, start_ns) = mark.parts();
        let (at, index) = match *mark {
            Mark::Pid { pid, .. } => {
                let first = home(number, pid);
                let at = |probe: usize| (first + probe) % PID_SLOTS;
                let free = |probe: &usize| !slots.contains_key(&(BY_PID_AT + at(*probe) * slot::WORDS));
                let at = at((0..PROBES).find(free)?);
                (BY_PID_AT + at * slot::WORDS, BROAD_SLOTS + at)
            }
            Mark::Uid { .. } | Mark::Cgroup { .. } => {
                broad += 1;
                (BROAD_AT + (broad - 1) * slot::WORDS, broad - 1)
            }
        };
        slots.insert(at, [number, key, start_ns, what(number, kind, key, start_ns, (*most).min(MOST_MAX))]);
        placed.push(index);
    }
    Some((slots, placed))
}
