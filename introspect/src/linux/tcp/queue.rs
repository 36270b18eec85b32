//! From packet buffers to stream bytes: cutting what is done with, checking that the rest is whole.
//!
//! The rules are those of the kernel's own readers: `tcp_recvmsg_locked` takes from a buffer what lies at and after
//! `copied_seq`, so buffers may overlap; a SYN takes one sequence number before the bytes, a FIN one after them.

use remote_memory::KernelVirt;

use super::payload::SKB_BYTES_MAX;
use super::skb::Skb;
use crate::{Damage, Fault};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;

/// What of one buffer belongs to the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    /// Index of the buffer.
    pub skb: usize,
    /// Sequence number of the first byte taken.
    pub seq: u32,
    /// Payload bytes to skip.
    pub skip: u32,
    /// Payload bytes to take.
    pub take: u32,
    /// Whether a FIN follows.
    pub fin: bool,
}

/// A queue cut to `[start, end)`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    pub cuts: Vec<Cut>,
    /// Whether the cuts follow each other without a gap from `start` to `end`.
    pub complete: bool,
    /// Whether they do so up to `reached`, wherever that is.
    pub gapless: bool,
    /// Sequence number after the last cut.
    pub reached: u32,
    pub fin: bool,
    pub damage: Vec<Damage>,
}

/// The signed distance from `from` to `to`, modulo 2^32.
fn distance(from: u32, to: u32) -> i64 {
    i64::from(to.wrapping_sub(from) as i32)
}

