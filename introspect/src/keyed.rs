//! Sets and maps of addresses and numbers that a target's memory names.
//!
//! Whoever wrote that memory may choose numbers that fall together in a table whose order is known, and make a walk of
//! minutes out of one of milliseconds. So the order is drawn anew for each table, as the standard library does it; the
//! hash itself is one multiplication, as nothing but numbers is hashed here, by the hundred thousand, while a machine
//! stands still.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

pub(crate) type NumberSet<T> = HashSet<T, Keyed>;
pub(crate) type NumberMap<K, V> = HashMap<K, V, Keyed>;

/// An odd number without a pattern: the golden ratio's fraction.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The secret of one table.
#[derive(Clone)]
pub(crate) struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(SPREAD))
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

pub(crate) struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(SPREAD);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_slab_do_not_fall_together_and_no_two_tables_agree() {
        let (one, other) = (Keyed::default(), Keyed::default());
        let addresses = (0..4096u64).map(|number| 0xffff_8880_0000_0000 + number * 0x2400);
        let buckets: HashSet<u64> = addresses.map(|address| one.hash_one(address) % 4096).collect();
        assert!(buckets.len() > 2000, "{} of 4096", buckets.len()); // of random ones 2589
        assert_ne!(one.hash_one(7u32), other.hash_one(7u32));
    }
}
