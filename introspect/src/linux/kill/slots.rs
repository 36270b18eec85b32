//! Where timers lie: memory below 1 MiB, which Linux reserves and leaves alone.
//!
//! ```text
//!   0x10000   header: magic, slots that were ever used
//!   0x10030   slot: a timer that waits, or one that has fired (its pprev is null) and whose slot is free
//!   …         up to 0x90000, to the trampoline, or to the first page that is not reserved
//! ```
//! Why there and nowhere else is in decision 0010.

use remote_memory::{GuestPhys, KernelVirt, LinkError, PAGE_BYTES, RemoteKey, RemoteRead};

use super::{Edit, KillLayout, set};
use crate::Kernel;
use crate::linux::walk::Walk;
use crate::memory::word;

/// Where slots lie: between the 64 KiB that firmware is known to write to while the kernel runs, and where its extended
/// data may begin. What boot loaders leave there was copied when the kernel began. Less of it where the trampoline or a
/// page that is not reserved comes first.
const AREA_START: u64 = 0x1_0000;
const AREA_BYTES: u64 = 0x8_0000;

/// The trampoline is some tens of kilobytes long.
const TRAMPOLINE_BYTES_MAX: u64 = 0x1_0000;

/// One timer each; the first slot is a header: the magic, then how many slots have been used.
pub(super) const SLOT_BYTES: usize = 48;

/// The magic, and how many slots were ever used.
const HEADER_BYTES: usize = 16;

/// "bdwakr48", so that what the BIOS left there is not taken for used slots.
const MAGIC: u64 = u64::from_le_bytes(*b"bdwakr48");

/// Where older monitors began, and what they wrote there with slots of which length: their timers have to fire before
/// there is room for ours.
const OLD_START: u64 = 0x2_0000;
const OLD_KINDS: [(u64, usize); 2] = [(MAGIC, 48), (u64::from_le_bytes(*b"bdwakers"), 64)];

