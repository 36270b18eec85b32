//! Reading guest-physical memory in rounds: many stretches per round trip, none outside the target's RAM.
//!
//! ```text
//!   wants of a round   [sock] [sock]      [skb]                [sock]      small ones, in order of address
//!   reads              [=================stretch]              [====]      neighbours travel together
//! ```
//! Kernel objects of a kind lie side by side in slabs, so a walk over many of them wants many small pieces of few
//! pages.
//! A READ costs more than the bytes between two of them. What came along is kept until the walk ends and later wants
//! are served from it: the same sock's head and body, the next one of the slab.

use std::collections::BTreeMap;
use std::ops::Range;

use remote_memory::{Gather, GuestPhys, LinkError, Member, Read, RemoteAddr, RemoteKey, RemoteRead};

use crate::Extent;

/// Longest single read, in bytes: a larger stretch is split, so that any carrier's landing buffer takes it.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;

/// Wants above this travel alone, straight to their place.
const SMALL_BYTES_MAX: usize = 4096;

/// Longest stretch of wants that travel together.
const STRETCH_BYTES_MAX: u64 = 64 * 1024;

/// What a walk keeps of stretches; beyond it, wants are read again.
const KEPT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One machine's RAM behind a link, as of one walk.
pub(crate) struct Memory<'a> {
    link: &'a mut dyn RemoteRead,
    ram: RemoteKey,
    extents: Vec<Extent>,
    /// Stretches read so far by their first address: in which of `stores`, and where there. They may overlap.
    kept: BTreeMap<u64, (usize, Range<usize>)>,
    /// The stretches of each round, one after the other.
    stores: Vec<Vec<u8>>,
    kept_bytes: usize,
    /// Two small wants travel together if no more lies between them: what a READ of its own costs on this link.
    gap_bytes_max: u64,
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
        let gap_bytes_max = link.gap_bytes();
        Self {
            link,
            ram,
            extents: extents.to_vec(),
            kept: BTreeMap::new(),
            stores: Vec::new(),
            kept_bytes: 0,
            gap_bytes_max,
        }
    }

    /// How many bytes cost as much as a stretch of their own on this link.
    pub(crate) fn gap_bytes(&self) -> usize {
        usize::try_from(self.gap_bytes_max).unwrap_or(usize::MAX)
    }

    /// Whether `len` bytes at `at` are RAM, all in one extent. What is not RAM may be a device: never read it.
    pub(crate) fn holds(&self, at: GuestPhys, len: u64) -> bool {
        holds(&self.extents, at, len)
    }

    /// Reads all `wants` in one round and calls `failed` with the owner of each that could not be read.
    ///
    /// A stretch that cannot be read costs one more round, in which its wants travel one by one.
    pub(crate) fn fetch(&mut self, wants: Vec<Want<'_>>, mut failed: impl FnMut(usize)) -> Result<(), LinkError> {
        let (mut small, mut alone): (Vec<_>, Vec<_>) =
            wants.into_iter().partition(|want| want.into.len() <= SMALL_BYTES_MAX);
        small.retain_mut(|want| {
            let is_ram = self.holds(want.at, want.into.len() as u64);
            if !is_ram {
                failed(want.owner);
            }
            is_ram && !self.serve(want)
        });
        let mut stretches = self.stretches(&mut small);
        // Most wants have no neighbours: they go straight to their place.
        let mut joined = Vec::new();
        let mut small = small.into_iter();
        stretches.retain(|stretch| {
            let into = if stretch.wants == 1 { &mut alone } else { &mut joined };
            into.extend(small.by_ref().take(stretch.wants));
            stretch.wants > 1
        });
        let mut store = vec![0; stretches.iter().map(Stretch::bytes).sum()];
        let mut rest = store.as_mut_slice();
        let mut many = Vec::with_capacity(stretches.len());
        for stretch in &stretches {
            let (bytes, later) = std::mem::take(&mut rest).split_at_mut(stretch.bytes());
            many.push((stretch.start, bytes));
            rest = later;
        }
        let whole = self.read_round(many, &mut alone, &mut failed)?;
        let (mut again, mut at, mut joined) = (Vec::new(), 0, joined.into_iter());
        let keeps = self.kept_bytes.saturating_add(store.len()) <= KEPT_BYTES_MAX;
        for (stretch, whole) in stretches.iter().zip(whole) {
            let wants = joined.by_ref().take(stretch.wants);
            let place = at..at + stretch.bytes();
            at = place.end;
            if !whole {
                again.extend(wants);
                continue;
            }
            wants.for_each(|mut want| copy(stretch.start, &store[place.clone()], &mut want));
            if keeps && self.kept.get(&stretch.start).is_none_or(|(_, known)| known.len() < place.len()) {
                self.kept.insert(stretch.start, (self.stores.len(), place));
            }
        }
        if keeps && !store.is_empty() {
            self.kept_bytes += store.len();
            self.stores.push(store);
        }
        if !again.is_empty() {
            self.read_round(Vec::new(), &mut again, &mut failed)?;
        }
        Ok(())
    }

    /// As [`Memory::fetch`], each want by itself: for wants that have nothing to do with each other.
    pub(crate) fn fetch_apart(
        &mut self,
        mut wants: Vec<Want<'_>>,
        mut failed: impl FnMut(usize),
    ) -> Result<(), LinkError> {
        self.read_round(Vec::new(), &mut wants, &mut failed).map(drop)
    }

    /// Fills a want from what was read before, if it lies in it.
    fn serve(&self, want: &mut Want<'_>) -> bool {
        let Some((start, (store, place))) = self.kept.range(..=want.at.raw()).next_back() else { return false };
        let end = want.at.raw().saturating_add(want.into.len() as u64);
        let inside = end <= start.saturating_add(place.len() as u64);
        if inside {
            copy(*start, &self.stores[*store][place.clone()], want);
        }
        inside
    }

    /// Sorts `wants` by address and says which of them travel together, all in one extent.
    fn stretches(&self, wants: &mut [Want<'_>]) -> Vec<Stretch> {
        wants.sort_by_key(|want| want.at);
        let mut stretches: Vec<Stretch> = Vec::new();
        for want in wants {
            let start = want.at.raw();
            let end = start.saturating_add(want.into.len() as u64);
            if let Some(last) = stretches.last_mut() {
                let reach = end.max(last.end);
                let near =
                    start.saturating_sub(last.end) <= self.gap_bytes_max && reach - last.start <= STRETCH_BYTES_MAX;
                if near && self.holds(GuestPhys::new(last.start), reach - last.start) {
                    (last.end, last.wants) = (reach, last.wants + 1);
                    continue;
                }
            }
            stretches.push(Stretch { start, end, wants: 1 });
        }
        stretches
    }

    /// One round: whole stretches, each with its start, and wants by themselves. Says which stretches came.
    fn read_round(
        &mut self,
        stretches: Vec<(u64, &mut [u8])>,
        wants: &mut [Want<'_>],
        failed: &mut impl FnMut(usize),
    ) -> Result<Vec<bool>, LinkError> {
        let mut batch = Vec::with_capacity(stretches.len() + wants.len());
        for (start, bytes) in stretches {
            batch.push(Read::new(RemoteAddr::new(self.ram, start), bytes));
        }
        let together = batch.len();
        let mut owners = Vec::with_capacity(wants.len());
        for want in wants {
            if !holds(&self.extents, want.at, want.into.len() as u64) {
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
            return Ok(Vec::new());
        }
        self.link.read(&mut batch)?;
        for (read, owner) in batch[together..].iter().zip(&owners) {
            if read.outcome.is_err() {
                failed(*owner);
            }
        }
        Ok(batch[..together].iter().map(|read| read.outcome.is_ok()).collect())
    }

    /// Reads stretches of one length into one buffer, in one round; an unreadable one is `None`.
    pub(crate) fn fetch_equal(&mut self, at: &[Option<GuestPhys>], len: usize) -> Result<Records, LinkError> {
        self.fetch_records(at, len, false)
    }

    /// As [`Memory::fetch_equal`], each by itself: for stretches that have nothing to do with each other.
    pub(crate) fn fetch_equal_apart(&mut self, at: &[Option<GuestPhys>], len: usize) -> Result<Records, LinkError> {
        self.fetch_records(at, len, true)
    }

    /// Reads `members` of the structs at `bases`, which lie in the RAM with all of them, and hands each over with its
    /// number; `None` for one that could not be read.
    pub(crate) fn gather(
        &mut self,
        bases: &[u64],
        members: &[Member],
        mut take: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), LinkError> {
        let wanted = Gather { key: self.ram, bases, members };
        self.link.gather(&wanted, &mut |number, outcome| take(number, outcome.ok()))
    }

    fn fetch_records(&mut self, at: &[Option<GuestPhys>], len: usize, apart: bool) -> Result<Records, LinkError> {
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
        let failed = |owner: usize| present[owner] = false;
        if apart {
            self.fetch_apart(wants, failed)?
        } else {
            self.fetch(wants, failed)?
        }
        Ok(records)
    }
}

/// Small wants that travel together.
struct Stretch {
    start: u64,
    end: u64,
    wants: usize,
}

impl Stretch {
    fn bytes(&self) -> usize {
        (self.end - self.start) as usize
    }
}

/// Fills a want from a stretch that holds it.
fn copy(start: u64, stretch: &[u8], want: &mut Want<'_>) {
    let from = (want.at.raw() - start) as usize;
    want.into.copy_from_slice(&stretch[from..from + want.into.len()]);
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
