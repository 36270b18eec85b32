//! Content without storage: pseudo-random bytes that any party computes at any offset.
//!
//! Byte `o` of seed `s` is a byte of `splitmix64(s, o / 8)`: cheap, incompressible, and a repeated, missing or moved
//! stretch of a stream never passes for the right one.

/// Fills `into` with the content of `seed` from byte `offset` on.
pub fn fill(seed: u64, offset: u64, into: &mut [u8]) {
    let lead = (offset % 8) as usize;
    let mut word = offset / 8;
    let mut rest = into;
    if lead > 0 {
        let bytes = mix(seed, word).to_le_bytes();
        let (first, after) = rest.split_at_mut(rest.len().min(8 - lead));
        first.copy_from_slice(&bytes[lead..lead + first.len()]);
        (rest, word) = (after, word + 1);
    }
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&mix(seed, word).to_le_bytes()[..chunk.len()]);
        word = word.wrapping_add(1);
    }
}

/// Compares received bytes with the content of `seed` from `offset` on.
///
/// # Errors
/// [`Mismatch`] at the first byte that differs.
pub fn verify(seed: u64, offset: u64, received: &[u8]) -> Result<(), Mismatch> {
    let mut expected = [0; 4096];
    for (index, chunk) in received.chunks(expected.len()).enumerate() {
        let at = offset + (index * expected.len()) as u64;
        let expected = &mut expected[..chunk.len()];
        fill(seed, at, expected);
        if let Some(wrong) = chunk.iter().zip(&*expected).position(|(have, want)| have != want) {
            return Err(Mismatch { offset: at + wrong as u64, expected: expected[wrong], found: chunk[wrong] });
        }
    }
    Ok(())
}

/// The first byte of a stream that is not what the seed says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Where.
    pub offset: u64,
    /// What should be there.
    pub expected: u8,
    /// What is.
    pub found: u8,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "byte {} is {:#04x}, expected {:#04x}", self.offset, self.found, self.expected)
    }
}

impl std::error::Error for Mismatch {}

/// splitmix64 (Steele, Lea, Flood 2014), started at a point that depends on the seed.
fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_offset_gives_the_same_bytes_as_the_whole() {
        let mut whole = [0; 100];
        fill(7, 0, &mut whole);
        for from in 0..100 {
            for to in from..100 {
                let mut part = vec![0; to - from];
                fill(7, from as u64, &mut part);
                assert_eq!(part, whole[from..to]);
            }
        }
        assert!(verify(7, 3, &whole[3..]).is_ok());
        assert_eq!(verify(7, 4, &whole[3..]).unwrap_err().offset, 4);
        assert!(verify(8, 0, &whole).is_err());
    }
}
