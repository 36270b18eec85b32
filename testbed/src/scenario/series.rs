//! How long a piece of useful work takes on a machine that is drowned by its own processes, against how many there are,
//! repaired and not: Figures 3.13 and 3.14 of the dissertation.
//!
//! Each point is a guest of its own. What is drawn without repair is the median piece while it is drowned; where none
//! came to its end, how long it was waited for: the true value is above. With repair it is the median piece after the
//! cure.

use std::{fmt::Write, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::drown::{self, Illness, Report, Variant};
use super::{Order, Progress};
use crate::plot::{ALARM, Axis, Figure, INK, Line, PALETTE, Panel, Scale};

/// What is run.
#[derive(Clone, Debug)]
pub struct Series {
    /// What drowns the guest, one panel each.
    pub illnesses: Vec<Kind>,
    /// Numbers of processes of a bomb.
    pub procs: Vec<u32>,
    /// Numbers of hogs.
    pub hogs: Vec<u32>,
    /// How long a guest that is not repaired is watched.
    pub unrepaired_for: Duration,
    /// How long a piece of useful work takes alone.
    pub piece: Duration,
    /// The installation of each point.
    pub order: Order,
    /// Where results and figures are left.
    pub out: PathBuf,
}

/// A kind of illness, without its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A bomb of processes that compute.
    Cpu,
    /// A bomb of processes that write files.
    Io,
    /// A bomb of processes that sleep.
    Sleepers,
    /// Processes that take memory.
    Hog,
    /// The same, made anew by their controller.
    Respawn,
}

impl Kind {
    fn of(self, procs: u32) -> Illness {
        let bomb = |variant| Illness::ForkBomb { variant, procs };
        let hog = |respawn| Illness::MemHog { procs, mib: HOG_MIB, respawn };
        match self {
            Self::Cpu => bomb(Variant::Cpu),
            Self::Io => bomb(Variant::Io),
            Self::Sleepers => bomb(Variant::Sleepers),
            Self::Hog => hog(false),
            Self::Respawn => hog(true),
        }
    }

    fn is_hog(self) -> bool {
        matches!(self, Self::Hog | Self::Respawn)
    }

    /// What its guests can swap to, in MiB.
    fn swap_mib(self) -> u32 {
        if self.is_hog() { SWAP_MIB } else { 0 }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Cpu => "A bomb that computes",
            Self::Io => "A bomb that writes files",
            Self::Sleepers => "A bomb that sleeps",
            Self::Hog => "Hogs of 32 MiB each; the guest has 256",
            Self::Respawn => "The same, made anew when they end",
        }
    }
}

/// What each hog takes, in MiB. Six of them are more than a guest has free.
const HOG_MIB: u32 = 32;

/// What their guests can swap to, in MiB.
const SWAP_MIB: u32 = 1024;

/// One point.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// What drowned it.
    pub kind: Kind,
    /// How many.
    pub procs: u32,
    /// Whether it was repaired.
    pub repaired: bool,
    /// Median piece alone, in milliseconds.
    pub alone_ms: f64,
    /// Median piece then, in milliseconds; a lower bound if none came to its end.
    pub piece_ms: f64,
    /// Whether a piece came to its end.
    pub is_bounded: bool,
    /// Whether the run passed.
    pub pass: bool,
}

/// Runs every point and draws them; figures, CSV and JSON are in `out` afterwards.
///
/// # Errors
/// When a point cannot be carried out.
pub fn run(series: &Series) -> Result<Vec<Point>> {
    let out = &series.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut points = Vec::new();
    for kind in &series.illnesses {
        for procs in series.numbers(*kind) {
            for repaired in [true, false] {
                let order = Order { rogue: true, swap_mib: kind.swap_mib(), ..series.order.clone() };
                let unrepaired_for = (!repaired).then_some(series.unrepaired_for);
                let (illness, piece) = (kind.of(*procs), series.piece);
                let point = drown::Run {
                    illness,
                    hook: drown::Hook::Raw,
                    unrepaired_for,
                    hold: drown::HOLD,
                    own_module: None,
                    piece,
                    order,
                    out: out.join("point"),
                };
                let (report, _) = drown::run(&point, Progress::begin())?;
                points.push(self::point(*kind, *procs, repaired, series.unrepaired_for, &report));
                // After each: what is measured stays, should the next one fail.
                write(series, &points)?;
            }
        }
    }
    Ok(points)
}

