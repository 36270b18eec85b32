//! Drawings of a crash: what clients saw around it, as the dissertation's Figure 3.12, and the stages of each recovery
//! above its clients' silence, as its Figure 3.11.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use auction::clients::trace::{Line as Seen, Met};

use super::{
    Machines, Run,
    recovery::{Account, Victim, stretch},
};
use crate::{
    plot::{ALARM, Axis, Figure, Line, PALETTE, Panel, Scale},
    scenario::incident::{Incident, millis_between},
    timeline::{Lane, Timeline},
};

/// What is drawn before and after the crash, in seconds.
const BEFORE_S: f64 = 5.0;
const AFTER_S: f64 = 5.0;
/// Width of a bin.
const BIN_S: f64 = 0.1;
/// Around the crash a lane shows replies this near to it, in milliseconds.
const NEAR_MS: std::ops::Range<f64> = -1_500.0..3_000.0;

/// Leaves `crash.svg` and one `recovery-TARGET.svg` for each machine that broke.
///
/// # Errors
/// When they cannot be written.
pub(super) fn draw(run: &Run, machines: &Machines, account: &Account) -> Result<()> {
    let write = |name: &str, text: String| fs::write(run.out.join(name), text).with_context(|| name.to_owned());
    let Some((zero_ns, _)) = stretch(&account.incidents) else { return Ok(()) };
    write("crash.svg", around(run, machines, account, zero_ns).svg())?;
    for (victim, incident) in account.struck.machines.iter().zip(&account.incidents) {
        let timeline = recovery(run, machines, victim, incident, &account.trace);
        write(&format!("recovery-{}.svg", victim.target), timeline.svg())?;
        write(&format!("recovery-{}.json", victim.target), serde_json::to_string(&timeline)?)?;
    }
    Ok(())
}

/// Throughput, connections, and how long replies took, by bins around the last sign of life.
fn around(run: &Run, machines: &Machines, account: &Account, zero_ns: u64) -> Figure {
    let seconds = |ns: u64| millis_between(zero_ns, ns) / 1e3;
    let (mut replies, mut failures, mut opened) = (Bins::default(), Bins::default(), Bins::default());
    let mut took: Vec<(f64, f64)> = Vec::new();
    for line in &account.trace {
        match line.met {
            Met::Answered { asked_ns, first_ns, whole_ns } => {
                replies.add(seconds(whole_ns));
                took.push((seconds(first_ns), millis_between(asked_ns, first_ns)));
            }
            Met::Failed { at_ns, .. } => failures.add(seconds(at_ns)),
            Met::Connected { at_ns } => opened.add(seconds(at_ns)),
            Met::Closed { .. } => {}
        }
    }
    took.retain(|(at, _)| (-BEFORE_S..AFTER_S).contains(at));
    took.sort_by(|a, b| a.0.total_cmp(&b.0));
    let verdicts = account.struck.machines.iter().zip(&account.incidents);
    let verdicts =
        verdicts.filter_map(|(victim, it)| Some((seconds(it.verdict_ns?), format!("{} dead", victim.target))));
    let mut marks: Vec<_> = verdicts.collect();
    marks.truncate(1);
    marks.insert(0, (0.0, "last sign of life".to_owned()));
    let panel = |title: &str, unit: &str, lines: Vec<Line>| Panel {
        title: title.to_owned(),
        x: Axis::new("s", Scale::Linear, -BEFORE_S, AFTER_S),
        y: Axis::above(unit, lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value)),
        lines,
        marks: marks.clone(),
    };
    let line = |colour: &'static str, points| Line { colour, dotted: false, points };
    Figure {
        title: format!("{} of {}", machines.crash.name(), broken(account)),
        subtitle: format!(
            "{} clients think {} times as long, two front ends and two mid tiers, seed {}",
            run.clients, run.slow_down, run.seed
        ),
        legend: vec![("in each tenth of a second".to_owned(), PALETTE[0]), ("failures".to_owned(), ALARM)],
        columns: 1,
        panel_height: 150.0,
        panels: vec![
            panel("replies", "per second", vec![line(PALETTE[0], replies.rates()), line(ALARM, failures.rates())]),
            panel("connections opened", "per second", vec![line(PALETTE[0], opened.rates())]),
            panel("from request to its reply's first byte, by when that came", "ms", vec![line(PALETTE[0], took)]),
        ],
    }
}

fn broken(account: &Account) -> String {
    account.struck.machines.iter().map(|victim| victim.target).collect::<Vec<_>>().join(" and ")
}

/// Counts by tenths of seconds.
#[derive(Default)]
struct Bins(BTreeMap<i64, u64>);

impl Bins {
    fn add(&mut self, at_s: f64) {
        *self.0.entry((at_s / BIN_S).floor() as i64).or_default() += 1;
    }

    /// Per second, in the middle of each bin; empty bins are zeros.
    fn rates(&self) -> Vec<(f64, f64)> {
        let bins = (-BEFORE_S / BIN_S).round() as i64..(AFTER_S / BIN_S).round() as i64;
        let rate = |bin| self.0.get(&bin).copied().unwrap_or_default() as f64 / BIN_S;
        bins.map(|bin| ((bin as f64 + 0.5) * BIN_S, rate(bin))).collect()
    }
}

/// The stages of one recovery, and the clients that waited for it.
fn recovery(run: &Run, machines: &Machines, victim: &Victim, incident: &Incident, trace: &[Seen]) -> Timeline {
    let zero_ns = incident.last_sign_ns.unwrap_or(victim.at_ns);
    let ms = |ns: u64| millis_between(zero_ns, ns);
    let mut clients: BTreeMap<u32, Lane> = BTreeMap::new();
    let mut waits: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    for line in trace {
        let Met::Answered { asked_ns, first_ns, .. } = line.met else { continue };
        let label = format!("client {}", line.client);
        let lane = clients.entry(line.client).or_insert_with(|| Lane { label, ..Lane::default() });
        lane.arrivals.extend(NEAR_MS.contains(&ms(first_ns)).then(|| (ms(first_ns), 1)));
        if asked_ns <= zero_ns && incident.verdict_ns.is_some_and(|verdict_ns| first_ns >= verdict_ns) {
            waits.insert(line.client, (ms(asked_ns), ms(first_ns)));
        }
    }
    let lanes = waits.into_iter().filter_map(|(client, gap)| {
        let lane = clients.remove(&client)?;
        Some(Lane { gap_ms: Some(gap), ..lane })
    });
    Timeline {
        fault: format!("{} of {}", machines.crash.name(), victim.target),
        subtitle: format!(
            "clients that waited for a reply; {} clients in all, deadline {} ms, seed {}",
            run.clients, machines.deadline_ms, run.seed
        ),
        zero_unix_ns: 0,
        deadline_ms: machines.deadline_ms as f64,
        lanes: lanes.collect(),
        stages: incident.stages(zero_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_without_replies_is_a_zero_and_none_is_counted_twice() {
        let mut bins = Bins::default();
        [-0.05, 0.0, 0.05, 0.25].into_iter().for_each(|at| bins.add(at));
        let rates = bins.rates();
        assert_eq!(rates.len(), 100);
        let near: Vec<f64> = rates[49..53].iter().map(|(_, rate)| rate.round()).collect();
        assert_eq!(near, [10.0, 20.0, 0.0, 10.0]);
    }
}
