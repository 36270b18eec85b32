//! The result as a drawing: for each line three bars, ours, the paper's and the limit, on a logarithmic axis for each
//! unit. Without a background and in colours that stand on white and on black alike.

use std::fmt::Write;

use super::{
    line::{Goal, Line, Unit},
    result::{BenchResult, digits},
};

const WIDTH: f64 = 1000.0;
/// Left edge of the bars; names stand left of it.
const LEFT: f64 = 270.0;
/// Right edge; the values of the longest bars stand right of it.
const RIGHT: f64 = WIDTH - 110.0;
const BAR: f64 = 8.0;
/// One line: three bars, and air.
const ROW: f64 = 3.0 * BAR + 12.0;

const OURS: &str = "#2f81d6";
const PAPER: &str = "#d9822b";
const LIMIT: &str = "#8b949e";
const MET: &str = "#2da160";
const MISSED: &str = "#d1453b";

/// Ink follows the reader's choice of dark or light where the viewer knows it, and is grey where it does not.
const STYLE: &str = "<style>text{fill:#6b7580}.ink{fill:#57606a}.rule{stroke:#8b949e;stroke-opacity:.3}\
                     @media(prefers-color-scheme:dark){text{fill:#8b949e}.ink{fill:#c9d1d9}}</style>\n";

const UNITS: [(Unit, &str); 4] = [
    (Unit::Micros, "microseconds, less is better"),
    (Unit::Millis, "milliseconds, less is better"),
    (Unit::Processor, "percent of a processor, less is better"),
    (Unit::Rate, "requests per second, more is better"),
];

pub(super) fn draw(result: &BenchResult) -> String {
    let mut canvas = Canvas::default();
    canvas.text(
        (30.0, 34.0),
        18.0,
        "start",
        "ink",
        "What the parts cost: ours, the paper's, and the limit of the path",
    );
    let host = &result.host;
    let machine = format!("{}, {} CPUs, Linux {}, commit {}", result.processor, host.cpus, host.kernel, result.commit);
    canvas.text((30.0, 54.0), 12.0, "start", "", &machine);
    let mut x = 30.0;
    for (colour, name) in
        [(OURS, "ours"), (PAPER, "the paper's"), (LIMIT, "limit"), (MET, "goal met"), (MISSED, "missed")]
    {
        canvas.rect((x, 68.0), (11.0, 11.0), colour);
        canvas.text((x + 17.0, 78.0), 12.0, "start", "ink", name);
        x += 40.0 + 7.0 * name.len() as f64;
    }
    let mut top = 104.0;
    for (unit, title) in UNITS {
        let lines: Vec<&Line> = result.lines.iter().filter(|line| line.unit == unit).collect();
        if !lines.is_empty() {
            top = section(&mut canvas, title, &lines, top);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" width=\"{WIDTH}\" \
         height=\"{top:.0}\" font-family=\"Inter, Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n{STYLE}{}</svg>\n",
        canvas.body
    )
}

/// The lines of one unit; returns where the next ones may begin.
fn section(canvas: &mut Canvas, title: &str, lines: &[&Line], top: f64) -> f64 {
    let axis = Axis::around(lines.iter().flat_map(|line| [Some(line.ours), line.paper, Some(line.limit), bound(line)]));
    let (first, bottom) = (top + 18.0, top + 18.0 + ROW * lines.len() as f64);
    canvas.text((30.0, top), 13.0, "start", "ink", title);
    for power in axis.from..=axis.to {
        let value = 10f64.powi(power);
        canvas.line((axis.x(value), first - 6.0), (axis.x(value), bottom), "class=\"rule\"");
        canvas.text((axis.x(value), bottom + 14.0), 11.0, "middle", "", &value.to_string());
    }
    for (position, line) in lines.iter().enumerate() {
        row(canvas, line, axis, first + ROW * position as f64);
    }
    bottom + 46.0
}

fn row(canvas: &mut Canvas, line: &Line, axis: Axis, top: f64) {
    let middle = top + 1.5 * BAR;
    canvas.text((LEFT - 14.0, middle + 4.0), 12.0, "end", "ink", &line.name);
    let bars = [(Some(line.ours), OURS), (line.paper, PAPER), (Some(line.limit), LIMIT)];
    for (place, (value, colour)) in bars.into_iter().enumerate() {
        let Some(value) = value else { continue };
        let y = top + BAR * place as f64;
        canvas.rect((LEFT, y), (axis.x(value) - LEFT, BAR - 1.0), colour);
        canvas.text((axis.x(value) + 5.0, y + BAR - 1.0), 9.0, "start", "", &digits(value));
    }
    if let (Some(value), Some(met)) = (bound(line), line.met) {
        let colour = if met { MET } else { MISSED };
        let look = format!("stroke=\"{colour}\" stroke-width=\"2\"");
        canvas.line((axis.x(value), top - 3.0), (axis.x(value), top + 3.0 * BAR + 2.0), &look);
    }
    let ratio = format!("{:.2} x limit", line.ratio);
    canvas.text((WIDTH - 14.0, middle + 4.0), 11.0, "end", "", &ratio);
}

/// Where a line's goal lies on its axis.
fn bound(line: &Line) -> Option<f64> {
    match line.goal? {
        Goal::AtMost(most) => Some(most),
        Goal::RatioAtMost(ratio) | Goal::RatioAtLeast(ratio) => Some(line.limit * ratio),
    }
}

/// A logarithmic axis between two powers of ten.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    from: i32,
    to: i32,
}

impl Axis {
    /// With all `values` on it, and with some length for the smallest.
    fn around(values: impl Iterator<Item = Option<f64>>) -> Self {
        let values = values.flatten().filter(|value| *value > 0.0).map(f64::log10);
        let (least, most) = values.fold((f64::MAX, f64::MIN), |(least, most), at| (least.min(at), most.max(at)));
        if least > most {
            return Self { from: 0, to: 1 };
        }
        let from = (least - 0.2).floor() as i32;
        Self { from, to: (most.ceil() as i32).max(from + 1) }
    }

    fn x(self, value: f64) -> f64 {
        let length = f64::from(self.to - self.from);
        let part = (value.max(f64::MIN_POSITIVE).log10() - f64::from(self.from)) / length;
        LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }
}

#[derive(Default)]
struct Canvas {
    body: String,
}

impl Canvas {
    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let width = width.max(1.0);
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="1.5" fill="{fill}"/>"#
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), look: &str) {
        let _ = writeln!(self.body, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {look}/>"#);
    }

    /// `anchor`: start, middle or end; `class` of [`STYLE`], or none.
    fn text(&mut self, (x, y): (f64, f64), size: f64, anchor: &str, class: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}"{class}>{words}</text>"#
        );
    }
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
        let bars = |colour: &str| svg.matches(&format!("rx=\"1.5\" fill=\"{colour}\"")).count() - 1; // the legend
        assert_eq!((bars(OURS), bars(PAPER), bars(LIMIT)), (2, 1, 2));
        assert_eq!(svg.matches(&format!("stroke=\"{MISSED}\"")).count(), 1);
        let axis = Axis::around([Some(6.0), None, Some(150.0)].into_iter());
        assert_eq!(axis, Axis { from: 0, to: 3 });
        assert!(axis.x(0.0) == LEFT && axis.x(1e9) == RIGHT && axis.x(6.0) < axis.x(150.0));
    }

    #[test]
    fn a_result_without_lines_can_be_drawn() {
        assert!(draw(&BenchResult::begin()).ends_with("</svg>\n"));
    }
}
