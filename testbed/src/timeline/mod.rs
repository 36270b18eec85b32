//! What a recovery looked like: a drawing of what every client saw and what the healers did meanwhile.
//!
//! Time zero is the last sign of life that the monitor saw: with several CPUs, one may go on for some milliseconds
//! after the first has stopped. Above, one lane per session over the whole gap; below, the healers' stages magnified,
//! because from the verdict on everything takes a few milliseconds while the deadline before it takes many.

mod ascii;
mod svg;

use serde::{Deserialize, Serialize};

/// Everything a drawing needs; saved beside the drawings so that they can be made anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// `panic`, `stop`, ….
    pub fault: String,
    /// What was run, in a line: kernel, vCPUs, sessions, seed.
    pub subtitle: String,
    /// Time zero on the clock of the world, in nanoseconds since 1970: where a capture is looked into.
    pub zero_unix_ns: u64,
    /// The monitor's deadline.
    pub deadline_ms: f64,
    /// What each client saw.
    pub lanes: Vec<Lane>,
    /// What the healers did, in the order in which they began.
    pub stages: Vec<Stage>,
}

/// One session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// Name at its left.
    pub label: String,
    /// Arrivals near time zero: milliseconds, and bytes.
    pub arrivals: Vec<(f64, u64)>,
    /// The gap: begin and end.
    pub gap_ms: Option<(f64, f64)>,
    /// Why the session was lost, if it was.
    pub lost: Option<String>,
}

/// A stretch of the recovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// `detect`, `fence`, `extract`, ….
    pub name: String,
    /// Milliseconds since time zero.
    pub begin_ms: f64,
    /// Milliseconds since time zero.
    pub end_ms: f64,
}

impl Timeline {
    /// The drawing, as SVG.
    pub fn svg(&self) -> String {
        svg::draw(self)
    }

    /// The drawing, as lines for a terminal.
    pub fn text(&self, columns: usize) -> String {
        ascii::draw(self, columns)
    }

    /// The end of detection: where the magnified part begins.
    fn verdict_ms(&self) -> f64 {
        self.stages.iter().find(|stage| stage.name == "detect").map_or(0.0, |stage| stage.end_ms)
    }

    /// When the last stage or gap ended.
    fn recovered_ms(&self) -> f64 {
        let stages = self.stages.iter().map(|stage| stage.end_ms);
        let gaps = self.lanes.iter().filter_map(|lane| lane.gap_ms).map(|(_, end)| end);
        stages.chain(gaps).fold(1.0, f64::max)
    }

    /// What the overview shows: a little life before the fault, and a little after the last gap.
    fn window_ms(&self) -> (f64, f64) {
        let end = self.recovered_ms();
        let margin = (end * 0.4).clamp(20.0, 400.0);
        let first_gap = self.lanes.iter().filter_map(|lane| lane.gap_ms).map(|(begin, _)| begin).fold(0.0, f64::min);
        (first_gap.max(-end) - margin, end + margin)
    }
}

/// The middle one of the gaps' lengths, and the longest.
fn gap_lengths(lanes: &[Lane]) -> Option<(f64, f64)> {
    let mut lengths: Vec<f64> = lanes.iter().filter_map(|lane| lane.gap_ms).map(|(begin, end)| end - begin).collect();
    lengths.sort_by(f64::total_cmp);
    Some((*lengths.get(lengths.len().saturating_sub(1) / 2)?, *lengths.last()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Timeline {
        let lane = |label: &str, shift: f64| Lane {
            label: label.into(),
            arrivals: (-8..0)
                .map(|tick| (f64::from(tick) * 5.0 + shift, 1200))
                .chain((0..8).map(|tick| (71.0 + f64::from(tick) * 5.0 + shift, 1200)))
                .collect(),
            gap_ms: Some((-5.0 + shift, 71.0 + shift)),
            lost: None,
        };
        let stage = |name: &str, begin_ms, end_ms| Stage { name: name.into(), begin_ms, end_ms };
        Timeline {
            fault: "panic".into(),
            subtitle: "Linux 6.1, 1 vCPU".into(),
            zero_unix_ns: 0,
            deadline_ms: 60.0,
            lanes: vec![lane("download 1", 0.5), lane("download <2>", 1.0)],
            stages: vec![stage("detect", 0.0, 62.0), stage("fence", 62.0, 63.1), stage("extract", 63.1, 65.0)],
        }
    }

    #[test]
    fn the_svg_holds_every_lane_and_stage_and_escapes_text() {
        let svg = example().svg();
        for text in ["download 1", "download &lt;2&gt;", "verdict", "fence", "extract", "76 ms"] {
            assert!(svg.contains(text), "{text} is missing in\n{svg}");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn the_text_fits_its_columns() {
        for columns in [60, 100] {
            let text = example().text(columns);
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            assert!(text.contains("download 1"));
        }
    }

    #[test]
    fn an_empty_run_can_be_drawn() {
        assert!(Timeline::default().svg().ends_with("</svg>\n"));
        Timeline::default().text(80);
    }
}
