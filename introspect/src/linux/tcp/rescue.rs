//! Sent buffers that neither queue reaches, found through the ring of sent buffers.
//!
//! ```text
//!   __tcp_transmit_skb         tcp_update_skb_after_send: tsorted_sent_queue gets the buffer   (still to be sent)
//!   tcp_event_new_data_sent    snd_nxt moves; __skb_unlink: out of the write queue              (in the ring only)
//!                              tcp_rbtree_insert: into the retransmission queue                 (rotations hide some)
//! ```
//! A machine stopped in the middle has buffers that a walk from either queue does not meet; also while `rb_erase` or
//! `rb_insert_color` rotate, whole subtrees are out of reach from the root for some instructions. The ring keeps every
//! sent buffer in order of sending until it is acknowledged or marked lost, and is not touched in between.
//!
//! Followed only for sockets whose send queue is not whole. Sources: net/ipv4/tcp_output.c and lib/rbtree.c of
//! 6.1.192; 6.12 was seen to do the same by runs.

use std::collections::HashSet;

use remote_memory::{KernelVirt, LinkError};

use super::skb::{Queues, parse, span};
use crate::memory::Memory;
use crate::{Damage, Fault, Kernel};

/// Buffers followed along one ring: a round trip each. More are in flight only on paths of gigabytes.
const RING_MAX: usize = 1024;

/// Where the walk along one socket's ring stands.
struct Cursor {
    owner: usize,
    head: u64,
    next: u64,
    known: HashSet<u64>,
}

/// Adds what the rings of the sockets with indices `torn` hold to their retransmission queues.
pub(crate) fn from_sent_ring(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    socks: &[(KernelVirt, &[u8])],
    torn: &[usize],
    queues: &mut [Queues],
) -> Result<(), LinkError> {
    let (layout, skb_layout) = (&kernel.tcp.sock, &kernel.tcp.skb);
    let (Some(ring), Some(anchor)) = (layout.sent_ring, skb_layout.sent_anchor) else { return Ok(()) };
    let (anchor, len) = (anchor.offset as u64, span(skb_layout));
    let open = |owner: &usize| {
        let (sock, bytes) = &socks[*owner];
        let next = crate::memory::word(bytes, ring.offset, 8);
        let queues = &queues[*owner];
        let known = queues.rtx.iter().chain(&queues.write).map(|skb| skb.address).collect();
        Cursor { owner: *owner, head: sock.raw().wrapping_add(ring.offset as u64), next, known }
    };
    let mut cursors: Vec<Cursor> = torn.iter().map(open).collect();
    let mut met: HashSet<u64> = HashSet::new();
    for _ in 0..RING_MAX {
        cursors.retain(|cursor| cursor.next != cursor.head && met.insert(cursor.next));
        if cursors.is_empty() {
            return Ok(());
        }
        let at: Vec<_> = cursors.iter().map(|cursor| KernelVirt::new(cursor.next.wrapping_sub(anchor))).collect();
        let records = kernel.space.fetch_equal(memory, &at, len)?;
        let mut still = Vec::with_capacity(cursors.len());
        for ((mut cursor, at), record) in cursors.into_iter().zip(at).zip(records.iter()) {
            let Some(bytes) = record else { continue };
            let skb = parse(skb_layout, at.raw(), bytes).0;
            if !cursor.known.contains(&skb.address) {
                let fault = Fault::Mismatch { expected: cursor.head, found: skb.address };
                let part = "buffer between its queues";
                queues[cursor.owner].damage.push(Damage { at: KernelVirt::new(skb.address), part, fault });
                queues[cursor.owner].rtx.push(skb);
            }
            cursor.next = crate::memory::word(bytes, anchor as usize, 8);
            still.push(cursor);
        }
        cursors = still;
    }
    Ok(())
}
