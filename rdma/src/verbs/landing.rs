//! The buffer in which READs land: made once, registered once, in the same place for the life of a queue.
//!
//! ```text
//!   │ landing: what the queue's user sees       │ answers: 8 bytes for each operation on its way │
//! ```
//! The adapter writes into it while operations are outstanding. What is under one is undefined, by the contract of
//! [`remote_memory::Queue`], and bytes have no invalid value.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// What an answer is until it has come. A word that holds this is taken for an answer that was lost.
const AWAITED: u64 = 0x9d2c_5680_efc6_0b17;

/// So that no other data shares a page with what an adapter writes.
const ALIGN: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Landing {
    start: NonNull<u8>,
    layout: Layout,
    landing_bytes: usize,
    answers: usize,
}

// SAFETY: an owned allocation without interior access but through `VerbsQueue`, which borrows it as it is borrowed.
unsafe impl Send for Landing {}
// SAFETY: shared, it only gives out its place and its length.
unsafe impl Sync for Landing {}

impl Landing {
    /// Zeroed memory for `landing_bytes` and so many `answers`.
    pub fn new(landing_bytes: usize, answers: usize) -> Self {
        let bytes = landing_bytes.next_multiple_of(size_of::<u64>()) + answers * size_of::<u64>();
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).expect("a landing buffer of less than an exabyte");
        // SAFETY: the layout has a size that is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout, landing_bytes, answers }
    }

    /// Where it begins.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All of it, in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// The part that the queue's user sees, in bytes.
    pub fn landing_bytes(&self) -> usize {
        self.landing_bytes
    }

    /// Its bytes as they are now.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated, initialised, and changed by nobody but an adapter that was told to, see the module.
        unsafe { std::slice::from_raw_parts(self.start(), self.landing_bytes) }
    }

    /// Its bytes, to be filled.
    ///
    /// # Safety
    /// The caller is the only one in this process to look at them: the value is shared with registrations, which do
    /// not look.
    #[allow(clippy::mut_from_ref, reason = "shared with registrations only, which keep it alive and look at nothing")]
    pub unsafe fn bytes_mut(&self) -> &mut [u8] {
        // SAFETY: as above, and by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.landing_bytes) }
    }

    /// Address of the landing place `offset`, as the adapter needs it.
    pub fn address(&self, offset: u32) -> u64 {
        self.start() as u64 + u64::from(offset)
    }

    /// Address of answer `index`.
    pub fn answer_address(&self, index: usize) -> u64 {
        self.start() as u64 + self.answer_offset(index) as u64
    }

    /// Prepares answer `index` for an operation that is about to ask for it.
    pub fn await_answer(&self, index: usize) {
        // SAFETY: as in `answer`, and nothing that is on its way asks for it.
        unsafe { self.answer_place(index).write_volatile(AWAITED) };
    }

    /// Answer `index`, once the operation that asked for it has completed; `None` if it has not come. Adapters deliver
    /// the original value of an atomic in the byte order of their host.
    pub fn answer(&self, index: usize) -> Option<u64> {
        // SAFETY: inside the allocation, aligned, and the adapter has written it.
        let found = unsafe { self.answer_place(index).read_volatile() };
        (found != AWAITED).then_some(found)
    }

    fn answer_place(&self, index: usize) -> *mut u64 {
        self.start().wrapping_add(self.answer_offset(index)).cast()
    }

    fn answer_offset(&self, index: usize) -> usize {
        assert!(index < self.answers, "answer {index} of {}", self.answers);
        self.landing_bytes.next_multiple_of(size_of::<u64>()) + index * size_of::<u64>()
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no registration holds it any more.
        unsafe { dealloc(self.start(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_lie_behind_the_landing_and_inside_the_buffer() {
        let landing = Landing::new(13, 2);
        assert_eq!((landing.bytes().len(), landing.len()), (13, 32));
        assert_eq!(landing.answer_address(0), landing.address(16));
        assert_eq!(landing.answer_address(1) + 8, landing.address(0) + landing.len() as u64);
        assert_eq!(landing.answer(1), Some(0));
        landing.await_answer(1);
        assert_eq!((landing.answer(0), landing.answer(1)), (Some(0), None));
    }
}
