//! Runs targets over their corpus and over seeded mutations of it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};

use crate::{Target, mutation};

/// A run that takes more of a processor than this breaks a promise too: everything ends within its bounds.
const RUN_MAX: Duration = Duration::from_secs(20);

/// What one target was put through.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Inputs of the corpus.
    pub corpus: u64,
    /// Mutations.
    pub mutations: u64,
    /// How many of all got past the first checks: the others test little.
    pub accepted: u64,
    /// Time for all of them.
    pub took: Duration,
    /// The longest run.
    pub longest: Duration,
}

/// The corpus of `target`, by name.
///
/// # Errors
/// If the folder cannot be read.
pub fn corpus(target: &Target) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        inputs.push((name, fs::read(&path).with_context(|| path.display().to_string())?));
    }
    inputs.sort();
    Ok(inputs)
}

/// Runs `target` over its corpus and over `mutations` made from `seed` on.
///
/// # Errors
/// If a run breaks a promise: names target, seed and input.
pub fn run(target: &Target, seed: u64, mutations: u64) -> Result<Outcome> {
    let corpus = corpus(target)?;
    let began = Instant::now();
    let (mut longest, mut accepted) = (Duration::ZERO, 0);
    let mut note = |(was_accepted, took): (bool, Duration)| {
        accepted += u64::from(was_accepted);
        longest = longest.max(took);
    };
    for (name, input) in &corpus {
        note(once(target, input).with_context(|| format!("corpus/{}/{name}", target.name))?);
    }
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    for seed in seed..seed + mutations {
        let input = mutation::of(&inputs, seed);
        note(once(target, &input).with_context(|| format!("target {}, seed {seed}", target.name))?);
    }
    Ok(Outcome { corpus: inputs.len() as u64, mutations, accepted, took: began.elapsed(), longest })
}

fn once(target: &Target, input: &[u8]) -> Result<(bool, Duration)> {
    guarded(target.name, input, target.run)
}

/// What `run` makes of `input`, and how long that took.
pub(crate) fn guarded<T>(name: &str, input: &[u8], run: fn(&[u8]) -> T) -> Result<(T, Duration)> {
    let (began, worked) = (Instant::now(), processor_time());
    let outcome = match catch_unwind(AssertUnwindSafe(|| run(input))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            bail!("target {name}: {}; input {hex}", why.unwrap_or("panicked"));
        }
    };
    let worked = processor_time().saturating_sub(worked);
    if worked > RUN_MAX {
        bail!("target {name}: took {worked:?} of a processor");
    }
    Ok((outcome, began.elapsed()))
}

/// What this thread has had of a processor: a busy machine may let a run wait for as long as it likes.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
