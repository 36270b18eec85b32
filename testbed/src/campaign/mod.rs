//! Campaigns: a matrix, run again and again with new seeds.
//!
//! ```text
//!   cases (shuffled by the seed) ──► workers ──► testbed run …   a process and a sandbox for each   runs.rs
//!                                      │   ▲
//!                       one JSON line ─┘   └── a saved guest: booted once for some dozens of runs   guests.rs
//! ```
//!
//! [`crashes()`]: faults, kernels, processors, sessions and cables (matrix.rs, crashes.rs). [`repair`]: what drowns a
//! guest, by what it is seen and ended. [`rubis`]: the tiers of an auction. Cases come in an order shuffled by the
//! campaign's seed: wherever it is stopped, what has run covers the matrix evenly. One that is started again goes on
//! where its file ends.

mod crashes;
mod guests;
mod matrix;
pub mod repair;
pub mod rubis;
mod runs;
mod summary;

use anyhow::Result;
use serde_json::json;

use guests::Guests;
pub use matrix::Matrix;
use runs::Equipment;
pub use runs::Runs;
pub use summary::Summary;

use crate::scenario;

/// How long sessions go on after a recovery, in milliseconds.
const AFTERWARDS_MS: u64 = 500;

/// What a campaign of crashes is asked for.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Where and how.
    pub runs: Runs,
    /// Runs in all, those that the file holds already included.
    pub count: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// What is combined.
    pub matrix: Matrix,
    /// The monitor's deadline.
    pub deadline_ms: u64,
    /// Runs that begin with the same boot of a guest.
    pub runs_per_boot: usize,
}

/// Makes the runs of crashes that are missing and returns the summary of all there are.
///
/// # Errors
/// When results cannot be read or written, or a run cannot be started at all.
pub fn crashes(order: &Campaign) -> Result<Summary<crashes::Row>> {
    let cases = order.matrix.cases(order.seed, order.count);
    let pool_slots = scenario::pool_for(order.matrix.sessions_max());
    let guests = Guests::new(order.runs.results.with_extension("guests"), order.runs_per_boot, pool_slots)?;
    let lines = order.runs.all(&cases, |case| {
        let guest = guests.take(&case.kernel, case.vcpus, || order.runs.testbed())?;
        let (deadline, pool) = (order.deadline_ms.to_string(), pool_slots.to_string());
        let saved = guest.file.display().to_string();
        let options = [("--deadline-ms", deadline), ("--pool-slots", pool), ("--saved", saved)];
        let afterwards = ("--afterwards-ms", AFTERWARDS_MS.to_string());
        let arguments = options.into_iter().chain([afterwards]).flat_map(|(name, value)| [name.to_owned(), value]);
        Ok(Equipment { arguments: arguments.collect(), noted: vec![("boot", json!(guest.boot))], held: guest })
    })?;
    Ok(Summary::of(&lines))
}
