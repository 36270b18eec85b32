//! Neighbouring reads of a batch become one operation.
//!
//! Every operation costs a packet each way, and a packet costs far more than the bytes in it: a walk over kernel
//! structures asks for many small stretches of the same slab pages. The plan is made once per batch: the reads are
//! put in order of their addresses, and a read joins the span before it when the bytes between them cost at most one
//! more packet of the answer, where an operation of its own would cost two.
//!
//! ```text
//!   reads     [ a ]   [ b ]     [ c ]                          [ d ]      same key, ascending
//!   spans     [ a  ......  c ]   one operation                 [ d ]      gap too wide: its own
//! ```
//!
//! What is deliberately not done: a span never reaches before its first or behind its last read, and nothing is kept
//! from one batch to the next: memory is read anew for each.
//!
//! Invariant: the outcome of each read is what it would have been alone. A refused span therefore says nothing about
//! its reads: they are asked again one by one.

use crate::{Read, RemoteKey};

/// The longest span of more than one read, in bytes: little to repeat when a part of it is lost or refused.
const SPAN_BYTES_MAX: u64 = 16 << 10;

/// Reads of a batch that one operation serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub key: RemoteKey,
    pub addr: u64,
    pub len: usize,
    /// Its reads: a range of [`Plan::members`].
    first: usize,
    count: usize,
    /// Where it lands in this round.
    pub landing: usize,
    /// Whether its reads have their outcome.
    pub is_answered: bool,
    /// Whether the server refused it.
    pub is_refused: bool,
}

impl Span {
    pub(crate) fn is_merged(&self) -> bool {
        self.count > 1
    }
}

/// What is left of a batch, in the order of the addresses.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Indices into the batch.
    order: Vec<u32>,
    next: usize,
    /// Reads that have to be asked again.
    again: Vec<u32>,
    /// By index into the batch: whether a read has to go alone. Empty until one has.
    alone: Vec<bool>,
}

