//! The figures of detection, from live recordings: false verdicts against the deadline (figure 3.7 of the
//! dissertation) and how the counters move by load (figure 3.8).

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use monitor::recording::{Motion, Tally};
use serde::{Deserialize, Serialize};

use super::load::Load;
use crate::plot::{Axis, Figure, Line, PALETTE, Panel, Scale};

/// False verdicts in an hour that are drawn on the lower edge, and say "none".
const NONE_PER_HOUR: f64 = 0.5;

/// Bytes of a page.
const PAGE_BYTES: f64 = 4096.0;

/// What the figures of one load are drawn from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The load.
    pub load: Load,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The deadline of the monitor that watched meanwhile.
    pub deadline_ms: u64,
    /// Verdicts for each deadline.
    pub tallies: Vec<Tally>,
    /// Each sensor over time.
    pub motions: Vec<Motion>,
    /// Packets per second that the host sent to the guest.
    pub packets: Vec<(f64, f64)>,
}

impl Record {
    /// The shortest deadline from which on there is no false verdict, in milliseconds.
    pub fn safe_deadline_ms(&self) -> Option<f64> {
        let last_false = self.tallies.iter().rposition(|tally| tally.verdicts > 0);
        self.tallies.get(last_false.map_or(0, |index| index + 1)).map(|tally| tally.deadline_ms)
    }
}

/// Draws both figures into `out`, with the numbers beside them.
///
/// # Errors
/// When `out` cannot be written.
pub fn draw(records: &[Record], out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut csv = "load,deadline_ms,false_verdicts,confirmed,hours\n".to_owned();
    for record in records {
        for Tally { deadline_ms, verdicts, confirmed, hours, .. } in &record.tallies {
            let _ = writeln!(csv, "{},{deadline_ms},{verdicts},{confirmed},{hours:.4}", record.load.name());
        }
    }
    let write = |name: &str, text: &str| fs::write(out.join(name), text).with_context(|| name.to_owned());
    write("false-verdicts.csv", &csv)?;
    write("false-verdicts.svg", &false_verdicts(records).svg())?;
    write("counters.svg", &counters(records).svg())
}

/// Reads what soaks have left.
///
/// # Errors
/// When a file is none of theirs.
pub fn read(files: &[impl AsRef<Path>]) -> Result<Vec<Record>> {
    let mut all = Vec::new();
    for file in files.iter().map(AsRef::as_ref) {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        all.extend(serde_json::from_str::<Vec<Record>>(&text).with_context(|| file.display().to_string())?);
    }
    Ok(all)
}

fn false_verdicts(records: &[Record]) -> Figure {
    let per_hour = |tally: &Tally| tally.verdicts as f64 / tally.hours.max(1e-9);
    let most = records.iter().flat_map(|record| &record.tallies).map(per_hour).fold(1.0, f64::max);
    let line = |record: &Record| Line {
        colour: colour(record.load),
        dotted: true,
        points: record.tallies.iter().map(|tally| (tally.deadline_ms, per_hour(tally))).collect(),
    };
    let deadlines = || records.iter().flat_map(|record| &record.tallies).map(|tally| tally.deadline_ms);
    let (least, longest) = (deadlines().fold(f64::INFINITY, f64::min), deadlines().fold(0.0, f64::max));
    let configured = records.iter().map(|record| record.deadline_ms).max().unwrap_or(0);
    let panel = Panel {
        title: "False verdicts in an hour; on the lower edge: none".into(),
        x: Axis::new("deadline of a CPU's tick, ms", Scale::Log, if least.is_finite() { least } else { 1.0 }, longest),
        y: Axis::new("", Scale::Log, NONE_PER_HOUR, most * 1.5),
        lines: records.iter().map(line).collect(),
        marks: vec![(configured as f64, "the monitor's".into())],
    };
    let safe = records.iter().filter_map(Record::safe_deadline_ms).fold(0.0, f64::max);
    let all_are_safe = records.iter().all(|record| record.safe_deadline_ms().is_some());
    let title = match all_are_safe {
        true => format!("From {safe:.0} ms on, no deadline raises a false alarm under any load"),
        false => "No deadline is free of false alarms under every load".to_owned(),
    };
    Figure { title, panel_height: 330.0, columns: 1, panels: vec![panel], ..heading(records) }
}

fn counters(records: &[Record]) -> Figure {
    let sensor = |name: &'static str, title: &str, unit: &str, scale: Scale, factor: f64| {
        let line = |record: &Record| scaled(&sum(&record.motions, name), factor);
        panel(records, title, unit, scale, line)
    };
    let panels = vec![
        sensor("tick", "Ticks of the processors' own timers", "1/s", Scale::Linear, 1.0),
        sensor("interrupts", "Interrupts", "1/s", Scale::Log, 1.0),
        sensor("switches", "Context switches, idle and user ticks", "1/s", Scale::Log, 1.0),
        panel(records, "Packets to the guest, counted at its tap", "1/s", Scale::Log, |record| record.packets.clone()),
        sensor("forks", "Tasks made", "1/s", Scale::Linear, 1.0),
        sensor("agent", "The agent's heartbeat", "1/s", Scale::Linear, 1.0),
        sensor("tasks", "Tasks", "", Scale::Linear, 1.0),
        sensor("free-pages", "Free memory", "MiB", Scale::Linear, PAGE_BYTES / (1 << 20) as f64),
    ];
    let title = "What the sensors of a healthy guest show, by load".to_owned();
    Figure { title, panel_height: 150.0, columns: 2, panels, ..heading(records) }
}

