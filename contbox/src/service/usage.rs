//! How full a pool is and whom that costs: what an operator sees before a stop shows it.
//!
//! A full pool is no error of anybody: connections go on, and those that find no box cannot be resumed. So it has to be
//! seen in time, and by application: the one that holds the boxes need not be the one that is refused.

use super::lease::Leases;
use crate::layout::SlotState;
use std::collections::BTreeMap;

/// Names whose refusals are counted apart; names come from whoever may open the socket, and are kept for good.
const NAMES_MAX: usize = 64;

/// What is counted for applications beyond [`NAMES_MAX`].
const OTHERS: &str = "(others)";

/// A pool and those who have boxes of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Boxes in the pool.
    pub boxes: usize,
    /// Those that can be had.
    pub free: usize,
    /// Those of applications that have not been heard of since the service started.
    pub orphaned: usize,
    /// By the name of the application.
    pub applications: BTreeMap<String, Share>,
}

/// What applications of one name have of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Boxes leased to them.
    pub boxes: usize,
    /// Those of them in which a connection is.
    pub open: usize,
    /// How often they asked and got none since the service started. While this grows, connections are unprotected once
    /// all boxes that they have are open.
    pub refused: u64,
}

/// Requests that found the pool empty, by the name of the application.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: BTreeMap<String, u64>,
    /// Whether the last request was one, so that the log has the first of a row only.
    is_full: bool,
}

impl Refusals {
    /// Notes what came of a request for `wanted` boxes; true if the pool was not known to be full before.
    pub fn note(&mut self, name: &str, wanted: u32, granted: usize) -> bool {
        if wanted == 0 {
            return false;
        }
        let was_full = std::mem::replace(&mut self.is_full, granted == 0);
        if granted == 0 {
            let known = self.counts.contains_key(name) || self.counts.len() < NAMES_MAX;
            *self.counts.entry(if known { name } else { OTHERS }.to_owned()).or_default() += 1;
        }
        granted == 0 && !was_full
    }
}

impl Usage {
    /// Adds up what `leases` and `refusals` say; `name_of` has the names of the applications that are there.
    pub fn of(leases: &Leases, refusals: &Refusals, name_of: impl Fn(u32) -> Option<String>) -> Self {
        let (free, leased, orphaned) = leases.counts();
        let mut applications: BTreeMap<String, Share> = BTreeMap::new();
        for (name, refused) in &refusals.counts {
            applications.entry(name.clone()).or_default().refused = *refused;
        }
        for (slot, owner) in leases.leased() {
            let Some(name) = name_of(owner) else { continue };
            let share = applications.entry(name).or_default();
            share.boxes += 1;
            let is_open =
                |state| matches!(state, SlotState::Open | SlotState::LostLog | SlotState::Kept | SlotState::Channel);
            share.open += usize::from(slot.state().is_some_and(is_open));
        }
        Self { boxes: free + leased + orphaned, free, orphaned, applications }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_of_a_row_is_told_and_all_are_counted() {
        let mut refusals = Refusals::default();
        let told = [(64, 0), (64, 0), (64, 3), (64, 0), (0, 0), (64, 0)]
            .map(|(wanted, granted)| refusals.note("files", wanted, granted));
        assert_eq!(told, [true, false, false, true, false, false]);
        assert_eq!(refusals.counts["files"], 4);
    }

    #[test]
    fn names_are_kept_for_a_bounded_number_of_applications() {
        let mut refusals = Refusals::default();
        for number in 0..1000 {
            refusals.note(&format!("app {number}"), 1, 0);
        }
        assert_eq!(refusals.counts.len(), NAMES_MAX + 1);
        assert_eq!(refusals.counts[OTHERS], 1000 - NAMES_MAX as u64);
        refusals.note("app 0", 1, 0);
        assert_eq!(refusals.counts["app 0"], 2);
    }
}
