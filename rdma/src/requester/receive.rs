//! Answers are taken, in sequence order.
//!
//! Any answer to PSN p says that everything before p has been executed. WRITEs before it are thereby done; a READ or
//! atomic before it whose data did not come was lost on the way, and is asked for again at once: once, because the
//! answers that were behind the lost one are still coming in, and each of them would say the same.

use std::time::Duration;

use remote_memory::{AccessError, Completion};

use super::segment::Kind;
use super::timer::Expiry;
use super::{Requester, Segment};
use crate::wire::aeth::{self, Verdict};
use crate::wire::{Opcode, Psn, atomic, packet};

/// The answer cannot be used.
struct Ignored;

impl Requester {
    /// Takes one packet, from BTH to padding. READ data go to their place in `landing`.
    pub fn receive(&mut self, now: Duration, ib: &[u8], landing: &mut [u8]) {
        if self.take(now, ib, landing).is_err() {
            self.counters.ignored += 1;
        }
    }

    fn take(&mut self, now: Duration, ib: &[u8], landing: &mut [u8]) -> Result<(), Ignored> {
        let answer = packet::split(ib).map_err(|_| Ignored)?;
        let (opcode, psn) = (answer.header.opcode, answer.header.psn);
        if answer.header.dest_qp != self.number || !self.is_awaited(psn) {
            return Err(Ignored);
        }
        if opcode == Opcode::READ_RESPONSE_MIDDLE {
            return self.read_data(now, opcode, psn, answer.body, landing);
        }
        let (aeth, rest) = aeth::split(answer.body).map_err(|_| Ignored)?;
        match opcode {
            Opcode::READ_RESPONSE_FIRST | Opcode::READ_RESPONSE_LAST | Opcode::READ_RESPONSE_ONLY => {
                self.read_data(now, opcode, psn, rest, landing)
            }
            Opcode::ATOMIC_ACKNOWLEDGE => self.atomic_value(now, psn, rest),
            Opcode::ACKNOWLEDGE if rest.is_empty() => self.verdict(now, psn, aeth.syndrome.verdict()),
            _ => Err(Ignored),
        }
    }

    /// Whether `psn` was sent and has no answer yet.
    fn is_awaited(&self, psn: Psn) -> bool {
        self.flight.front().is_some_and(|front| {
            psn.distance_from(front.psn.plus(front.done)) >= 0 && psn.distance_from(self.sent_end) < 0
        })
    }

    fn verdict(&mut self, now: Duration, psn: Psn, verdict: Verdict) -> Result<(), Ignored> {
        let why = match verdict {
            Verdict::Ack => {
                self.acknowledge(now, psn.plus(1));
                return Ok(());
            }
            Verdict::SequenceError => {
                self.acknowledge(now, psn);
                self.gap_reported = true;
                self.go_back();
                return Ok(());
            }
            Verdict::NotReady(delay) => {
                self.acknowledge(now, psn);
                return self.not_ready(now, delay);
            }
            Verdict::AccessError => AccessError::Refused,
            Verdict::InvalidRequest => AccessError::Malformed,
            Verdict::OperationalError => AccessError::Unreachable,
            Verdict::Unknown(_) => return Err(Ignored),
        };
        self.acknowledge(now, psn);
        let segment = self.flight.iter().position(|segment| segment.holds(psn)).ok_or(Ignored)?;
        let failed = self.flight.iter().take(segment).filter(|before| before.last).count();
        self.refuse(failed, why);
        Ok(())
    }

    fn not_ready(&mut self, now: Duration, delay: Duration) -> Result<(), Ignored> {
        if self.hold_until.is_some() {
            return Err(Ignored); // the same refusal for the packets behind the first one
        }
        if let Expiry::GiveUp { tries } = self.timer.postpone(now, delay) {
            self.lose(tries);
            return Ok(());
        }
        self.hold_until = Some(now + delay);
        self.go_back();
        Ok(())
    }

