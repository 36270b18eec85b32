//! Packets are made of what is in flight, new or again.

use std::time::Duration;

use super::Requester;
use super::segment::{Kind, Segment};
use crate::wire::{Opcode, atomic, bth, packet, reth};

/// Packets of a WRITE after which an acknowledgement is asked for even before its end, so that the window moves.
const ACK_EVERY_PACKETS: u32 = 16;

impl Requester {
    /// Makes the next packet in `out`, which holds at least [`packet::LEN_MAX`] bytes; WRITE data come out of
    /// `landing`. Returns its length, from BTH to padding, or `None` if nothing may be sent now.
    pub fn transmit(&mut self, now: Duration, landing: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.ended.is_some() || self.hold_until.is_some_and(|until| now < until) {
            return None;
        }
        if self.cursor == self.flight.len() && !self.launch(now) {
            return None;
        }
        let segment = self.flight[self.cursor];
        let len = match segment.kind {
            Kind::Read => self.read_request(&segment, out),
            Kind::Write => self.write_packet(&segment, landing, out)?,
            Kind::CompareSwap { expect, swap } => {
                self.atomic_request(Opcode::COMPARE_SWAP, &segment, swap, expect, out)
            }
            Kind::FetchAdd { add } => self.atomic_request(Opcode::FETCH_ADD, &segment, add, 0, out),
        };
        self.note_sent(now, &segment);
        Some(len)
    }

    /// The sequence numbers of `segment` (of one packet, if it is a WRITE) are on the wire: moves the cursor.
    fn note_sent(&mut self, now: Duration, segment: &Segment) {
        let end = match segment.kind {
            Kind::Write => segment.psn.plus(self.cursor_packet + 1),
            _ => segment.end(),
        };
        if end.is_after(self.sent_end) {
            self.sent_end = end;
        }
        if end == segment.end() {
            if !segment.repeated {
                self.flight[self.cursor].sent_at = now;
            }
            (self.cursor, self.cursor_packet) = (self.cursor + 1, 0);
        } else {
            self.cursor_packet += 1;
        }
        self.counters.sent += 1;
        self.timer.start(now);
    }

    fn read_request(&self, segment: &Segment, out: &mut [u8]) -> usize {
        let reth = reth::Repr { addr: segment.at.addr, key: segment.at.key, len: segment.len };
        let header = bth::Repr { ack_request: true, ..bth::Repr::new(Opcode::READ_REQUEST, self.peer, segment.psn) };
        packet::begin(out, header, &[&reth.bytes()], 0).1
    }

    fn atomic_request(
        &self,
        opcode: Opcode,
        segment: &Segment,
        swap_or_add: u64,
        compare: u64,
        out: &mut [u8],
    ) -> usize {
        let atomic = atomic::Repr { addr: segment.at.addr, key: segment.at.key, swap_or_add, compare };
        let header = bth::Repr { ack_request: true, ..bth::Repr::new(opcode, self.peer, segment.psn) };
        packet::begin(out, header, &[&atomic.bytes()], 0).1
    }

    fn write_packet(&mut self, segment: &Segment, landing: &[u8], out: &mut [u8]) -> Option<usize> {
        let index = self.cursor_packet;
        let psn = segment.psn.plus(index);
        if self.ahead(psn) >= self.limits.window_packets {
            return None;
        }
        let (first, last) = (index == 0, index + 1 == segment.packets);
        let opcode = match (first, last) {
            (true, true) => Opcode::WRITE_ONLY,
            (true, false) => Opcode::WRITE_FIRST,
            (false, false) => Opcode::WRITE_MIDDLE,
            (false, true) => Opcode::WRITE_LAST,
        };
        let offset = index as usize * self.mtu.bytes();
        let chunk = (segment.len as usize - offset).min(self.mtu.bytes());
        self.unacknowledged_packets += 1;
        let ack_every = ACK_EVERY_PACKETS.min(self.limits.window_packets / 2);
        let window_full = self.ahead(psn) + 1 == self.limits.window_packets;
        let ack_request = last || window_full || self.unacknowledged_packets >= ack_every;
        if ack_request {
            self.unacknowledged_packets = 0;
        }
        let header = bth::Repr { ack_request, ..bth::Repr::new(opcode, self.peer, psn) };
        let reth = reth::Repr { addr: segment.at.addr, key: segment.at.key, len: segment.len }.bytes();
        let extension: &[&[u8]] = if first { &[&reth] } else { &[] };
        let (payload, len) = packet::begin(out, header, extension, chunk);
        let from = segment.landing as usize + offset;
        out[payload].copy_from_slice(&landing[from..from + chunk]);
        Some(len)
    }
}
