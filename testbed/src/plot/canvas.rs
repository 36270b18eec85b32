//! A few rectangles, lines and words as SVG, written by hand: crisp at any size, and no library behind it.

use std::fmt::Write;

/// Words and what matters most.
pub const INK: &str = "#1f2933";
/// Words beside it.
pub const FAINT: &str = "#8794a1";
/// Lines of a grid.
pub const RULE: &str = "#e4e8ec";
/// A fault, a limit.
pub const ALARM: &str = "#c8372d";
/// Colours of things that stand side by side, told apart by most eyes.
pub const PALETTE: [&str; 6] = ["#3b6fb6", "#e08a2c", "#2e9e6b", "#8a63b8", "#c8372d", "#5b6770"];

const FONT: &str = "Inter, Helvetica, Arial, 'DejaVu Sans', sans-serif";

/// The elements drawn so far. Coordinates are pixels from the upper left corner.
#[derive(Debug, Default)]
pub struct Canvas {
    body: String,
}

impl Canvas {
    /// A filled rectangle, never too narrow to be seen.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, round: f64) {
        let width = width.max(0.8);
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="{round}" fill="{fill}"/>"#
        );
    }

    /// A straight line; `extra` holds further attributes.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, extra: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}" {extra}/>"#
        );
    }

    /// A line through many points.
    pub fn path(&mut self, points: &[(f64, f64)], stroke: &str) {
        let words: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" fill="none" stroke="{stroke}" stroke-width="1.8" stroke-linejoin="round"/>"#,
            words.join(" ")
        );
    }

    /// A filled area.
    pub fn area(&mut self, points: &[(f64, f64)], fill: &str) {
        let words: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.body, r#"<polygon points="{}" fill="{fill}"/>"#, words.join(" "));
    }

    /// A dot.
    pub fn dot(&mut self, (x, y): (f64, f64), fill: &str) {
        let _ = writeln!(self.body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.8" fill="{fill}"/>"#);
    }

    /// Words; `anchor` is start, middle or end.
    pub fn text(&mut self, at: (f64, f64), size: f64, anchor: &str, fill: &str, words: &str) {
        let (x, y) = at;
        let weight = if size >= 20.0 { r#" font-weight="600""# } else { "" };
        let look = format!(r#"fill="{fill}"{weight}"#);
        let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" {look}>{words}</text>"#
        );
    }

    /// The whole document, on white.
    pub fn document(&self, width: f64, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" width=\"{width}\" \
             height=\"{height:.0}\" font-family=\"{FONT}\">\n\
             <rect width=\"100%\" height=\"100%\" rx=\"10\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body
        )
    }
}
