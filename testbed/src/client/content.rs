//! What belongs at which offset of which seed's content: the file server's own generator, run at the client's end.

/// Fills `buffer` with the content of `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    file_server::synthetic::fill(seed, offset, buffer);
}

/// Bytes by which a repeated stretch is recognised: content is incompressible, so so many do not come about by chance.
const STRETCH_BYTES: usize = 16;

/// How many of the bytes that came at `offset`, and do not belong there, are a stretch that came before.
pub fn repeated(seed: u64, offset: u64, came: &[u8]) -> u64 {
    // What begins before `offset`: a stretch may have come before in part only.
    let (mut expected, mut before) = (vec![0; came.len()], vec![0; offset as usize + STRETCH_BYTES - 1]);
    fill(seed, offset, &mut expected);
    fill(seed, 0, &mut before);
    let Some(first) = expected.iter().zip(came).position(|(ours, theirs)| ours != theirs) else { return 0 };
    let Some(stretch) = came.get(first..first + STRETCH_BYTES) else { return 0 };
    let seen = before.windows(STRETCH_BYTES).take(offset as usize).any(|window| window == stretch);
    if seen { (came.len() - first) as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_that_comes_twice_is_told_from_one_that_is_missing() {
        let mut stream = vec![0; 4000];
        fill(7, 0, &mut stream);
        assert_eq!(repeated(7, 2000, &stream[2000..2100]), 0);
        assert_eq!(repeated(7, 2000, &stream[1990..2090]), 100);
        assert_eq!(repeated(7, 2000, &stream[2010..2110]), 0);
    }
}
