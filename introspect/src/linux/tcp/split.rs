//! Buffers that were being split when the machine stopped (`tso_fragment`, `tcp_fragment`).
//!
//! ```text
//!   end_seq of the first half, then skb_split:
//!     1  nr_frags = 0
//!     2  len, data_len                                          of the second half, then of the first
//!     3  for each fragment of the first half: nr_frags + 1      |aaaaaaaa|bbbbbbbbbb|cccccc|dddd|
//!     4  the one with the cut: copied to the second half,                       ^ the cut
//!        then made shorter, nr_frags + 1
//!     5  the others: copied to the second half
//!   …   the second half into its queue
//! ```
//! The second half can be reached from nowhere until it is in its queue. But nothing is ever taken out of the first
//! half's table: the descriptors of what has moved stay behind those that count. Up to step 4 their lengths are what
//! they were, and there is exactly one number of them that makes up all bytes that are missing: every further one makes
//! the sum larger, what old buffers have left behind the last included. From step 4 on the length of the one with the
//! cut is lost, any length of it fits some number of further ones, and the bytes are not offered.
//!
//! Which side of step 4 it is shows in the table alone: after it, and also where the cut goes between two fragments,
//! lengths add up to exactly the first half's. Source: net/core/skbuff.c of 6.1.192.

use remote_memory::{KernelVirt, LinkError};

use super::payload::SKB_BYTES_MAX;
use super::skb::{Queues, Skb};
use super::{State, TcpSocket};
use crate::memory::Memory;
use crate::{Damage, Fault, Kernel};

const FIN: u8 = 0x01;

/// A buffer that may be one.
struct Suspect {
    owner: usize,
    is_sent: bool,
    place: usize,
    skb: Skb,
    /// Bytes of the first half, and of both.
    first: u32,
    total: u32,
}

/// Makes whole again what can be of the sockets' send queues.
pub(crate) fn rejoin(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    sockets: &[TcpSocket],
    queues: &mut [Queues],
) -> Result<(), LinkError> {
    let mut suspects = Vec::new();
    for (owner, (socket, queues)) in sockets.iter().zip(queues.iter()).enumerate() {
        // It happens under the socket's lock; and while a FIN is queued the last buffer has a number more than bytes.
        if socket.lock_held && matches!(socket.state, State::Established | State::CloseWait) {
            suspects.extend(suspect(owner, socket, queues));
        }
    }
    if suspects.is_empty() {
        return Ok(());
    }
    let at: Vec<_> = suspects.iter().map(|suspect| KernelVirt::new(suspect.skb.shared)).collect();
    let tables = kernel.space.fetch_equal(memory, &at, kernel.tcp.shared.span())?;
    for (suspect, table) in suspects.iter().zip(tables.iter()) {
        let Some(fragments) = table.and_then(|table| fragments(kernel, suspect, table)) else { continue };
        let queues = &mut queues[suspect.owner];
        let buffers = if suspect.is_sent { &mut queues.rtx } else { &mut queues.write };
        let Skb { seq, len, .. } = suspect.skb;
        let fault = Fault::Mismatch { expected: suspect.total.into(), found: len.into() };
        queues.damage.push(Damage { at: KernelVirt::new(suspect.skb.address), part: "buffer being split", fault });
        let (len, end_seq) = (suspect.total, seq.wrapping_add(suspect.total));
        buffers[suspect.place] = Skb { len, data_len: len, end_seq, fragments: Some(fragments), ..suspect.skb };
    }
    Ok(())
}

/// The buffer of `queues` behind which bytes are missing, if it is the only one and a split explains its lengths.
fn suspect(owner: usize, socket: &TcpSocket, queues: &Queues) -> Option<Suspect> {
    let after = |skb: &Skb| skb.seq.wrapping_sub(socket.snd_una) as i32;
    let mut sent: Vec<usize> = (0..queues.rtx.len()).collect();
    sent.sort_by_key(|place| after(&queues.rtx[*place]));
    let sent = sent.into_iter().map(|place| (true, place, queues.rtx[place]));
    let unsent = queues.write.iter().enumerate().map(|(place, skb)| (false, place, *skb));
    let all: Vec<_> = sent.chain(unsent).collect();
    let mut found = None;
    for (index, (is_sent, place, skb)) in all.iter().enumerate() {
        let following = all.get(index + 1).map_or(socket.write_seq, |(_, _, next)| next.seq);
        if following == skb.end_seq {
            continue;
        }
        let (first, total) = (skb.end_seq.wrapping_sub(skb.seq), following.wrapping_sub(skb.seq));
        let is_split = 0 < first && first < total && total <= SKB_BYTES_MAX && skb.tcp_flags & FIN == 0;
        // All of it in fragments, before and after; the length is set before that of the fragments.
        let lengths = [(total, total), (first, total), (first, first)];
        if found.is_some() || !is_split || !lengths.contains(&(skb.len, skb.data_len)) {
            return None;
        }
        found = Some(Suspect { owner, is_sent: *is_sent, place: *place, skb: *skb, first, total });
    }
    found
}

