//! The time-out of a connection: adapts to the measured round trip, doubles when nothing comes, and ends.
//!
//! There is one deadline per connection, not one per packet: it moves with every sign of progress, and only with that.
//! A peer that answers without ever letting us get on (a NAK for each repetition, say) therefore runs into it as a
//! silent one does.
//!
//! Where the round trip is known, a few probes come first: repetitions after little more than a round trip, without
//! doubling, as a path that loses single packets answers the next one. Only if they bring nothing does the long wait
//! begin, which assumes a peer that is busy or gone:
//!
//! ```text
//!   sent   probe  probe  probe      again                again                                   again
//!    |-2rtt-|-2rtt-|-2rtt-|-timeout-|------ 2 timeout ---|--------------- 4 timeout -------------| ...  tries
//! ```
//!
//! Probes are paid for out of a credit that answers to what was sent once fill up: on a path that has become slow,
//! where every probe is a mistake, they end after a few.

use std::time::Duration;

/// Probes before the time-out proper: three losses in a row on a path that loses every twentieth packet are rare.
const PROBES_MAX: u32 = 3;

/// Probes without an answer to something sent once in between: two bad questions in a row.
const PROBE_CREDIT_MAX: u32 = 2 * PROBES_MAX;

/// The shortest wait for a probe: below it a process that has to wake up counts as a loss.
const PROBE_WAIT_MIN: Duration = Duration::from_micros(500);

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
    /// Send again: a single packet may have been lost.
    Probe,
    /// Send again: nothing comes.
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
    /// Since the last progress.
    probes: u32,
    probe_credit: u32,
    deadline: Option<Duration>,
    /// Whether a probe is due at the deadline.
    is_probe: bool,
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
            probes: 0,
            probe_credit: PROBE_CREDIT_MAX,
            deadline: None,
            is_probe: false,
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Something was sent: the wait begins, unless one is running.
    pub(super) fn start(&mut self, now: Duration) {
        if self.deadline.is_none() {
            self.begin(now);
        }
    }

    fn begin(&mut self, now: Duration) {
        let probe = self.probe_wait();
        self.is_probe = probe.is_some();
        self.deadline = Some(now + probe.unwrap_or_else(|| self.wait()));
    }

    /// The peer got us further: the wait begins anew if anything is `outstanding`.
    pub(super) fn progress(&mut self, now: Duration, outstanding: bool) {
        self.tries = 1;
        self.probes = 0;
        self.doublings = self.doublings.min(DOUBLINGS_KEPT_MAX);
        self.deadline = None;
        if outstanding {
            self.begin(now);
        }
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
            Some(deadline) if now >= deadline && self.is_probe => {
                self.probes += 1;
                self.probe_credit = self.probe_credit.saturating_sub(1);
                self.begin(now);
                Expiry::Probe
            }
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
        self.is_probe = false;
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
        self.probe_credit = (self.probe_credit + 1).min(PROBE_CREDIT_MAX);
    }

    /// How long a probe is waited with; `None` if it is not the time for one, or the time-out is no longer.
    fn probe_wait(&self) -> Option<Duration> {
        let is_allowed = self.probes < PROBES_MAX && self.tries == 1 && self.probe_credit > 0;
        let smoothed = self.smoothed.filter(|_| is_allowed)?;
        let wait = (smoothed * 2 + self.variation * 4).max(PROBE_WAIT_MIN);
        (wait < self.wait()).then_some(wait)
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
        assert_eq!(timer.deadline(), Some(4 * MS), "two round trips and four variations: a probe");
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

    /// The expiries of a timer for which nothing comes, each with its time.
    fn expiries(timer: &mut Timer, count: usize) -> Vec<(Expiry, Duration)> {
        let next = |_| {
            let at = timer.deadline().unwrap();
            (timer.expire(at), at)
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn probes_come_before_the_time_out_where_the_round_trip_is_known() {
        let mut timer = Timer::new(2 * MS, 9);
        (0..50).for_each(|_| timer.measured(MS / 10));
        timer.start(Duration::ZERO);
        let seen = expiries(&mut timer, 6);
        let half = MS / 2;
        let expected = [
            (Expiry::Probe, half),
            (Expiry::Probe, 2 * half),
            (Expiry::Probe, 3 * half),
            (Expiry::Again, 3 * half + 2 * MS),
            (Expiry::Again, 3 * half + 6 * MS),
            (Expiry::Again, 3 * half + 14 * MS),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_path_that_became_slow_is_probed_a_few_times_only() {
        let mut timer = Timer::new(2 * MS, 9);
        (0..50).for_each(|_| timer.measured(MS / 10));
        let mut probes = 0;
        for question in 0..20 {
            let now = question * 1000 * MS;
            timer.start(now);
            // The answer comes after 40 ms, to something that was repeated, so nothing is measured.
            while timer.deadline().unwrap() < now + 40 * MS {
                let at = timer.deadline().unwrap();
                probes += u32::from(timer.expire(at) == Expiry::Probe);
            }
            timer.progress(now + 40 * MS, false);
        }
        assert_eq!(probes, PROBE_CREDIT_MAX);
    }
}
