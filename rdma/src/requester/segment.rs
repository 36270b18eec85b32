//! A segment: one message on the wire, with its sequence numbers. Operations become segments here.

use std::time::Duration;

use remote_memory::{RemoteAddr, Work};

use super::Requester;
use crate::wire::Psn;

/// Packets of one READ segment. Few, because a READ is repeated whole; enough to make the request packets a small
/// part of the traffic.
const READ_SEGMENT_PACKETS: u32 = 16;

/// What a segment asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    CompareSwap { expect: u64, swap: u64 },
    FetchAdd { add: u64 },
}

/// One message in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub kind: Kind,
    pub at: RemoteAddr,
    /// Bytes, and where they are in the landing buffer; 0 for atomics.
    pub len: u32,
    pub landing: u32,
    /// First sequence number, and how many it takes.
    pub psn: Psn,
    pub packets: u32,
    /// Packets acknowledged (WRITE) or received (READ).
    pub done: u32,
    /// When its last packet left first, and whether one left again since.
    pub sent_at: Duration,
    pub repeated: bool,
    /// Whether its operation ends with it.
    pub last: bool,
}

impl Segment {
    /// Behind its last sequence number.
    pub(super) fn end(&self) -> Psn {
        self.psn.plus(self.packets)
    }

    /// Whether `psn` is one of its numbers.
    pub(super) fn holds(&self, psn: Psn) -> bool {
        (0..self.packets.cast_signed()).contains(&psn.distance_from(self.psn))
    }

    /// Whether an answer other than a plain ACK is due.
    pub(super) fn is_answered_with_data(&self) -> bool {
        self.kind != Kind::Write
    }
}

impl Requester {
    /// Packets between the oldest unanswered one and `psn`.
    pub(super) fn ahead(&self, psn: Psn) -> u32 {
        match self.flight.front() {
            Some(front) => psn.distance_from(front.psn.plus(front.done)).max(0).cast_unsigned(),
            None => 0,
        }
    }

    /// Puts the next part of the next operation into flight, if there is one and the windows allow. The packets of a
    /// WRITE are held to the window one by one when they are sent.
    pub(super) fn launch(&mut self, now: Duration) -> bool {
        let Some(segment) = self.next_segment(now) else { return false };
        let room = self.limits.window_packets.saturating_sub(self.ahead(self.next_psn));
        let claimed = if segment.kind == Kind::Write { 1 } else { segment.packets };
        let fenced = segment.kind != Kind::Read && self.reads > 0;
        let crowded = segment.is_answered_with_data() && self.reads + self.atomics >= self.reads_max;
        if claimed > room || fenced || crowded {
            return false;
        }
        match segment.kind {
            Kind::Read => self.reads += 1,
            Kind::Write => {}
            Kind::CompareSwap { .. } | Kind::FetchAdd { .. } => self.atomics += 1,
        }
        if segment.last {
            (self.next_op, self.next_op_bytes) = (self.next_op + 1, 0);
        } else {
            self.next_op_bytes += segment.len;
        }
        self.next_psn = segment.end();
        self.flight.push_back(segment);
        true
    }

    fn next_segment(&self, now: Duration) -> Option<Segment> {
        let op = self.ops.get(self.next_op)?;
        let (kind, at, len, landing) = match op.request.work {
            Work::Read { at, len, landing } => (Kind::Read, at, len, landing),
            Work::Write { at, len, landing } => (Kind::Write, at, len, landing),
            Work::CompareSwap { at, expect, swap } => (Kind::CompareSwap { expect, swap }, at, 0, 0),
            Work::FetchAdd { at, add } => (Kind::FetchAdd { add }, at, 0, 0),
        };
        let left = len - self.next_op_bytes;
        let part = match kind {
            Kind::Read => left.min(self.read_segment_bytes()),
            _ => left,
        };
        let addr = at.addr.wrapping_add(u64::from(self.next_op_bytes)); // past the end: for the server to refuse
        Some(Segment {
            kind,
            at: RemoteAddr::new(at.key, addr),
            len: part,
            landing: landing + self.next_op_bytes,
            psn: self.next_psn,
            packets: self.mtu.packets(part),
            done: 0,
            sent_at: now,
            repeated: false,
            last: part == left,
        })
    }

    fn read_segment_bytes(&self) -> u32 {
        READ_SEGMENT_PACKETS.min(self.limits.window_packets) * u32::from(self.mtu.raw())
    }
}
