//! The bytes of packet buffers: where they lie, and fetching those of all sockets at once.
//!
//! ```text
//!   skb: head ....[data: linear part, len - data_len bytes].... end -> skb_shared_info
//!                                                                       frags[nr_frags]: page, offset, length
//!                                                                       frag_list -> skb -> skb …, each the same again
//! ```

use std::collections::HashMap;

use remote_memory::{GuestPhys, KernelVirt, LinkError, PAGE_BYTES};

use super::skb::{Skb, parse, span};
use crate::memory::Memory;
use crate::paging::Pieces;
use crate::{Damage, Fault, Kernel};

/// Buffers on the frag lists of one buffer: GRO chains at most 64 KiB worth of packets.
const FRAG_LIST_MAX: usize = 128;

/// Bytes one buffer can hold (`GSO_MAX_SIZE` is 512 KiB less a bit).
pub(crate) const SKB_BYTES_MAX: u32 = 1024 * 1024;

/// Payload of one walk: bounds our memory. Further bytes are reported missing.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Where a run of payload lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    Virt(KernelVirt),
    Phys(GuestPhys),
}

/// The payload of one buffer: runs in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    runs: Vec<(Place, u32)>,
    pub damage: Vec<Damage>,
    /// Whether lengths contradict each other: normal where the machine stopped while changing them, under the
    /// socket's lock.
    pub contradicts: bool,
}

/// A part of a buffer's payload that is wanted, and where it goes.
pub(crate) struct Slice<'b> {
    pub runs: &'b Runs,
    /// Bytes to skip at the start of the payload.
    pub skip: u32,
    pub into: &'b mut [u8],
}

/// Locates the payload of every buffer of `skbs`: one round for the fragment tables, and as many again as the longest
/// frag list has buffers.
pub(crate) fn locate(kernel: &Kernel, memory: &mut Memory<'_>, skbs: &[Skb]) -> Result<Vec<Runs>, LinkError> {
    let mut located: Vec<Runs> = skbs.iter().map(linear).collect();
    let wanted: Vec<usize> = (0..skbs.len()).filter(|index| skbs[*index].data_len > 0).collect();
    let tables = fragments(kernel, memory, &wanted.iter().map(|index| skbs[*index]).collect::<Vec<_>>())?;
    let mut lists = Vec::new();
    for (index, (runs, frag_list)) in wanted.into_iter().zip(tables) {
        located[index].append(runs);
        if frag_list != 0 {
            lists.push((index, frag_list));
        }
    }
    follow_lists(kernel, memory, lists, &mut located)?;
    for (skb, runs) in skbs.iter().zip(&mut located) {
        let found: u64 = runs.runs.iter().map(|(_, len)| u64::from(*len)).sum();
        if found != u64::from(skb.len) && runs.damage.is_empty() {
            let fault = Fault::Mismatch { expected: skb.len.into(), found };
            runs.report(skb.address, "skb.len against its fragments", fault);
            runs.contradicts = true;
        }
    }
    Ok(located)
}

/// Fetches the wanted parts of payload in one round. Returns the indices of slices that are not whole.
pub(crate) fn fetch(kernel: &Kernel, memory: &mut Memory<'_>, slices: Vec<Slice<'_>>) -> Result<Vec<usize>, LinkError> {
    let mut pieces = Pieces::default();
    let mut failed = Vec::new();
    for (owner, slice) in slices.into_iter().enumerate() {
        let (mut skip, mut rest) = (slice.skip, slice.into);
        for (place, len) in &slice.runs.runs {
            let begin = skip.min(*len);
            skip -= begin;
            let take = ((len - begin) as usize).min(rest.len());
            if take == 0 {
                continue;
            }
            let (piece, later) = rest.split_at_mut(take);
            rest = later;
            match place {
                Place::Virt(at) => pieces.add(&kernel.space, owner, offset(*at, begin), piece),
                Place::Phys(at) => match at.checked_add(begin.into()) {
                    Some(at) => pieces.add_phys(owner, at, piece),
                    None => failed.push(owner),
                },
            }
        }
        if !rest.is_empty() {
            failed.push(owner);
        }
    }
    pieces.fetch(&kernel.space, memory, |owner| failed.push(owner))?;
    failed.sort_unstable();
    failed.dedup();
    Ok(failed)
}

fn offset(at: KernelVirt, bytes: u32) -> KernelVirt {
    KernelVirt::new(at.raw().wrapping_add(bytes.into()))
}

impl Runs {
    fn append(&mut self, more: Self) {
        self.runs.extend(more.runs);
        self.damage.extend(more.damage);
    }

    fn report(&mut self, at: u64, part: &'static str, fault: Fault) {
        self.damage.push(Damage { at: KernelVirt::new(at), part, fault });
    }
}

