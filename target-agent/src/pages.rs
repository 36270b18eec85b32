//! Which physical pages lie behind a mapping. Source: Documentation/admin-guide/mm/pagemap.rst.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::shared::{Mapping, PAGE_BYTES};

const PAGEMAP: &str = "/proc/self/pagemap";
const ENTRY_BYTES: usize = 8;
const PRESENT: u64 = 1 << 63;
const FRAME_MASK: u64 = (1 << 55) - 1;

/// Physical page numbers of `mapping`, in order. BPF arrays lie in kernel memory that never moves: the answer holds
/// as long as the map exists.
///
/// # Errors
/// If the list cannot be read, or comes without numbers because the caller lacks CAP_SYS_ADMIN.
pub fn physical_pages(mapping: &Mapping) -> Result<Vec<u64>> {
    let count = mapping.len_bytes() / PAGE_BYTES;
    let mut entries = vec![0; count * ENTRY_BYTES];
    let first = mapping.address() / PAGE_BYTES * ENTRY_BYTES;
    read_at(&mut entries, first as u64).with_context(|| format!("cannot read {PAGEMAP}"))?;
    entries.as_chunks::<ENTRY_BYTES>().0.iter().map(|entry| frame(u64::from_le_bytes(*entry))).collect()
}

fn read_at(into: &mut [u8], offset: u64) -> io::Result<()> {
    File::open(PAGEMAP)?.read_exact_at(into, offset)
}

fn frame(entry: u64) -> Result<u64> {
    ensure!(entry & PRESENT != 0, "a page of the box is not in memory");
    match entry & FRAME_MASK {
        0 => bail!("the kernel hides physical page numbers: the agent needs CAP_SYS_ADMIN"),
        frame => Ok(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_present_pages_with_visible_numbers_are_taken() {
        assert_eq!(frame(PRESENT | 1 << 61 | 0x1234).unwrap(), 0x1234);
        assert!(frame(0x1234).is_err());
        assert!(frame(PRESENT).unwrap_err().to_string().contains("CAP_SYS_ADMIN"));
    }
}
