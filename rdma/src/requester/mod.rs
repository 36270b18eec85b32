//! The asking half of a reliable connection: a function of packets, state and a passed-in `now`.
//!
//! Operations are posted many at a time; [`Requester::transmit`] makes packets while the windows allow and
//! [`Requester::receive`] takes the answers. Nothing is allocated per operation: all queues are bounded and sized when
//! the connection is made, and READ data go straight from the packet to their place in the landing buffer.
//!
//! ```text
//!   ops      [ 7 | 8 | 9 | 10 | 11 ... ]        posted, in order; each becomes one or more segments
//!   flight   [ 7a | 7b | 8 | 9 ]                segments with sequence numbers, the oldest first
//!                    ^cursor                    what is sent next: behind the end for new ones, at 0 after a go-back
//! ```
//!
//! A long READ is asked for in segments of a few packets, because a READ is repeated whole: then little is repeated.
//! A WRITE or atomic is held back until all READs before it are answered, so operations take effect in the order in
//! which they were posted, and a repeated READ never sees a later WRITE.
//!
//! What is deliberately absent: receive credits and message sequence numbers (rxe ignores them too), more than one
//! connection, and any attempt to repair a broken one.
//!
//! Invariants: answers are taken in sequence order only; an answer for what was not sent is ignored; landing bytes
//! change only under an outstanding READ; with operations outstanding there is always a deadline, and after a bounded
//! number of them without progress the peer counts as lost.
//!
//! Source: InfiniBand Architecture Specification, volume 1, "Requester: generating request packets" and "receiving
//! responses"; the peer's peculiarities from Linux' drivers/infiniband/sw/rxe.

mod receive;
mod segment;
mod send;
mod timer;

use std::collections::VecDeque;
use std::time::Duration;

use remote_memory::{AccessError, Completion, Request, Work};

use crate::responder::MESSAGE_BYTES_MAX;
use crate::wire::Psn;
use crate::{PathMtu, QpAttributes};
use segment::{Kind, Segment};
use timer::Timer;

/// Bounds of one connection; see the fields of [`crate::soft::Options`] for the reasons behind the usual ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Operations posted and not yet polled.
    pub depth: usize,
    /// Size of the landing buffer.
    pub landing_bytes: usize,
    /// Packets that may be unanswered, counted at the receiver with the smaller buffer; at least 2.
    pub window_packets: u32,
    /// First and least wait for an answer.
    pub timeout: Duration,
    /// Transmissions without progress before the peer counts as lost.
    pub tries: u32,
}

/// Why an operation was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejected {
    /// As many are outstanding as may be: poll first.
    Full,
    /// The connection has ended.
    Broken,
    /// The operation makes no sense; the sentence says why.
    Misused(&'static str),
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The peer refused an operation; its completion says why, those after it are flushed.
    Refused,
    /// No answer after so many transmissions; outstanding operations are void and get no completion.
    Lost {
        /// Transmissions made.
        tries: u32,
    },
}

/// What a requester has seen since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Packets made, repetitions included.
    pub sent: u64,
    /// Times that sending started again at the oldest unanswered packet.
    pub go_backs: u64,
    /// Of those, because nothing came in little more than a round trip.
    pub probes: u64,
    /// Of those, because nothing came in time.
    pub timeouts: u64,
    /// Packets that were malformed, stale, early or not for us.
    pub ignored: u64,
}

impl Counters {
    /// Adds `more` to every counter.
    pub fn absorb(&mut self, more: &Self) {
        self.sent += more.sent;
        self.go_backs += more.go_backs;
        self.probes += more.probes;
        self.timeouts += more.timeouts;
        self.ignored += more.ignored;
    }
}

/// A posted operation.
#[derive(Clone, Copy, Debug)]
struct Op {
    request: Request,
}

/// One connection's asking half.
#[derive(Debug)]
pub struct Requester {
    number: u32,
    peer: u32,
    mtu: PathMtu,
    reads_max: usize,
    limits: Limits,
    ops: VecDeque<Op>,
    /// Index in `ops` of the first operation that is not wholly in `flight`, and how many of its bytes are.
    next_op: usize,
    next_op_bytes: u32,
    flight: VecDeque<Segment>,
    /// Index in `flight` of the segment to send next, and the packet of it (WRITEs only).
    cursor: usize,
    cursor_packet: u32,
    /// READ segments and atomics in `flight`.
    reads: usize,
    atomics: usize,
    /// First sequence number of the next segment.
    next_psn: Psn,
    /// Behind the last sequence number that was ever sent (or that a READ sent claims): answers lie before it.
    sent_end: Psn,
    unacknowledged_packets: u32,
    /// An answer came early and the lost one was asked for; set until there is progress.
    gap_reported: bool,
    hold_until: Option<Duration>,
    timer: Timer,
    completions: VecDeque<Completion>,
    ended: Option<Ended>,
    counters: Counters,
}

