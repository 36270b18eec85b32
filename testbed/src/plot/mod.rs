//! Figures: panels with axes and lines, as SVG. Data in, text out; what is drawn, and from where, its callers decide.

mod axis;
mod canvas;

pub use axis::{Axis, Scale, words};
pub use canvas::{ALARM, Canvas, FAINT, INK, PALETTE, RULE};

/// Width of a figure in pixels.
const WIDTH: f64 = 1000.0;
/// Room above the panels: title, subtitle, legend.
const HEAD: f64 = 112.0;
/// Room left of a panel for its values, and right of it.
const MARGINS: (f64, f64) = (74.0, 26.0);
/// Room above a panel for its title, and below it for values and the name of the axis.
const EDGES: (f64, f64) = (30.0, 48.0);

/// Several panels under one heading and one legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it says, in one sentence.
    pub title: String,
    /// Where it comes from.
    pub subtitle: String,
    /// What the colours mean.
    pub legend: Vec<(String, &'static str)>,
    /// Panels beside each other.
    pub columns: usize,
    /// Height of the drawn part of each panel, in pixels.
    pub panel_height: f64,
    /// The panels, row by row.
    pub panels: Vec<Panel>,
}

/// Lines over a pair of axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// Values of x that deserve attention.
    pub marks: Vec<(f64, String)>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its colour, as in the legend.
    pub colour: &'static str,
    /// Whether every point is a measurement to be seen.
    pub dotted: bool,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// The drawn part of a panel, in pixels.
#[derive(Clone, Copy)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Figure {
    /// The drawing.
    pub fn svg(&self) -> String {
        let mut canvas = Canvas::default();
        canvas.text((30.0, 42.0), 21.0, "start", INK, &self.title);
        canvas.text((30.0, 64.0), 13.0, "start", FAINT, &self.subtitle);
        let mut x = 30.0;
        for (name, colour) in &self.legend {
            canvas.rect(x, 79.0, 12.0, 12.0, colour, 2.0);
            canvas.text((x + 18.0, 89.5), 12.0, "start", INK, name);
            x += 44.0 + 7.0 * name.chars().count() as f64;
        }
        let (columns, row) = (self.columns.max(1), self.panel_height + EDGES.0 + EDGES.1);
        for (index, panel) in self.panels.iter().enumerate() {
            let (width, top) = (WIDTH / columns as f64, HEAD + row * (index / columns) as f64 + EDGES.0);
            let left = width * (index % columns) as f64;
            let (bottom, right) = (top + self.panel_height, left + width - MARGINS.1);
            panel.draw(&mut canvas, Frame { left: left + MARGINS.0, right, top, bottom });
        }
        canvas.document(WIDTH, HEAD + row * self.panels.len().div_ceil(columns) as f64)
    }
}

impl Panel {
    fn draw(&self, canvas: &mut Canvas, frame: Frame) {
        let x = |value: f64| frame.left + self.x.place(value) * (frame.right - frame.left);
        let y = |value: f64| frame.bottom - self.y.place(value) * (frame.bottom - frame.top);
        canvas.text((frame.left, frame.top - 12.0), 13.0, "start", INK, &self.title);
        for value in self.x.ticks() {
            canvas.line((x(value), frame.top), (x(value), frame.bottom), RULE, "");
            canvas.text((x(value), frame.bottom + 15.0), 11.0, "middle", FAINT, &words(value));
        }
        for value in self.y.ticks() {
            canvas.line((frame.left, y(value)), (frame.right, y(value)), RULE, "");
            canvas.text((frame.left - 8.0, y(value) + 4.0), 11.0, "end", FAINT, &words(value));
        }
        canvas.line((frame.left, frame.bottom), (frame.right, frame.bottom), FAINT, "");
        canvas.text((frame.right, frame.bottom + 32.0), 11.0, "end", FAINT, &self.x.label);
        canvas.text((frame.right, frame.top - 12.0), 11.0, "end", FAINT, &self.y.label);
        for (value, label) in &self.marks {
            canvas.line((x(*value), frame.top), (x(*value), frame.bottom), ALARM, "stroke-dasharray=\"4 3\"");
            canvas.text((x(*value) + 5.0, frame.top + 12.0), 11.0, "start", ALARM, label);
        }
        for line in &self.lines {
            let points: Vec<_> = line.points.iter().map(|(at, value)| (x(*at), y(*value))).collect();
            canvas.path(&points, line.colour);
            if line.dotted {
                points.iter().for_each(|point| canvas.dot(*point, line.colour));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_lands_where_its_axes_say_and_words_are_escaped() {
        let line = Line { colour: PALETTE[0], dotted: true, points: vec![(0.0, 0.0), (10.0, 5.0)] };
        let panel = Panel {
            title: "a < b".into(),
            x: Axis::new("s", Scale::Linear, 0.0, 10.0),
            y: Axis::new("1/s", Scale::Linear, 0.0, 10.0),
            lines: vec![line],
            marks: vec![(5.0, "here".into())],
        };
        let figure = Figure {
            title: "t".into(),
            subtitle: String::new(),
            legend: vec![("idle".into(), PALETTE[0])],
            columns: 1,
            panel_height: 200.0,
            panels: vec![panel],
        };
        let svg = figure.svg();
        assert!(svg.contains("a &lt; b"), "{svg}");
        assert!(svg.contains(r#"points="74.0,342.0 974.0,242.0""#), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
