//! The lines of a journal. What is written here is read by `monitor replay`, by the testbed and by people.

use std::collections::BTreeSet;

use control::backdoor::{Afterwards, FenceToken};
use control::reinstate::Report;
use healing_modules::outside;
use healing_modules::{Alarm, Culprit, Evidence, Safety, Symptom};
use introspect::linux::contain::{Contained, Means};
use introspect::linux::kill::KillPlan;
use serde::{Deserialize, Serialize};

use crate::config::{Module, OnHang};
use crate::detect::{Look, Plan};
use crate::repair::{self, OrderLine, Waking};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When it was written down, in nanoseconds since 1970.
    pub wall_ns: u64,
    /// When it happened, on this machine's monotonic clock.
    pub mono_ns: u64,
    /// The target it is about.
    pub target: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened; `stage` names it in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Event {
    /// A monitor began to watch this target.
    Opened {
        /// The monitor's name.
        monitor: String,
        /// The sampling period, in nanoseconds.
        period_ns: u64,
        /// What it will do when the target hangs.
        on_hang: OnHang,
        /// Names the fences of this watch: a successor that asks for one under the same claim learns its token.
        #[serde(default)]
        claim: Option<u64>,
    },
    /// The watch goes on where an earlier monitor stopped: a fence of its stands, or did.
    Succeeded {
        /// Whether it still stands.
        stands: bool,
    },
    /// The target rests because somebody holds it locked: no verdict falls until that is over.
    LockedByOther {
        /// The holder's name, as it gave it.
        holder: String,
        /// What it says it does.
        reason: String,
        /// How long its lease lasts, in milliseconds; it may be renewed.
        left_ms: u64,
    },
    /// A hang is seen and left to the other monitor.
    Held {
        /// Why.
        why: String,
    },
    /// The other monitor is silent or has lost its path: this one acts.
    Deputized {
        /// Why.
        why: String,
    },
    /// The target's box was read and its sensors met the rules: what the detector goes by from here on.
    Watching {
        /// Identity of the box; changes with every restart of the target.
        identity: u64,
        /// The plan.
        plan: Plan,
    },
    /// A sample that a decision rested on; `mono_ns` is its end.
    Sample {
        /// When the read was posted.
        begin_ns: u64,
        /// What it brought.
        look: SampleLook,
    },
    /// A sensor left its bounds.
    Suspicious {
        /// Its name.
        sensor: String,
        /// Its value or growth.
        value: u64,
    },
    /// A sensor came back within its bounds.
    Cleared {
        /// Its name.
        sensor: String,
    },
    /// No sample succeeded for the path's deadline. Not a verdict on the target.
    PathLost {
        /// End of the last successful sample.
        since_ns: u64,
    },
    /// Samples succeed again.
    PathBack {
        /// How long none did, in nanoseconds.
        after_ns: u64,
    },
    /// Reads brought no Sensor Box for the path's deadline.
    Unreadable {
        /// End of the last sample that did.
        since_ns: u64,
    },
    /// The target or its agent restarted.
    Restarted {
        /// Identity of before.
        was: u64,
        /// Identity now.
        is: u64,
    },
    /// A second look showed that the target lives.
    Refuted {
        /// The illness that was suspected.
        illness: String,
        /// The sensor that moved.
        sensor: String,
    },
    /// A second look brought too little to decide.
    Undecided {
        /// The illness that is suspected.
        illness: String,
        /// What is missing.
        why: String,
    },
    /// The last sign of life: after `mono_ns` every raising sensor still moved.
    LastSign {
        /// False if a raising sensor was never seen to move; `mono_ns` is then the verdict's time.
        known: bool,
    },
    /// The target is ill.
    Verdict {
        /// The illness.
        illness: String,
        /// Pattern of the rule that raised it.
        rule: String,
        /// End of the sample that raised it.
        raised_ns: u64,
        /// The sensors that stand still.
        symptoms: Vec<SymptomLine>,
        /// How many sensors the rule watches.
        watched: usize,
    },
    /// Nothing is done, because the configuration says so.
    Reported,
    /// The target is fenced.
    Fenced {
        /// The token: whoever reads the journal can finish what this monitor began, so the file is its owner's only.
        token: FenceToken,
        /// When it was asked for.
        asked_ns: u64,
    },
    /// The target could not be fenced; nothing was taken over.
    FenceFailed {
        /// Why.
        why: String,
    },
    /// An order is about to leave; on disk before it does, so that a successor asks this spare and no other.
    Committed {
        /// The fence.
        token: FenceToken,
        /// Which part of the work, from 0.
        #[serde(default)]
        part: u32,
        /// The spare.
        spare: String,
    },
    /// A spare was ordered to take over; written when the order left.
    Ordered {
        /// The spare.
        spare: String,
        /// Upper bound of the target's silence, in milliseconds.
        silent_ms: u64,
    },
    /// A spare did not take over and did nothing.
    Passed {
        /// The spare.
        spare: String,
        /// Why.
        why: String,
    },
    /// The spare reported the end of the evacuation.
    Evacuated {
        /// The spare.
        spare: String,
        /// Sessions that live on.
        resumed: usize,
        /// Sessions that were lost.
        lost: usize,
        /// Everything it said.
        report: Report,
    },
    /// A spare got the order and its answer never came: it may have taken over, so only it is asked again.
    OutcomeUnknown {
        /// The spare.
        spare: String,
        /// What was seen.
        why: String,
    },
    /// The target is about to be reset behind its fence; on disk before it is.
    ResetOrdered {
        /// The fence.
        token: FenceToken,
        /// What asked for it.
        why: String,
    },
    /// The target was reset and boots behind its fence.
    Reset,
    /// The target is back: its agent has registered and its sensors move. Its links are down still.
    TargetBack {
        /// Identity of its box.
        identity: u64,
    },
    /// The sessions that were carried over have come to their end.
    Drained,
    /// The spare no longer has the service's addresses.
    AddressReturned {
        /// Connections that were left when the time was over: their clients were reset.
        aborted: u64,
    },
    /// A step after the evacuation did not succeed; it is tried again.
    Delayed {
        /// Why.
        why: String,
    },
    /// The target was held still, judged, and processes of it were marked to end: what was seen, decided and written.
    /// `mono_ns` is when it ran again.
    Repaired(Box<RepairLine>),
    /// A repair would have been made, and the configuration says that nothing is written.
    RepairWithheld {
        /// The module.
        module: String,
        /// What it wants done.
        plan: healing_modules::Plan,
        /// Who would be contained, as the target was while it ran.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        contained: Vec<Contained>,
    },
    /// Limits that were lent and could not be given back after their repair were given back.
    GivenBack {
        /// How many; those of cgroups that are gone are not among them.
        limits: usize,
    },
    /// A healing module finds nothing any more.
    Cured {
        /// The module.
        module: String,
        /// Repairs that it took.
        repairs: usize,
    },
    /// A treatment has failed, or could not begin.
    NotCured {
        /// The module.
        module: String,
        /// Why.
        why: String,
    },
    /// The verdict on a target that lives and could not be cured in place: it is to be evacuated.
    GivenUp {
        /// The illness.
        illness: String,
        /// The module whose treatment failed.
        module: String,
        /// Why it did.
        why: String,
        /// The sensors that asked for it and are still out of bounds.
        sensors: Vec<String>,
    },
    /// The fence has ended, by policy or by command.
    Released {
        /// What became of the target.
        then: Afterwards,
    },
    /// Every spare passed. The fence stands and they are asked again.
    Unserved,
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepairLine {
    /// The module, with its policies.
    pub module: Module,
    /// What was not to be touched.
    pub safety: Safety,
    /// The earlier look that the module went by, if it goes by one.
    pub earlier: Option<Evidence>,
    /// What was seen in the standstill.
    pub evidence: Evidence,
    /// What was decided on it; `None` if by then there was nothing to do.
    pub plan: Option<healing_modules::Plan>,
    /// What was written.
    pub kill: KillPlan,
    /// What was written in further standstills, to wake those for whom that one had no room. Older journals have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wakings: Vec<Waking>,
    /// By what means culprits were to be contained that do not end at once.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub contain: BTreeSet<Means>,
    /// Who was, with what was there before and what was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contained: Vec<Contained>,
    /// Why limits that were lent were not given back when the repair was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_given_back: Option<String>,
    /// How long the target stood still in all, in nanoseconds.
    pub locked_ns: u64,
    /// What was ordered instead, and what the target answered, if the kill table was the hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderLine>,
    /// Why the kill table was not the hook, although it might have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_by_table: Option<String>,
    /// Culprits that lived on.
    pub survivors: Vec<Culprit>,
}

impl RepairLine {
    /// The plan that module, bounds and evidence give again. `None` if the module is another program, which is not run.
    pub fn derived(&self) -> Option<Option<healing_modules::Plan>> {
        Some(self.module.healer()?.diagnose(&self.evidence, self.earlier.as_ref(), &self.safety))
    }

    /// Whether nobody was contained but culprits, by means that were configured.
    pub fn is_contained_rightly(&self) -> bool {
        repair::is_of(&self.contained, self.plan.as_ref(), &self.safety, &self.contain)
    }

    /// Whether the plan is one that a program could make of that evidence, within the bounds.
    pub fn is_in_bounds(&self) -> bool {
        let is_fine = |plan| outside::is_of(plan, &self.evidence) && self.safety.check(plan, &self.evidence).is_ok();
        self.plan.as_ref().is_none_or(is_fine)
    }
}

/// [`Look`] as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "brought", rename_all = "snake_case")]
pub enum SampleLook {
    /// Values in the order of the plan.
    Values {
        /// Identity of the box.
        identity: u64,
        /// `null` where a record was torn.
        values: Vec<Option<u64>>,
    },
    /// No Sensor Box.
    Unreadable,
    /// No answer.
    Lost,
}

impl From<Look<'_>> for SampleLook {
    fn from(look: Look<'_>) -> Self {
        match look {
            Look::Values { identity, values } => Self::Values { identity, values: values.to_vec() },
            Look::Unreadable => Self::Unreadable,
            Look::Lost => Self::Lost,
        }
    }
}

