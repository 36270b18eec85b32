//! The time-out of a connection: adapts to the measured round trip, doubles when nothing comes, and ends.
//!
//! There is one deadline per connection, not one per packet: it moves with every sign of progress, and only with that.
//! A peer that answers without ever letting us get on (a NAK for each repetition, say) therefore runs into it as a
//! silent one does.

use std::time::Duration;

/// No measured round trip raises the first wait above this: beyond it, waiting costs more than repeating.
const TIMEOUT_MAX: Duration = Duration::from_millis(100);

/// No doubled wait is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Doublings that outlast progress.
const DOUBLINGS_KEPT_MAX: u32 = 2;

/// What the passing of time means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expiry {
    NotYet,
    /// Send again.
    Again,
    GiveUp {
        tries: u32,
    },
}

#[derive(Debug)]
pub(super) struct Timer {
    timeout_min: Duration,
    tries_max: u32,
    smoothed: Option<Duration>,
    variation: Duration,
    tries: u32,
    /// Outlasts progress, until an answer to something sent once has been measured: what was repeated says nothing
    /// about the round trip (Karn's rule), and a peer that is merely slow would else be asked twice for everything.
    doublings: u32,
    deadline: Option<Duration>,
}

impl Timer {
    pub(super) fn new(timeout_min: Duration, tries_max: u32) -> Self {
        Self {
            timeout_min,
            tries_max,
            smoothed: None,
            variation: Duration::ZERO,
            tries: 1,
            doublings: 0,
            deadline: None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Something was sent: the wait begins, unless one is running.
    pub(super) fn start(&mut self, now: Duration) {
        self.deadline.get_or_insert(now + self.wait());
    }

    /// The peer got us further: the wait begins anew if anything is `outstanding`.
    pub(super) fn progress(&mut self, now: Duration, outstanding: bool) {
        self.tries = 1;
        self.doublings = self.doublings.min(DOUBLINGS_KEPT_MAX);
        self.deadline = outstanding.then(|| now + self.wait());
    }

    /// The peer asked us to come back after `delay`. Counts as a try, so that it cannot go on for ever.
    pub(super) fn postpone(&mut self, now: Duration, delay: Duration) -> Expiry {
        let expiry = self.try_again(now);
        self.deadline = self.deadline.map(|deadline| deadline + delay);
        expiry
    }

    pub(super) fn stop(&mut self) {
        self.deadline = None;
    }

    pub(super) fn expire(&mut self, now: Duration) -> Expiry {
        match self.deadline {
            Some(deadline) if now >= deadline => self.try_again(now),
            _ => Expiry::NotYet,
        }
    }

    fn try_again(&mut self, now: Duration) -> Expiry {
        if self.tries >= self.tries_max {
            return Expiry::GiveUp { tries: self.tries };
        }
        self.tries += 1;
        self.doublings += 1;
        self.deadline = Some(now + self.wait());
        Expiry::Again
    }

    /// Learns from an answer to something that was sent once. Source of the weights: RFC 6298.
    pub(super) fn measured(&mut self, round_trip: Duration) {
        let smoothed = match self.smoothed {
            None => {
                self.variation = round_trip / 2;
                round_trip
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(round_trip)) / 4;
                (smoothed * 7 + round_trip) / 8
            }
        };
        self.smoothed = Some(smoothed);
        self.doublings = 0;
    }

    fn wait(&self) -> Duration {
        let measured = self.smoothed.unwrap_or_default() + self.variation * 4;
        let first = measured.min(TIMEOUT_MAX).max(self.timeout_min);
        (first * (1 << self.doublings.min(16))).min(BACKOFF_MAX.max(self.timeout_min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn waits_double_and_end() {
        let mut timer = Timer::new(2 * MS, 4);
        timer.start(Duration::ZERO);
        assert_eq!(timer.expire(MS), Expiry::NotYet);
        assert_eq!(timer.expire(2 * MS), Expiry::Again);
        assert_eq!(timer.deadline(), Some(6 * MS));
        assert_eq!(timer.expire(6 * MS), Expiry::Again);
        assert_eq!(timer.expire(14 * MS), Expiry::Again);
        assert_eq!(timer.expire(30 * MS), Expiry::GiveUp { tries: 4 });
    }

    #[test]
    fn progress_forgives() {
        let mut timer = Timer::new(2 * MS, 2);
        timer.start(Duration::ZERO);
        assert_eq!(timer.expire(2 * MS), Expiry::Again);
        timer.progress(3 * MS, true);
        assert_eq!(timer.deadline(), Some(7 * MS), "doubled until something is measured");
        timer.measured(MS / 4);
        timer.progress(3 * MS, true);
        assert_eq!(timer.deadline(), Some(5 * MS));
        timer.progress(3 * MS, false);
        assert_eq!(timer.deadline(), None);
    }

    #[test]
    fn a_slow_path_is_given_time() {
        let mut timer = Timer::new(2 * MS, 4);
        for _ in 0..50 {
            timer.measured(20 * MS);
        }
        timer.start(Duration::ZERO);
        let wait = timer.deadline().unwrap();
        assert!(wait >= 20 * MS && wait < 25 * MS, "{wait:?}");
        timer.stop();
        timer.measured(Duration::from_secs(60));
        timer.start(Duration::ZERO);
        assert_eq!(timer.deadline(), Some(TIMEOUT_MAX));
    }
}
