//! A link that fails as a seed says: refused reads, damaged bytes, a path that dies. For tests of everything above.

use crate::{AccessError, LinkError, Read, RemoteRead};

/// How often each fault strikes, in parts per million of reads (or of batches, for `lost`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Reads answered with [`AccessError::Refused`].
    pub refused_ppm: u32,
    /// Reads whose bytes come back with one bit turned.
    pub damaged_ppm: u32,
    /// Batches that end with [`LinkError::Lost`].
    pub lost_ppm: u32,
}

/// Passes reads on and spoils some of them.
#[derive(Debug)]
pub struct Faults<R> {
    inner: R,
    rates: Rates,
    state: u64,
    struck: u64,
}

impl<R: RemoteRead> Faults<R> {
    /// Spoils reads of `inner`; equal seeds strike at equal places.
    pub fn new(inner: R, rates: Rates, seed: u64) -> Self {
        Self { inner, rates, state: seed, struck: 0 }
    }

    /// Faults injected so far.
    pub fn struck(&self) -> u64 {
        self.struck
    }

    /// SplitMix64: small, seedable, and not worth a dependency of the contract crate.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn strikes(&mut self, ppm: u32) -> bool {
        let hit = self.random() % 1_000_000 < u64::from(ppm);
        self.struck += u64::from(hit);
        hit
    }
}

impl<R: RemoteRead> RemoteRead for Faults<R> {
    fn gap_bytes(&self) -> u64 {
        self.inner.gap_bytes()
    }

    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        if self.strikes(self.rates.lost_ppm) {
            return Err(LinkError::Lost { tries: 1 });
        }
        self.inner.read(batch)?;
        for read in batch.iter_mut().filter(|read| read.outcome.is_ok()) {
            if self.strikes(self.rates.refused_ppm) {
                read.outcome = Err(AccessError::Refused);
                read.into.fill(0);
            } else if !read.into.is_empty() && self.strikes(self.rates.damaged_ppm) {
                let bit = self.random() as usize % (read.into.len() * 8);
                read.into[bit / 8] ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;
    use crate::{RemoteAddr, RemoteKey};

    #[test]
    fn equal_seeds_strike_at_equal_places() {
        let run = |seed| {
            let mut memory = Image::new();
            memory.write_at(0, &[0; 4096]);
            let rates = Rates { refused_ppm: 100_000, damaged_ppm: 100_000, lost_ppm: 50_000 };
            let mut link = Faults::new(memory, rates, seed);
            (0..200)
                .map(|_| {
                    let mut bytes = [0; 8];
                    let result = link.read_one(RemoteAddr::new(RemoteKey::new(1), 0), &mut bytes);
                    (result, bytes)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
