//! `hostile --runs N`: a campaign over all targets, or one. Prints a table; the first broken promise ends it.

use anyhow::{Context, Result};
use clap::Parser;
use hostile::{campaign, scattered};

/// Puts everything that parses what others send through seeded hostile inputs.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Inputs in all, shared out over the targets.
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Where the seeds begin: another number, other inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this target, with all of the runs.
    #[arg(long)]
    target: Option<String>,
    /// Instead: machines of which a share of everything is damaged, so many runs of each target, shape and share, and
    /// how deep walks come.
    #[arg(long, conflicts_with = "target")]
    scattered: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.scattered {
        return scattered(&arguments);
    }
    let chosen: Vec<_> = match &arguments.target {
        Some(name) => vec![(*hostile::target(name).context("no such target")?, arguments.runs)],
        None => hostile::TARGETS.iter().map(|target| (*target, arguments.runs * target.share / 1000)).collect(),
    };
    println!("target         corpus  mutations  accepted      took   longest run");
    let mut total = 0;
    for (target, runs) in chosen {
        let outcome = campaign::run(&target, arguments.seed, runs)?;
        total += outcome.corpus + outcome.mutations;
        println!(
            "{:<13} {:>7} {:>10} {:>9} {:>9.1?} {:>13.1?}",
            target.name, outcome.corpus, outcome.mutations, outcome.accepted, outcome.took, outcome.longest
        );
    }
    println!("{total} runs from seed {}, no promise broken", arguments.seed);
    Ok(())
}

fn scattered(arguments: &Arguments) -> Result<()> {
    println!("of each run: tasks found; of them with memory, or marked; users, or edits planned; faults reported");
    println!("target     hit         share     runs  accepted   tasks reached   found  faults      took   longest run");
    scattered::run(arguments.seed, arguments.runs, |kind| {
        let mean = |sum: usize| sum as f64 / kind.runs as f64;
        println!(
            "{:<10} {:<9} {:>5.2} % {:>8} {:>9} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>9.1?} {:>13.1?}",
            kind.target,
            format!("{:?}", kind.shape).to_lowercase(),
            f64::from(kind.share) / 100.0,
            kind.runs,
            kind.accepted,
            mean(kind.depth.tasks),
            mean(kind.depth.reached),
            mean(kind.depth.found),
            mean(kind.depth.faults),
            kind.took,
            kind.longest
        );
    })?;
    println!("from seed {}, no promise broken", arguments.seed);
    Ok(())
}
