//! The serving half of a reliable connection: a function of packets, state and the memory it serves.
//!
//! No socket, no clock: a responder never waits for anything, so it needs no time. [`Responder::receive`] takes one
//! packet and carries out what it asks; [`Responder::transmit`] makes one packet of the answers that are waiting, so
//! that the caller decides how to share the wire between connections and one large READ does not starve the others.
//!
//! ```text
//!          behind expected: duplicate             expected        ahead: something was lost
//!   ... ---------------------------------------------|------------------------------------- ...
//!   WRITE   acknowledged again, not executed      executed        dropped; an ACK for WRITEs just
//!   READ    executed again                                        before, one NAK 0x60 carrying
//!   atomic  answered from the saved ring                          `expected`, then silence until
//!                                                                 an expected packet comes
//! ```
//!
//! Answers leave in the order their requests came, so an ACK never overtakes a READ's data. A READ copies memory when
//! its answer is made, after later WRITEs of the same connection may have been executed: as the specification allows,
//! a requester that minds waits for the READ first (ours does).
//!
//! What is deliberately absent: SEND, WRITE with immediate (there is no receive queue; answered as invalid), memory
//! windows, and any rule about who may read what: that is [`Memory`]'s.
//!
//! Invariants: no packet can make it panic; at most one answer is queued per packet and [`Responder::receive`] drops
//! packets rather than queue without bound; an atomic is executed once; after an error nothing is executed any more.
//!
//! Source: InfiniBand Architecture Specification, volume 1, "Responder: receiving inbound request packets".

mod duplicate;
mod execute;
mod memory;
mod reply;

use std::collections::VecDeque;

pub use memory::{Memory, Refusal};

use crate::wire::aeth::Syndrome;
use crate::wire::{Psn, bth, packet};
use crate::{PathMtu, QpAttributes};
use reply::Reply;

/// The longest message we serve, in bytes: what rxe allows.
pub const MESSAGE_BYTES_MAX: u32 = 8 << 20;

/// Answers that may wait besides one per READ and atomic in flight: acknowledgements, and repetitions.
const SPARE_REPLIES: usize = 64;

/// Message sequence numbers have 24 bits.
const MSN_MASK: u32 = 0xff_ffff;

/// What a responder has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// READ requests answered, duplicates included.
    pub reads: u64,
    /// Bytes those answers carried.
    pub read_bytes: u64,
    /// WRITE messages carried out whole.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Atomics executed.
    pub atomics: u64,
    /// Requests refused with an error that broke the connection.
    pub refused: u64,
    /// Packets that repeated an earlier one.
    pub duplicates: u64,
    /// Packets that came before one that was lost.
    pub out_of_order: u64,
    /// Packets dropped without an answer: malformed, outside the window, or with too much work already waiting.
    pub dropped: u64,
}

impl Counters {
    /// Adds `more` to every counter.
    pub fn absorb(&mut self, more: &Self) {
        self.reads += more.reads;
        self.read_bytes += more.read_bytes;
        self.writes += more.writes;
        self.write_bytes += more.write_bytes;
        self.atomics += more.atomics;
        self.refused += more.refused;
        self.duplicates += more.duplicates;
        self.out_of_order += more.out_of_order;
        self.dropped += more.dropped;
    }
}

/// A WRITE of several packets whose last one has not come yet.
#[derive(Clone, Copy, Debug)]
struct OpenWrite {
    key: remote_memory::RemoteKey,
    addr: u64,
    remaining: u32,
}

/// An atomic that was executed, kept for a requester that lost the answer.
#[derive(Clone, Copy, Debug)]
struct SavedAtomic {
    psn: Psn,
    original: u64,
}

/// A READ that was answered, kept to tell whether a repetition begins at its start.
#[derive(Clone, Copy, Debug)]
struct SavedRead {
    psn: Psn,
    packets: u32,
}

/// How a READ is answered that is repeated from its middle, which our own requester never does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Resumption {
    /// With MIDDLE or LAST, as part of the answer it had before: what Linux' rxe sends, and all it accepts.
    #[default]
    Continued,
    /// With FIRST or ONLY, as an answer of its own: what the specification says and adapters do.
    Anew,
}

/// What broke the connection. The NAK is repeated when its request is: losing it would otherwise cost the requester
/// all its retries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Failure {
    psn: Psn,
    syndrome: Syndrome,
}

/// One connection's serving half.
#[derive(Debug)]
pub struct Responder {
    number: u32,
    peer: u32,
    mtu: PathMtu,
    expected: Psn,
    /// First of the WRITE packets that directly precede `expected`: a duplicate among them may be acknowledged up to
    /// `expected` without overtaking a READ or atomic.
    writes_from: Psn,
    msn: u32,
    sequence_nak_sent: bool,
    open_write: Option<OpenWrite>,
    replies: VecDeque<Reply>,
    replies_max: usize,
    atomics: VecDeque<SavedAtomic>,
    reads: VecDeque<SavedRead>,
    /// Entries of `atomics` and of `reads`: as many as the requester may have in flight.
    saved_max: usize,
    resumption: Resumption,
    failure: Option<Failure>,
    counters: Counters,
}

