//! What came of a guest that was drowned, read from the monitor's journal.

use monitor::{
    journal::{Event, Line, replay},
    repair::OrderLine,
};
use serde::Serialize;

use super::{super::incident, Hook, Illness, Run, bystanders::Spared};

/// What came of it. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// It was cured, by repairs that the journal gives again, without a fence, and the guest is well. Without repair:
    /// nothing was written.
    pub pass: bool,
    /// What was done.
    pub illness: Illness,
    /// By what it was to be repaired.
    pub hook: Hook,
    /// From the order to do it to the first sample out of bounds.
    pub noticed_ms: Option<f64>,
    /// From that sample to the end of the last culprit.
    pub cured_ms: Option<f64>,
    /// From that sample until the guest answered an order on its console, given when it was cured.
    pub usable_ms: Option<f64>,
    /// How long the guest stood still for each repair.
    pub locked_ms: Vec<f64>,
    /// How many processes each of them marked.
    pub culprits: Vec<usize>,
    /// For each that was ordered through the kill table: until it was in force, how many the guest says it ended, and
    /// how many of them were asleep.
    pub ordered: Vec<(f64, u64, u64)>,
    /// Pieces of useful work before.
    pub alone_ms: Vec<f64>,
    /// Those that were begun or done while it was drowned.
    pub drowned_ms: Vec<f64>,
    /// Those after the cure.
    pub after_ms: Vec<f64>,
    /// Median of those after by the median of those alone.
    pub after_by_alone: Option<f64>,
    /// Without an agent: how long one sample of every ready-made kernel sensor takes, in microseconds, at the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_us: Option<f64>,
    /// Processes of the user that are left.
    pub left: u64,
    /// How those fared who were there before.
    pub spared: Spared,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

fn ordered(order: &OrderLine) -> (f64, u64, u64) {
    (order.acknowledged_ns as f64 / 1e6, order.ended, order.ended_asleep)
}

pub(super) fn judged(run: &Run, lines: &[Line], begin_ns: u64, kernel: String) -> Report {
    let mut why = Vec::new();
    if run.unrepaired_for.is_none() && lines.iter().any(incident::is_act) {
        why.push("it was taken for a hang".to_owned());
    }
    if !replay::reconsider(lines, false).iter().all(replay::Reconsidered::agrees) {
        why.push("the journal does not give the decisions again".to_owned());
    }
    let after = || lines.iter().filter(|line| line.mono_ns >= begin_ns);
    let sensor = run.illness.sensor(run.order.agent);
    let noticed = after().find(|line| matches!(&line.event, Event::Suspicious { sensor: name, .. } if name == sensor));
    let cured = after().find(|line| matches!(line.event, Event::Cured { .. }));
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let repairs: Vec<_> = after()
        .filter_map(|line| match &line.event {
            Event::Repaired(repair) => Some(repair),
            _ => None,
        })
        .collect();
    let by_table = repairs.iter().filter(|repair| repair.order.is_some()).count();
    let is_as_told = match run.hook {
        Hook::Raw => by_table == 0,
        Hook::Table => {
            repairs.iter().all(|repair| repair.order.is_some() == repair.plan.is_some() && repair.locked_ns == 0)
        }
        Hook::Auto => true,
    };
    if !is_as_told {
        why.push(format!("{by_table} of {} repairs were ordered, the hook was {}", repairs.len(), run.hook));
    }
    if run.unrepaired_for.is_some() && !repairs.is_empty() {
        why.push("it was written to".to_owned());
    }
    Report {
        pass: false,
        illness: run.illness,
        hook: run.hook,
        noticed_ms: noticed.map(|line| ms(begin_ns, line.mono_ns)),
        cured_ms: noticed.zip(cured).map(|(noticed, cured)| ms(noticed.mono_ns, cured.mono_ns)),
        usable_ms: None,
        locked_ms: repairs.iter().map(|repair| repair.locked_ns as f64 / 1e6).collect(),
        culprits: repairs.iter().map(|repair| repair.plan.as_ref().map_or(0, |plan| plan.culprits.len())).collect(),
        ordered: repairs.iter().filter_map(|repair| repair.order.as_ref().map(ordered)).collect(),
        alone_ms: Vec::new(),
        drowned_ms: Vec::new(),
        after_ms: Vec::new(),
        after_by_alone: None,
        sample_us: None,
        left: 0,
        spared: Spared::default(),
        kernel,
        why,
    }
}
