//! A packet that came before comes again: its answer was lost, late, or the network doubled it.

use super::execute::read_request;
use super::reply::{Reply, syndrome_of};
use super::{Memory, Refusal, Responder, Resumption, SavedRead};
use crate::wire::aeth::Syndrome;
use crate::wire::{Opcode, Psn, bth};

impl Responder {
    /// Answers a packet behind the expected one, executing nothing that changes memory.
    pub(super) fn answer_again<M: Memory + ?Sized>(&mut self, memory: &M, header: &bth::Repr, body: &[u8]) {
        match header.opcode {
            opcode if opcode.is_write() => {
                let among_last_writes = header.psn.distance_from(self.writes_from) >= 0;
                let upto = if among_last_writes { self.expected.minus(1) } else { header.psn };
                self.acknowledge(upto, Syndrome::ACK);
            }
            Opcode::READ_REQUEST => self.read_again(memory, header, body),
            Opcode::COMPARE_SWAP | Opcode::FETCH_ADD => self.atomic_again(header.psn),
            _ => self.drop_packet(),
        }
    }

    /// A READ changes nothing, so it is executed again, unless its answer still waits whole.
    fn read_again<M: Memory + ?Sized>(&mut self, memory: &M, header: &bth::Repr, body: &[u8]) {
        let waits = |reply: &Reply| matches!(reply, Reply::Read(read) if read.psn == header.psn);
        if self.replies.iter().any(waits) {
            return;
        }
        match read_request(memory, body) {
            Ok(reth) => {
                let end = header.psn.plus(self.mtu.packets(reth.len));
                if end.is_after(self.expected) {
                    self.drop_packet(); // longer than what it claims to repeat
                } else {
                    self.queue_read(header, &reth, self.is_continued(header.psn));
                }
            }
            Err(Refusal::Outdated) => self.drop_packet(),
            Err(refusal) => self.fail(header.psn, syndrome_of(refusal)),
        }
    }

    /// Whether a repetition from `psn` lies inside an earlier READ and is to be answered as a part of that.
    fn is_continued(&self, psn: Psn) -> bool {
        let inside = |read: &SavedRead| (1..read.packets.cast_signed()).contains(&psn.distance_from(read.psn));
        self.resumption == Resumption::Continued && self.reads.iter().any(inside)
    }

    fn atomic_again(&mut self, psn: Psn) {
        let Some(saved) = self.atomics.iter().rev().find(|saved| saved.psn == psn).copied() else {
            return self.drop_packet();
        };
        let waits = |reply: &Reply| matches!(reply, Reply::Atomic { psn: waiting, .. } if *waiting == psn);
        if !self.replies.iter().any(waits) {
            self.replies.push_back(Reply::Atomic { psn, original: saved.original, msn: self.msn });
        }
    }
}
