//! Addresses that stand for stretches of a file: guest-physical memory with its hole, or a box made of pages.
//!
//! ```text
//!   address   0 ........ 2 GiB          4 GiB ......... 7 GiB      runs ascend and never overlap
//!   file      0 ........ 2 GiB | 2 GiB ........ 5 GiB              each run is contiguous in the file
//! ```
//!
//! Pure. Invariant: a reach yields exactly the bytes asked for, in order, or nothing at all.

use control::backdoor::Extent;

/// Consecutive addresses that lie consecutively in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// Where it lies in the file, in bytes.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

/// A set of runs, ascending by address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scatter {
    runs: Vec<Run>,
}

/// A stretch of the file: one piece of what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

impl Scatter {
    /// Puts runs in order and joins those that continue each other; `None` if two overlap, one leaves the address
    /// space or the file's, or is empty.
    pub fn new(mut runs: Vec<Run>) -> Option<Self> {
        runs.sort_unstable_by_key(|run| run.start);
        let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
        for run in runs {
            run.start.checked_add(run.len)?;
            run.offset.checked_add(run.len)?;
            let last = joined.last_mut();
            match last {
                _ if run.len == 0 => return None,
                Some(last) if run.start < last.start + last.len => return None,
                Some(last) if run.start == last.start + last.len && run.offset == last.offset + last.len => {
                    last.len += run.len;
                }
                _ => joined.push(run),
            }
        }
        joined.shrink_to_fit();
        Some(Self { runs: joined })
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The addresses that exist, as they travel in a region table; runs that touch are one extent.
    pub fn extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for run in &self.runs {
            match extents.last_mut() {
                Some(last) if last.start + last.len == run.start => last.len += run.len,
                _ => extents.push(Extent { start: run.start, len: run.len }),
            }
        }
        extents
    }

    /// One past the last address, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.start + run.len)
    }

    /// The pieces of the file behind `len` bytes from `addr`, or `None` if any of these addresses does not exist.
    pub fn reach(&self, addr: u64, len: u64) -> Option<Reach<'_>> {
        let end = addr.checked_add(len)?;
        let first = self.runs.partition_point(|run| run.start + run.len <= addr);
        let runs = &self.runs[first..];
        let mut covered = addr;
        for run in runs {
            if covered >= end || run.start > covered {
                break;
            }
            covered = run.start + run.len;
        }
        (len == 0 || covered >= end).then_some(Reach { runs, addr, left: len })
    }
}

/// Pieces of the file in the order of the addresses.
#[derive(Clone, Debug)]
pub struct Reach<'a> {
    runs: &'a [Run],
    addr: u64,
    left: u64,
}

impl Iterator for Reach<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        let (run, later) = self.runs.split_first()?;
        let skip = self.addr - run.start;
        let len = self.left.min(run.len - skip);
        *self = Self { runs: later, addr: self.addr + len, left: self.left - len };
        Some(Piece { offset: run.offset + skip, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, offset: u64, len: u64) -> Run {
        Run { start, offset, len }
    }

    fn pieces(scatter: &Scatter, addr: u64, len: u64) -> Option<Vec<(u64, u64)>> {
        Some(scatter.reach(addr, len)?.map(|piece| (piece.offset, piece.len)).collect())
    }

    #[test]
    fn a_reach_follows_the_runs_and_stops_at_holes() {
        let scatter = Scatter::new(vec![run(200, 0, 100), run(0, 100, 100), run(100, 500, 100)]).unwrap();
        assert_eq!(pieces(&scatter, 50, 200), Some(vec![(150, 50), (500, 100), (0, 50)]));
        assert_eq!(pieces(&scatter, 299, 1), Some(vec![(99, 1)]));
        assert_eq!(pieces(&scatter, 299, 2), None);
        assert_eq!(pieces(&scatter, u64::MAX, 2), None);
        assert_eq!(scatter.extents(), [Extent { start: 0, len: 300 }]);
        let holed = Scatter::new(vec![run(0, 0, 100), run(400, 100, 100)]).unwrap();
        assert_eq!(pieces(&holed, 99, 2), None);
        assert_eq!(pieces(&holed, 99, 302), None);
        assert_eq!(pieces(&holed, 400, 100), Some(vec![(100, 100)]));
    }

    #[test]
    fn runs_that_continue_each_other_are_one_and_overlaps_are_refused() {
        assert_eq!(Scatter::new(vec![run(0, 8, 4), run(4, 12, 4)]).unwrap().runs(), [run(0, 8, 8)]);
        assert_eq!(Scatter::new(vec![run(0, 8, 4), run(3, 12, 4)]), None);
        assert_eq!(Scatter::new(vec![run(0, 8, 0)]), None);
        assert_eq!(Scatter::new(vec![run(u64::MAX, 8, 1)]), None);
    }
}
