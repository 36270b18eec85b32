//! The memory of a QEMU machine, mapped into this process: who finds it, where it lies, and how it is touched.
//!
//! * [`find`]: from a QMP socket to the file that holds the memory;
//! * [`layout`]: which guest-physical address lies where in that file;
//! * [`Mapping`]: the bytes. The only unsafe code of this crate.
//!
//! The memory changes under our hands all the time, by processors we do not know of. So there are no references into
//! it: every access is a relaxed atomic, by aligned 64-bit words where possible, so that an aligned word of the target
//! is never seen or left half-written.

#![allow(unsafe_code)]

pub mod find;
pub mod layout;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of the words that are copied at once.
const WORD: usize = size_of::<u64>();

/// Bytes that a processor fetches at once.
const LINE: usize = 64;

/// Lines of one place that are asked for; those behind them the processor guesses.
const EXPECTED_LINES_MAX: usize = 4;

/// A shared mapping of a file, whole.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: `base..base + len` stays mapped until drop and is only ever accessed through atomics, from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// An access beyond the end of the mapping: a defect of the layout, never the peer's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("outside the mapped memory")]
pub struct Outside;

impl Mapping {
    /// Maps all of `file`, for reading and writing. The file must keep its length (QEMU seals its memfd; a file that
    /// is truncated while mapped kills whoever touches it).
    ///
    /// # Errors
    /// What the kernel said.
    pub fn of(file: &File) -> std::io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
        let len = len.ok_or_else(|| std::io::Error::other("an empty file is nobody's memory"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { mmap(None, len, access, flags, file, 0) }?;
        Ok(Self { base: base.cast(), len: len.get() })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn check(&self, offset: u64, len: usize) -> Result<usize, Outside> {
        let start = usize::try_from(offset).map_err(|_| Outside)?;
        let end = start.checked_add(len).ok_or(Outside)?;
        if end <= self.len { Ok(start) } else { Err(Outside) }
    }

    /// The byte at `index`.
    fn byte(&self, index: usize) -> &AtomicU8 {
        assert!(index < self.len, "callers check first");
        // SAFETY: inside the mapping (asserted), which lives as long as `self`; bytes are always aligned; nobody in
        // this process has a plain reference to it, and others may change it as an atomic allows.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(index)) }
    }

    /// The word at `index`, a multiple of 8.
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index.is_multiple_of(WORD) && index + WORD <= self.len, "callers check first");
        // SAFETY: as for `byte`; aligned because mappings begin at a page and the index is a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(index).cast()) }
    }

    /// Has the processor fetch the beginning of what is used next from `offset` on. Scattered places then come beside
    /// each other, and not one after the other, each at the price of a look into the page tables.
    pub fn expect(&self, offset: u64, len: u64) {
        let Ok(start) = usize::try_from(len).map_err(|_| Outside).and_then(|len| self.check(offset, len)) else {
            return;
        };
        #[cfg(target_arch = "x86_64")]
        for line in (start & !(LINE - 1)..start + len as usize).step_by(LINE).take(EXPECTED_LINES_MAX) {
            // SAFETY: inside the mapping (checked; it begins at a page); a hint reads nothing and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.as_ptr().add(line).cast()) };
        }
    }

