//! `testbed bench`: what the parts cost on this machine, as a table that can be pasted into a report.
//!
//! Figures are of this machine at this commit; the head of the table names both. Nothing here passes or fails: bounds
//! belong to docs/specification.md and to the tests it names.

mod boxes;
mod path;
mod recovery;

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::scenario::{Host, Order, Progress};

/// Measures everything and prints the table; recoveries leave their drawings in `out`.
///
/// # Errors
/// When something cannot be measured.
pub fn bench(out: &Path, order: &Order, runs: u64) -> Result<()> {
    let progress = Progress::begin();
    let host = Host::here();
    println!("host     Linux {}, {} CPUs, guests by {}", host.kernel, host.cpus, host.accelerator);
    println!("commit   {}{}", commit(), if cfg!(debug_assertions) { ", a debug build: use `make bench`" } else { "" });
    progress.step("the path");
    path::measure()?;
    progress.step("Continuation Boxes");
    boxes::measure()?;
    recovery::measure(out, order, runs, progress)
}

fn commit() -> String {
    let asked = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if said.is_empty() { "unknown".to_owned() } else { said }
}

/// Median and 99th percentile of `rounds` calls, after a tenth as many to warm up.
fn measured(rounds: usize, mut once: impl FnMut() -> Result<()>) -> Result<(Duration, Duration)> {
    for _ in 0..rounds / 10 {
        once()?;
    }
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        once()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok((times[rounds / 2], times[rounds * 99 / 100]))
}
