//! What a person sees while a scenario works: one line on standard error for each step, with the time since the
//! beginning. Standard output is left to the result.

use std::{fmt::Display, time::Instant};

/// The steps of one run.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    began: Instant,
}

impl Progress {
    /// Begins to count.
    pub fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// Says what is being done now.
    pub fn step(&self, what: impl Display) {
        eprintln!("[{:6.2} s] {what}", self.began.elapsed().as_secs_f64());
    }
}