impl Walk<'_> {
    /// The direct map's address of a place in the first megabyte.
    pub(super) fn low(&self, at: u64) -> u64 {
        self.kernel.space.page_offset_base.wrapping_add(at)
    }

    /// Up to `count` slots whose timers have fired or never were, of memory that is reserved; at least one.
    pub(super) fn free_slots(&mut self, layout: &KillLayout, count: usize) -> Result<Result<Slots, String>, LinkError> {
        let area = match self.area(layout, count)? {
            Ok(area) => area,
            Err(why) => return Ok(Err(why)),
        };
        let chosen: Vec<usize> = area.free(layout).take(count).collect();
        if chosen.is_empty() {
            return Ok(Err(format!("all of {} timers still wait to wake somebody", area.slots_max)));
        }
        Ok(Ok(Slots::new(&area.bytes, &chosen, area.used)))
    }

    /// The area, with as many slots as were ever used and `count` more.
    fn area(&mut self, layout: &KillLayout, count: usize) -> Result<Result<Area, String>, LinkError> {
        if layout.sleeper.end() > SLOT_BYTES || layout.node_pprev.end() > SLOT_BYTES {
            return Ok(Err("this kernel's timers are larger than a slot".to_owned()));
        }
        let slots_max = match self.area_bytes()? {
            Ok(bytes) => (bytes as usize / SLOT_BYTES).saturating_sub(1),
            Err(why) => return Ok(Err(why)),
        };
        let [start, old] = [AREA_START, OLD_START].map(|at| KernelVirt::new(self.low(at)));
        let unreadable = || Ok(Err("the first megabyte cannot be read".to_owned()));
        let headers = self.kernel.space.fetch_equal(&mut self.memory, &[start, old], HEADER_BYTES)?;
        let (Some(header), Some(old_header)) = (headers.bytes(0), headers.bytes(1)) else { return unreadable() };
        let claimed = |header: &[u8]| usize::try_from(word(header, 8, 8)).unwrap_or(usize::MAX);
        let old_kind = OLD_KINDS.into_iter().find(|(magic, _)| *magic == word(old_header, 0, 8));
        if let Some((_, slot_bytes)) = old_kind {
            let len = claimed(old_header).saturating_add(1).saturating_mul(slot_bytes);
            let len = len.min((AREA_START + AREA_BYTES - OLD_START) as usize);
            let Some(slots) = self.kernel.space.fetch(&mut self.memory, old, len)? else { return unreadable() };
            let waits = |slot: &[u8]| word(slot, layout.node_pprev.offset, 8) != 0;
            if slots.chunks(slot_bytes).skip(1).any(waits) {
                return Ok(Err("timers of an older monitor still wait to wake somebody".to_owned()));
            }
        }
        let used = if word(header, 0, 8) == MAGIC { claimed(header).min(slots_max) } else { 0 };
        // Those that were never used come behind the others: no more has to be read.
        let looked_at = used.saturating_add(count).min(slots_max);
        let len = (looked_at + 1) * SLOT_BYTES;
        let Some(bytes) = self.kernel.space.fetch(&mut self.memory, start, len)? else { return unreadable() };
        Ok(Ok(Area { bytes, used, looked_at, slots_max }))
    }

    /// Bytes of the area that are the kernel's own and nobody's, the trampoline elsewhere.
    fn area_bytes(&mut self) -> Result<Result<u64, String>, LinkError> {
        let space = &self.kernel.space;
        let Some(reserved) = self.kernel.reserved_bit else {
            return Ok(Err("this kernel does not say which bit marks a reserved page".to_owned()));
        };
        let pages = AREA_START / PAGE_BYTES..(AREA_START + AREA_BYTES) / PAGE_BYTES;
        let at: Vec<_> = pages
            .map(|number| KernelVirt::new(space.vmemmap_base.wrapping_add(number * space.page_struct_bytes)))
            .collect();
        let flags = space.fetch_equal(&mut self.memory, &at, 8)?;
        let is_reserved = |bytes: &Option<&[u8]>| bytes.is_some_and(|bytes| word(bytes, 0, 8) >> reserved & 1 == 1);
        let reserved_bytes = flags.iter().take_while(is_reserved).count() as u64 * PAGE_BYTES;
        let trampoline = self.number("real_mode_header", 0, 8)?;
        let trampoline = trampoline.map(|at| at.wrapping_sub(self.kernel.space.page_offset_base));
        Ok(match before_trampoline(reserved_bytes, trampoline) {
            0 => Err("this kernel has given the first megabyte away".to_owned()),
            bytes => Ok(bytes),
        })
    }
}

/// What is left of the first `bytes` of the area by a trampoline at this guest-physical address.
fn before_trampoline(bytes: u64, trampoline: Option<u64>) -> u64 {
    match trampoline {
        Some(at) if at < AREA_START + bytes && at.saturating_add(TRAMPOLINE_BYTES_MAX) > AREA_START => {
            at.saturating_sub(AREA_START) / PAGE_BYTES * PAGE_BYTES
        }
        _ => bytes,
    }
}

/// How many timers there is room for now; 0 where nobody can be woken. For who waits, while the machine runs, until
/// those of before have fired.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn room(kernel: &Kernel, mem: &mut dyn RemoteRead, ram: RemoteKey) -> Result<usize, LinkError> {
    let Some(layout) = &kernel.kill else { return Ok(0) };
    let area = Walk::new(kernel, mem, ram).area(layout, 0)?;
    Ok(area.map_or(0, |area| area.slots_max - area.used + area.free(layout).count()))
}

/// The memory for timers as it is.
struct Area {
    bytes: Vec<u8>,
    /// Slots that were ever used.
    used: usize,
    /// Slots that `bytes` has.
    looked_at: usize,
    slots_max: usize,
}

impl Area {
    fn free(&self, layout: &KillLayout) -> impl Iterator<Item = usize> {
        let pprev = layout.node_pprev.offset;
        let is_free =
            move |slot: &usize| *slot >= self.used || word(&self.bytes, (slot + 1) * SLOT_BYTES + pprev, 8) == 0;
        (0..self.looked_at).filter(is_free)
    }
}

