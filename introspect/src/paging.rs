//! From kernel virtual to guest-physical addresses (x86-64).
//!
//! ```text
//!   kernel image   ffffffff80000000..   phys = virt - ffffffff80000000 + phys_base      arithmetic
//!   direct map     page_offset_base..   phys = virt - page_offset_base                  arithmetic
//!   anything else  (vmalloc, modules)   page tables from init_top_pgt, 4 or 5 levels    rounds of reads, cached
//! ```
//!
//! A walk over many addresses costs one round per level, however many there are.

use std::collections::BTreeMap;

use remote_memory::{GuestPhys, KernelVirt, LinkError, Member, PAGE_BYTES};
use serde::{Deserialize, Serialize};

use crate::Extent;
use crate::memory::{Memory, Records, Want, holds, word};

/// Where the kernel's image is mapped, whatever KASLR does (`__START_KERNEL_map`).
pub(crate) const IMAGE_START: u64 = 0xffff_ffff_8000_0000;

/// The most the image mapping can span (`KERNEL_IMAGE_SIZE` with KASLR); modules follow.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// Bits 12..52 of an entry: the most an x86-64 processor can have.
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
/// `_PAGE_PSE`: the entry is a leaf of 1 GiB or 2 MiB.
const LARGE: u64 = 1 << 7;
/// `_PAGE_PROTNONE`: not present for the processor, yet the frame is valid.
const PROT_NONE: u64 = 1 << 8;

/// Structs that are read piece by piece in one round: no more memory of ours than caches hold.
const STRUCTS_PER_ROUND: usize = 2048;

/// The rules of one kernel's address space.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Space {
    /// Guest-physical address that [`IMAGE_START`] stands for; may be "negative", hence wrapping.
    pub phys_base: u64,
    /// First virtual address after the image.
    pub image_end: u64,
    /// Start of the direct map; 0 until it was read.
    pub page_offset_base: u64,
    /// Start of the array of `struct page`; 0 until it was read.
    pub vmemmap_base: u64,
    /// `sizeof(struct page)`; 0 until BTF was read.
    pub page_struct_bytes: u64,
    /// Guest-physical address of the top-level table.
    pub root: u64,
    /// 4 or 5.
    pub levels: u8,
    /// Encryption bit of page-table entries, 0 if there is none.
    pub sme_mask: u64,
    /// What is RAM.
    pub extents: Vec<Extent>,
    /// Translations of pages outside image and direct map that were walked while the target was healthy.
    pub walked: BTreeMap<u64, u64>,
}

impl Space {
    /// Translates without reading: image, direct map and pages walked before.
    pub(crate) fn known(&self, virt: KernelVirt, len: u64) -> Option<GuestPhys> {
        let raw = virt.raw();
        let phys = if (IMAGE_START..self.image_end).contains(&raw) {
            GuestPhys::new(raw.wrapping_sub(IMAGE_START).wrapping_add(self.phys_base))
        } else if let Some(phys) = self.direct(raw) {
            phys
        } else {
            // Pages that follow each other here need not do so in memory.
            (raw % PAGE_BYTES + len <= PAGE_BYTES).then_some(())?;
            let page = self.walked.get(&virt.page_start().raw())?;
            GuestPhys::new(page.checked_add(raw % PAGE_BYTES)?)
        };
        holds(&self.extents, phys, len).then_some(phys)
    }

    /// Whether an address belongs to image or direct map, so that no walk can say more than arithmetic.
    fn is_arithmetic(&self, raw: u64) -> bool {
        (IMAGE_START..self.image_end).contains(&raw) || self.direct(raw).is_some()
    }

    fn direct(&self, raw: u64) -> Option<GuestPhys> {
        let offset = raw.checked_sub(self.page_offset_base)?;
        let end = self.extents.iter().map(|extent| extent.start.saturating_add(extent.len)).max()?;
        (self.page_offset_base != 0 && offset < end).then_some(GuestPhys::new(offset))
    }

    /// The memory that a `struct page` stands for; `None` if the pointer is not one of the array.
    pub(crate) fn page_to_phys(&self, page: u64) -> Option<GuestPhys> {
        let offset = page.checked_sub(self.vmemmap_base)?;
        let number = offset.checked_div(self.page_struct_bytes)?;
        (self.vmemmap_base != 0 && offset % self.page_struct_bytes == 0).then_some(())?;
        Some(GuestPhys::new(number.checked_mul(PAGE_BYTES)?))
    }

    /// The bound of the image before `_end` is known.
    pub(crate) fn image_end_max() -> u64 {
        IMAGE_START + IMAGE_BYTES_MAX
    }