impl Responder {
    /// The responder of queue pair `local` for requests from `remote`.
    pub fn new(local: &QpAttributes, remote: &QpAttributes) -> Self {
        let expected = Psn::new(remote.first_psn);
        let in_flight = usize::from(local.reads_in_flight.max(1));
        let replies_max = 2 * in_flight + SPARE_REPLIES;
        Self {
            number: local.number,
            peer: remote.number,
            mtu: PathMtu::at_most(local.path_mtu.min(remote.path_mtu)),
            expected,
            writes_from: expected,
            msn: 0,
            sequence_nak_sent: false,
            open_write: None,
            replies: VecDeque::with_capacity(replies_max),
            replies_max,
            atomics: VecDeque::with_capacity(in_flight),
            reads: VecDeque::with_capacity(in_flight),
            saved_max: in_flight,
            resumption: Resumption::default(),
            failure: None,
            counters: Counters::default(),
        }
    }

    /// The same, answering interrupted READs by `resumption`.
    #[must_use]
    pub fn resuming(self, resumption: Resumption) -> Self {
        Self { resumption, ..self }
    }

    /// Takes one packet, from BTH to padding, and carries out what it asks.
    pub fn receive<M: Memory + ?Sized>(&mut self, memory: &M, ib: &[u8]) {
        let request = match packet::split(ib) {
            Ok(request) if request.header.dest_qp == self.number && !request.header.opcode.is_response() => request,
            _ => return self.drop_packet(),
        };
        let header = &request.header;
        if let Some(failure) = self.failure {
            return self.repeat_failure(failure, header);
        }
        if self.replies.len() >= self.replies_max {
            return self.drop_packet();
        }
        match header.psn.distance_from(self.expected) {
            0 => {
                self.sequence_nak_sent = false;
                self.execute(memory, header, request.body);
            }
            1.. => self.ask_for_expected(),
            _ => {
                self.counters.duplicates += 1;
                self.answer_again(memory, header, request.body);
            }
        }
    }

    /// Makes the next waiting answer in `out`, which holds at least [`packet::LEN_MAX`] bytes. Returns its length, from
    /// BTH to padding, or `None` if nothing waits.
    pub fn transmit<M: Memory + ?Sized>(&mut self, memory: &M, out: &mut [u8]) -> Option<usize> {
        let reply = self.replies.front_mut()?;
        let made = reply.make(self.peer, self.mtu, memory, out);
        match made {
            Ok(reply::Made { len, more, read_bytes }) => {
                self.counters.read_bytes += read_bytes as u64;
                if !more {
                    self.replies.pop_front();
                }
                Some(len)
            }
            Err((_, Refusal::Outdated)) => {
                self.replies.pop_front();
                self.drop_packet();
                self.transmit(memory, out)
            }
            Err((psn, refusal)) => {
                self.replies.clear(); // they answer requests after the one that failed
                self.fail(psn, reply::syndrome_of(refusal));
                self.transmit(memory, out)
            }
        }
    }

    /// Whether [`Responder::transmit`] has something to send.
    pub fn has_output(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Whether an error ended this connection.
    pub fn is_broken(&self) -> bool {
        self.failure.is_some()
    }

    /// What was done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn drop_packet(&mut self) {
        self.counters.dropped += 1;
    }

    fn repeat_failure(&mut self, failure: Failure, header: &bth::Repr) {
        if header.psn == failure.psn && self.replies.is_empty() {
            self.acknowledge(failure.psn, failure.syndrome);
        } else {
            self.drop_packet();
        }
    }

    fn ask_for_expected(&mut self) {
        self.counters.out_of_order += 1;
        if !self.sequence_nak_sent {
            self.sequence_nak_sent = true;
            // The NAK says by itself that all before it is done. But Linux' rxe counts each NAK as a try and begins to
            // count anew only with an ACK: it would give up a long WRITE that loses a packet now and then, although it
            // gets on. Source: Linux rxe_comp.c, reset_retry_counters.
            if self.expected.is_after(self.writes_from) {
                self.acknowledge(self.expected.minus(1), Syndrome::ACK);
            }
            self.acknowledge(self.expected, Syndrome::SEQUENCE_ERROR);
        }
    }

    /// Ends the connection: what was asked before is still answered, then `syndrome` for `psn`.
    fn fail(&mut self, psn: Psn, syndrome: Syndrome) {
        self.counters.refused += 1;
        self.open_write = None;
        self.failure = Some(Failure { psn, syndrome });
        self.acknowledge(psn, syndrome);
    }

    /// Queues an ACK or NAK. An ACK still waiting at the tail is replaced: the later one says more.
    fn acknowledge(&mut self, psn: Psn, syndrome: Syndrome) {
        let msn = self.msn;
        if let Some(Reply::Acknowledge { psn: last, syndrome: Syndrome::ACK, msn: last_msn }) = self.replies.back_mut()
            && syndrome == Syndrome::ACK
        {
            if psn.is_after(*last) {
                (*last, *last_msn) = (psn, msn);
            }
            return;
        }
        self.replies.push_back(Reply::Acknowledge { psn, syndrome, msn });
    }

    /// The packets up to `psn` are done and a message ended with them.
    fn finish_message(&mut self) {
        self.msn = (self.msn + 1) & MSN_MASK;
    }
}
