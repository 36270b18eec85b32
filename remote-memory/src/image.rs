//! A saved memory image as a link: the pages that a walk touched, or a whole RAM file, readable after the fact.
//!
//! An image ignores keys: it stands for one machine. Absent pages answer [`AccessError::Refused`], as a guard would.
//!
//! ```text
//!   file:  "BDIMAGE1"   then per page:  page number u64 LE, 4096 bytes   … pages in ascending order
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::{AccessError, LinkError, PAGE_BYTES, Read, RemoteRead};

const MAGIC: &[u8; 8] = b"BDIMAGE1";
const PAGE: usize = PAGE_BYTES as usize;

/// A sparse image, by page number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Image {
    /// An image without pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the page that starts at `page_number * 4096`.
    pub fn insert(&mut self, page_number: u64, page: &[u8; PAGE]) {
        self.pages.insert(page_number, Box::new(*page));
    }

    /// Writes `bytes` into the image at `addr`, making pages as needed: for tests that build or damage memory.
    pub fn write_at(&mut self, addr: u64, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            let at = addr + index as u64;
            let page = self.pages.entry(at / PAGE_BYTES).or_insert_with(|| Box::new([0; PAGE]));
            page[(at % PAGE_BYTES) as usize] = *byte;
        }
    }

    /// The numbers of the pages present, ascending.
    pub fn page_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// Whether the page is there.
    pub fn holds(&self, page_number: u64) -> bool {
        self.pages.contains_key(&page_number)
    }

    /// Copies out `into.len()` bytes from `addr`; `None` if a page is missing.
    pub fn copy_out(&self, addr: u64, into: &mut [u8]) -> Option<()> {
        let mut at = addr;
        let mut rest = into;
        while !rest.is_empty() {
            let offset = (at % PAGE_BYTES) as usize;
            let here = rest.len().min(PAGE - offset);
            let (now, later) = rest.split_at_mut(here);
            now.copy_from_slice(&self.pages.get(&(at / PAGE_BYTES))?[offset..offset + here]);
            at = at.checked_add(here as u64)?;
            rest = later;
        }
        Some(())
    }

    /// Saves the image.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn save(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        for (number, page) in &self.pages {
            to.write_all(&number.to_le_bytes())?;
            to.write_all(&page[..])?;
        }
        to.flush()
    }

    /// Loads what [`Image::save`] wrote.
    ///
    /// # Errors
    /// Those of the reader, and `InvalidData` for anything else than whole pages behind the magic.
    pub fn load(mut from: impl io::Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        from.by_ref().read_to_end(&mut bytes)?;
        let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("not a memory image"))?;
        let records = body.chunks_exact(8 + PAGE);
        if !records.remainder().is_empty() {
            return Err(bad("the image ends inside a page"));
        }
        let mut image = Self::new();
        for record in records {
            let (number, page) = record.split_first_chunk::<8>().ok_or_else(|| bad("page number missing"))?;
            let page = page.try_into().map_err(|_| bad("page cut short"))?;
            image.insert(u64::from_le_bytes(*number), page);
        }
        Ok(image)
    }
}

impl RemoteRead for Image {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            read.outcome = self.copy_out(read.at.addr, read.into).ok_or(AccessError::Refused);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RemoteAddr, RemoteKey};

    #[test]
    fn an_image_survives_saving_and_reads_across_pages() {
        let mut image = Image::new();
        image.write_at(4090, b"across the page");
        let mut file = Vec::new();
        image.save(&mut file).unwrap();
        let mut loaded = Image::load(&file[..]).unwrap();
        assert_eq!(loaded, image);
        let mut found = [0; 15];
        let at = RemoteAddr::new(RemoteKey::new(1), 4090);
        assert_eq!(loaded.read_one(at, &mut found), Ok(Ok(())));
        assert_eq!(&found, b"across the page");
    }

    #[test]
    fn a_missing_page_is_refused_and_its_neighbours_are_not() {
        let mut image = Image::new();
        image.write_at(0, &[7; 4096]);
        let (mut here, mut there) = ([0; 8], [0; 8]);
        let mut batch = [
            Read::new(RemoteAddr::new(RemoteKey::new(1), 4092), &mut there),
            Read::new(RemoteAddr::new(RemoteKey::new(1), 8), &mut here),
        ];
        image.read(&mut batch).unwrap();
        assert_eq!(batch[0].outcome, Err(AccessError::Refused));
        assert_eq!(batch[1].outcome, Ok(()));
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let mut image = Image::new();
        image.write_at(0, &[7; 4096]);
        let mut file = Vec::new();
        image.save(&mut file).unwrap();
        assert!(Image::load(&file[..file.len() - 1]).is_err());
        assert!(Image::load(&b"BDIMAGE2"[..]).is_err());
    }
}