    /// Translates the pages of `virts` that arithmetic cannot, by walking the page tables: one round per level.
    pub(crate) fn walk_pages(
        &self,
        memory: &mut Memory<'_>,
        virts: &[u64],
    ) -> Result<Vec<Option<GuestPhys>>, LinkError> {
        let mut walks: Vec<Walk> = virts.iter().map(|virt| Walk::new(*virt, self.root, self.levels)).collect();
        for level in (1..=self.levels).rev() {
            let at: Vec<_> = walks.iter().map(|walk| walk.entry_at(level)).collect();
            if at.iter().all(Option::is_none) {
                break;
            }
            let entries = memory.fetch_equal(&at, 8)?;
            for (index, walk) in walks.iter_mut().enumerate().filter(|(index, _)| at[*index].is_some()) {
                walk.step(level, entries.bytes(index).map(|bytes| word(bytes, 0, 8)), self.sme_mask);
            }
        }
        Ok(walks.into_iter().map(|walk| walk.found).collect())
    }

    /// Reads stretches of `len` bytes at virtual addresses, in one round plus, if an address is neither in the image
    /// nor in the direct map nor walked before, one round per page-table level.
    pub(crate) fn fetch_equal(
        &self,
        memory: &mut Memory<'_>,
        virts: &[KernelVirt],
        len: usize,
    ) -> Result<Records, LinkError> {
        let mut pieces = Pieces::default();
        let mut records = Records::blank(virts.len(), len);
        let (chunks, present) = records.parts_mut();
        for (owner, (virt, into)) in virts.iter().zip(chunks).enumerate() {
            pieces.add(self, owner, *virt, into);
        }
        pieces.fetch(self, memory, |owner| present[owner] = false)?;
        Ok(records)
    }

    /// Reads the same `parts`, as (offset, length) in ascending order, of all structs at `bases`, and hands those of
    /// each over with its number, in any order; `None` for one that could not be read. One round for thousands, plus
    /// those of [`Space::fetch_equal`] for structs at addresses that have to be walked.
    pub(crate) fn each_of_parts(
        &self,
        memory: &mut Memory<'_>,
        bases: &[u64],
        parts: &[(usize, usize)],
        mut take: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), LinkError> {
        let (mut numbers, mut places) = (Vec::with_capacity(bases.len()), Vec::with_capacity(bases.len()));
        let mut others = Vec::new();
        let members = members_of(parts);
        for (number, base) in bases.iter().enumerate() {
            match members.as_ref().and_then(|_| self.whole(*base, parts)) {
                Some(place) => {
                    numbers.push(number);
                    places.push(place);
                }
                None => others.push(number),
            }
        }
        if let Some(members) = members.filter(|_| !places.is_empty()) {
            memory.gather(&places, &members, |index, found| take(numbers[index], found))?;
        }
        for others in others.chunks(STRUCTS_PER_ROUND) {
            let bases: Vec<u64> = others.iter().map(|number| bases[*number]).collect();
            let records = self.fetch_parts(memory, &bases, parts)?;
            others.iter().zip(records.iter()).for_each(|(number, found)| take(*number, found));
        }
        Ok(())
    }

    /// The same piece by piece, wherever they lie.
    fn fetch_parts(
        &self,
        memory: &mut Memory<'_>,
        bases: &[u64],
        parts: &[(usize, usize)],
    ) -> Result<Records, LinkError> {
        let mut records = Records::blank(bases.len(), parts.iter().map(|(_, len)| len).sum());
        let (copies, present) = records.parts_mut();
        let mut pieces = Pieces::default();
        for (owner, mut rest) in copies.enumerate() {
            for (start, len) in parts {
                let (piece, later) = rest.split_at_mut(*len);
                pieces.add(self, owner, KernelVirt::new(bases[owner].wrapping_add(*start as u64)), piece);
                rest = later;
            }
        }
        pieces.fetch(self, memory, |owner| present[owner] = false)?;
        Ok(records)
    }

    /// Where the first of a struct's parts lies, if all of them lie in one piece of the RAM.
    fn whole(&self, base: u64, parts: &[(usize, usize)]) -> Option<u64> {
        let ((first, _), (last, last_len)) = (parts.first()?, parts.last()?);
        let span = (last + last_len - first) as u64;
        Some(self.known(KernelVirt::new(base.wrapping_add(*first as u64)), span)?.raw())
    }

    /// Reads one stretch; `None` if any of it cannot be read.
    pub(crate) fn fetch(
        &self,
        memory: &mut Memory<'_>,
        virt: KernelVirt,
        len: usize,
    ) -> Result<Option<Vec<u8>>, LinkError> {
        Ok(self.fetch_equal(memory, &[virt], len)?.bytes(0).map(<[u8]>::to_vec))
    }
}

