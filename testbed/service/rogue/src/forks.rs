//! What a process costs that does nothing: a shell's fork, the child's exit, and the parent's wait for it. No program
//! is started anew, so what hangs on a fork and an exit, eBPF programs for one, is not lost in what an exec costs.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;

#[derive(Args)]
pub struct Forks {
    /// Processes of each measurement.
    #[arg(long, default_value_t = 2_000)]
    forks: u32,
    /// Measurements; each is a line, in nanoseconds for a process.
    #[arg(long, default_value_t = 5)]
    times: u32,
}

impl Forks {
    pub fn run(self) -> Result<()> {
        for _ in 0..self.times {
            let begin = Instant::now();
            let line = format!("i=0; while [ $i -lt {} ]; do (:); i=$((i+1)); done", self.forks);
            ensure!(Command::new("sh").arg("-c").arg(line).status()?.success(), "the shell failed");
            println!("{:.1}", begin.elapsed().as_secs_f64() * 1e9 / f64::from(self.forks));
        }
        Ok(())
    }
}