fn panel(
    records: &[Record],
    title: &str,
    unit: &str,
    scale: Scale,
    points: impl Fn(&Record) -> Vec<(f64, f64)>,
) -> Panel {
    let lines: Vec<Line> = records
        .iter()
        .map(|record| Line { colour: colour(record.load), dotted: false, points: points(record) })
        .collect();
    let values = || lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    let seconds = lines.iter().flat_map(|line| &line.points).map(|(at, _)| *at).fold(1.0, f64::max);
    let y = match scale {
        Scale::Linear => Axis::above(unit, values()),
        Scale::Log => Axis::new(unit, Scale::Log, 1.0, values().fold(10.0, f64::max) * 1.5),
    };
    Panel { title: title.into(), x: Axis::new("s", Scale::Linear, 0.0, seconds), y, lines, marks: Vec::new() }
}

/// Title and panels are the caller's.
fn heading(records: &[Record]) -> Figure {
    let mut guests: Vec<String> = Vec::new();
    for record in records {
        let guest = format!("Linux {}, {} vCPU, deadline {} ms", record.kernel, record.vcpus, record.deadline_ms);
        if !guests.contains(&guest) {
            guests.push(guest);
        }
    }
    let hours: f64 = records.iter().filter_map(|record| record.tallies.first()).map(|tally| tally.hours).sum();
    let mut legend: Vec<(String, &'static str)> = Vec::new();
    for record in records {
        let entry = (record.load.name().to_owned(), colour(record.load));
        if !legend.contains(&entry) {
            legend.push(entry);
        }
    }
    Figure {
        title: String::new(),
        subtitle: format!("{}; {:.0} minutes recorded", guests.join("; "), hours * 60.0),
        legend,
        columns: 1,
        panel_height: 0.0,
        panels: Vec::new(),
    }
}

/// A sensor that every processor has, as their sum; or one of the machine.
fn sum(motions: &[Motion], name: &str) -> Vec<(f64, f64)> {
    let mut total: Vec<(f64, f64)> = Vec::new();
    let of_name = motions.iter().filter(|motion| {
        motion.sensor == name || motion.sensor.strip_prefix(name).is_some_and(|rest| rest.starts_with(".cpu"))
    });
    for motion in of_name {
        if total.is_empty() {
            total.clone_from(&motion.points);
        } else {
            total.iter_mut().zip(&motion.points).for_each(|(sum, (_, value))| sum.1 += value);
        }
    }
    total
}

fn scaled(points: &[(f64, f64)], factor: f64) -> Vec<(f64, f64)> {
    points.iter().map(|(at, value)| (*at, value * factor)).collect()
}

fn colour(load: Load) -> &'static str {
    PALETTE[Load::ALL.iter().position(|one| *one == load).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(verdicts: [u64; 3]) -> Record {
        let tally = |(index, verdicts)| Tally {
            deadline_ms: [5.0, 50.0, 500.0][index],
            verdicts,
            confirmed: 0,
            hours: 0.5,
            longest_stall_ms: 0.0,
        };
        let motion = |sensor: &str, value| Motion {
            sensor: sensor.into(),
            is_rate: true,
            points: vec![(1.0, value), (2.0, value)],
            longest_stand_ms: 1.0,
        };
        Record {
            load: Load::Cpu,
            kernel: "6.1".into(),
            vcpus: 2,
            deadline_ms: 200,
            tallies: verdicts.into_iter().enumerate().map(tally).collect(),
            motions: vec![motion("tick.cpu0", 200.0), motion("tick.cpu1", 190.0), motion("ticks", 7.0)],
            packets: Vec::new(),
        }
    }

    #[test]
    fn a_deadline_is_safe_only_if_all_longer_ones_are() {
        assert_eq!(record([9, 0, 0]).safe_deadline_ms(), Some(50.0));
        assert_eq!(record([0, 0, 0]).safe_deadline_ms(), Some(5.0));
        assert_eq!(record([9, 0, 1]).safe_deadline_ms(), None);
    }

    #[test]
    fn processors_are_added_up() {
        assert_eq!(sum(&record([0; 3]).motions, "tick"), [(1.0, 390.0), (2.0, 390.0)]);
    }

    #[test]
    fn the_title_says_what_was_found() {
        assert!(false_verdicts(&[record([3, 0, 0])]).svg().contains("From 50 ms on"));
        assert!(false_verdicts(&[record([3, 0, 2])]).svg().contains("No deadline is free"));
        assert!(counters(&[record([0; 3])]).svg().contains("Linux 6.1, 2 vCPU, deadline 200 ms; 30 minutes"));
    }
}