/// Parts of a struct, from the first of them on.
fn members_of(parts: &[(usize, usize)]) -> Option<Vec<Member>> {
    let (first, _) = parts.first()?;
    let member = |(start, len): &(usize, usize)| {
        Some(Member { offset: u32::try_from(start - first).ok()?, len: u32::try_from(*len).ok()? })
    };
    parts.iter().map(member).collect()
}

/// Stretches of virtual memory, split where the translation may jump.
#[derive(Default)]
pub(crate) struct Pieces<'b> {
    ready: Vec<Want<'b>>,
    /// Not translatable by arithmetic: (virtual address, the want without its address).
    unwalked: Vec<(u64, &'b mut [u8], usize)>,
    hopeless: Vec<usize>,
}

impl<'b> Pieces<'b> {
    /// Adds the stretch at `virt` that fills `into`.
    pub(crate) fn add(&mut self, space: &Space, owner: usize, virt: KernelVirt, into: &'b mut [u8]) {
        if let Some(at) = space.known(virt, into.len() as u64) {
            self.ready.push(Want { at, into, owner });
            return;
        }
        if space.is_arithmetic(virt.raw()) || virt.raw() < (1 << 63) {
            self.hopeless.push(owner); // outside RAM, or no kernel address at all
            return;
        }
        let (mut at, mut rest) = (virt.raw(), into);
        while !rest.is_empty() {
            let here = rest.len().min((PAGE_BYTES - at % PAGE_BYTES) as usize);
            let (piece, later) = rest.split_at_mut(here);
            match space.known(KernelVirt::new(at), here as u64) {
                Some(phys) => self.ready.push(Want { at: phys, into: piece, owner }),
                None => self.unwalked.push((at, piece, owner)),
            }
            rest = later;
            let Some(next) = at.checked_add(here as u64) else {
                self.hopeless.push(owner);
                return;
            };
            at = next;
        }
    }

    /// Adds a stretch whose place is known.
    pub(crate) fn add_phys(&mut self, owner: usize, at: GuestPhys, into: &'b mut [u8]) {
        self.ready.push(Want { at, into, owner });
    }

    /// Reads everything added.
    pub(crate) fn fetch(
        self,
        space: &Space,
        memory: &mut Memory<'_>,
        mut failed: impl FnMut(usize),
    ) -> Result<(), LinkError> {
        let Self { mut ready, unwalked, hopeless } = self;
        hopeless.into_iter().for_each(&mut failed);
        if !unwalked.is_empty() {
            let virts: Vec<u64> = unwalked.iter().map(|(virt, ..)| *virt).collect();
            let found = space.walk_pages(memory, &virts)?;
            for ((_, into, owner), at) in unwalked.into_iter().zip(found) {
                match at {
                    Some(at) => ready.push(Want { at, into, owner }),
                    None => failed(owner),
                }
            }
        }
        memory.fetch(ready, failed)
    }
}

/// One address on its way down the tables.
struct Walk {
    virt: u64,
    table: Option<u64>,
    found: Option<GuestPhys>,
}

impl Walk {
    fn new(virt: u64, root: u64, levels: u8) -> Self {
        // Canonical: all bits above the translated ones repeat the highest of them.
        let used = 12 + 9 * u32::from(levels);
        let canonical = used < 64 && (virt as i64) << (64 - used) >> (64 - used) == virt as i64;
        Self { virt, table: canonical.then_some(root), found: None }
    }

    fn entry_at(&self, level: u8) -> Option<GuestPhys> {
        let index = self.virt >> shift(level) & 0x1ff;
        self.table?.checked_add(index * 8).map(GuestPhys::new)
    }

    fn step(&mut self, level: u8, entry: Option<u64>, sme_mask: u64) {
        self.table = None;
        let Some(entry) = entry.map(|entry| entry & !sme_mask) else { return };
        let leaf = level == 1 || (level <= 3 && entry & LARGE != 0);
        if entry & PRESENT == 0 && !(leaf && entry & PROT_NONE != 0) {
            return;
        }
        if leaf {
            let below = (1u64 << shift(level)) - 1;
            // In a large leaf bit 12 is an attribute (PAT), not address: `below` masks it off with the rest.
            self.found = Some(GuestPhys::new((entry & FRAME_MASK & !below) | (self.virt & below)));
        } else {
            self.table = Some(entry & FRAME_MASK);
        }
    }
}

fn shift(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
}

#[cfg(test)]
mod tests {
    use remote_memory::RemoteKey;
    use remote_memory::image::Image;

    use super::*;

    const RAM: u64 = 1 << 40;
    const NX: u64 = 1 << 63;

    fn space(levels: u8) -> Space {
        let extents = vec![Extent { start: 0, len: RAM }];
        Space { root: 0x1000, levels, sme_mask: 1 << 47, image_end: IMAGE_START, extents, ..Space::default() }
    }

