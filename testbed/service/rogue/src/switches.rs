//! What a context switch costs: two threads that wake each other by turns through pipes. On one processor (`taskset`)
//! each turn is a switch; what else hangs on a switch, eBPF programs for one, is in it.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::Args;

#[derive(Args)]
pub struct Switches {
    /// Turns of each measurement.
    #[arg(long, default_value_t = 100_000)]
    turns: u32,
    /// Measurements; each is a line, in nanoseconds for a switch.
    #[arg(long, default_value_t = 5)]
    times: u32,
}

impl Switches {
    pub fn run(self) -> Result<()> {
        let ((mut ours_in, theirs_out), (mut theirs_in, mut ours_out)) = (pipe()?, pipe()?);
        let other = thread::spawn(move || answer(&mut theirs_in, theirs_out));
        for _ in 0..self.times {
            let begin = Instant::now();
            for _ in 0..self.turns {
                ours_out.write_all(&[0])?;
                ours_in.read_exact(&mut [0])?;
            }
            println!("{:.1}", begin.elapsed().as_secs_f64() * 1e9 / f64::from(2 * self.turns));
        }
        drop(ours_out);
        other.join().map_err(|_| anyhow!("the other thread panicked"))?.context("the other thread")
    }
}

/// Gives every byte back until there are no more.
fn answer(input: &mut PipeReader, mut output: PipeWriter) -> Result<()> {
    let mut byte = [0];
    while input.read(&mut byte)? == 1 {
        output.write_all(&byte)?;
    }
    Ok(())
}
