//! Time for the loop: the monotonic clock as nanoseconds, and waking up at an absolute time without drift.
//!
//! Everything that decides takes its time from here, so that a test runs the same loop in virtual time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// A clock to sleep on.
pub trait Clock {
    /// Monotonic nanoseconds.
    fn now_ns(&self) -> u64;

    /// Returns at `until_ns`, or at once if that has passed.
    fn sleep_until(&self, until_ns: u64);
}

/// `CLOCK_MONOTONIC`: the same for all processes of this machine. Never spins: a sample that comes some ten
/// microseconds late costs nothing, and spinning costs more processor than the sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now_ns(&self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep_until(&self, until_ns: u64) {
        let time = TimeSpec::from_duration(Duration::from_nanos(until_ns));
        while self.now_ns() < until_ns {
            // Ends early only for a signal; then it is slept again.
            let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &time);
        }
    }
}

/// Nanoseconds since 1970, for people who compare journals of several machines.
pub fn wall_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
