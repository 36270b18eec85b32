//! The whole pipeline in one process: sample, detect, fence, extract, session, in virtual time.
//!
//! ```text
//!   monitor::Watch ─► Blocking ─► Requester ─┐  packets: lost, doubled,  ┌─► Responder ─► Target
//!   reinstate::extract ─► Blocking ─► Req. ──┘  damaged, late, reordered └─   recorded RAM, Sensor Box, boxes
//! ```
//!
//! Everything between the ends is the code that runs in production; the ends are played: the target's RAM is a
//! recorded machine, its sensors tick by the virtual clock, its boxes were written by the library for the connections
//! that are in the recording. No socket, no virtual machine, no real time.
//!
//! Each test runs for a slice of seeds. A failure prints its seed; `PIPELINE_SEED=n` runs that one alone, and
//! `PIPELINE_SEEDS=n` runs more of them than a test should.

mod application;
mod chain;
mod garbage;
mod golden;
mod judge;
mod network;
mod queue;
mod recorded;
mod stage;
mod target;
mod verdicts;

/// Runs `test` for each seed of the slice; `usually` is how many that are.
fn for_each_seed(usually: u64, test: fn(u64)) {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seeds = match number("PIPELINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PIPELINE_SEEDS").unwrap_or(usually),
    };
    for seed in seeds {
        std::panic::catch_unwind(|| test(seed)).unwrap_or_else(|_| panic!("failed with PIPELINE_SEED={seed}"));
    }
}
