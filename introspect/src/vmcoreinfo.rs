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

use remote_memory::{GuestPhys, LinkError, PAGE_BYTES};

use crate::Extent;
use crate::memory::Memory;

/// Bytes read from the start of each page: enough for the note header (24 bytes) and the first key.
const HEAD_BYTES: usize = 40;

/// Pages whose heads travel in one round.
const PAGES_PER_ROUND: u64 = 16 * 1024;

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
/// every page, not the page: a hundredth of the bytes.
pub(crate) fn scan<T>(
    memory: &mut Memory<'_>,
    extents: &[Extent],
    mut accept: impl FnMut(&mut Memory<'_>, &Note) -> Result<Option<T>, LinkError>,
) -> Result<Option<T>, LinkError> {
    let mut candidates = 0;
    for extent in extents {
        let first = extent.start.div_ceil(PAGE_BYTES);
        let end = extent.start.saturating_add(extent.len) / PAGE_BYTES;
        let mut from = first;
        while from < end {
            let to = end.min(from + PAGES_PER_ROUND);
            let at: Vec<_> = (from..to).map(|page| Some(GuestPhys::new(page * PAGE_BYTES))).collect();
            let heads = memory.fetch_equal_apart(&at, HEAD_BYTES)?;
            let found: Vec<_> = heads
                .iter()
                .zip(&at)
                .filter(|(head, _)| head.is_some_and(looks_like_note))
                .map(|(_, at)| *at)
                .collect();
            for at in found {
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
            from = to;
        }
    }
    Ok(None)
}

fn looks_like_note(head: &[u8]) -> bool {
    head.starts_with(FIRST_KEY)
        || (head.get(12..).is_some_and(|name| name.starts_with(ELF_NOTE_NAME))
            && head.get(ELF_NOTE_BYTES..).is_some_and(|text| text.starts_with(FIRST_KEY)))
}

#[cfg(test)]
mod tests {
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
    fn other_pages_are_no_notes() {
        assert_eq!(Note::parse(&[0; 4096]), None);
        assert_eq!(Note::parse(b"OSREL"), None);
        assert!(!looks_like_note(&[0xff; HEAD_BYTES]));
    }
}
