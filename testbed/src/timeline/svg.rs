//! The drawing as SVG.

use super::{Lane, Stage, Timeline, gap_lengths};
use crate::plot::{ALARM as FAULT, Canvas, FAINT, INK, RULE};

const WIDTH: f64 = 1000.0;
/// Left edge of the time axes; labels stand left of it.
const LEFT: f64 = 150.0;
const RIGHT: f64 = WIDTH - 40.0;
/// Lanes drawn one by one; a figure with more cannot be read.
const LANES_MAX: usize = 24;

const BEFORE: &str = "#3b6fb6";
const AFTER: &str = "#2e9e6b";
const GAP: &str = "#fbe3df";
const STAGES: [(&str, &str); 8] = [
    ("detect", "#b9c2cc"),
    ("fence", "#c8372d"),
    ("connect", "#9aa5b1"),
    ("extract", "#e08a2c"),
    ("probe", "#d6b13a"),
    ("rebuild", "#8a63b8"),
    ("address", "#3b6fb6"),
    ("resume", "#2e9e6b"),
];

/// Milliseconds to pixels.
#[derive(Clone, Copy)]
struct Scale {
    from_ms: f64,
    to_ms: f64,
}

impl Scale {
    fn x(self, ms: f64) -> f64 {
        let part = (ms.clamp(self.from_ms, self.to_ms) - self.from_ms) / (self.to_ms - self.from_ms);
        LEFT + part * (RIGHT - LEFT)
    }

    /// Round values for the axis: at most ten, at 1, 2 or 5 times a power of ten.
    fn ticks(self) -> Vec<f64> {
        let rough = (self.to_ms - self.from_ms) / 9.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let first = (self.from_ms / step).ceil() as i64;
        (first..).map(|count| count as f64 * step).take_while(|ms| *ms <= self.to_ms).collect()
    }
}

pub(super) fn draw(timeline: &Timeline) -> String {
    let mut canvas = Canvas::default();
    let (from_ms, to_ms) = timeline.window_ms();
    let scale = Scale { from_ms, to_ms };
    heading(&mut canvas, timeline);
    let lanes_bottom = overview(&mut canvas, timeline, scale);
    let bottom = magnified(&mut canvas, timeline, scale, lanes_bottom);
    let height = bottom + 24.0;
    canvas.document(WIDTH, height)
}

fn heading(canvas: &mut Canvas, timeline: &Timeline) {
    let lost = timeline.lanes.iter().filter(|lane| lane.lost.is_some()).count();
    let what = match (gap_lengths(&timeline.lanes), lost) {
        (Some((median, _)), 0) => format!("{}: the clients' gap is {median:.0} ms, no byte is missing", timeline.fault),
        (Some((median, _)), lost) => format!("{}: the clients' gap is {median:.0} ms, {lost} lost", timeline.fault),
        (None, _) => timeline.fault.clone(),
    };
    canvas.text((30.0, 42.0), 21.0, "start", INK, &what);
    canvas.text((30.0, 64.0), 13.0, "start", FAINT, &timeline.subtitle);
    let legend = [(BEFORE, "bytes from the target"), (GAP, "silence"), (AFTER, "bytes from the spare")];
    let mut x = RIGHT - 400.0;
    for (colour, words) in legend {
        canvas.rect(x, 79.0, 12.0, 12.0, colour, 2.0);
        canvas.text((x + 18.0, 89.5), 12.0, "start", INK, words);
        x += if words == "silence" { 85.0 } else { 160.0 };
    }
}

fn overview(canvas: &mut Canvas, timeline: &Timeline, scale: Scale) -> f64 {
    let shown = &timeline.lanes[..timeline.lanes.len().min(LANES_MAX)];
    let lane_height = if shown.len() > 10 { 17.0 } else { 26.0 };
    let top = 128.0;
    let bottom = top + lane_height * shown.len() as f64 + 8.0;
    axis(canvas, scale, top - 4.0, bottom, "ms");
    for (position, lane) in shown.iter().enumerate() {
        draw_lane(canvas, lane, scale, top + lane_height * position as f64, lane_height);
    }
    if timeline.lanes.len() > shown.len() {
        let more = format!("and {} more", timeline.lanes.len() - shown.len());
        canvas.text((LEFT - 10.0, bottom + 12.0), 11.0, "end", FAINT, &more);
    }
    let mark = |canvas: &mut Canvas, ms: f64, colour: &str, words: &str, anchor: &str, extra: &str| {
        let x = scale.x(ms);
        canvas.line((x, top - 10.0), (x, bottom), colour, extra);
        let aside = if anchor == "end" { -5.0 } else { 5.0 };
        canvas.text((x + aside, top - 10.0), 12.0, anchor, colour, words);
    };
    mark(canvas, 0.0, FAULT, "last sign of life", "end", "stroke-width=\"1.6\"");
    if timeline.stages.iter().any(|stage| stage.name == "detect") {
        mark(canvas, timeline.verdict_ms(), INK, "verdict", "end", "stroke-width=\"1.2\" stroke-dasharray=\"4 3\"");
    }
    bottom
}

fn axis(canvas: &mut Canvas, scale: Scale, top: f64, bottom: f64, unit: &str) {
    let ticks = scale.ticks();
    let step = ticks.get(1).zip(ticks.first()).map_or(1.0, |(second, first)| second - first);
    let digits = usize::from(step < 1.0);
    for ms in ticks {
        let x = scale.x(ms);
        canvas.line((x, top), (x, bottom), RULE, "");
        let words = if ms == 0.0 { "0".to_owned() } else { format!("{ms:.digits$}") };
        canvas.text((x, bottom + 15.0), 11.0, "middle", FAINT, &words);
    }
    canvas.line((LEFT, bottom), (RIGHT, bottom), FAINT, "");
    canvas.text((RIGHT + 22.0, bottom + 15.0), 11.0, "middle", FAINT, unit);
}