impl SampleLook {
    /// The look, to give it to a detector again.
    pub fn as_look(&self) -> Look<'_> {
        match self {
            Self::Values { identity, values } => Look::Values { identity: *identity, values },
            Self::Unreadable => Look::Unreadable,
            Self::Lost => Look::Lost,
        }
    }
}

/// [`Symptom`] as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymptomLine {
    /// The sensor.
    pub sensor: String,
    /// The value at which it stands.
    pub value: u64,
    /// Lower bound of its last move, if one was seen.
    pub moved_after_ns: Option<u64>,
    /// Upper bound of its last move.
    pub moved_before_ns: u64,
    /// Time without change that samples have seen, in nanoseconds.
    pub stalled_ns: u64,
    /// What it was allowed, in nanoseconds.
    pub deadline_ns: u64,
}

impl From<&Symptom> for SymptomLine {
    fn from(symptom: &Symptom) -> Self {
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            sensor: symptom.sensor.clone(),
            value: symptom.value,
            moved_after_ns: symptom.moved_after_ns,
            moved_before_ns: symptom.moved_before_ns,
            stalled_ns: nanos(symptom.stalled),
            deadline_ns: nanos(symptom.deadline),
        }
    }
}

impl Event {
    /// The verdict that `illness` drew from `alarm`.
    pub fn verdict(illness: &str, alarm: &Alarm) -> Self {
        Self::Verdict {
            illness: illness.to_owned(),
            rule: alarm.rule.clone(),
            raised_ns: alarm.raised_ns,
            symptoms: alarm.symptoms.iter().map(SymptomLine::from).collect(),
            watched: alarm.watched,
        }
    }
}
