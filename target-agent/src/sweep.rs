//! Finishes off those that an order of the kill table names and that the kernel's programs do not meet, because they
//! sleep and never run.
//!
//! ```text
//!   an order is in force ──► list ──► a descriptor of each ──► list again ──► those in both: counted, SIGKILL
//!           ▲                                                                        │
//!           └──────────────────────── every 20 ms until nobody is left ──────────────┘
//! ```
//! An eBPF iterator lists, with the same decisions as the kernel's other programs. A process that is in both lists with
//! the same id and the same start lived from the first to the second, and an id is nobody else's meanwhile: so the
//! descriptor that was opened in between means that process, and the signal cannot reach another one.
//!
//! The thread runs before all ordinary ones ([`protect`] says how the agent is kept alive), because what it is for is a
//! machine with thousands of them. It sleeps but for one look at one word.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use killtable::Ledger;
use libbpf_rs::{Iter, Link};
use nix::sys::signal::Signal;
use tracing::{info, warn};

use crate::census;
use crate::maps::BoxMap;
use crate::shared;

/// Between two looks whether an order is in force, and between two sweeps.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The same once nobody was left: who was born since is met when it runs, but for one that slept again too soon.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Bytes of one entry of the list: process, slot, start.
const ENTRY_BYTES: usize = 16;

/// What an agent is worth to the kernel's out-of-memory killer: it comes last.
const NEVER_FOR_MEMORY: &str = "-1000";

/// One that an order names, and who is left; or whom a lock has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condemned {
    pub(crate) pid: u32,
    slot: u32,
    start_ns: u64,
}

/// Opens the kill table, and says in it who this machine is and whom it spares.
///
/// # Errors
/// If the maps are another release's, or the kernel does not name this boot.
pub fn open(orders: &BoxMap, answers: &BoxMap, spared_uids: &[u32]) -> Result<Ledger<'static>> {
    let target = target()?;
    let (orders, answers) = (orders.mapping().words(), answers.mapping().words());
    Ledger::open(orders, answers, target, spared_uids, std::process::id())
        .context("remove the pins kill_orders and kill_answers to give the old kill table up")
}

/// Names this boot of the machine in the tables.
///
/// # Errors
/// If the kernel does not say.
pub fn target() -> Result<u64> {
    let boot_id = census::boot_id()?;
    Ok(boot_id.iter().fold(1, |sum: u64, byte| sum.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(*byte)))
}

/// Sees to it that the agent lives on in a machine that drowns: its memory stays in RAM and the out-of-memory killer
/// comes to it last. What the kernel refuses is said, and is no reason to do without the rest.
pub fn protect() {
    if let Err(why) = shared::stay_in_memory() {
        warn!("the agent's memory may be swapped out: {why}");
    }
    if let Err(why) = fs::write("/proc/self/oom_score_adj", NEVER_FOR_MEMORY) {
        warn!("the out-of-memory killer may come to the agent: {why}");
    }
}

/// Sweeps whenever an order is in force, as long as the process lives.
pub fn keep(ledger: Ledger<'_>, lister: &Path) {
    if let Err(why) = shared::before_ordinary_threads() {
        warn!("sleepers that are to be ended wait for their turn with everybody else: {why}");
    }
    let lister = match Link::open(lister) {
        Ok(lister) => lister,
        Err(why) => {
            warn!(at = %lister.display(), "sleepers that are to be ended live on, nothing lists them: {why}");
            return;
        }
    };
    let (mut finished, mut said) = (None, String::new());
    loop {
        ledger.beat();
        let rests =
            |number| finished.is_some_and(|(last, at): (u64, Instant)| last == number && at.elapsed() < AGAIN_AFTER);
        if let Some(number) = ledger.armed().filter(|number| !rests(*number)) {
            match sweep(&ledger, &lister, number) {
                Ok(Swept { left: 0, .. }) => finished = Some((number, Instant::now())),
                Ok(Swept { left, ended }) => info!(number, left, ended, "an order named processes that were asleep"),
                Err(why) => {
                    let why = format!("{why:#}");
                    if said != why {
                        warn!("an order is not carried out: {why}");
                        said = why;
                    }
                }
            }
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// What came of one sweep.
struct Swept {
    /// Processes that an order names, and that had not been ended.
    left: usize,
    /// Those of them that were.
    ended: usize,
}

/// One sweep. An order of which nobody is left is said to be swept.
fn sweep(ledger: &Ledger<'_>, lister: &Link, number: u64) -> Result<Swept> {
    let first = condemned(lister)?;
    let processes: HashMap<u32, OwnedFd> =
        first.iter().filter_map(|one| Some((one.pid, shared::process(one.pid).ok()?))).collect();
    // Listed again also where nobody was found: an empty list is also what an order that was just laid down gives.
    let second = condemned(lister)?;
    let still = second.iter().filter(|one| first.contains(one));
    let mut ended = 0;
    for (one, process) in still.filter_map(|one| Some((one, processes.get(&one.pid)?))) {
        if !ledger.count(number, one.slot) {
            continue;
        }
        match shared::signal(process, Signal::SIGKILL) {
            Ok(()) => ended += 1,
            // It has ended by itself.
            Err(why) if why.raw_os_error() == Some(libc::ESRCH) => {}
            Err(why) => return Err(why).with_context(|| format!("process {} cannot be ended", one.pid)),
        }
    }
    ledger.swept(number, second.is_empty() && ledger.armed() == Some(number));
    Ok(Swept { left: second.len(), ended })
}

/// A list as the kernel's iterator writes it.
pub(crate) fn condemned(lister: &Link) -> Result<Vec<Condemned>> {
    let mut bytes = Vec::new();
    let mut list = Iter::new(lister).context("a list of processes cannot be had")?;
    list.read_to_end(&mut bytes).context("a list of processes cannot be read")?;
    Ok(bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(entry).collect())
}

fn entry(bytes: &[u8; ENTRY_BYTES]) -> Condemned {
    let [low, start_ns] = [0, 8].map(|at| {
        let word: [u8; 8] = std::array::from_fn(|byte| bytes[at + byte]);
        u64::from_le_bytes(word)
    });
    Condemned { pid: low as u32, slot: (low >> 32) as u32, start_ns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_these_bytes() {
        let bytes = [0x39, 0x30, 0, 0, 7, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0];
        assert_eq!(entry(&bytes), Condemned { pid: 12345, slot: 7, start_ns: 0x201 });
    }
}