impl Requester {
    /// The requester of queue pair `local`, asking `remote`.
    pub fn new(local: &QpAttributes, remote: &QpAttributes, limits: Limits) -> Self {
        let reads_max = usize::from(local.reads_in_flight.min(remote.reads_in_flight).max(1));
        let limits = Limits { window_packets: limits.window_packets.max(2), ..limits };
        let first_psn = Psn::new(local.first_psn);
        Self {
            number: local.number,
            peer: remote.number,
            mtu: PathMtu::at_most(local.path_mtu.min(remote.path_mtu)),
            reads_max,
            limits,
            ops: VecDeque::with_capacity(limits.depth),
            next_op: 0,
            next_op_bytes: 0,
            flight: VecDeque::with_capacity(reads_max + limits.window_packets as usize),
            cursor: 0,
            cursor_packet: 0,
            reads: 0,
            atomics: 0,
            next_psn: first_psn,
            sent_end: first_psn,
            unacknowledged_packets: 0,
            gap_reported: false,
            hold_until: None,
            timer: Timer::new(limits.timeout, limits.tries),
            completions: VecDeque::with_capacity(limits.depth),
            ended: None,
            counters: Counters::default(),
        }
    }

    /// Queues `request`.
    ///
    /// # Errors
    /// See [`Rejected`].
    pub fn post(&mut self, request: Request) -> Result<(), Rejected> {
        if self.ended.is_some() {
            return Err(Rejected::Broken);
        }
        if self.ops.len() + self.completions.len() >= self.limits.depth {
            return Err(Rejected::Full);
        }
        self.check(&request.work).map_err(Rejected::Misused)?;
        self.ops.push_back(Op { request });
        Ok(())
    }

    fn check(&self, work: &Work) -> Result<(), &'static str> {
        match *work {
            Work::Read { len, landing, .. } | Work::Write { len, landing, .. }
                if u64::from(landing) + u64::from(len) > self.limits.landing_bytes as u64 =>
            {
                Err("an operation leaves the landing buffer")
            }
            Work::Write { len, .. } if len > MESSAGE_BYTES_MAX => Err("a write is longer than a message may be"),
            Work::CompareSwap { at, .. } | Work::FetchAdd { at, .. } if at.addr % size_of::<u64>() as u64 != 0 => {
                Err("an atomic needs an address that is a multiple of 8")
            }
            _ => Ok(()),
        }
    }

    /// Takes the next finished operation.
    pub fn completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Whether [`Requester::completion`] has one.
    pub fn has_completion(&self) -> bool {
        !self.completions.is_empty()
    }

    /// How the connection ended, if it did.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Operations without a completion.
    pub fn outstanding(&self) -> usize {
        self.ops.len()
    }

    /// Packets of answers that may be on their way.
    pub fn packets_awaited(&self) -> u32 {
        self.ahead(self.sent_end)
    }

    /// When [`Requester::expire`] has to be called, if nothing arrives before.
    pub fn deadline(&self) -> Option<Duration> {
        match (self.timer.deadline(), self.hold_until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Lets time pass: an overdue answer makes sending start again, or ends the connection.
    pub fn expire(&mut self, now: Duration) {
        if self.hold_until.is_some_and(|until| now >= until) {
            self.hold_until = None;
        }
        match self.timer.expire(now) {
            timer::Expiry::NotYet => {}
            timer::Expiry::Probe => {
                self.counters.probes += 1;
                self.go_back();
            }
            timer::Expiry::Again => {
                self.counters.timeouts += 1;
                self.go_back();
            }
            timer::Expiry::GiveUp { tries } => self.lose(tries),
        }
    }

    /// What was seen.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sending starts again at the oldest packet without an answer.
    fn go_back(&mut self) {
        self.counters.go_backs += 1;
        self.cursor = 0;
        self.cursor_packet = match self.flight.front() {
            Some(front) if front.kind == Kind::Write => front.done,
            _ => 0,
        };
        for segment in &mut self.flight {
            segment.repeated = true;
        }
    }

    fn lose(&mut self, tries: u32) {
        self.end(Ended::Lost { tries });
        self.ops.clear();
    }

    /// Ends the connection over the operation with index `failed`; the others are flushed.
    fn refuse(&mut self, failed: usize, why: AccessError) {
        self.end(Ended::Refused);
        for (index, op) in self.ops.drain(..).enumerate() {
            let outcome = Err(if index == failed { why } else { AccessError::Flushed });
            self.completions.push_back(Completion { id: op.request.id, outcome });
        }
    }

    fn end(&mut self, how: Ended) {
        self.ended = Some(how);
        self.flight.clear();
        (self.cursor, self.cursor_packet) = (0, 0);
        (self.reads, self.atomics) = (0, 0);
        self.hold_until = None;
        self.timer.stop();
    }
}
