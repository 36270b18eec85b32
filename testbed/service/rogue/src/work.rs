//! A useful program: the same piece of work again and again, over the same memory.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

const MIB: usize = 1 << 20;

#[derive(Args)]
pub struct Work {
    /// Rounds over its memory that make a piece of work; measured first, so that a piece takes `--ms`, if left out.
    #[arg(long)]
    rounds: Option<u64>,
    /// How long a piece shall take on the machine as it is now, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    ms: u64,
    /// Memory that it works on, in MiB. A piece goes over all of it, so that it is felt when some is swapped out.
    #[arg(long, default_value_t = 4)]
    mib: usize,
    /// Pieces; without end if left out.
    #[arg(long)]
    pieces: Option<u64>,
}

impl Work {
    pub fn run(self) -> Result<()> {
        let mut memory = vec![1u8; self.mib * MIB];
        let rounds = self.rounds.unwrap_or_else(|| rounds_for(Duration::from_millis(self.ms), &mut memory));
        let mut out = std::io::stdout().lock();
        writeln!(out, "rounds {rounds}")?;
        let mut piece = 0;
        while self.pieces.is_none_or(|pieces| piece < pieces) {
            let begin = Instant::now();
            (0..rounds).for_each(|_| round(&mut memory));
            writeln!(out, "{:.3}", begin.elapsed().as_secs_f64() * 1e3)?;
            out.flush()?;
            piece += 1;
        }
        Ok(())
    }
}

/// How many rounds take that long.
fn rounds_for(time: Duration, memory: &mut [u8]) -> u64 {
    let (begin, mut rounds) = (Instant::now(), 0);
    while begin.elapsed() < time {
        round(memory);
        rounds += 1;
    }
    rounds
}

fn round(memory: &mut [u8]) {
    for byte in memory.iter_mut() {
        *byte = byte.wrapping_mul(31).wrapping_add(7);
    }
    black_box(memory);
}
