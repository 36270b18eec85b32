//! Damage of a share of everything: which bytes, lines, pages or pointers of a machine are hit is told by a hash of
//! their address when they are read, so a run costs no copy of the memory and is the same each time.
//!
//! What a walk does not read is not decided upon, and would make no difference.

use remote_memory::PAGE_BYTES;

use crate::program::Program;

/// A cache line.
const LINE_BYTES: usize = 64;

/// What is hit as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A byte becomes another one.
    Bytes,
    /// All bytes of a line of 64 become others.
    Lines,
    /// A page is lost, or all of its bytes become others.
    Pages,
    /// A pointer becomes another pointer of the machine, points beside what it pointed to, or becomes a number.
    Pointers,
}

impl Shape {
    /// All of them, in the order of their numbers in an input.
    pub const ALL: [Self; 4] = [Self::Bytes, Self::Lines, Self::Pages, Self::Pointers];
}

/// How many of ten thousand are hit, in the order of their numbers in an input.
pub const SHARES: [u32; 3] = [100, 10, 1];

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter {
    shape: Shape,
    /// Of 2^32 hashes, those that hit.
    hits: u32,
    seed: u64,
}

impl Scatter {
    /// Shape (u8), share (u8), seed (u64).
    pub(crate) fn read(program: &mut Program<'_>) -> Self {
        let shape = Shape::ALL[usize::from(program.byte()) % Shape::ALL.len()];
        let share = SHARES[usize::from(program.byte()) % SHARES.len()];
        Self { shape, hits: u32::MAX / 10_000 * share, seed: program.long() }
    }

    /// Damages `words`, the memory of one page from `at` on, whole and aligned words of it. `values` are the pointers
    /// of the machine. `None` if the page is lost.
    pub(crate) fn hit(&self, at: u64, words: &mut [u8], values: &[u64]) -> Option<()> {
        match self.shape {
            Shape::Bytes => {
                for (byte, at) in words.iter_mut().zip(at..) {
                    let hash = self.hash(at);
                    if self.hits(hash) {
                        *byte = (hash >> 56) as u8;
                    }
                }
            }
            Shape::Lines => {
                for (word, at) in words.chunks_exact_mut(8).zip((at..).step_by(8)) {
                    if self.hits(self.hash(at / LINE_BYTES as u64)) {
                        word.copy_from_slice(&self.hash(!at).to_le_bytes());
                    }
                }
            }
            Shape::Pages => {
                let page = self.hash(at / PAGE_BYTES);
                if self.hits(page) {
                    if page >> 63 == 0 {
                        return None;
                    }
                    for (word, at) in words.chunks_exact_mut(8).zip((at..).step_by(8)) {
                        word.copy_from_slice(&self.hash(!at).to_le_bytes());
                    }
                }
            }
            Shape::Pointers => {
                for (word, at) in words.chunks_exact_mut(8).zip((at..).step_by(8)) {
                    let hash = self.hash(at);
                    let was = u64::from_le_bytes((&*word).try_into().unwrap_or_default());
                    if is_pointer(was) && self.hits(hash) {
                        word.copy_from_slice(&self.bent(was, hash, values).to_le_bytes());
                    }
                }
            }
        }
        Some(())
    }

    fn bent(&self, was: u64, hash: u64, values: &[u64]) -> u64 {
        let other = self.hash(!hash);
        match hash >> 62 {
            0 | 1 => values[(other % values.len() as u64) as usize],
            2 => was.wrapping_add(other % 64).wrapping_sub(32),
            _ => other,
        }
    }

    fn hits(&self, hash: u64) -> bool {
        (hash as u32) < self.hits
    }

    /// The finalizer of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    fn hash(&self, at: u64) -> u64 {
        let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.seed);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Whether a word is one of the kernel's addresses.
pub(crate) fn is_pointer(word: u64) -> bool {
    word > 0xff00_0000_0000_0000 && word != u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a page of zeroes (of pointers, if pointers are hit) that differ after the damage; all if it is lost.
    fn changed(scatter: &Scatter, page: u64, parts: usize) -> usize {
        let was = [0, 0, 0, 0, 0, 0x80, 0xff, 0xff].repeat(PAGE_BYTES as usize / 8);
        let mut now = was.clone();
        let len = now.len() / parts;
        for (part, bytes) in now.chunks_exact_mut(len).enumerate() {
            if scatter.hit(page * PAGE_BYTES + (part * len) as u64, bytes, &[0xffff_8880_1234_5678]).is_none() {
                bytes.fill(0xa5);
            }
        }
        was.iter().zip(&now).filter(|(was, now)| was != now).count()
    }

    fn scatter(shape: Shape, share: u32) -> Scatter {
        Scatter { shape, hits: u32::MAX / 10_000 * share, seed: 7 }
    }

    #[test]
    fn a_share_of_all_bytes_is_hit_whatever_their_shape() {
        for (shape, tolerance) in [(Shape::Bytes, 0.1), (Shape::Lines, 0.2), (Shape::Pages, 0.5)] {
            for share in [100, 10] {
                let pages = 4_000;
                let hit: usize = (0..pages).map(|page| changed(&scatter(shape, share), page, 1)).sum();
                let expected = f64::from(share) / 1e4 * (pages * PAGE_BYTES) as f64;
                let off = (hit as f64 / expected - 1.0).abs();
                assert!(off < tolerance, "{shape:?} {share}: {hit} bytes, {expected} expected");
            }
        }
    }

    #[test]
    fn what_is_hit_does_not_depend_on_how_it_is_read() {
        for shape in Shape::ALL {
            let scatter = scatter(shape, 100);
            for page in 0..300 {
                assert_eq!(changed(&scatter, page, 1), changed(&scatter, page, 64), "{shape:?}, page {page}");
            }
        }
    }
}
