//! The drowned target: its own processes keep it from its work, and to end them did not help.
//!
//! It lives: its timers tick, and no alarm tells of it. It is raised by a treatment that gives up while the sensors
//! that asked for it are still out of bounds, and only where the operator has said that the cure of last resort is
//! wanted: the living machine is fenced, and its sessions are carried over to a spare.

use control::reinstate::Report;

use crate::{Alarm, Cure, Diagnosis, FreshSample, Illness, Remedy, accounted};

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drowned;

impl Drowned {
    /// Its name.
    pub const NAME: &str = "drowned";
}

impl Illness for Drowned {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    /// No rest of sensors is a sign of it.
    fn is_raised_by(&self, _: &Alarm) -> bool {
        false
    }

    fn confirming_samples(&self) -> usize {
        0
    }

    fn confirm(&self, _: &Alarm, _: &[FreshSample]) -> Diagnosis {
        Diagnosis::Undecided { why: "a treatment that failed confirms it, and no sample".to_owned() }
    }

    fn remedy(&self) -> Remedy {
        Remedy::Evacuate
    }

    fn proof_of_cure(&self, report: &Report) -> Cure {
        accounted(report)
    }
}
