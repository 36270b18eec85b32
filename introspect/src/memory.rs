//! Reading guest-physical memory in rounds: many stretches per round trip, none outside the target's RAM.

use remote_memory::{GuestPhys, LinkError, Read, RemoteAddr, RemoteKey, RemoteRead};

use crate::Extent;

/// Longest single read, in bytes: a larger stretch is split, so that any carrier's landing buffer takes it.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;

/// One machine's RAM behind a link.
pub(crate) struct Memory<'a> {
    link: &'a mut dyn RemoteRead,
    ram: RemoteKey,
    extents: Vec<Extent>,
}

/// A stretch of memory wanted, and where it goes.
pub(crate) struct Want<'b> {
    /// Where it starts.
    pub at: GuestPhys,
    /// Takes the bytes.
    pub into: &'b mut [u8],
    /// Index in the caller's list of what it belongs to.
    pub owner: usize,
}

impl<'a> Memory<'a> {
    pub(crate) fn new(link: &'a mut dyn RemoteRead, ram: RemoteKey, extents: &[Extent]) -> Self {
        Self { link, ram, extents: extents.to_vec() }
    }

    /// Whether `len` bytes at `at` are RAM, all in one extent. What is not RAM may be a device: never read it.
    pub(crate) fn holds(&self, at: GuestPhys, len: u64) -> bool {
        holds(&self.extents, at, len)
    }

    /// Reads all `wants` in one round and calls `failed` with the owner of each that could not be read.
    pub(crate) fn fetch(&mut self, wants: Vec<Want<'_>>, mut failed: impl FnMut(usize)) -> Result<(), LinkError> {
        let mut batch = Vec::with_capacity(wants.len());
        let mut owners = Vec::with_capacity(wants.len());
        for want in wants {
            if !self.holds(want.at, want.into.len() as u64) {
                failed(want.owner);
                continue;
            }
            let mut at = want.at.raw();
            for piece in want.into.chunks_mut(READ_BYTES_MAX) {
                let len = piece.len() as u64;
                batch.push(Read::new(RemoteAddr::new(self.ram, at), piece));
                owners.push(want.owner);
                at = at.saturating_add(len);
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.link.read(&mut batch)?;
        for (read, owner) in batch.iter().zip(&owners) {
            if read.outcome.is_err() {
                failed(*owner);
            }
        }
        Ok(())
    }

    /// Reads stretches of one length into one buffer, in one round; an unreadable one is `None`.
    pub(crate) fn fetch_equal(&mut self, at: &[Option<GuestPhys>], len: usize) -> Result<Records, LinkError> {
        let mut records = Records::blank(at.len(), len);
        if len == 0 {
            return Ok(records);
        }
        let Records { bytes, present, .. } = &mut records;
        let mut wants = Vec::with_capacity(at.len());
        for (owner, (at, into)) in at.iter().zip(bytes.chunks_exact_mut(len)).enumerate() {
            match at {
                Some(at) => wants.push(Want { at: *at, into, owner }),
                None => present[owner] = false,
            }
        }
        self.fetch(wants, |owner| present[owner] = false)?;
        Ok(records)
    }
}

/// Whether `len` bytes at `at` lie in one of `extents`.
pub(crate) fn holds(extents: &[Extent], at: GuestPhys, len: u64) -> bool {
    let Some(end) = at.checked_add(len) else { return false };
    extents.iter().any(|extent| {
        at.raw() >= extent.start && extent.start.checked_add(extent.len).is_some_and(|limit| end.raw() <= limit)
    })
}

/// Equal-sized copies of kernel objects, in the order in which they were asked for.
pub(crate) struct Records {
    bytes: Vec<u8>,
    present: Vec<bool>,
    len: usize,
}

impl Records {
    pub(crate) fn blank(count: usize, len: usize) -> Self {
        Self { bytes: vec![0; count.saturating_mul(len)], present: vec![true; count], len }
    }

    /// The bytes of record `index`, or `None` if it could not be read.
    pub(crate) fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.present.get(index).copied().unwrap_or(false).then_some(())?;
        let start = index.checked_mul(self.len)?;
        self.bytes.get(start..start.checked_add(self.len)?)
    }

    /// Records in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        (0..self.present.len()).map(|index| self.bytes(index))
    }

    pub(crate) fn parts_mut(&mut self) -> (std::slice::ChunksExactMut<'_, u8>, &mut [bool]) {
        (self.bytes.chunks_exact_mut(self.len.max(1)), &mut self.present)
    }
}

/// The little-endian word of `size` bytes (at most 8) at `offset`, 0 if it lies outside `bytes`.
pub(crate) fn word(bytes: &[u8], offset: usize, size: usize) -> u64 {
    let mut raw = [0; 8];
    let size = size.min(8);
    match offset.checked_add(size).and_then(|end| bytes.get(offset..end)) {
        Some(found) => raw[..size].copy_from_slice(found),
        None => return 0,
    }
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use remote_memory::image::Image;

    use super::*;

    #[test]
    fn nothing_outside_the_extents_is_asked_for() {
        let mut image = Image::new();
        image.write_at(0, &[1; 8192]);
        let extents = [Extent { start: 0, len: 4096 }];
        let mut memory = Memory::new(&mut image, RemoteKey::new(1), &extents);
        let at = [Some(GuestPhys::new(4088)), Some(GuestPhys::new(4089)), None, Some(GuestPhys::new(u64::MAX))];
        let records = memory.fetch_equal(&at, 8).unwrap();
        let read: Vec<_> = records.iter().map(|record| record.is_some()).collect();
        assert_eq!(read, [true, false, false, false]);
    }

    #[test]
    fn words_outside_are_zero() {
        assert_eq!(word(&[1, 2], 0, 2), 0x0201);
        assert_eq!(word(&[1, 2], 1, 2), 0);
        assert_eq!(word(&[1, 2], usize::MAX, 8), 0);
    }
}
