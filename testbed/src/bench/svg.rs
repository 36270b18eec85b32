//! The result as a drawing: for each line three bars, ours, the paper's and the limit, on a logarithmic axis for each
//! unit.

use super::{
    line::{Goal, Line, Unit},
    result::{BenchResult, digits},
};
use crate::plot::{ALARM as MISSED, Axis, Canvas, FAINT, INK, PALETTE, RULE, Scale};

const WIDTH: f64 = 1000.0;
/// Left edge of the bars; names stand left of it.
const LEFT: f64 = 270.0;
/// Right edge; the values of the longest bars stand right of it.
const RIGHT: f64 = WIDTH - 110.0;
const BAR: f64 = 8.0;
/// One line: three bars, and air.
const ROW: f64 = 3.0 * BAR + 12.0;

const OURS: &str = PALETTE[0];
const PAPER: &str = PALETTE[1];
const MET: &str = PALETTE[2];
const LIMIT: &str = "#aab4be";

const UNITS: [(Unit, &str); 6] = [
    (Unit::Micros, "microseconds, less is better"),
    (Unit::Millis, "milliseconds, less is better"),
    (Unit::Processor, "percent of a processor, less is better"),
    (Unit::Rate, "requests per second, more is better"),
    (Unit::Reads, "READs per second, more is better"),
    (Unit::Rounds, "round trips, less is better"),
];

const LEGEND: [(&str, &str); 5] =
    [(OURS, "ours"), (PAPER, "the paper's"), (LIMIT, "limit"), (MET, "goal, met"), (MISSED, "goal, missed")];

pub(super) fn draw(result: &BenchResult) -> String {
    let mut canvas = Canvas::default();
    canvas.text((30.0, 42.0), 21.0, "start", INK, "What the parts cost, and what the same path costs without us");
    let host = &result.host;
    let machine = format!("{}, {} CPUs, Linux {}, commit {}", result.processor, host.cpus, host.kernel, result.commit);
    canvas.text((30.0, 64.0), 13.0, "start", FAINT, &machine);
    let mut at = 30.0;
    for (colour, name) in LEGEND {
        canvas.rect(at, 79.0, 12.0, 12.0, colour, 2.0);
        canvas.text((at + 18.0, 89.5), 12.0, "start", INK, name);
        at += 44.0 + 7.0 * name.len() as f64;
    }
    let mut top = 122.0;
    for (unit, title) in UNITS {
        let lines: Vec<&Line> = result.lines.iter().filter(|line| line.unit == unit).collect();
        if !lines.is_empty() {
            top = section(&mut canvas, title, &lines, top);
        }
    }
    canvas.document(WIDTH, top)
}

/// The lines of one unit; returns where the next ones may begin.
fn section(canvas: &mut Canvas, title: &str, lines: &[&Line], top: f64) -> f64 {
    let values = lines.iter().flat_map(|line| [Some(line.ours), line.paper, Some(line.limit), bound(line)]);
    let axis = axis(title, values);
    let (first, bottom) = (top + 18.0, top + 18.0 + ROW * lines.len() as f64);
    canvas.text((30.0, top), 13.0, "start", INK, title);
    for value in axis.ticks() {
        canvas.line((x(&axis, value), first - 6.0), (x(&axis, value), bottom), RULE, "");
        canvas.text((x(&axis, value), bottom + 14.0), 11.0, "middle", FAINT, &format!("{}", value as f32));
    }
    for (position, line) in lines.iter().enumerate() {
        row(canvas, line, &axis, first + ROW * position as f64);
    }
    bottom + 46.0
}

fn row(canvas: &mut Canvas, line: &Line, axis: &Axis, top: f64) {
    let middle = top + 1.5 * BAR;
    canvas.text((LEFT - 14.0, middle + 4.0), 12.0, "end", INK, &line.name);
    let bars = [(Some(line.ours), OURS), (line.paper, PAPER), (Some(line.limit), LIMIT)];
    for (place, (value, colour)) in bars.into_iter().enumerate() {
        let Some(value) = value else { continue };
        let (y, end) = (top + BAR * place as f64, x(axis, value));
        canvas.rect(LEFT, y, end - LEFT, BAR - 1.0, colour, 1.5);
        canvas.text((end + 5.0, y + BAR - 1.0), 9.0, "start", FAINT, &digits(value));
    }
    if let (Some(value), Some(met)) = (bound(line), line.met) {
        let (colour, at) = (if met { MET } else { MISSED }, x(axis, value));
        canvas.line((at, top - 3.0), (at, top + 3.0 * BAR + 2.0), colour, "stroke-width=\"2\"");
    }
    let ratio = format!("{:.2} x limit", line.ratio);
    canvas.text((WIDTH - 14.0, middle + 4.0), 11.0, "end", FAINT, &ratio);
}

/// Where a line's goal lies on its axis.
fn bound(line: &Line) -> Option<f64> {
    match line.goal? {
        Goal::AtMost(most) => Some(most),
        Goal::RatioAtMost(ratio) | Goal::RatioAtLeast(ratio) => Some(line.limit * ratio),
    }
}

/// A logarithmic axis over whole powers of ten with all `values` on it, and with some length for the smallest.
fn axis(title: &str, values: impl Iterator<Item = Option<f64>>) -> Axis {
    let values = values.flatten().filter(|value| *value > 0.0).map(f64::log10);
    let (least, most) = values.fold((f64::MAX, f64::MIN), |(least, most), at| (least.min(at), most.max(at)));
    let from = if least > most { 0.0 } else { (least - 0.2).floor() };
    Axis::new(title, Scale::Log, 10f64.powf(from), 10f64.powf(most.ceil().max(from + 1.0)))
}

/// Where `value` lies on a drawn axis.
fn x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (RIGHT - LEFT)
}

#[cfg(test)]
mod tests {
    use super::super::line::{Group, Sample};
    use super::*;

    #[test]
    fn each_line_has_its_bars_and_its_goal_on_an_axis_that_holds_them() {
        let ours = Sample { median: 9.0, worst: 12.0, samples: 5 };
        let line = Line::new(Group::Read, "READ <64>".into(), Unit::Micros, &ours, 6.0, "a bare echo");
        let mut result = BenchResult::begin();
        result.lines = vec![line.clone().paper(150.0).goal(Goal::AtMost(8.0)), line];
        let svg = draw(&result);
        assert!(svg.contains("READ &lt;64&gt;") && svg.ends_with("</svg>\n"), "{svg}");
        let bars = |colour: &str| svg.matches(&format!("rx=\"1.5\" fill=\"{colour}\"")).count();
        assert_eq!((bars(OURS), bars(PAPER), bars(LIMIT)), (2, 1, 2));
        assert_eq!(svg.matches(&format!("stroke=\"{MISSED}\"")).count(), 1);
        let axis = axis("us", [Some(6.0), None, Some(150.0)].into_iter());
        assert_eq!((axis.from, axis.to), (1.0, 1000.0));
        assert!(x(&axis, 0.0) == LEFT && x(&axis, 1e9) == RIGHT && x(&axis, 6.0) < x(&axis, 150.0));
    }

    #[test]
    fn a_result_without_lines_can_be_drawn() {
        assert!(draw(&BenchResult::begin()).ends_with("</svg>\n"));
    }
}
