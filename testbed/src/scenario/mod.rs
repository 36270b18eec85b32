//! Scenarios: a whole installation is built, broken and judged. The result is one line of JSON; a run can be repeated
//! from its seed.

mod daemon;
mod progress;
mod verdict;

pub use daemon::{Daemon, program};
pub use progress::Progress;
pub use verdict::{Host, Verdict};
