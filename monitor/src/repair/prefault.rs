//! Memory of our own that a standstill will need, faulted in before it begins.
//!
//! ```text
//!   held      [ piece ][ piece ][ piece ] … [ pin ]     each page touched
//!   freed     [ ........... free .......... ][ pin ]     the heap does not end here, so none of it goes back
//! ```
//! A kernel hands out a page when it is touched for the first time, and clears it then. Where that kernel has a
//! hypervisor below it which has to find the page, too, this takes some microseconds: of a repair of thirty thousand
//! processes 70 of 170 ms, in which the target stood still.

/// A piece is small enough for the heap itself. Larger ones an allocator asks the kernel for, and gives back.
const PIECE_BYTES: usize = 64 * 1024;

/// Memory that is free for this thread, and stays with the process for as long as this lives.
#[derive(Debug)]
pub(super) struct Prefaulted {
    /// The end of the heap, as far as allocators go.
    _pin: Option<Vec<u8>>,
}

impl Prefaulted {
    pub fn of(bytes: usize) -> Self {
        // Not zeroes: an allocator that has them from the kernel need not touch them.
        let touched = || vec![1; PIECE_BYTES];
        let mut pieces: Vec<Vec<u8>> = std::iter::repeat_with(touched).take(bytes / PIECE_BYTES).collect();
        Self { _pin: pieces.pop() }
    }
}
