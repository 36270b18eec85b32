//! Escalation: what a treatment in place could not cure is evacuated, if the configuration says so.
//!
//! ```text
//!   ward: repaired, ill still, its sensors out of bounds ──► [Failures] ──► watch: fence ──► order ──► evacuated
//! ```
//! A verdict of its own kind: the target lives, so no rest of sensors is the reason but what the treatment says, and
//! that is in the journal before it. From the fence on everything is as after a hang.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use healing_modules::drowned::Drowned;

use crate::clock::Clock;
use crate::config::OnHang;
use crate::journal::Event;
use crate::sample::Door;
use crate::watch::{Standing, Watch};

/// A treatment that failed, with what it failed at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The module.
    pub module: String,
    /// Why it gives up.
    pub why: String,
    /// The sensors that asked for it and are still out of bounds.
    pub sensors: Vec<String>,
}

/// Treatments that failed, from the ward to the watch: the newest one, until the watch takes it.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<Mutex<Option<Failure>>>);

impl Failures {
    /// Leaves one for the watch.
    pub fn tell(&self, failure: Failure) {
        *self.newest() = Some(failure);
    }

    /// Takes what is there.
    pub fn take(&self) -> Option<Failure> {
        self.newest().take()
    }

    /// Whether there is something to take.
    pub fn is_empty(&self) -> bool {
        self.newest().is_none()
    }

    fn newest(&self) -> MutexGuard<'_, Option<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Door, C: Clock> Watch<D, C> {
    /// Takes up a treatment that failed: evacuates the target, if it is ill still and this monitor's to act on. What is
    /// not taken up now is told again when the next treatment fails.
    pub(crate) fn escalate(&mut self) {
        let Some(Failure { module, why, sensors }) = self.tools.ward.failed() else { return };
        let now_ns = self.tools.clock.now_ns();
        let is_ours = self.standing == Standing::Watching && self.inherited.is_none();
        let is_ill = self.detector.suspicions() > 0;
        if !is_ours || !is_ill || now_ns < self.quiet_until_ns || self.leaves_it_to_the_first() {
            return;
        }
        let Some(illness) = self.illnesses.iter().position(|illness| illness.name() == Drowned::NAME) else { return };
        tracing::error!(target_name = %self.target.name, %module, %why, "not cured in place");
        self.hand_over_evidence();
        // It lives until it is fenced.
        self.note(now_ns, Event::LastSign { known: true });
        self.note(now_ns, Event::GivenUp { illness: Drowned::NAME.to_owned(), module, why, sensors });
        self.tools.metrics.verdicts.inc();
        match self.target.on_hang {
            // It is watched on: should it hang, that is another thing to report.
            OnHang::Report => self.note(now_ns, Event::Reported),
            OnHang::Evacuate => self.act(illness, Some(now_ns)),
        }
        self.renew_ring();
    }
}