fn draw_lane(canvas: &mut Canvas, lane: &Lane, scale: Scale, top: f64, height: f64) {
    let (bar_top, bar_height) = (top + height * 0.15, height * 0.7);
    let middle = top + height / 2.0;
    canvas.text((LEFT - 12.0, middle + 4.0), 12.0_f64.min(height - 3.0), "end", INK, &lane.label);
    canvas.line((LEFT, middle), (RIGHT, middle), RULE, "");
    if let Some((begin, end)) = lane.gap_ms {
        canvas.rect(scale.x(begin), bar_top, scale.x(end) - scale.x(begin), bar_height, GAP, 2.0);
    }
    let resumed_ms = lane.gap_ms.map_or(0.0, |(_, end)| end - 0.000_5);
    let mut last = (f64::NEG_INFINITY, "");
    for &(ms, _) in lane.arrivals.iter().filter(|(ms, _)| (scale.from_ms..=scale.to_ms).contains(ms)) {
        let (x, colour) = (scale.x(ms), if ms < resumed_ms { BEFORE } else { AFTER });
        // Arrivals closer than a pixel are one mark: the file stays small and looks the same.
        if x - last.0 < 1.0 && colour == last.1 {
            continue;
        }
        canvas.rect(x, bar_top, 1.6, bar_height, colour, 0.0);
        last = (x, colour);
    }
    match (&lane.lost, lane.gap_ms) {
        (Some(_), _) => canvas.text((RIGHT - 4.0, middle + 4.0), 12.0, "end", FAULT, "lost"),
        (None, Some((begin, end))) if scale.x(end) - scale.x(begin) > 50.0 => {
            let centre = (scale.x(begin.max(0.0)) + scale.x(end)) / 2.0;
            canvas.text(
                (centre, middle + 4.0),
                12.0_f64.min(height - 4.0),
                "middle",
                INK,
                &format!("{:.0} ms", end - begin),
            );
        }
        _ => {}
    }
}

/// The stages from the verdict on, magnified, tied to the overview by a fan.
fn magnified(canvas: &mut Canvas, timeline: &Timeline, overview: Scale, above: f64) -> f64 {
    let verdict_ms = timeline.verdict_ms();
    let stages: Vec<&Stage> = timeline.stages.iter().filter(|stage| stage.name != "detect").collect();
    let Some(end_ms) = stages.iter().map(|stage| stage.end_ms).reduce(f64::max) else { return above + 24.0 };
    let first_bytes = timeline.lanes.iter().filter_map(|lane| lane.gap_ms).map(|(_, end)| end).reduce(f64::min);
    let end_ms = first_bytes.filter(|ms| *ms < end_ms + 30.0).map_or(end_ms, |ms| end_ms.max(ms));
    let margin = (end_ms - verdict_ms).max(1.0) * 0.06;
    let scale = Scale { from_ms: verdict_ms - margin, to_ms: end_ms + margin };
    let (top, row) = (above + 74.0, 24.0);
    let bottom = top + row * stages.len() as f64 + 8.0;
    let (fan_left, fan_right) = (overview.x(scale.from_ms), overview.x(scale.to_ms));
    let (a, b) = (above + 20.0, top - 6.0);
    canvas.area(&[(fan_left, a), (fan_right, a), (RIGHT, b), (LEFT, b)], "#f4f6f8");
    canvas.rect(LEFT, top - 6.0, RIGHT - LEFT, bottom - top + 6.0, "#f4f6f8", 0.0);
    axis(canvas, scale, top - 6.0, bottom, "ms");
    if let Some(ms) = first_bytes.filter(|ms| *ms <= scale.to_ms) {
        let x = scale.x(ms);
        canvas.line((x, top - 6.0), (x, bottom), AFTER, "stroke-width=\"1.6\"");
        let anchor = if x > RIGHT - 80.0 { "end" } else { "middle" };
        canvas.text((x, top - 12.0), 12.0, anchor, AFTER, "first bytes at a client");
    }
    for (position, stage) in stages.iter().enumerate() {
        draw_stage(canvas, stage, scale, top + row * position as f64, row);
    }
    bottom + 16.0
}

fn draw_stage(canvas: &mut Canvas, stage: &Stage, scale: Scale, top: f64, row: f64) {
    let colour = STAGES.iter().find(|(name, _)| *name == stage.name).map_or("#9aa5b1", |(_, colour)| colour);
    let (left, right) = (scale.x(stage.begin_ms), scale.x(stage.end_ms));
    canvas.text((LEFT - 12.0, top + row / 2.0 + 4.0), 12.0, "end", INK, &stage.name);
    canvas.rect(left, top + 4.0, right - left, row - 8.0, colour, 2.0);
    let took_ms = stage.end_ms - stage.begin_ms;
    let words = if took_ms < 1.0 { format!("{took_ms:.2} ms") } else { format!("{took_ms:.1} ms") };
    let (x, anchor) = if right > RIGHT - 70.0 { (left - 6.0, "end") } else { (right + 6.0, "start") };
    canvas.text((x, top + row / 2.0 + 4.0), 12.0, anchor, INK, &words);
}