    /// Copies memory from `offset` on into all of `into`.
    ///
    /// # Errors
    /// [`Outside`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Outside> {
        let start = self.check(offset, into.len())?;
        let (head, body) = into.split_at_mut(to_boundary(start).min(into.len()));
        let at_body = start + head.len();
        let mut words = body.chunks_exact_mut(WORD);
        for (index, byte) in head.iter_mut().enumerate() {
            *byte = self.byte(start + index).load(Ordering::Relaxed);
        }
        let mut at = at_body;
        for word in &mut words {
            word.copy_from_slice(&self.word(at).load(Ordering::Relaxed).to_ne_bytes());
            at += WORD;
        }
        for (index, byte) in words.into_remainder().iter_mut().enumerate() {
            *byte = self.byte(at + index).load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies all of `bytes` to `offset`.
    ///
    /// # Errors
    /// [`Outside`]; nothing was written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Outside> {
        let start = self.check(offset, bytes.len())?;
        let (head, body) = bytes.split_at(to_boundary(start).min(bytes.len()));
        for (index, byte) in head.iter().enumerate() {
            self.byte(start + index).store(*byte, Ordering::Relaxed);
        }
        let mut at = start + head.len();
        let words = body.chunks_exact(WORD);
        let tail = words.remainder();
        for word in words {
            let value = u64::from_ne_bytes(word.try_into().expect("chunks of a word's length"));
            self.word(at).store(value, Ordering::Relaxed);
            at += WORD;
        }
        for (index, byte) in tail.iter().enumerate() {
            self.byte(at + index).store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Replaces the aligned word at `offset` by `swap` if it is `expect`; returns what it was. Atomic with respect to
    /// the guest's processors: they run on the same coherent memory.
    ///
    /// # Errors
    /// [`Outside`], also for a misaligned word.
    pub fn compare_swap(&self, offset: u64, expect: u64, swap: u64) -> Result<u64, Outside> {
        let word = self.word(self.check_word(offset)?);
        Ok(word.compare_exchange(expect, swap, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|found| found))
    }

    /// Adds to the aligned word at `offset`, modulo 2^64; returns what it was. Atomic as [`Mapping::compare_swap`].
    ///
    /// # Errors
    /// [`Outside`], also for a misaligned word.
    pub fn fetch_add(&self, offset: u64, add: u64) -> Result<u64, Outside> {
        Ok(self.word(self.check_word(offset)?).fetch_add(add, Ordering::SeqCst))
    }

    fn check_word(&self, offset: u64) -> Result<usize, Outside> {
        let start = self.check(offset, WORD)?;
        if start.is_multiple_of(WORD) { Ok(start) } else { Err(Outside) }
    }
}

/// Bytes from `index` to the next multiple of a word.
fn to_boundary(index: usize) -> usize {
    index.next_multiple_of(WORD) - index
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length, and unmapped only here; no reference outlives `self`.
        if let Err(error) = unsafe { munmap(self.base.cast(), self.len) } {
            tracing::error!(%error, "unmapping guest memory");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;

    fn memory(len: u64) -> (File, Mapping) {
        let fd: OwnedFd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len).unwrap();
        let mapping = Mapping::of(&file).unwrap();
        (file, mapping)
    }

    proptest! {
        #[test]
        fn reads_and_writes_of_any_alignment_are_the_file_s(
            offset in 0u64..64,
            bytes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let (file, mapping) = memory(4096);
            mapping.write(offset, &bytes).unwrap();
            let mut expected = vec![0; 4096];
            expected[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
            let mut found = vec![0xff; 4096];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert_eq!(&found, &expected);
            let mut again = vec![0; bytes.len()];
            mapping.read(offset, &mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn nothing_outside_is_touched() {
        let (_file, mapping) = memory(4096);
        assert_eq!(mapping.read(4095, &mut [0; 2]), Err(Outside));
        assert_eq!(mapping.write(u64::MAX, &[0; 2]), Err(Outside));
        assert_eq!(mapping.compare_swap(4092, 0, 1), Err(Outside));
        assert_eq!(mapping.fetch_add(4, 1), Err(Outside));
        assert_eq!(mapping.fetch_add(4096, 1), Err(Outside));
    }

    #[test]
    fn atomics_return_what_was_there() {
        let (_file, mapping) = memory(4096);
        assert_eq!(mapping.compare_swap(8, 0, 5), Ok(0));
        assert_eq!(mapping.compare_swap(8, 0, 9), Ok(5));
        assert_eq!(mapping.fetch_add(8, u64::MAX), Ok(5));
        let mut word = [0; 8];
        mapping.read(8, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), 4);
    }
}
