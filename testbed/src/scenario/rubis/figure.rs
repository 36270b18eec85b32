//! A run second by second: replies, connections, and how long replies took.

use auction::clients::{Bin, Report};

use super::Run;
use crate::plot::{ALARM, Axis, Figure, Line, PALETTE, Panel, Scale};

pub(super) fn timeline(run: &Run, report: &Report) -> Figure {
    // The last second is one only in part.
    let seconds = (report.seconds as usize).clamp(1, report.bins.len().max(1));
    let bins = &report.bins[..seconds.min(report.bins.len())];
    let panel = |title: &str, unit: &str, lines: Vec<Line>| Panel {
        title: title.to_owned(),
        x: Axis::new("s", Scale::Linear, 0.0, seconds as f64),
        y: Axis::above(unit, lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value)),
        lines,
        marks: Vec::new(),
    };
    let replies = vec![line(PALETTE[0], bins, |bin| bin.replies as f64), line(ALARM, bins, |bin| bin.failures as f64)];
    let connections = vec![
        line(PALETTE[0], bins, |bin| bin.connections_open as f64),
        line(PALETTE[1], bins, |bin| bin.connections_opened as f64),
    ];
    let latencies =
        vec![line(PALETTE[0], bins, |bin| bin.latency_ms_mean), line(PALETTE[1], bins, |bin| bin.latency_ms_max)];
    Figure {
        title: format!("An auction of {} front ends and {} mid tiers", run.counts().0, run.counts().1),
        subtitle: format!(
            "{} clients think {} times as long, seed {}: {:.1} replies per second, half in {:.1} ms, 99 % in {:.1} ms",
            report.clients, run.slow_down, run.seed, report.throughput_s, report.latency_ms_p50, report.latency_ms_p99
        ),
        legend: vec![
            ("replies; connections open; mean".to_owned(), PALETTE[0]),
            ("connections opened; longest".to_owned(), PALETTE[1]),
            ("failures".to_owned(), ALARM),
        ],
        columns: 1,
        panel_height: 150.0,
        panels: vec![
            panel("replies and failures", "per second", replies),
            panel("connections", "open, opened per second", connections),
            panel("from request to reply", "ms", latencies),
        ],
    }
}

fn line(colour: &'static str, bins: &[Bin], value: impl Fn(&Bin) -> f64) -> Line {
    // In the middle of its second.
    let points = bins.iter().map(|bin| (bin.second as f64 + 0.5, value(bin))).collect();
    Line { colour, dotted: false, points }
}