/// Cuts `skbs`, which are in queue order, to what lies in `[start, end)`.
pub(crate) fn cut(skbs: &[Skb], start: u32, end: u32, part: &'static str, socket: KernelVirt) -> Plan {
    let mut plan = Plan { gapless: true, ..Plan::default() };
    let mut expected = start;
    for (index, skb) in skbs.iter().enumerate() {
        let mut report = |expected: u32, found: u32| {
            let fault = Fault::Mismatch { expected: expected.into(), found: found.into() };
            plan.damage.push(Damage { at: KernelVirt::new(skb.address), part, fault });
        };
        let fin = skb.tcp_flags & FIN != 0;
        let first = skb.seq.wrapping_add(u32::from(skb.tcp_flags & SYN != 0));
        let last = skb.end_seq.wrapping_sub(u32::from(fin));
        let (mut len, mut end_seq) = (distance(first, last), skb.end_seq);
        if len < 0 || len > i64::from(skb.len) || skb.len > SKB_BYTES_MAX {
            // More sequence space than bytes, or than a buffer holds: numbers or length are garbage.
            report(skb.len, len as u32);
            plan.gapless = false;
            continue;
        }
        if len < i64::from(skb.len) {
            report(skb.len, len as u32); // stopped inside sendmsg: bytes copied in but not yet counted
            // Between two steps of its end: `write_seq` counts the bytes already, `end_seq` not yet. Or it is about to
            // be split: `end_seq` has been set back, the bytes are still here (`tso_fragment`).
            let uncounted = i64::from(skb.len) - len;
            let following = skbs.get(index + 1).map_or(end, |next| next.seq);
            if !fin && distance(end_seq, following) == uncounted {
                (len, end_seq) = (skb.len.into(), following);
            }
        }
        if distance(expected, end_seq) <= 0 {
            continue; // acknowledged or read: clean-up was interrupted, or nothing is in it yet
        }
        if distance(expected, first) > 0 {
            report(expected, first);
            plan.gapless = false;
            expected = first;
        }
        let skip = distance(first, expected).clamp(0, len);
        let seq = first.wrapping_add(skip as u32);
        plan.cuts.push(Cut { skb: index, seq, skip: skip as u32, take: (len - skip) as u32, fin });
        plan.fin |= fin;
        expected = end_seq;
    }
    plan.reached = expected;
    plan.complete = plan.gapless && expected == end;
    if expected != end {
        let fault = Fault::Mismatch { expected: end.into(), found: expected.into() };
        plan.damage.push(Damage { at: socket, part, fault });
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn skb(seq: u32, end_seq: u32, len: u32, tcp_flags: u8) -> Skb {
        Skb { address: 1, seq, end_seq, tcp_flags, len, data_len: 0, data: 0, shared: 0, next: 0, fragments: None }
    }

    fn check(skbs: &[Skb], start: u32, end: u32, cuts: &[(u32, u32, u32)], complete: bool, damage: usize) {
        let plan = cut(skbs, start, end, "queue", KernelVirt::new(2));
        let found: Vec<_> = plan.cuts.iter().map(|cut| (cut.seq, cut.skip, cut.take)).collect();
        assert_eq!((found.as_slice(), plan.complete, plan.damage.len()), (cuts, complete, damage), "{plan:?}");
    }

    #[test]
    fn whole_queues_pass_also_across_the_wrap_of_sequence_numbers() {
        check(&[], 7, 7, &[], true, 0);
        let queue = [skb(u32::MAX - 9, 10, 20, 0), skb(10, 15, 5, 0)];
        check(&queue, u32::MAX - 9, 15, &[(u32::MAX - 9, 0, 20), (10, 0, 5)], true, 0);
        check(&queue, 5, 15, &[(5, 15, 5), (10, 0, 5)], true, 0);
        check(&queue, 12, 15, &[(12, 2, 3)], true, 0);
    }

    #[test]
    fn overlapping_buffers_are_taken_once() {
        check(&[skb(0, 10, 10, 0), skb(5, 20, 15, 0)], 0, 20, &[(0, 0, 10), (10, 5, 10)], true, 0);
    }

    #[test]
    fn syn_and_fin_take_a_number_and_no_byte() {
        check(&[skb(0, 11, 10, SYN)], 1, 11, &[(1, 0, 10)], true, 0);
        check(&[skb(0, 11, 10, FIN)], 0, 11, &[(0, 0, 10)], true, 0);
        check(&[skb(10, 11, 0, FIN)], 10, 11, &[(10, 0, 0)], true, 0);
        assert!(cut(&[skb(10, 11, 0, FIN)], 10, 11, "queue", KernelVirt::new(0)).fin);
    }

    #[test]
    fn a_stop_between_two_steps_of_a_buffers_end_loses_nothing() {
        check(&[skb(0, 10, 10, 0), skb(10, 15, 9, 0)], 0, 19, &[(0, 0, 10), (10, 0, 9)], true, 1);
        check(&[skb(0, 0, 9, 0)], 0, 9, &[(0, 0, 9)], true, 1);
        // About to be split after ten bytes.
        check(&[skb(0, 10, 15, 0), skb(15, 20, 5, 0)], 0, 20, &[(0, 0, 15), (15, 0, 5)], true, 1);
        // One step earlier nothing counts them, and in the middle of a queue nothing can.
        check(&[skb(0, 10, 10, 0), skb(10, 15, 9, 0)], 0, 15, &[(0, 0, 10), (10, 0, 5)], true, 1);
        check(&[skb(0, 10, 14, 0), skb(10, 15, 5, 0)], 0, 19, &[(0, 0, 10), (10, 0, 5)], false, 2);
    }

    #[test]
    fn gaps_short_ends_and_lying_lengths_are_reported() {
        check(&[skb(0, 10, 10, 0), skb(12, 20, 8, 0)], 0, 20, &[(0, 0, 10), (12, 0, 8)], false, 1);
        check(&[skb(0, 10, 10, 0)], 0, 11, &[(0, 0, 10)], false, 1);
        check(&[skb(0, 10, 9, 0)], 0, 10, &[], false, 2);
        check(&[skb(0, 10, 12, 0)], 0, 10, &[(0, 0, 10)], true, 1);
    }

    proptest! {
        #[test]
        fn cuts_stay_inside_their_buffers(
            raw in proptest::collection::vec((any::<u32>(), any::<u32>(), 0u32..100_000, any::<u8>()), 0..20),
            start: u32,
            end: u32,
        ) {
            let skbs: Vec<_> = raw.iter().map(|(seq, end, len, flags)| skb(*seq, *end, *len, *flags)).collect();
            for cut in cut(&skbs, start, end, "queue", KernelVirt::new(0)).cuts {
                prop_assert!(u64::from(cut.skip) + u64::from(cut.take) <= u64::from(skbs[cut.skb].len));
            }
        }
    }
}
