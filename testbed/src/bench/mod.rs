//! `testbed bench`: what the parts cost on this machine, each beside the paper's figure, the limit of the same path and
//! the goal. A table on standard output, `OUT.json`, `OUT.svg`, and drawings of the recoveries below `OUT`.
//!
//! Figures are of this machine at this commit; the head of the table names both. A missed goal is a line that says so
//! and no failure: what must hold is in the tests.

mod auction;
mod boxes;
mod files;
mod line;
mod monitor;
mod read;
mod recovery;
mod repair;
mod result;
mod sessions;
mod sockets;
mod svg;
mod verbs;
mod wrk;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};

pub use line::{Goal, Group, Line, Sample, Unit};
pub use result::BenchResult;

use crate::{
    scenario::{Order, Progress},
    topology,
};

/// What is measured, how thoroughly, and where results go.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Folder of the recoveries' drawings; the result lies beside it, as `OUT.json` and `OUT.svg`.
    pub out: PathBuf,
    /// The guests of the recoveries.
    pub order: Order,
    /// Only these; all if empty.
    pub only: Vec<Group>,
    /// How thoroughly.
    pub effort: Effort,
}

/// How much is done for each line.
#[derive(Clone, Debug)]
pub struct Effort {
    /// READs of each length, and echoes.
    reads: usize,
    /// READs of adapters for each figure, one at a time and together, of which perftest wants whole batches; and how
    /// often both take turns.
    verbs_reads: [u32; 2],
    verbs_rounds: usize,
    /// Exports and imports of each size, in sixteens.
    exports: usize,
    /// Sessions that are reinstated together.
    sessions: usize,
    /// Seconds that a monitor is watched, with 10 and with 100 ms between its samples.
    monitor_s: [u64; 2],
    /// Recoveries for each line.
    recoveries: u64,
    /// Sessions of one recovery, for the time from the verdict to the last of them.
    crowd: usize,
    /// Sessions of one recovery, for the gap that clients see.
    gaps: [usize; 2],
    /// Runs of wrk with boxes, each with one without beside it.
    wrk_pairs: usize,
    /// Processes of the bombs that are cured, and how often each; one of more than 2000 once.
    crowds: Vec<usize>,
    cures: usize,
    /// Numbers of clients of the auction, how often each of its set-ups has them, and for how many seconds.
    auction_clients: Vec<u32>,
    auction_rounds: usize,
    auction_s: u64,
}

impl Effort {
    /// What figures are taken with; some minutes.
    pub fn full(recoveries: u64) -> Self {
        Self {
            reads: 10_000,
            verbs_reads: [500, 4096],
            verbs_rounds: 5,
            exports: 5_000,
            sessions: 1000,
            monitor_s: [5, 10],
            recoveries,
            crowd: 200,
            gaps: [1, 20],
            wrk_pairs: 5,
            crowds: vec![100, 500, 1000, 1500, 30_000],
            cures: 3,
            auction_clients: vec![1, 2, 4, 8, 16, 32, 64, 128],
            auction_rounds: 15,
            auction_s: 1,
        }
    }

    /// Everything once and briefly: shows that it runs. The figures mean nothing.
    pub fn brief() -> Self {
        Self {
            reads: 100,
            verbs_reads: [20, 320],
            verbs_rounds: 1,
            exports: 10,
            sessions: 4,
            monitor_s: [1, 1],
            recoveries: 1,
            crowd: 3,
            gaps: [1, 2],
            wrk_pairs: 1,
            crowds: vec![50],
            cures: 1,
            auction_clients: vec![2],
            auction_rounds: 1,
            auction_s: 1,
        }
    }

    /// With these numbers of clients of the auction, if there are any.
    pub fn with_auction_clients(self, clients: Vec<u32>) -> Self {
        if clients.is_empty() { self } else { Self { auction_clients: clients, ..self } }
    }

    /// With bombs of these numbers of processes, if there are any.
    pub fn with_crowds(self, crowds: &[u32]) -> Self {
        let crowds: Vec<usize> = crowds.iter().map(|processes| *processes as usize).collect();
        if crowds.is_empty() { self } else { Self { crowds, ..self } }
    }
}

/// Measures, prints the table and saves the result.
///
/// # Errors
/// When something cannot be measured.
pub fn bench(bench: &Bench) -> Result<BenchResult> {
    let (progress, began) = (Progress::begin(), Instant::now());
    topology::loopback_up()?; // what is measured without a topology talks over it
    let mut result = BenchResult::begin();
    for group in Group::ALL {
        if bench.only.is_empty() || bench.only.contains(&group) {
            progress.step(format_args!("{group:?}"));
            let lines = measure(group, bench, progress);
            result.lines.extend(lines.with_context(|| format!("measuring {group:?}"))?);
        }
    }
    result.took_s = began.elapsed().as_secs_f64();
    save(&bench.out, &result)?;
    print!("{result}");
    Ok(result)
}

fn measure(group: Group, bench: &Bench, progress: Progress) -> Result<Vec<Line>> {
    let effort = &bench.effort;
    match group {
        Group::Read => read::measure(effort),
        Group::Verbs => verbs::measure(effort, &bench.order, progress),
        Group::Boxes => boxes::measure(effort),
        Group::Sessions => sessions::measure(effort, &bench.out, &bench.order, progress),
        Group::Monitor => monitor::measure(effort),
        Group::Files => files::measure(effort, progress),
        Group::Recovery => recovery::measure(effort, &bench.out, &bench.order, progress),
        Group::Repair => repair::measure(effort, &bench.order, progress),
        Group::Auction => auction::measure(effort, &bench.out, progress),
    }
}

fn save(out: &Path, result: &BenchResult) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let write = |extension: &str, text: String| {
        let file = out.with_extension(extension);
        fs::write(&file, text).with_context(|| format!("{}", file.display()))
    };
    write("json", serde_json::to_string_pretty(result)? + "\n")?;
    write("svg", svg::draw(result))
}