/// Slots to be filled, neighbours in one edit.
pub(super) struct Slots {
    /// Guest-physical address of each.
    pub places: Vec<u64>,
    /// The header, then stretches of slots.
    stretches: Vec<Stretch>,
    /// For each slot its stretch, and its offset there.
    homes: Vec<(usize, usize)>,
}

struct Stretch {
    at: u64,
    was: Vec<u8>,
    now: Vec<u8>,
    what: &'static str,
}

impl Slots {
    fn new(area: &[u8], chosen: &[usize], used: usize) -> Self {
        let bytes = |slot: usize| &area[(slot + 1) * SLOT_BYTES..(slot + 2) * SLOT_BYTES];
        let place_of = |slot: usize| AREA_START + ((slot + 1) * SLOT_BYTES) as u64;
        let now_used = used.max(chosen.last().map_or(0, |slot| slot + 1)) as u64;
        let header = [MAGIC.to_le_bytes(), now_used.to_le_bytes()].concat();
        let mut stretches = vec![Stretch {
            at: AREA_START,
            was: area[..HEADER_BYTES].to_vec(),
            now: header,
            what: "how many slots are used",
        }];
        let (mut homes, mut follows) = (Vec::with_capacity(chosen.len()), usize::MAX);
        for slot in chosen {
            if follows != *slot {
                let (at, was, now) = (place_of(*slot), Vec::new(), Vec::new());
                stretches.push(Stretch { at, was, now, what: "timers" });
            }
            let home = stretches.len() - 1;
            homes.push((home, stretches[home].was.len()));
            stretches[home].was.extend_from_slice(bytes(*slot));
            follows = slot + 1;
        }
        for stretch in &mut stretches[1..] {
            stretch.now = vec![0; stretch.was.len()];
        }
        Self { places: chosen.iter().map(|slot| place_of(*slot)).collect(), stretches, homes }
    }

    /// The bytes that slot `number` is to have, to be filled in.
    pub fn slot(&mut self, number: usize) -> &mut [u8] {
        let (home, offset) = self.homes[number];
        &mut self.stretches[home].now[offset..offset + SLOT_BYTES]
    }

    pub fn edits(self) -> impl Iterator<Item = Edit> {
        self.stretches.into_iter().map(|Stretch { at, was, now, what }| set(GuestPhys::new(at), was, now, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_ends_where_the_trampoline_begins() {
        assert_eq!(before_trampoline(AREA_BYTES, None), AREA_BYTES);
        assert_eq!(before_trampoline(AREA_BYTES, Some(AREA_START + AREA_BYTES)), AREA_BYTES);
        assert_eq!(before_trampoline(AREA_BYTES, Some(0)), AREA_BYTES, "it ends before");
        assert_eq!(before_trampoline(AREA_BYTES, Some(AREA_START + 0x3_0800)), 0x3_0000);
        assert_eq!(before_trampoline(AREA_BYTES, Some(AREA_START - 0x1000)), 0);
    }

    #[test]
    fn slots_side_by_side_are_one_edit_and_the_header_counts_them() {
        let area = vec![7; AREA_BYTES as usize];
        let mut slots = Slots::new(&area, &[0, 1, 5], 3);
        slots.slot(2).fill(9);
        let places = slots.places.clone();
        let edits: Vec<Edit> = slots.edits().collect();
        let lens: Vec<_> = edits.iter().map(|edit| (edit.at, edit.was.len(), edit.now.len())).collect();
        assert_eq!(lens, [(AREA_START, 16, 16), (AREA_START + 48, 96, 96), (AREA_START + 288, 48, 48)]);
        assert_eq!(edits[0].now[8], 6);
        assert_eq!(*edits[2].now, [9; SLOT_BYTES]);
        assert_eq!(places, [48, 96, 288].map(|at| AREA_START + at));
    }
}
