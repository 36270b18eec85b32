//! The state of one sensor against its bound: the three rules of Table 3.1, as pure functions of samples.
//!
//! Progress. What is measured is the time without change *that samples have seen*:
//!
//! ```text
//!   reads        |--|        |--|        |--|    (lost)         |--|
//!   value          6           7           7                      7
//!                 ^ moved_after ^ moved_before
//!                               |<- counts ->|<- counts, capped ->|
//! ```
//!
//! The value moved after the begin of the read that still brought 6 and before the end of the first that brought 7.
//! Nothing is known of the target while no read succeeds, so a stretch between two successful reads that is longer than
//! half the deadline is blind, and all blind stretches of a stall together count for half the deadline. Where path and
//! target wait for the same busy host, one follows another: they make no verdict by themselves. Each counts for an
//! eighth at least, so that who never gets to look more often comes to a verdict too.
//!
//! A processor that idles without ticks says for how long it may be silent: that is added to the deadline, counted from
//! the sample that saw it first, so that no clock of the target is needed. What it says changes only when it does
//! something, which is a move as good as any.

use std::collections::VecDeque;

/// What a blind stretch counts for at least, as a part of the deadline.
const BLIND_EACH: u64 = 8;

/// Points kept of a pressure sensor's window: its growth is known to 1/32 of the window, at a bounded cost.
const WINDOW_POINTS: u64 = 32;

/// A progress sensor since its baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    deadline_ns: u64,
    /// The value, once there was a sample.
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    value: u64,
    /// For how long it may stand still beyond the deadline.
    sleep_ns: u64,
    /// `None` if it has not moved since the first sample: nobody saw when it did.
    moved_after_ns: Option<u64>,
    moved_before_ns: u64,
    /// From where the next stretch counts; `None` after a lost path: from the next sample.
    counted_until_ns: Option<u64>,
    /// Begin of the newest read that brought the value.
    newest_begin_ns: u64,
    stalled_ns: u64,
    /// What blind stretches may still count for.
    blind_ns: u64,
    /// Whether it ever moved: a counter at zero may belong to a source that was never switched on.
    alive_once: bool,
}

/// How a stalled progress sensor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The value at which it stands.
    pub value: u64,
    /// Lower bound of its last move; `None` if no sample saw it move.
    pub moved_after_ns: Option<u64>,
    /// Upper bound of its last move.
    pub moved_before_ns: u64,
    /// Time without change that samples have seen.
    pub stalled_ns: u64,
}

impl Progress {
    /// A sensor that no sample has shown yet.
    pub const fn new(deadline_ns: u64) -> Self {
        Self { deadline_ns, seen: None }
    }

    /// Takes in the value that a read from `begin_ns` to `end_ns` brought; `sleep_ns` is for how long the value may
    /// stand still with good reason, 0 for a source that never sleeps.
    pub fn observe(&mut self, begin_ns: u64, end_ns: u64, value: u64, sleep_ns: u64) {
        match &mut self.seen {
            Some(seen) if (seen.value, seen.sleep_ns) == (value, sleep_ns) => {
                let from_ns = seen.counted_until_ns.unwrap_or(begin_ns);
                let stretch = begin_ns.saturating_sub(from_ns);
                seen.count(stretch, self.deadline_ns);
                seen.counted_until_ns = Some(from_ns.max(begin_ns));
                seen.newest_begin_ns = begin_ns;
            }
            earlier => {
                let moved_after_ns = earlier.map(|seen| seen.newest_begin_ns);
                *earlier = Some(Seen {
                    value,
                    sleep_ns,
                    moved_after_ns,
                    moved_before_ns: end_ns,
                    counted_until_ns: Some(end_ns),
                    newest_begin_ns: begin_ns,
                    stalled_ns: 0,
                    blind_ns: self.deadline_ns / 2,
                    alive_once: value != 0 || earlier.is_some(),
                });
            }
        }
    }

    /// Whether it stands still beyond its deadline.
    pub fn stall(&self) -> Option<Stall> {
        let seen = self.seen.filter(|seen| seen.alive_once && seen.stalled_ns >= self.patience_ns(seen))?;
        Some(Stall {
            value: seen.value,
            moved_after_ns: seen.moved_after_ns,
            moved_before_ns: seen.moved_before_ns,
            stalled_ns: seen.stalled_ns,
        })
    }

    /// The earliest begin of a read that could complete a stall, if the next one can.
    pub fn due_ns(&self) -> Option<u64> {
        let seen = self.seen.filter(|seen| seen.alive_once)?;
        let missing = self.patience_ns(&seen).checked_sub(seen.stalled_ns).filter(|missing| *missing > 0)?;
        seen.counted_until_ns.filter(|_| missing <= self.deadline_ns / 2)?.checked_add(missing)
    }

