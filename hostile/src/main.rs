//! `hostile --runs N`: a campaign over all targets, or one. Prints a table; the first broken promise ends it.

use anyhow::{Context, Result};
use clap::Parser;
use hostile::campaign;

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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
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
