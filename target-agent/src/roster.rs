//! Goes through all processes, so that the process table has those that were there before the eBPF programs, and what
//! changed of those that sleep.
//!
//! The kernel's iterator notes each of them itself (`list_all`); to read it to its end is all that is done here.
//! Whoever runs is noted without this: an agent that is dead or stopped leaves the table behind by what sleepers lost
//! to the swap, and by whom they were adopted.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::{Iter, Link};
use nix::time::{ClockId, clock_gettime};
use proctable::Keeper;
use tracing::{debug, warn};

use crate::maps::BoxMap;
use crate::{shared, sweep};

/// Between two rounds.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A round may take this part of the time at most, however many processes there are: one in so many.
const SHARE: u32 = 100;

/// Opens the process table, and says in it who this machine is.
///
/// # Errors
/// If the map is another release's, or the kernel does not name this boot.
pub fn open(processes: &BoxMap, pages_total: u64) -> Result<Keeper<'static>> {
    Keeper::open(processes.mapping().words(), sweep::target()?, pages_total)
        .context("remove the pin `processes` to give the old process table up")
}

/// Goes round as long as the process lives.
pub fn keep(keeper: Keeper<'_>, lister: &Path) {
    if let Err(why) = shared::before_ordinary_threads() {
        warn!("who sleeps is noted when ordinary threads get to run: {why}");
    }
    let lister = match Link::open(lister) {
        Ok(lister) => lister,
        Err(why) => {
            warn!(at = %lister.display(), "those who sleep are missing in the process table: {why}");
            return;
        }
    };
    let mut is_first = true;
    loop {
        let begin = Instant::now();
        match round(&lister) {
            Ok(()) => keeper.went_round(now_ns()),
            Err(why) if is_first => warn!("the process table lacks those who sleep: {why:#}"),
            Err(why) => debug!("no round through all processes: {why:#}"),
        }
        is_first = false;
        thread::sleep(AGAIN_AFTER.max(begin.elapsed() * SHARE));
    }
}

fn round(lister: &Link) -> Result<()> {
    let mut list = Iter::new(lister).context("the list of all processes cannot be had")?;
    io::copy(&mut list, &mut io::sink()).context("the list of all processes cannot be read")?;
    Ok(())
}

/// The monotonic clock, as the kernel's programs read it.
pub(crate) fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}