    /// Everything before `end` has been executed: finishes WRITEs, and notices a READ or atomic whose data are lost.
    /// Returns whether the oldest segment left is the first that `end` does not cover.
    fn acknowledge(&mut self, now: Duration, end: Psn) -> bool {
        while let Some(front) = self.flight.front_mut() {
            let covered = end.distance_from(front.psn);
            if covered <= 0 {
                return true;
            }
            if front.is_answered_with_data() {
                self.report_gap();
                return false;
            }
            let covered = covered.cast_unsigned().min(front.packets);
            let moved = covered > front.done;
            front.done = front.done.max(covered);
            let (done, finished) = (front.done, front.done == front.packets);
            if finished {
                self.finish_front(now, 0);
            } else {
                if self.cursor == 0 {
                    self.cursor_packet = self.cursor_packet.max(done);
                }
                if moved {
                    self.progress(now);
                }
                return true;
            }
        }
        true
    }

    /// Finds the READ or atomic that an answer with data for `psn` belongs to, as the oldest segment; answers for
    /// others are early.
    fn front_for(&mut self, now: Duration, psn: Psn) -> Result<Segment, Ignored> {
        let target = *self.flight.iter().find(|segment| segment.holds(psn)).ok_or(Ignored)?;
        if !target.is_answered_with_data() {
            return Err(Ignored);
        }
        if !self.acknowledge(now, target.psn) {
            return Err(Ignored);
        }
        if psn != target.psn.plus(target.done) {
            self.report_gap();
            return Err(Ignored);
        }
        Ok(target)
    }

    fn read_data(
        &mut self,
        now: Duration,
        opcode: Opcode,
        psn: Psn,
        data: &[u8],
        landing: &mut [u8],
    ) -> Result<(), Ignored> {
        let read = self.front_for(now, psn)?;
        let offset = read.done as usize * self.mtu.bytes();
        let due = (read.len as usize - offset.min(read.len as usize)).min(self.mtu.bytes());
        let ends = read.done + 1 == read.packets;
        // After a repetition a peer may begin anew (FIRST) or go on (MIDDLE) in the middle: both are taken.
        let ends_by_opcode = opcode == Opcode::READ_RESPONSE_LAST || opcode == Opcode::READ_RESPONSE_ONLY;
        if read.kind != Kind::Read || data.len() != due || ends != ends_by_opcode {
            return Err(Ignored);
        }
        let into = read.landing as usize + offset;
        landing[into..into + due].copy_from_slice(data);
        if ends {
            self.finish_front(now, 0);
        } else {
            self.flight[0].done += 1;
            self.progress(now);
        }
        Ok(())
    }

    fn atomic_value(&mut self, now: Duration, psn: Psn, rest: &[u8]) -> Result<(), Ignored> {
        let (original, rest) = atomic::split_ack(rest).map_err(|_| Ignored)?;
        let target = self.front_for(now, psn)?;
        if target.kind == Kind::Read || !rest.is_empty() {
            return Err(Ignored);
        }
        self.finish_front(now, original);
        Ok(())
    }

    /// The oldest segment is done, and with it perhaps its operation.
    fn finish_front(&mut self, now: Duration, value: u64) {
        let Some(segment) = self.flight.pop_front() else { return };
        match segment.kind {
            Kind::Read => self.reads -= 1,
            Kind::Write => {}
            Kind::CompareSwap { .. } | Kind::FetchAdd { .. } => self.atomics -= 1,
        }
        if self.cursor == 0 {
            self.cursor_packet = 0; // it was about to be repeated
        } else {
            self.cursor -= 1;
        }
        if !segment.repeated {
            self.timer.measured(now.saturating_sub(segment.sent_at));
        }
        if segment.last
            && let Some(op) = self.ops.pop_front()
        {
            self.next_op -= 1;
            self.completions.push_back(Completion { id: op.request.id, outcome: Ok(value) });
        }
        self.progress(now);
    }

    fn progress(&mut self, now: Duration) {
        self.gap_reported = false;
        self.timer.progress(now, !self.flight.is_empty());
    }

    fn report_gap(&mut self) {
        if !self.gap_reported {
            self.gap_reported = true;
            self.go_back();
        }
    }
}
