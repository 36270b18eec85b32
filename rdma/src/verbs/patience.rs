//! How long a wait looks for completions before it sleeps.
//!
//! A sleep costs an event, a system call and a wake-up: some ten microseconds on hardware, half of a READ's time on a
//! software adapter. Looking costs a processor for as long as the answer takes. So a queue looks for as long as its
//! answers usually take, twice, if that is no more than its owner grants it; with a peer that is slower than that,
//! looking is in vain, and it is soon given up.

use std::time::Duration;

/// Looked for this long in any case, if it is granted: as good as free, beside the sleep that it may spare.
const LEAST: Duration = Duration::from_micros(50);

/// How much one wait counts in what is usual: an eighth.
const SHARE: u32 = 8;

/// What a queue has learned of its peer's answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    usual: Duration,
    most: Duration,
}

impl Patience {
    /// `most` is how long the owner grants.
    pub fn new(most: Duration) -> Self {
        Self { usual: Duration::ZERO, most }
    }

    /// How long the next wait looks before it sleeps.
    pub fn looks_for(&self) -> Duration {
        if self.usual > self.most { LEAST.min(self.most) } else { (2 * self.usual).max(LEAST).min(self.most) }
    }

    /// A wait ended with an answer after `waited`. One that is far too late is one lost packet, not a slow peer: it
    /// counts as twice what is granted.
    pub fn learn(&mut self, waited: Duration) {
        self.usual = self.usual * (SHARE - 1) / SHARE + waited.min(2 * self.most) / SHARE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(1);

    fn after(waits: impl IntoIterator<Item = u64>) -> Duration {
        let mut patience = Patience::new(MOST);
        waits.into_iter().for_each(|us| patience.learn(Duration::from_micros(us)));
        patience.looks_for()
    }

    #[test]
    fn a_wait_looks_for_twice_what_answers_take() {
        assert_eq!(after([]), LEAST);
        let looks = after([300; 50]);
        assert!((590..=600).contains(&looks.as_micros()), "{looks:?}");
    }

    #[test]
    fn what_is_granted_is_the_most() {
        assert_eq!(after([900; 50]), MOST);
        assert_eq!(Patience::new(Duration::ZERO).looks_for(), Duration::ZERO);
    }

    #[test]
    fn a_peer_that_is_slower_than_what_is_granted_is_slept_for() {
        assert_eq!(after([5_000; 50]), LEAST);
    }

    #[test]
    fn one_lost_packet_does_not_make_a_peer_slow_and_a_slow_one_that_recovers_is_looked_for_again() {
        assert!(after([[300; 50].as_slice(), &[4_000_000]].concat()) > 2 * Duration::from_micros(300));
        assert!(after([[5_000; 50].as_slice(), &[300; 50]].concat()) < 2 * Duration::from_micros(310));
    }
}