    /// How long it may stand still: the deadline, and what it said before it fell asleep.
    fn patience_ns(&self, seen: &Seen) -> u64 {
        self.deadline_ns.saturating_add(seen.sleep_ns)
    }

    /// Begins a new stall, keeping what is known of the last move: for a path that was lost and came back.
    pub fn rebase(&mut self) {
        if let Some(seen) = &mut self.seen {
            (seen.stalled_ns, seen.blind_ns) = (0, self.deadline_ns / 2);
            seen.counted_until_ns = None;
        }
    }
}

impl Seen {
    /// Takes in a stretch without change.
    fn count(&mut self, stretch_ns: u64, deadline_ns: u64) {
        let mut counted = stretch_ns;
        if stretch_ns > deadline_ns / 2 {
            counted = self.blind_ns.max(deadline_ns / BLIND_EACH);
            self.blind_ns = self.blind_ns.saturating_sub(counted);
        }
        self.stalled_ns = self.stalled_ns.saturating_add(counted);
    }
}

/// A pressure sensor's recent growth.
#[derive(Clone, Debug)]
pub struct Pressure {
    limit: u64,
    window_ns: u64,
    points: VecDeque<(u64, u64)>,
    newest: Option<u64>,
}

impl Pressure {
    /// A sensor that no sample has shown yet.
    pub fn new(limit: u64, window_ns: u64) -> Self {
        Self { limit, window_ns, points: VecDeque::with_capacity(WINDOW_POINTS as usize + 2), newest: None }
    }

    /// Takes in the value that a read ending at `end_ns` brought. A count that fell has been reset: the window starts
    /// anew.
    pub fn observe(&mut self, end_ns: u64, value: u64) {
        if self.newest.is_some_and(|newest| value < newest) {
            self.points.clear();
        }
        self.newest = Some(value);
        // Keep one point at or before the window's begin, so that growth is counted over the whole of it.
        while self.points.get(1).is_some_and(|(at, _)| at.saturating_add(self.window_ns) <= end_ns) {
            self.points.pop_front();
        }
        let spacing = self.window_ns / WINDOW_POINTS;
        if self.points.back().is_none_or(|(at, _)| end_ns.saturating_sub(*at) >= spacing) {
            self.points.push_back((end_ns, value));
        }
    }

    /// Growth over the window, if it exceeds the limit.
    pub fn excess(&self) -> Option<u64> {
        let (_, oldest) = self.points.front()?;
        Some(self.newest?.saturating_sub(*oldest)).filter(|growth| *growth > self.limit)
    }
}

/// A level sensor: how long it has been beyond its limit.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    limit: u64,
    hold_ns: u64,
    floor: bool,
    /// When it went beyond, the newest sample and its value.
    beyond: Option<(u64, u64, u64)>,
}

impl Level {
    /// A sensor that no sample has shown yet.
    pub const fn new(limit: u64, hold_ns: u64, floor: bool) -> Self {
        Self { limit, hold_ns, floor, beyond: None }
    }

    /// Takes in the value that a read ending at `end_ns` brought.
    pub fn observe(&mut self, end_ns: u64, value: u64) {
        let is_beyond = if self.floor { value < self.limit } else { value > self.limit };
        let since_ns = self.beyond.map_or(end_ns, |(since_ns, ..)| since_ns);
        self.beyond = is_beyond.then_some((since_ns, end_ns, value));
    }

