//! Policy: one file per illness, after the healing modules of the paper.
//!
//! An illness is known by the sensors that raise it, is confirmed from fresh state before anything is done, and has
//! one remedy. A module is a set of pure functions over what the monitor shows it: it opens no link, holds no clock
//! and never writes. What it decides is carried out, and journaled, by the monitor.
//!
//! ```text
//!   Alarm ──► raised_by? ──► confirm(fresh samples) ──► remedy ──► carried out by the monitor ──► proof of cure
//! ```
//!
//! A target that is drowned by its own processes and not dead is repaired in place ([`healer`]): what its memory says
//! of them is the evidence, a plan says who is to be ended and why, and no plan leaves the bounds of [`plan::Safety`].
//!
//! Invariants: a module acts on an [`Alarm`] only, and the loss of the access path is none; an illness that is not
//! confirmed costs the target nothing; exactly one module answers for one alarm (the first of [`known`]).

mod alarm;
pub mod drowned;
pub mod evidence;
pub mod forkbomb;
pub mod hang;
pub mod healer;
pub mod memhog;
pub mod outside;
pub mod pattern;
pub mod plan;

pub use alarm::{Alarm, FreshSample, Symptom};
pub use drowned::Drowned;
pub use evidence::{Evidence, Process};
pub use forkbomb::ForkBomb;
pub use hang::Hang;
pub use healer::{Dispatcher, Healer, HealingModule, Moment};
pub use memhog::MemHog;
pub use outside::Unanswered;
pub use plan::{Culprit, Plan, Safety, Unsafe};

use control::reinstate::{Outcome, Report};

/// One illness: how it shows, how it is confirmed, what is done about it, and what proves that it helped.
pub trait Illness: Send + Sync {
    /// Its name in journals and metrics.
    fn name(&self) -> &'static str;

    /// Whether this alarm is this illness's to judge.
    fn is_raised_by(&self, alarm: &Alarm) -> bool;

    /// Fresh samples of the raising sensors it wants before it decides.
    fn confirming_samples(&self) -> usize;

    /// Judges the alarm with samples taken after it was raised.
    fn confirm(&self, alarm: &Alarm, fresh: &[FreshSample]) -> Diagnosis;

    /// What is to be done once the illness is confirmed.
    fn remedy(&self) -> Remedy;

    /// Whether the evacuation's report shows that nothing was left behind unaccounted for.
    fn proof_of_cure(&self, report: &Report) -> Cure;
}

/// What a module thinks of an alarm after a second look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// The target has this illness.
    Confirmed,
    /// A sensor that raised the alarm has moved since: the target lives.
    Refuted {
        /// The sensor that moved.
        sensor: String,
    },
    /// The second look brought too little to decide; the alarm stands and is looked at again.
    Undecided {
        /// What is missing, in a sentence for people.
        why: String,
    },
}

/// What is done about a confirmed illness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Fence the target and carry its sessions over to a spare.
    Evacuate,
}

/// What became of the patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure {
    /// Every session that was found lives on.
    Complete {
        /// How many.
        sessions: usize,
    },
    /// Some sessions were lost, each reported with its reason.
    Partial {
        /// Sessions that live on.
        resumed: usize,
        /// Sessions whose clients were reset.
        lost: usize,
    },
}

/// Every illness this build knows, in the order in which they are asked.
pub fn known() -> Vec<Box<dyn Illness>> {
    vec![Box::new(Hang), Box::new(Drowned)]
}

/// The cure that an evacuation's report proves.
fn accounted(report: &Report) -> Cure {
    let resumed = report.sessions.iter().filter(|session| session.outcome == Outcome::Resumed).count();
    match report.sessions.len() - resumed {
        0 => Cure::Complete { sessions: resumed },
        lost => Cure::Partial { resumed, lost },
    }
}