/// The linear part.
fn linear(skb: &Skb) -> Runs {
    let mut runs = Runs::default();
    match skb.len.checked_sub(skb.data_len) {
        Some(0) => {}
        Some(len) if len <= SKB_BYTES_MAX => runs.runs.push((Place::Virt(KernelVirt::new(skb.data)), len)),
        Some(_) => runs.report(skb.address, "skb.len", Fault::TooLong { limit: SKB_BYTES_MAX.into() }),
        None => {
            let fault = Fault::Mismatch { expected: skb.data_len.into(), found: skb.len.into() };
            runs.report(skb.address, "skb.len below data_len", fault);
        }
    }
    runs
}

/// The fragments of each buffer, and its frag list.
fn fragments(kernel: &Kernel, memory: &mut Memory<'_>, skbs: &[Skb]) -> Result<Vec<(Runs, u64)>, LinkError> {
    let at: Vec<_> = skbs.iter().map(|skb| KernelVirt::new(skb.shared)).collect();
    let tables = kernel.space.fetch_equal(memory, &at, kernel.tcp.shared.span())?;
    Ok(skbs.iter().zip(tables.iter()).map(|(skb, table)| fragments_of(kernel, skb, table)).collect())
}

fn fragments_of(kernel: &Kernel, skb: &Skb, table: Option<&[u8]>) -> (Runs, u64) {
    let (shared, layout) = (&kernel.tcp.shared, &kernel.tcp.frag);
    let mut runs = Runs::default();
    let Some(table) = table else {
        runs.report(skb.shared, "skb_shared_info", Fault::Unreadable);
        return (runs, 0);
    };
    let count = skb.fragments.map_or(shared.nr_frags.of(table), u64::from) as usize;
    let frags = shared.frags.bytes_of(table);
    if layout.bytes == 0 || count > frags.len() / layout.bytes {
        let limit = frags.len().checked_div(layout.bytes).unwrap_or(0) as u64;
        runs.report(skb.shared, "skb_shared_info.nr_frags", Fault::TooLong { limit });
        return (runs, 0);
    }
    for frag in frags.chunks_exact(layout.bytes).take(count) {
        let (page, len, offset) = (layout.page.of(frag), layout.len.of(frag) as u32, layout.offset.of(frag));
        let phys = kernel.space.page_to_phys(page & !u64::from(layout.netmem)).and_then(|at| at.checked_add(offset));
        match phys {
            _ if layout.netmem && page & 1 == 1 => runs.report(skb.shared, "skb fragment", Fault::Unsupported),
            _ if len > SKB_BYTES_MAX || offset > u64::from(SKB_BYTES_MAX) + PAGE_BYTES => {
                runs.report(skb.shared, "skb fragment", Fault::TooLong { limit: SKB_BYTES_MAX.into() });
            }
            Some(phys) => runs.runs.push((Place::Phys(phys), len)),
            None => runs.report(skb.shared, "page of skb fragment", Fault::Unreadable),
        }
    }
    (runs, shared.frag_list.of(table))
}

/// Follows the frag lists of all buffers together, one element per round, then locates the elements' own payload.
fn follow_lists(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    lists: Vec<(usize, u64)>,
    located: &mut [Runs],
) -> Result<(), LinkError> {
    let layout = &kernel.tcp.skb;
    let mut elements: Vec<(usize, Skb)> = Vec::new();
    let mut cursors = lists;
    for _ in 0..FRAG_LIST_MAX {
        if cursors.is_empty() {
            break;
        }
        let at: Vec<_> = cursors.iter().map(|(_, next)| KernelVirt::new(*next)).collect();
        let records = kernel.space.fetch_equal(memory, &at, span(layout))?;
        let mut further = Vec::new();
        for ((owner, address), record) in cursors.into_iter().zip(records.iter()) {
            let Some(bytes) = record else {
                located[owner].report(address, "frag_list", Fault::Unreadable);
                continue;
            };
            let skb = parse(layout, address, bytes).0;
            elements.push((owner, skb));
            if skb.next != 0 {
                further.push((owner, skb.next));
            }
        }
        cursors = further;
    }
    for (owner, address) in cursors {
        located[owner].report(address, "frag_list", Fault::TooLong { limit: FRAG_LIST_MAX as u64 });
    }
    let mut tables: HashMap<u64, (Runs, u64)> = HashMap::new();
    let paged: Vec<Skb> = elements.iter().map(|(_, skb)| *skb).filter(|skb| skb.data_len > 0).collect();
    for (skb, table) in paged.iter().zip(fragments(kernel, memory, &paged)?) {
        tables.insert(skb.address, table);
    }
    for (owner, skb) in elements {
        located[owner].append(linear(&skb));
        if let Some((runs, nested)) = tables.remove(&skb.address) {
            located[owner].append(runs);
            if nested != 0 {
                located[owner].report(skb.address, "frag_list inside a frag_list", Fault::Unsupported);
            }
        }
    }
    Ok(())
}
