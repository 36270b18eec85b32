//! The vmcoreinfo note: a page of text in which the kernel tells a crash dumper how to read it.
//!
//! ```text
//!   OSRELEASE=6.1.0-56-amd64
//!   SYMBOL(kallsyms_names)=ffffffff8f4c1230        (kernels from 6.0)
//!   NUMBER(phys_base)=-1652555776
//!   NUMBER(pgtable_l5_enabled)=1
//! ```
//! Source: Documentation/admin-guide/kdump/vmcoreinfo.rst. The kernel keeps two copies: one page of bare text, and one
//! behind an ELF note header; either begins at a page. RAM may hold stale ones of an earlier boot, so a note is only
//! a candidate until it has led to a kernel.

use std::collections::BTreeMap;
use std::ops::Range;

use remote_memory::{GuestPhys, LinkError, PAGE_BYTES};

use crate::Extent;
use crate::memory::Memory;

/// Bytes read from the start of each page: enough for the note header (24 bytes) and the first key.
const HEAD_BYTES: usize = 40;

/// Pages whose heads travel in one round, from each end of each stretch.
const PAGES_PER_ROUND: u64 = 1024;

/// Where the kernel's zones of memory begin (DMA32, Normal), in bytes. It hands out fresh pages from an end of the
/// highest zone, and makes the note early: the nearer copy lay 9 MiB from the low end or 70 MiB from the high one in
/// Linux 6.1 and 6.12 with 256 MiB to 8 GiB.
const ZONES: [u64; 2] = [16 << 20, 4 << 30];

/// The note cannot be longer than this (`VMCOREINFO_BYTES` is one page); the ELF header adds to it.
const TEXT_BYTES_MAX: usize = PAGE_BYTES as usize;

/// Notes looked at before giving up; a healthy machine has two.
pub(crate) const CANDIDATES_MAX: usize = 32;

const FIRST_KEY: &[u8] = b"OSRELEASE=";
const ELF_NOTE_NAME: &[u8] = b"VMCOREINFO\0";
/// `sizeof(struct elf_note)` and the name padded to 12.
const ELF_NOTE_BYTES: usize = 24;

/// What a note says. Claims, all of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Note {
    entries: BTreeMap<String, String>,
}

impl Note {
    /// Reads the text, as far as it is text.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        let text = page.strip_prefix(FIRST_KEY).map(|_| page).or_else(|| page.get(ELF_NOTE_BYTES..))?;
        text.starts_with(FIRST_KEY).then_some(())?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        let entries = text[..end]
            .split(|byte| *byte == b'\n')
            .filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='))
            .map(|(key, value)| (key.to_string(), value.trim().to_string()))
            .collect();
        Some(Self { entries })
    }

    pub(crate) fn release(&self) -> &str {
        self.entries.get("OSRELEASE").map_or("", String::as_str)
    }

    /// `SYMBOL(name)`, hexadecimal.
    pub(crate) fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.entries.get(&format!("SYMBOL({name})"))?, 16).ok()
    }

    /// `NUMBER(name)`, decimal; addresses are printed as signed numbers.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let text = self.entries.get(&format!("NUMBER({name})"))?;
        text.parse::<i64>().map(|number| number as u64).or_else(|_| text.parse()).ok()
    }
}

