//! Succession: going on with what an earlier life of this monitor, or the other monitor, began.
//!
//! Nothing here decides that a target is ill; it decides only who acts, and under which claim and token. A fence is
//! believed when the backdoor honours its token, not because a journal or a partner says so.

use std::collections::BTreeMap;
use std::time::Duration;

use control::backdoor::{FenceState, FenceToken};

use crate::after::After;
use crate::clock::Clock;
use crate::journal::{Event, Incident};
use crate::partner::{Duty, IncidentWord, TargetWord};
use crate::sample::Door;
use crate::watch::{Patient, Standing, Watch, nanos};

/// How long until a question that nobody answered is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a hang is left to the other monitor before it is looked at again.
const HOLD: Duration = Duration::from_millis(20);

/// Each spare once.
pub(crate) fn distinct(holders: &BTreeMap<u32, String>) -> Vec<String> {
    let mut names: Vec<String> = holders.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl<D: Door, C: Clock> Watch<D, C> {
    /// Asks whether the inherited fence stands, and takes the incident up if it does.
    pub(crate) fn take_up_heritage(&mut self) {
        let Some(incident) = self.inherited.take() else { return };
        let now_ns = self.tools.clock.now_ns();
        match self.tools.door.fence_state(&incident.token) {
            Ok(state @ (FenceState::Stands | FenceState::Reset)) => {
                tracing::warn!(target_name = %self.target.name, token = ?incident.token, "an earlier fence stands");
                self.note(now_ns, Event::Succeeded { stands: true });
                self.take_up(incident, state);
            }
            Ok(FenceState::Ended) => {
                tracing::info!(target_name = %self.target.name, token = ?incident.token, "an earlier fence has ended");
                self.note(now_ns, Event::Succeeded { stands: false });
                self.tools.standby.rest(false);
            }
            Err(failure) => {
                tracing::warn!(target_name = %self.target.name, %failure, "an earlier fence cannot be asked for");
                self.inherited = Some(incident);
                self.quiet_until_ns = now_ns + nanos(ASK_AGAIN);
            }
        }
        self.tell_partner();
    }

    fn take_up(&mut self, incident: Incident, state: FenceState) {
        let now_ns = self.tools.clock.now_ns();
        let ago = |time: Duration| now_ns.saturating_sub(nanos(time));
        let after = After {
            holders: distinct(&incident.holders),
            done_ns: ago(incident.done_age),
            reset_ns: ago(incident.reset_age),
            is_drained: incident.is_drained,
            ..After::default()
        };
        let Incident { token, illness, holders, is_done, alive_after_ns, age, .. } = incident;
        let illness = self.illnesses.iter().position(|known| known.name() == illness).unwrap_or(0);
        let may_have = holders.values().next().cloned();
        let patient = Patient { token, alive_after_ns, illness, holders, age };
        self.standing = match (is_done, may_have) {
            (true, _) => {
                self.take_up_after(after, state);
                Standing::Evacuated { token: Some(patient.token) }
            }
            (false, Some(spare)) => Standing::OutcomeUnknown { patient, spare },
            (false, None) => Standing::Fenced(patient),
        };
    }

    /// Whether a hang is the other monitor's to deal with; says so in the journal, once.
    pub(crate) fn leaves_it_to_the_first(&mut self) -> bool {
        let now_ns = self.tools.clock.now_ns();
        match self.tools.partner.duty(&self.target.name) {
            Duty::Hold { why } => {
                if !std::mem::replace(&mut self.is_held, true) {
                    tracing::warn!(target_name = %self.target.name, %why, "a hang is left to the other monitor");
                    self.note(now_ns, Event::Held { why });
                }
                self.quiet_until_ns = now_ns + nanos(HOLD);
                true
            }
            Duty::Done => {
                tracing::warn!(target_name = %self.target.name, "the other monitor has had it evacuated");
                self.standing = Standing::Evacuated { token: None };
                self.tools.standby.rest(true);
                true
            }
            Duty::Act | Duty::StandIn { .. } => false,
        }
    }

    /// Fences the target, or goes on with the fence that the other monitor made.
    pub(crate) fn act(&mut self, illness: usize, alive_after_ns: Option<u64>) {
        if let Duty::StandIn { why, claim, incident } = self.tools.partner.duty(&self.target.name) {
            tracing::error!(target_name = %self.target.name, %why, "acting in the other monitor's place");
            self.note(self.tools.clock.now_ns(), Event::Deputized { why });
            self.claim = claim.unwrap_or(self.claim);
            if let Some(IncidentWord { token, holders, .. }) = incident
                && matches!(self.tools.door.stands(&token), Ok(true))
            {
                let name = self.illnesses[illness].name().to_owned();
                let now_ns = self.tools.clock.now_ns();
                self.note(now_ns, Event::Fenced { token: token.clone(), asked_ns: now_ns });
                self.tools.standby.rest(true);
                let (is_done, is_drained, zero) = (false, false, Duration::ZERO);
                let (illness, age, done_age, reset_age) = (name, zero, zero, zero);
                let incident =
                    Incident { token, illness, holders, is_done, is_drained, done_age, reset_age, alive_after_ns, age };
                self.take_up(incident, FenceState::Stands);
                self.order();
                return;
            }
        }
        self.fence_target(illness, alive_after_ns);
    }

    /// Says to the other monitor where this one stands.
    pub(crate) fn tell_partner(&self) {
        let word = |token: &FenceToken, holders: &BTreeMap<u32, String>, is_done| IncidentWord {
            token: token.clone(),
            holders: holders.clone(),
            is_done,
        };
        self.tools.partner.tell(self.word(match (&self.standing, &self.inherited) {
            (Standing::Fenced(patient) | Standing::OutcomeUnknown { patient, .. }, _) => {
                Some(word(&patient.token, &patient.holders, false))
            }
            (Standing::Evacuated { token: Some(token) }, _) => Some(word(token, &BTreeMap::new(), true)),
            (_, Some(incident)) => Some(word(&incident.token, &incident.holders, incident.is_done)),
            _ => None,
        }));
    }

    /// What is said of this target, with `incident`.
    pub(crate) fn word(&self, incident: Option<IncidentWord>) -> TargetWord {
        let (target, is_path_lost) = (self.target.name.clone(), self.detector.is_path_lost());
        TargetWord { target, claim: self.claim, is_path_lost, incident }
    }
}