    /// The newest value, if it has been beyond the limit for long enough.
    pub fn excess(&self) -> Option<u64> {
        let (since_ns, newest_ns, value) = self.beyond?;
        (newest_ns.saturating_sub(since_ns) >= self.hold_ns).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(deadline_ns: u64, samples: &[(u64, u64)]) -> Progress {
        let mut progress = Progress::new(deadline_ns);
        for (at, value) in samples {
            progress.observe(*at, at + 2, *value, 0);
        }
        progress
    }

    #[test]
    fn a_stall_counts_from_the_end_of_the_read_that_saw_the_change() {
        let samples = [(0, 6), (10, 7), (20, 7), (30, 7), (40, 7), (51, 7)];
        assert_eq!(observed(40, &samples).stall(), None, "39 ns are no stall of 40");
        let stall = observed(40, &[(0, 6), (10, 7), (20, 7), (30, 7), (40, 7), (52, 7)]).stall().unwrap();
        assert_eq!((stall.moved_after_ns, stall.moved_before_ns, stall.stalled_ns, stall.value), (Some(0), 12, 40, 7));
    }

    #[test]
    fn a_blind_stretch_counts_for_half_a_deadline_at_most() {
        assert_eq!(observed(40, &[(0, 6), (10, 7), (1_000_000, 7)]).stall(), None);
        assert!(observed(40, &[(0, 6), (10, 7), (1_000_000, 7), (1_000_020, 7)]).stall().is_some());
    }

    #[test]
    fn blind_stretches_count_for_half_a_deadline_together() {
        let blind = [(0, 6), (10, 7), (500, 7), (1000, 7), (1500, 7)];
        let progress = observed(40, &blind);
        assert_eq!((progress.stall(), progress.due_ns()), (None, Some(1510)), "20 and twice 5");
        assert_eq!(observed(40, &[&blind[..], &[(1509, 7)]].concat()).stall(), None);
        assert!(observed(40, &[&blind[..], &[(1510, 7)]].concat()).stall().is_some());
    }

    /// As it was seen of a guest that lived, in microseconds: nobody ran for 221 ms, and again for 116.
    #[test]
    fn a_host_that_lets_target_and_path_wait_twice_makes_no_verdict() {
        let seen = [(0, 340), (1500, 341), (5100, 341), (226_500, 341), (342_500, 341), (342_600, 341)];
        assert_eq!(observed(200_000, &seen).stall(), None);
    }

    #[test]
    fn who_can_only_look_now_and_then_comes_to_a_verdict_too() {
        let rare = [(0, 6), (10, 7), (500, 7), (1000, 7), (1500, 7), (2000, 7), (2500, 7)];
        assert_eq!(observed(40, &rare[..6]).stall(), None);
        assert!(observed(40, &rare).stall().is_some());
    }

    #[test]
    fn a_lost_path_begins_a_new_stall_and_keeps_the_last_move() {
        let mut progress = observed(40, &[(0, 6), (10, 7), (30, 7), (50, 7)]);
        progress.rebase();
        for at in [5000, 5010, 5030] {
            progress.observe(at, at + 2, 7, 0);
            assert_eq!(progress.stall(), None);
        }
        progress.observe(5040, 5042, 7, 0);
        assert_eq!(progress.stall().unwrap().moved_after_ns, Some(0));
    }

    #[test]
    fn the_due_time_is_when_the_next_read_could_complete_the_stall() {
        assert_eq!(observed(40, &[(0, 6), (10, 7)]).due_ns(), None);
        assert_eq!(observed(40, &[(0, 6), (10, 7), (33, 7)]).due_ns(), Some(53));
    }

    #[test]
    fn a_counter_that_was_never_switched_on_does_not_stall() {
        let zeroes: Vec<_> = (0..20).map(|step| (step * 10, 0)).collect();
        assert_eq!(observed(40, &zeroes).stall(), None);
        let standing: Vec<_> = (0..20).map(|step| (step * 10, 9)).collect();
        let stall = observed(40, &standing).stall().expect("it moved before we came");
        assert_eq!(stall.moved_after_ns, None);
    }

    #[test]
    fn a_sleep_that_was_announced_is_waited_for_and_not_longer() {
        let mut progress = Progress::new(40);
        progress.observe(0, 2, 6, 0);
        progress.observe(10, 12, 7, 1000);
        for at in (20..1052).step_by(12) {
            progress.observe(at, at + 2, 7, 1000);
            assert_eq!(progress.stall(), None, "at {at}");
        }
        assert_eq!(progress.due_ns(), Some(12 + 1040));
        progress.observe(1052, 1054, 7, 1000);
        assert_eq!(progress.stall().unwrap().stalled_ns, 1040);
    }

    #[test]
    fn a_processor_that_wakes_and_has_not_ticked_yet_is_not_judged_by_its_sleep() {
        let mut progress = Progress::new(40);
        progress.observe(0, 2, 6, 0);
        for at in (10..900).step_by(10) {
            progress.observe(at, at + 2, 7, 1000);
        }
        // Something else than its timer woke it: the same count, and no sleep any more.
        for (at, is_stalled) in [(900, false), (920, false), (940, false), (942, true)] {
            progress.observe(at, at + 2, 7, 0);
            assert_eq!(progress.stall().is_some(), is_stalled, "at {at}");
        }
    }

    #[test]
    fn pressure_is_growth_over_the_window() {
        let mut pressure = Pressure::new(10, 1000);
        for step in 0..100u64 {
            pressure.observe(step * 100, step);
        }
        assert_eq!(pressure.excess(), None, "10 in 1000 ns are within the limit");
        pressure.observe(10_000, 112);
        assert_eq!(pressure.excess(), Some(22));
        pressure.observe(10_100, 3);
        assert_eq!(pressure.excess(), None, "a reset counter has no growth");
    }

    #[test]
    fn a_level_may_be_beyond_its_limit_for_its_patience() {
        let mut ceiling = Level::new(10, 50, false);
        let mut floor = Level::new(10, 0, true);
        for (at, value, expected) in [(0, 11, None), (49, 12, None), (50, 13, Some(13)), (60, 10, None), (70, 11, None)]
        {
            ceiling.observe(at, value);
            assert_eq!(ceiling.excess(), expected, "at {at}");
        }
        floor.observe(0, 10);
        assert_eq!(floor.excess(), None);
        floor.observe(1, 9);
        assert_eq!(floor.excess(), Some(9));
    }
}