impl Series {
    /// The numbers of processes of a kind.
    fn numbers(&self, kind: Kind) -> &[u32] {
        if kind.is_hog() { &self.hogs } else { &self.procs }
    }
}

fn point(kind: Kind, procs: u32, repaired: bool, watched: Duration, report: &Report) -> Point {
    let pieces = if repaired { &report.after_ms } else { &report.drowned_ms };
    let found = drown::median(pieces);
    Point {
        kind,
        procs,
        repaired,
        alone_ms: drown::median(&report.alone_ms).unwrap_or(f64::NAN),
        piece_ms: found.unwrap_or(watched.as_secs_f64() * 1e3),
        is_bounded: found.is_some(),
        pass: report.pass,
    }
}

fn write(series: &Series, points: &[Point]) -> Result<()> {
    let mut csv = "kind,procs,repaired,alone_ms,piece_ms,is_bounded,pass\n".to_owned();
    for Point { kind, procs, repaired, alone_ms, piece_ms, is_bounded, pass } in points {
        let kind = serde_json::to_value(kind)?;
        let kind = kind.as_str().unwrap_or_default();
        let _ = writeln!(csv, "{kind},{procs},{repaired},{alone_ms:.1},{piece_ms:.1},{is_bounded},{pass}");
    }
    let put = |name: &str, text: &str| fs::write(series.out.join(name), text).with_context(|| name.to_owned());
    put("repair.csv", &csv)?;
    put("repair.json", &serde_json::to_string(points)?)?;
    put("repair.svg", &figure(series, points).svg())
}

fn figure(series: &Series, points: &[Point]) -> Figure {
    let ratio = |point: &Point| point.piece_ms / point.alone_ms;
    let most = points.iter().map(ratio).fold(1.0, f64::max);
    let worst_after = points.iter().filter(|point| point.repaired).map(ratio).fold(0.0, f64::max);
    let panel = |kind: &Kind| {
        let of = |repaired: bool| -> Vec<(f64, f64)> {
            let those = points.iter().filter(|point| point.kind == *kind && point.repaired == repaired);
            those.map(|point| (f64::from(point.procs), ratio(point))).collect()
        };
        let line = |colour, points| Line { colour, dotted: true, points };
        let procs = || series.numbers(*kind).iter().map(|procs| f64::from(*procs));
        let ideal = procs().map(|procs| (procs, 1.0)).collect();
        Panel {
            title: kind.title().to_owned(),
            x: Axis::new("processes", Scale::Linear, 0.0, procs().fold(1.0, f64::max)),
            y: Axis::new("time of a piece, alone = 1", Scale::Log, 0.5, most * 1.5),
            lines: vec![
                Line { colour: INK, dotted: false, points: ideal },
                line(ALARM, of(false)),
                line(PALETTE[0], of(true)),
            ],
            marks: Vec::new(),
        }
    };
    let Order { kernel, vcpus, agent, .. } = &series.order;
    let agent = if *agent { "an agent" } else { "nothing of ours" };
    let watched = series.unrepaired_for.as_secs();
    Figure {
        title: format!("After a repair, useful work takes at most {worst_after:.2} of the time it takes alone"),
        subtitle: format!(
            "Linux {kernel}, {vcpus} vCPU (emulated), {agent} in the guest; without repair \
             watched for {watched} s: a value there is a lower \
             bound where no piece came to its end"
        ),
        legend: vec![
            ("alone".to_owned(), INK),
            ("drowned, without repair".to_owned(), ALARM),
            ("after the repair".to_owned(), PALETTE[0]),
        ],
        columns: 2,
        panel_height: 220.0,
        panels: series.illnesses.iter().map(panel).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_has_a_panel_for_each_illness_and_says_what_a_repair_leaves() {
        let point = |repaired, piece_ms| Point {
            kind: Kind::Cpu,
            procs: 100,
            repaired,
            alone_ms: 100.0,
            piece_ms,
            is_bounded: true,
            pass: true,
        };
        let series = Series {
            illnesses: vec![Kind::Cpu, Kind::Hog],
            procs: vec![100],
            hogs: vec![8, 16],
            unrepaired_for: Duration::from_secs(9),
            piece: Duration::from_millis(100),
            order: Order::new("6.1", 2, 200),
            out: PathBuf::new(),
        };
        let figure = figure(&series, &[point(true, 105.0), point(false, 5000.0)]);
        assert_eq!(figure.panels.len(), 2);
        assert!(figure.title.contains("1.05"), "{}", figure.title);
        assert!(figure.svg().contains("</svg>"));
    }
}
