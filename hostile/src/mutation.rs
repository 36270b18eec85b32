//! Seeded mutations of a corpus: the same seed makes the same input on every machine.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Longest input made, in bytes.
const INPUT_BYTES_MAX: usize = 4096;

/// Changes of one input.
const CHANGES_MAX: usize = 12;

/// Numbers at which bounds lie.
const INTERESTING: [u8; 9] = [0, 1, 7, 8, 0x10, 0x7f, 0x80, 0xfe, 0xff];

/// Input number `seed` made of `corpus`.
pub fn of(corpus: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut input = match corpus.len() {
        0 => Vec::new(),
        count => corpus[rng.random_range(0..count)].clone(),
    };
    if rng.random_ratio(1, 20) {
        input = (0..rng.random_range(0..300)).map(|_| rng.random()).collect(); // noise
    }
    for _ in 0..rng.random_range(0..CHANGES_MAX) {
        change(&mut input, corpus, &mut rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut StdRng) {
    let at = rng.random_range(0..=input.len());
    let some = |input: &[u8], rng: &mut StdRng| {
        let from = rng.random_range(0..=input.len());
        let to = rng.random_range(from..=input.len().min(from + 64));
        input[from..to].to_vec()
    };
    match rng.random_range(0..9) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 if at < input.len() => input[at] = INTERESTING[rng.random_range(0..INTERESTING.len())],
        3 if at < input.len() => input[at] = input[at].wrapping_add(rng.random_range(0..9)).wrapping_sub(4),
        4 => {
            let end = rng.random_range(at..=input.len().min(at + 16));
            input.drain(at..end);
        }
        5 => {
            let more: Vec<u8> = (0..rng.random_range(1..16)).map(|_| rng.random()).collect();
            input.splice(at..at, more);
        }
        6 => {
            let more = some(input, rng);
            input.splice(at..at, more);
        }
        7 if !corpus.is_empty() => {
            let more = some(&corpus[rng.random_range(0..corpus.len())], rng);
            input.splice(at..at, more);
        }
        8 if rng.random_ratio(1, 4) => input.truncate(at),
        _ => {}
    }
}
