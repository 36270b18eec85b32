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

#[cfg(test)]
mod tests {
    use nix::sys::resource::{UsageWho, getrusage};

    use super::*;

    const MIB: usize = 1 << 20;

    /// Pages that were faulted in by what allocates so much and lets it go again.
    fn faults_of(bytes: usize) -> i64 {
        let count = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let before = count();
        let touched: Vec<Vec<u8>> = (0..bytes / 1000).map(|number| vec![number as u8; 1000]).collect();
        assert_eq!(std::hint::black_box(&touched).len(), bytes / 1000);
        count() - before
    }

    #[test]
    fn what_is_allocated_afterwards_costs_no_faults() {
        let pages = (16 * MIB / 4096) as i64;
        let prefaulted = Prefaulted::of(24 * MIB);
        let faults = faults_of(16 * MIB);
        assert!(faults < pages / 8, "{faults} faults for {pages} pages");
        drop(prefaulted);
        drop(Prefaulted::of(0));
    }
}
