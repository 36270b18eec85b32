//! A campaign of its own: a share of everything is damaged, and nothing else is; and how deep walks come all the same.
//!
//! The runs are inputs of targets as others are, made without a corpus: machine, then one [`Scatter`] with a seed.
//!
//! [`Scatter`]: crate::scatter::Shape

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::campaign;
use crate::scatter::{SHARES, Shape};
use crate::walks::{self, Depth};
use crate::{Target, target};

/// Targets that look at memory of a machine with many processes.
const DEEP: [(&str, DepthOf); 3] =
    [("processes", walks::processes_depth), ("kills", walks::kills_depth), ("channels", walks::channels_depth)];

/// How deep a target's walks come over the damage of an input.
type DepthOf = fn(&[u8]) -> Depth;

/// What runs of one kind came to.
#[derive(Clone, Debug)]
pub struct Scattered {
    /// The target.
    pub target: &'static str,
    /// What was hit as one.
    pub shape: Shape,
    /// How many of ten thousand were.
    pub share: u32,
    /// Runs.
    pub runs: u64,
    /// Runs that got past the first checks: found processes and users, or planned an edit.
    pub accepted: u64,
    /// Sums over all runs.
    pub depth: Depth,
    /// Time for all of them.
    pub took: Duration,
    /// The longest run.
    pub longest: Duration,
}

/// An input with nothing but this damage. Odd seeds are of the second machine.
pub fn input(shape: Shape, share: u32, seed: u64) -> Vec<u8> {
    let shape = Shape::ALL.iter().position(|one| *one == shape).unwrap_or(0) as u8;
    let share = SHARES.iter().position(|one| *one == share).unwrap_or(0) as u8;
    [&[(seed & 1) as u8, 7, shape, share], &seed.to_le_bytes()[..]].concat()
}

/// Runs each deep target over each shape and share, `runs` times each from `seed` on. `note` hears of each kind.
///
/// # Errors
/// If a run breaks a promise: names target, seed and input.
pub fn run(seed: u64, runs: u64, mut note: impl FnMut(&Scattered)) -> Result<()> {
    for (name, depth_of) in DEEP {
        let Some(target) = target(name) else { continue };
        for share in SHARES {
            for shape in Shape::ALL {
                note(&one(target, depth_of, shape, share, seed..seed + runs)?);
            }
        }
    }
    Ok(())
}

fn one(target: &Target, depth_of: DepthOf, shape: Shape, share: u32, seeds: std::ops::Range<u64>) -> Result<Scattered> {
    let began = Instant::now();
    let (mut depth, mut accepted, mut longest) = (Depth::default(), 0, Duration::ZERO);
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let (of_run, took) = campaign::guarded(target.name, &input(shape, share, seed), depth_of)?;
        accepted += u64::from(of_run.tasks > 0 && of_run.found > 0);
        longest = longest.max(took);
        depth.tasks += of_run.tasks;
        depth.reached += of_run.reached;
        depth.found += of_run.found;
        depth.faults += of_run.faults;
    }
    Ok(Scattered { target: target.name, shape, share, runs, accepted, depth, took: began.elapsed(), longest })
}