fn fragments(kernel: &Kernel, suspect: &Suspect, table: &[u8]) -> Option<u32> {
    let (shared, layout) = (&kernel.tcp.shared, &kernel.tcp.frag);
    if layout.bytes == 0 || shared.frag_list.of(table) != 0 {
        return None;
    }
    let lengths = shared.frags.bytes_of(table).chunks_exact(layout.bytes).map(|frag| layout.len.of(frag) as u32);
    count(lengths, shared.nr_frags.of(table) as u32, suspect.first, suspect.total)
}

/// How many fragments both halves have, if their `lengths` are still those before the split; `counted` is how many the
/// first half has so far.
fn count(lengths: impl IntoIterator<Item = u32>, counted: u32, first: u32, total: u32) -> Option<u32> {
    let (mut sum, mut of_first) = (0_u32, 0);
    for (index, length) in lengths.into_iter().enumerate() {
        sum = sum.checked_add(length).filter(|sum| length > 0 && *sum != first && *sum <= total)?;
        of_first += u32::from(sum < first);
        if sum == total {
            let all = index as u32 + 1;
            return (counted <= of_first || counted == all).then_some(all);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The states of a first half whose fragments have `lengths`, with `stale` ones behind them, while it is cut after
    /// `first` bytes: table and count after each store.
    fn states(lengths: &[u32], stale: &[u32], first: u32) -> Vec<(Vec<u32>, u32)> {
        let mut table = [lengths, stale].concat();
        let (mut counted, mut position) = (0, 0);
        let mut states = vec![(table.clone(), lengths.len() as u32), (table.clone(), 0)];
        for (index, length) in lengths.iter().enumerate() {
            if position < first && position + length > first {
                table[index] = first - position;
                states.push((table.clone(), counted));
            }
            if position < first {
                counted += 1;
                states.push((table.clone(), counted));
            }
            position += length;
        }
        states
    }

    #[test]
    fn until_the_cut_is_made_the_lengths_tell_how_many_there_were() {
        let check = |table: &[u32], counted, expected| {
            assert_eq!(count(table.iter().copied(), counted, 25, 60), expected, "{table:?}, {counted}");
        };
        for counted in [0, 1, 4] {
            check(&[10, 20, 15, 15, 7], counted, Some(4));
        }
        check(&[10, 20, 15, 15, 7], 2, None); // it has a second one, so that was cut
        check(&[10, 15, 15, 15, 7], 2, None);
        check(&[10, 15, 35, 7], 1, None); // between two fragments, or cut
        check(&[10, 20, 15, 14, 7], 1, None);
        check(&[10, 20, 0, 30], 1, None);
        check(&[10, 20, 15], 1, None);
        check(&[10, u32::MAX, 50], 1, None);
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_there_was(
            lengths in proptest::collection::vec(1u32..40, 1..17),
            stale in proptest::collection::vec(0u32..40, 0..17),
            at in any::<prop::sample::Index>(),
        ) {
            let total: u32 = lengths.iter().sum();
            prop_assume!(total > 1);
            let first = 1 + at.index(total as usize - 1) as u32;
            let (mut told, all) = (0, lengths.len() as u32);
            for (table, counted) in states(&lengths, &stale, first) {
                if let Some(found) = count(table.iter().copied(), counted, first, total) {
                    prop_assert_eq!((found, &table[..lengths.len()]), (all, &lengths[..]));
                    told += 1;
                }
            }
            let sums = lengths.iter().scan(0, |sum, length| { *sum += length; Some(*sum) });
            prop_assert!(told >= 2 || sums.into_iter().any(|sum| sum == first), "told {told} times");
        }
    }
}