/// Scans RAM for pages that begin like a note and hands each to `accept` until that returns a value. Reads the head of
/// every page, not the page: a hundredth of the bytes; and begins where the kernel puts it, so that the cost does not
/// grow with the memory. Where there is none, every page has been asked for once.
pub(crate) fn scan<T>(
    memory: &mut Memory<'_>,
    extents: &[Extent],
    mut accept: impl FnMut(&mut Memory<'_>, &Note) -> Result<Option<T>, LinkError>,
) -> Result<Option<T>, LinkError> {
    let mut candidates = 0;
    let mut order = Order::of(extents);
    loop {
        let at = order.round();
        if at.is_empty() {
            return Ok(None);
        }
        let heads = memory.fetch_equal_apart(&at, HEAD_BYTES)?;
        let found = heads.iter().zip(&at).filter(|(head, _)| head.is_some_and(looks_like_note));
        for at in found.map(|(_, at)| *at).collect::<Vec<_>>() {
            candidates += 1;
            if candidates > CANDIDATES_MAX {
                return Ok(None);
            }
            let page = memory.fetch_equal(&[at], TEXT_BYTES_MAX)?;
            let Some(note) = page.bytes(0).and_then(Note::parse) else { continue };
            if let Some(value) = accept(memory, &note)? {
                return Ok(Some(value));
            }
        }
    }
}

/// The pages of RAM from both ends of each zone towards its middle, each once.
struct Order(Vec<Range<u64>>);

impl Order {
    fn of(extents: &[Extent]) -> Self {
        let mut stretches = Vec::new();
        for extent in extents {
            let end = extent.start.saturating_add(extent.len) / PAGE_BYTES;
            let mut from = extent.start.div_ceil(PAGE_BYTES);
            for cut in ZONES.map(|zone| zone / PAGE_BYTES).into_iter().chain([end]) {
                let to = cut.min(end);
                if from < to {
                    stretches.push(from..to);
                    from = to;
                }
            }
        }
        stretches.reverse(); // the highest zone first
        Self(stretches)
    }

    fn round(&mut self) -> Vec<Option<GuestPhys>> {
        let mut pages = Vec::new();
        for stretch in &mut self.0 {
            let low = stretch.start..stretch.end.min(stretch.start + PAGES_PER_ROUND);
            stretch.start = low.end;
            let high = stretch.end.saturating_sub(PAGES_PER_ROUND).max(stretch.start)..stretch.end;
            stretch.end = high.start;
            pages.extend(low.chain(high));
        }
        self.0.retain(|stretch| !stretch.is_empty());
        pages.into_iter().map(|page| Some(GuestPhys::new(page * PAGE_BYTES))).collect()
    }
}

fn looks_like_note(head: &[u8]) -> bool {
    head.starts_with(FIRST_KEY)
        || (head.get(12..).is_some_and(|name| name.starts_with(ELF_NOTE_NAME))
            && head.get(ELF_NOTE_BYTES..).is_some_and(|text| text.starts_with(FIRST_KEY)))
}

#[cfg(test)]
mod tests {
    use remote_memory::RemoteKey;
    use remote_memory::image::Image;
    use remote_memory::trace::Trace;

    use super::*;

    const TEXT: &[u8] = b"OSRELEASE=6.1.0-x\nSYMBOL(_stext)=ffffffff81000000\nNUMBER(phys_base)=-16777216\n\0junk=1\n";

    #[test]
    fn bare_text_and_elf_note_say_the_same() {
        let note = Note::parse(TEXT).unwrap();
        assert_eq!(note.release(), "6.1.0-x");
        assert_eq!(note.symbol("_stext"), Some(0xffff_ffff_8100_0000));
        assert_eq!(note.number("phys_base"), Some(0u64.wrapping_sub(16_777_216)));
        assert_eq!(note.symbol("junk"), None);
        let mut elf = vec![11, 0, 0, 0, 88, 0, 0, 0, 0, 0, 0, 0];
        elf.extend_from_slice(b"VMCOREINFO\0\0");
        elf.extend_from_slice(TEXT);
        assert!(looks_like_note(&elf) && looks_like_note(TEXT));
        assert_eq!(Note::parse(&elf), Some(note));
    }

    #[test]
    fn every_page_is_asked_for_once_wherever_zones_and_extents_begin() {
        for extents in [
            vec![(0, 0x4000), (0x5000, 9 << 20)],
            vec![(0x1800, (40 << 20) + 0x900)],
            vec![(0, 2 << 30), (4 << 30, 1 << 30)],
            vec![(3 << 30, 2 << 30), (0, 5)],
            vec![(u64::MAX - 0x2000, u64::MAX)],
        ] {
            let extents: Vec<_> = extents.into_iter().map(|(start, len)| Extent { start, len }).collect();
            let pages = |extent: &Extent| {
                extent.start.div_ceil(PAGE_BYTES)..extent.start.saturating_add(extent.len) / PAGE_BYTES
            };
            let expected: Vec<u64> = extents.iter().flat_map(pages).collect();
            let (mut order, mut found) = (Order::of(&extents), Vec::new());
            loop {
                let round = order.round();
                if round.is_empty() {
                    break;
                }
                found.extend(round.iter().flatten().map(|at| at.raw() / PAGE_BYTES));
            }
            found.sort_unstable();
            let mut expected = expected;
            expected.sort_unstable();
            assert!(found == expected, "{extents:x?}: {} of {} pages", found.len(), expected.len());
        }
    }

    #[test]
    fn the_note_of_a_large_machine_is_found_by_looking_at_a_small_part_of_it() {
        const HOLE: u64 = 2 << 30;
        let (low, high) = (|end: u64| end + (9 << 20), |end: u64| end - (70 << 20));
        for (size, place) in [(4 << 30, low(4 << 30)), (64 << 30, high(66 << 30)), (HOLE, low(16 << 20))] {
            let above: u64 = size - HOLE;
            let extents = [Extent { start: 0, len: HOLE }, Extent { start: 4 << 30, len: above }];
            let mut image = Image::new();
            image.write_at(place, TEXT);
            image.write_at(place + TEXT.len() as u64, &[0; 4096]);
            let mut trace = Trace::new(image);
            let mut memory = Memory::new(&mut trace, RemoteKey::new(1), &extents);
            let found = scan(&mut memory, &extents, |_, note| Ok(Some(note.release().to_owned()))).unwrap();
            assert_eq!(found.as_deref(), Some("6.1.0-x"), "{size:#x}");
            assert!(trace.reads().len() < 80_000, "{} reads of {} pages", trace.reads().len(), size / PAGE_BYTES);
        }
    }

    #[test]
    fn other_pages_are_no_notes() {
        assert_eq!(Note::parse(&[0; 4096]), None);
        assert_eq!(Note::parse(b"OSREL"), None);
        assert!(!looks_like_note(&[0xff; HEAD_BYTES]));
    }
}