    /// Writes the entries for `virt` down to `leaf_level` into tables at 0x1000, 0x2000, … and walks.
    fn check(levels: u8, leaf_level: u8, virt: u64, expected: Option<u64>) {
        let space = space(levels);
        let mut image = Image::new();
        (1..=6).for_each(|page| image.write_at(page * 0x1000, &[0; 4096]));
        let mut table = 0x1000;
        for level in (leaf_level..=levels).rev() {
            let leaf = level == leaf_level;
            let target = if leaf { 0x12_4000_0000 | NX } else { table + 0x1000 };
            let large = if leaf && level > 1 { LARGE | 0x1000 } else { 0 };
            let entry = target | large | PRESENT | space.sme_mask;
            image.write_at(table + (virt >> shift(level) & 0x1ff) * 8, &entry.to_le_bytes());
            table += 0x1000;
        }
        let mut memory = Memory::new(&mut image, RemoteKey::new(1), &space.extents);
        let found = space.walk_pages(&mut memory, &[virt]).unwrap();
        assert_eq!(found[0].map(GuestPhys::raw), expected, "{levels} levels, leaf {leaf_level}, {virt:#x}");
    }

    #[test]
    fn every_leaf_size_is_found_with_four_and_five_levels() {
        for (levels, virt) in [(4, 0xffff_c900_3234_5678), (5, 0xffa0_1234_3234_5678)] {
            check(levels, 1, virt, Some(0x12_4000_0678));
            check(levels, 2, virt, Some(0x12_4014_5678));
            check(levels, 3, virt, Some(0x12_7234_5678));
        }
    }

    #[test]
    fn a_leaf_bit_above_one_gibibyte_is_no_leaf() {
        check(4, 4, 0xffff_c900_3234_5678, None);
    }

    #[test]
    fn a_five_level_address_is_not_canonical_with_four() {
        check(4, 1, 0xffa0_1234_3234_5678, None);
    }

    #[test]
    fn tables_that_lead_to_themselves_end_after_their_levels() {
        let space = space(5);
        let mut image = Image::new();
        let entry: Vec<u8> = (0..512).flat_map(|_| (0x1000u64 | PRESENT).to_le_bytes()).collect();
        image.write_at(0x1000, &entry);
        let mut memory = Memory::new(&mut image, RemoteKey::new(1), &space.extents);
        let found = space.walk_pages(&mut memory, &[0xffff_ffff_ffff_f123]).unwrap();
        assert_eq!(found, [Some(GuestPhys::new(0x1123))]);
    }

    #[test]
    fn page_structs_stand_for_their_frames() {
        let space = Space { vmemmap_base: 0xffea_0000_0000_0000, page_struct_bytes: 64, ..space(4) };
        assert_eq!(space.page_to_phys(0xffea_0000_0000_0000 + 64 * 3), Some(GuestPhys::new(0x3000)));
        assert_eq!(space.page_to_phys(0xffea_0000_0000_0000 + 65), None);
        assert_eq!(space.page_to_phys(0), None);
    }

    #[test]
    fn a_stretch_over_pages_that_lie_apart_is_put_together() {
        let virt = 0xffff_c900_0000_0000u64;
        let mut space = space(4);
        space.walked = BTreeMap::from([(virt, 0x5000), (virt + 0x1000, 0x3000)]);
        let mut image = Image::new();
        image.write_at(0x5ffc, b"apar");
        image.write_at(0x3000, b"t ok");
        // No page tables: what was walked while the machine was healthy is enough.
        let mut memory = Memory::new(&mut image, RemoteKey::new(1), &space.extents);
        let found = space.fetch(&mut memory, KernelVirt::new(virt + 0xffc), 8).unwrap();
        assert_eq!(found.as_deref(), Some(&b"apart ok"[..]));
        let beyond = space.fetch(&mut memory, KernelVirt::new(virt + 0x1ffc), 8).unwrap();
        assert_eq!(beyond, None);
    }

    #[test]
    fn addresses_of_user_space_and_outside_ram_are_never_read() {
        let extents = vec![Extent { start: 0, len: 0x10000 }];
        let space = Space { page_offset_base: 0xffff_8880_0000_0000, extents, ..space(4) };
        for virt in [0, 0x7fff_0000_0000, u64::MAX, u64::MAX - 7, 0xffff_8880_0001_0000, 0xffff_8880_0000_fffc] {
            let mut image = Image::new();
            image.write_at(0, &[0; 0x10000]);
            let mut memory = Memory::new(&mut image, RemoteKey::new(1), &space.extents);
            assert_eq!(space.fetch(&mut memory, KernelVirt::new(virt), 8).unwrap(), None, "{virt:#x}");
        }
    }
}
