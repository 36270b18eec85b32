//! What came of a guest that was drowned, read from the monitor's journal.

use healing_modules::Culprit;
use monitor::{
    journal::{Event, Line, RepairLine, replay},
    repair::OrderLine,
};
use remote_memory::PAGE_BYTES;
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
    /// How much of their memory was swapped out when they were judged, in MiB.
    pub swapped_mib: Vec<u64>,
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
    /// What the guest says of its memory in the end, if it still answers.
    pub memory: Option<Memory>,
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

/// What a guest says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Swap in use, in MiB.
    pub swapped_mib: u64,
    /// Pages that were read back from there since it booted, in MiB.
    pub swapped_in_mib: u64,
    /// How often its OOM killer took somebody.
    pub oom_kills: u64,
}

impl Memory {
    /// Shell commands that say it, in KiB and pages.
    pub(super) const ASK: &str = "awk '/^SwapTotal/ { t = $2 } /^SwapFree/ { print t - $2 }' /proc/meminfo; \
                                  awk '/^pswpin / { print $2 }' /proc/vmstat; \
                                  awk '/^oom_kill / { print $2 }' /proc/vmstat";

    /// Their answer.
    pub(super) fn parse(said: &str) -> Option<Self> {
        let mut numbers = said.lines().map(str::parse);
        let mut next = || numbers.next()?.ok();
        let (kib, pages, oom_kills): (u64, u64, u64) = (next()?, next()?, next()?);
        Some(Self { swapped_mib: kib >> 10, swapped_in_mib: (pages * PAGE_BYTES) >> 20, oom_kills })
    }
}

fn ordered(order: &OrderLine) -> (f64, u64, u64) {
    (order.acknowledged_ns as f64 / 1e6, order.ended, order.ended_asleep)
}

/// What the culprits of a repair had swapped out, in MiB.
fn swapped_mib(repair: &RepairLine) -> u64 {
    let culprits = repair.plan.iter().flat_map(|plan| &plan.culprits);
    let seen = |culprit: &Culprit| repair.evidence.processes.iter().find(|process| culprit.is(process));
    let pages: u64 = culprits.filter_map(seen).filter_map(|process| process.swap_pages).sum();
    (pages * PAGE_BYTES) >> 20
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
        Hook::Table | Hook::TableAlone => {
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
        swapped_mib: repairs.iter().map(|repair| swapped_mib(repair)).collect(),
        ordered: repairs.iter().filter_map(|repair| repair.order.as_ref().map(ordered)).collect(),
        alone_ms: Vec::new(),
        drowned_ms: Vec::new(),
        after_ms: Vec::new(),
        after_by_alone: None,
        sample_us: None,
        memory: None,
        left: 0,
        spared: Spared::default(),
        kernel,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_s_words_about_its_memory_are_read_or_there_are_none() {
        let memory = Memory { swapped_mib: 7, swapped_in_mib: 2, oom_kills: 1 };
        assert_eq!(Memory::parse("7900\n512\n1\n"), Some(memory));
        assert_eq!(Memory::parse("7900\n"), None);
        assert_eq!(Memory::parse("awk: /proc/meminfo: Cannot allocate memory\n512\n1\n"), None);
    }
}
