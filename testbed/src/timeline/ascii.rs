//! The drawing as lines for a terminal.
//!
//! ```text
//!   download 1  ▪▪▪▪▪▪▪▪│······························▪▪▪▪▪▪▪▪   76 ms
//!                       last sign of life
//!   detect      ────────████████████████████████████────────────   62.0 ms
//! ```

use std::fmt::Write;

use super::{Timeline, gap_lengths};

/// What stands at time zero.
const ZERO: &str = "last sign of life";

const LABEL: usize = 14;
const VALUE: usize = 11;

pub(super) fn draw(timeline: &Timeline, columns: usize) -> String {
    let cells = columns.saturating_sub(LABEL + VALUE + 1).max(10);
    let (from_ms, to_ms) = timeline.window_ms();
    let cell = |ms: f64| {
        let part = (ms.clamp(from_ms, to_ms) - from_ms) / (to_ms - from_ms);
        ((part * cells as f64) as usize).min(cells - 1)
    };
    let mut text = String::new();
    for lane in &timeline.lanes {
        let mut marks = vec![' '; cells];
        if let Some((begin, end)) = lane.gap_ms {
            marks[cell(begin)..=cell(end)].fill('·');
        }
        for &(ms, _) in lane.arrivals.iter().filter(|(ms, _)| (from_ms..=to_ms).contains(ms)) {
            marks[cell(ms)] = '▪';
        }
        marks[cell(0.0)] = '│';
        let value = match (&lane.lost, lane.gap_ms) {
            (Some(_), _) => "lost".to_owned(),
            (None, Some((begin, end))) => format!("{:.0} ms", end - begin),
            (None, None) => String::new(),
        };
        row(&mut text, &lane.label, &marks, &value);
    }
    let at = cell(0.0).min(cells.saturating_sub(ZERO.chars().count()));
    let _ = writeln!(text, "{}{ZERO}", " ".repeat(LABEL + at));
    for stage in &timeline.stages {
        let mut marks = vec!['─'; cells];
        marks[cell(stage.begin_ms)..=cell(stage.end_ms)].fill('█');
        row(&mut text, &stage.name, &marks, &format!("{:.1} ms", stage.end_ms - stage.begin_ms));
    }
    if let Some((median, longest)) = gap_lengths(&timeline.lanes) {
        let _ = writeln!(text, "gap: median {median:.0} ms, longest {longest:.0} ms");
    }
    text
}

fn row(text: &mut String, label: &str, marks: &[char], value: &str) {
    let label: String = label.chars().take(LABEL - 2).collect();
    let marks: String = marks.iter().collect();
    let _ = writeln!(text, "{label:<LABEL$}{marks} {value:>VALUE$}");
}