impl Plan {
    /// Begins with all of `batch`.
    pub(crate) fn begin(&mut self, batch: &[Read<'_>]) {
        self.order.clear();
        self.order.extend(0..batch.len() as u32);
        // Batches often come in order; the sort is then one pass.
        self.order.sort_by_key(|index| {
            let at = batch[*index as usize].at;
            (at.key.raw(), at.addr)
        });
        self.next = 0;
        self.again.clear();
        self.alone.clear();
    }

    /// The reads of `span`, as indices into the batch.
    pub(crate) fn members(&self, span: &Span) -> &[u32] {
        &self.order[span.first..span.first + span.count]
    }

    /// Fills `spans` with the next operations: at most `depth`, and as many as fit into `room` bytes of landing buffer
    /// when each begins at a multiple of `align`. No read of the batch is longer than `room`. Gaps of up to `gap_max`
    /// bytes are read along; without it nothing is merged.
    pub(crate) fn round(
        &mut self,
        batch: &[Read<'_>],
        spans: &mut Vec<Span>,
        (depth, room, align): (usize, usize, usize),
        gap_max: Option<u64>,
    ) {
        spans.clear();
        if self.next == self.order.len() {
            std::mem::swap(&mut self.order, &mut self.again);
            self.again.clear();
            self.next = 0;
        }
        let mut landing = 0;
        while self.next < self.order.len() && spans.len() < depth {
            let mut span = self.span(batch, gap_max, (room - landing) as u64);
            if span.len > room - landing {
                break; // in the next round
            }
            span.landing = landing;
            landing = (landing + span.len).next_multiple_of(align).min(room);
            self.next += span.count;
            spans.push(span);
        }
    }

    /// The span that begins with the next read, which may be longer than `room`; the others of it fit.
    fn span(&self, batch: &[Read<'_>], gap_max: Option<u64>, room: u64) -> Span {
        let read = &batch[self.order[self.next] as usize];
        let (key, addr, len) = (read.at.key, read.at.addr, read.into.len());
        let mut span =
            Span { key, addr, len, first: self.next, count: 1, landing: 0, is_answered: false, is_refused: false };
        let Some(gap_max) = gap_max.filter(|_| self.may_merge(self.order[self.next], read)) else { return span };
        let longest = SPAN_BYTES_MAX.min(room);
        for index in &self.order[self.next + 1..] {
            let read = &batch[*index as usize];
            if read.at.key != key || !self.may_merge(*index, read) {
                break;
            }
            let begins = read.at.addr - addr; // in order
            let reaches = (begins + read.into.len() as u64).max(span.len as u64);
            if begins > span.len as u64 + gap_max || reaches > longest {
                break;
            }
            span.len = reaches as usize;
            span.count += 1;
        }
        span
    }

    /// Not a read that has to go alone; nor an empty one, whose address nobody checks; nor one that leaves the address
    /// space, which is for the server to refuse.
    fn may_merge(&self, index: u32, read: &Read<'_>) -> bool {
        let alone = self.alone.get(index as usize).copied().unwrap_or(false);
        !alone && !read.into.is_empty() && read.at.addr.checked_add(read.into.len() as u64).is_some()
    }

    /// The reads of `span` have no outcome yet and are asked again; one by one, if it was refused.
    pub(crate) fn ask_again(&mut self, span: &Span, batch_len: usize) {
        let members = span.first..span.first + span.count;
        if span.is_refused {
            self.alone.resize(batch_len, false);
            for index in &self.order[members.clone()] {
                self.alone[*index as usize] = true;
            }
        }
        self.again.extend_from_slice(&self.order[members]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RemoteAddr;

    const ROOMY: (usize, usize, usize) = (100, 1 << 20, 8);

    /// The spans of reads of (key, address, length) as (address, length, reads).
    fn check(reads: &[(u32, u64, usize)], limits: (usize, usize, usize), expected: &[(u64, usize, usize)]) {
        let mut buffers: Vec<Vec<u8>> = reads.iter().map(|(_, _, len)| vec![0; *len]).collect();
        let batch: Vec<Read<'_>> = reads
            .iter()
            .zip(&mut buffers)
            .map(|((key, addr, _), buffer)| Read::new(RemoteAddr::new(RemoteKey::new(*key), *addr), buffer))
            .collect();
        let (mut plan, mut spans) = (Plan::default(), Vec::new());
        plan.begin(&batch);
        plan.round(&batch, &mut spans, limits, Some(1024));
        let found: Vec<_> = spans.iter().map(|span| (span.addr, span.len, span.count)).collect();
        assert_eq!(found, expected, "{reads:x?}");
    }

    #[test]
    fn neighbours_are_one_span_in_whatever_order_they_come() {
        check(&[(1, 4096, 64), (1, 0, 8), (1, 4160, 64), (1, 1032, 8)], ROOMY, &[(0, 1040, 2), (4096, 128, 2)]);
        check(&[(1, 0, 64), (1, 8, 8), (1, 8, 8), (1, 100, 4)], ROOMY, &[(0, 104, 4)]);
    }

    #[test]
    fn wide_gaps_other_keys_and_long_spans_part() {
        check(&[(1, 0, 8), (1, 1033, 8)], ROOMY, &[(0, 8, 1), (1033, 8, 1)]);
        check(&[(1, 0, 8), (2, 8, 8)], ROOMY, &[(0, 8, 1), (8, 8, 1)]);
        check(&[(1, 0, 16 << 10), (1, 16 << 10, 1)], ROOMY, &[(0, 16 << 10, 1), (16 << 10, 1, 1)]);
    }

    #[test]
    fn empty_reads_and_those_beyond_the_address_space_go_alone() {
        check(&[(1, 0, 8), (1, 8, 0), (1, 8, 8)], ROOMY, &[(0, 8, 1), (8, 0, 1), (8, 8, 1)]);
        check(&[(1, u64::MAX - 8, 8), (1, u64::MAX, 8)], ROOMY, &[(u64::MAX - 8, 8, 1), (u64::MAX, 8, 1)]);
    }

    #[test]
    fn a_round_ends_where_the_landing_buffer_or_the_queue_does() {
        check(&[(1, 0, 60), (1, 60, 60)], (100, 100, 8), &[(0, 60, 1)]);
        check(&[(1, 0, 8), (1, 5000, 8)], (1, 100, 8), &[(0, 8, 1)]);
    }
}
