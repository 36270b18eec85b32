//! The ring of a pipe.
//!
//! ```text
//!   head, tail: free-running counts of slots; slot n lies at bufs[n % ring_size]
//!   pipe_write   head + 1, then page, len = 0, ops, then the bytes, then len          a slot may be empty for a while
//!                or the bytes behind those of the last slot, then len                 one store makes them count
//!   pipe_read    the bytes, then offset and len, then ops = NULL, then tail + 1       read before they stop counting
//! ```
//! Source: fs/pipe.c of Linux 6.1 and 6.12. So at any stop a slot without ops, or of no length, is one that nobody can
//! read yet or any more, and no damage. Between the two stores of a read a slot may name bytes that are not of it:
//! their reader has them, and who parses chunks has to notice.

use std::collections::BTreeSet;

use remote_memory::{KernelVirt, LinkError};

use super::{ChannelLayout, Kind, Opened, QUEUE_BYTES_MAX, S_IFIFO, Waiting, afford, of_kind};
use crate::Fault;
use crate::btf::layout;
use crate::linux::walk::Walk;
use crate::paging::Pieces;

/// Slots of a ring: `fs.pipe-max-size` allows 256, root more.
const SLOTS_MAX: u64 = QUEUE_BYTES_MAX / 4096;

/// Bytes of a slot: a page, of huge ones that were spliced in no more than this.
const SLOT_BYTES_MAX: u64 = 64 * 1024;

layout! {
    /// Ring and slot.
    pub(crate) struct PipeLayout {
        head: "pipe_inode_info.head",
        tail: "pipe_inode_info.tail",
        ring_size: "pipe_inode_info.ring_size",
        bufs: "pipe_inode_info.bufs",
        page: "pipe_buffer.page",
        offset: "pipe_buffer.offset",
        len: "pipe_buffer.len",
        ops: "pipe_buffer.ops",
    }
}

/// Reads the pipes among `opened`, in three rounds.
pub(super) fn read(
    walk: &mut Walk<'_>,
    layout: &ChannelLayout,
    opened: &[Option<Opened>],
    budget: &mut u64,
) -> Result<Vec<Option<Waiting>>, LinkError> {
    let mut found: Vec<Option<Waiting>> = vec![None; opened.len()];
    let mut pipes = of_kind(opened, S_IFIFO);
    pipes.retain(|(_, it)| {
        let agrees = it.private == it.pipe && it.pipe != 0;
        if !agrees {
            walk.contradiction(it.address, "file.private_data of a pipe", it.pipe, it.private);
        }
        agrees
    });
    let ring = &layout.pipe;
    let fields = [ring.head, ring.tail, ring.ring_size, ring.bufs];
    let bases: Vec<_> = pipes.iter().map(|(_, it)| Some(it.pipe)).collect();
    let rings = walk.taken_from(&bases, &fields, "pipe_inode_info", |copy| fields.map(|field| field.of(copy)))?;
    let mut slots = Vec::new();
    for (number, it) in pipes {
        let Some(numbers) = rings.get(&it.pipe).copied() else { continue };
        let occupied = occupied(walk, layout, it.pipe, numbers);
        let (address, complete) = (KernelVirt::new(it.pipe), occupied.is_some());
        let waiting = Waiting { address, kind: Kind::Pipe, inode: it.inode, chunks: Vec::new(), complete };
        found[number] = Some(waiting);
        slots.extend(occupied.unwrap_or_default().into_iter().map(|slot| (number, slot)));
    }
    chunks(walk, layout, &slots, budget, &mut found)?;
    Ok(found)
}

/// The addresses of the slots between tail and head, oldest first; `None` if the numbers cannot be.
fn occupied(walk: &mut Walk<'_>, layout: &ChannelLayout, pipe: u64, numbers: [u64; 4]) -> Option<Vec<u64>> {
    let [head, tail, ring_size, bufs] = numbers;
    if ring_size > SLOTS_MAX || !ring_size.is_power_of_two() {
        walk.report(pipe, "pipe_inode_info.ring_size", Fault::TooLong { limit: SLOTS_MAX });
        return None;
    }
    let (head, tail) = (head as u32, tail as u32);
    let count = head.wrapping_sub(tail);
    if u64::from(count) > ring_size {
        walk.contradiction(pipe, "pipe_inode_info.head", u64::from(tail) + ring_size, u64::from(head));
        return None;
    }
    let slot = |number: u32| {
        let index = u64::from(tail.wrapping_add(number)) & (ring_size - 1);
        bufs.wrapping_add(index * layout.slot_bytes as u64)
    };
    Some((0..count).map(slot).collect())
}

/// Reads the slots, each with the number of its pipe, and the bytes that they name.
fn chunks(
    walk: &mut Walk<'_>,
    layout: &ChannelLayout,
    slots: &[(usize, u64)],
    budget: &mut u64,
    found: &mut [Option<Waiting>],
) -> Result<(), LinkError> {
    let ring = &layout.pipe;
    let fields = [ring.page, ring.offset, ring.len, ring.ops];
    let bases: Vec<_> = slots.iter().map(|(_, slot)| Some(*slot)).collect();
    let described = walk.taken_from(&bases, &fields, "pipe_buffer", |copy| fields.map(|field| field.of(copy)))?;
    let mut wanted = Vec::new();
    for (number, slot) in slots {
        let Some(waiting) = found[*number].as_mut() else { continue };
        let Some([page, offset, len, ops]) = described.get(slot).copied() else {
            waiting.complete = false;
            continue;
        };
        if ops == 0 || len == 0 {
            continue;
        }
        if offset.saturating_add(len) > SLOT_BYTES_MAX {
            walk.report(*slot, "pipe_buffer.len", Fault::TooLong { limit: SLOT_BYTES_MAX });
            waiting.complete = false;
            continue;
        }
        let at = walk.kernel.space.page_to_phys(page).and_then(|at| at.checked_add(offset));
        match at.filter(|_| afford(walk, budget, *slot, "pipe_buffer.len", len)) {
            Some(at) => wanted.push((*number, *slot, at, vec![0; len as usize])),
            None => {
                walk.report(*slot, "pipe_buffer.page", Fault::Unreadable);
                waiting.complete = false;
            }
        }
    }
    let mut pieces = Pieces::default();
    for (index, (_, _, at, bytes)) in wanted.iter_mut().enumerate() {
        pieces.add_phys(index, *at, bytes);
    }
    let mut failed = BTreeSet::new();
    pieces.fetch(&walk.kernel.space, &mut walk.memory, |index| {
        failed.insert(index);
    })?;
    for (index, (number, slot, _, bytes)) in wanted.into_iter().enumerate() {
        let Some(waiting) = found[number].as_mut() else { continue };
        if failed.contains(&index) {
            walk.report(slot, "page of pipe_buffer", Fault::Unreadable);
            waiting.complete = false;
        } else {
            waiting.chunks.push(bytes);
        }
    }
    Ok(())
}
