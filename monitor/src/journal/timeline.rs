//! `monitor timeline`: the stages of each incident as text, in milliseconds since the last sign of life.

use std::fmt::Write;

use super::{Event, Line};

/// The incidents of a journal, one paragraph each.
pub fn text(lines: &[Line]) -> String {
    let mut out = String::new();
    let mut zero_ns = None;
    for line in lines {
        if let Event::LastSign { known } = line.event {
            zero_ns = Some(line.mono_ns);
            let note = if known { "" } else { " (nobody saw it move; counted from the verdict)" };
            let _ = writeln!(out, "{}{note}", line.target);
        }
        let (Some(zero_ns), Some(what)) = (zero_ns, stage(&line.event)) else { continue };
        let _ = writeln!(out, "  {:>10.3} ms  {what}", millis(line.mono_ns, zero_ns));
        if let Event::Evacuated { report, .. } = &line.event {
            let ordered_ns = ordered_before(lines, line).unwrap_or(line.mono_ns);
            for stage in &report.stages {
                let begin_ns = ordered_ns + stage.begin_us * 1000;
                let took_ms = stage.end_us.saturating_sub(stage.begin_us) as f64 / 1e3;
                let _ = writeln!(out, "  {:>10.3} ms    {} for {took_ms:.3} ms", millis(begin_ns, zero_ns), stage.name);
            }
        }
    }
    out
}

fn millis(at_ns: u64, zero_ns: u64) -> f64 {
    (at_ns as f64 - zero_ns as f64) / 1e6
}

/// When the order that `line` ended was given: the spare counts its stages from there.
fn ordered_before(lines: &[Line], line: &Line) -> Option<u64> {
    let before = lines.iter().filter(|other| other.target == line.target && other.mono_ns <= line.mono_ns);
    before.filter(|other| matches!(other.event, Event::Ordered { .. })).map(|other| other.mono_ns).next_back()
}

fn stage(event: &Event) -> Option<String> {
    Some(match event {
        Event::LastSign { .. } => "last sign of life".to_owned(),
        Event::Verdict { illness, rule, symptoms, watched, .. } => {
            format!("verdict: {illness}, {} of {watched} {rule} stand still", symptoms.len())
        }
        Event::GivenUp { illness, module, why, .. } => format!("verdict: {illness}, {module} did not cure it: {why}"),
        Event::Reported => "reported, nothing done".to_owned(),
        Event::Fenced { token, .. } => format!("fenced, epoch {}", token.epoch),
        Event::FenceFailed { why } => format!("not fenced: {why}"),
        Event::Succeeded { stands } => match stands {
            true => "taken up by a successor: the fence stands".to_owned(),
            false => "taken up by a successor: the fence has ended".to_owned(),
        },
        Event::Held { why } => format!("left to the other monitor: {why}"),
        Event::Deputized { why } => format!("in the other monitor's place: {why}"),
        Event::ResetOrdered { why, .. } => format!("reset behind the fence: {why}"),
        Event::Reset => "the target boots, its links are down".to_owned(),
        Event::TargetBack { .. } => "the target is back: registered, its sensors move".to_owned(),
        Event::Drained => "the carried-over sessions have come to their end".to_owned(),
        Event::AddressReturned { aborted } => format!("the spare gave the addresses back; {aborted} connections reset"),
        Event::Delayed { why } => format!("delayed: {why}"),
        Event::Released { then } => format!("fence ended: {then:?}"),
        Event::Ordered { spare, .. } => format!("ordered {spare} to take over"),
        Event::Passed { spare, why } => format!("{spare} passed: {why}"),
        Event::Evacuated { spare, resumed, lost, .. } => {
            format!("evacuated to {spare}: {resumed} resumed, {lost} lost")
        }
        Event::OutcomeUnknown { spare, why } => format!("{spare} did not answer: {why}"),
        Event::Unserved => "no spare took over; the fence stands".to_owned(),
        _ => return None,
    })
}
