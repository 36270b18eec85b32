//! What it costs to reinstate a session, as `reinstate/examples/scale.rs` measures it on real connections: alone, and
//! each of many whose clients are asked at the same time. The limit is the system calls that make one idle socket.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
    sockets,
};
use crate::scenario::{Progress, program};

/// KiB of state, half of it to be sent, half not read yet; then the paper's microseconds, extraction included.
const FIGURES: [(usize, f64); 3] = [(1, 158.0), (5, 258.0), (10, 358.0)];
/// Microseconds that one session may take alone, and each of many.
const GOALS: (f64, f64) = (60.0, 25.0);
const EXAMPLE: &str = "examples/scale";
const BARE: &str = "the system calls that make one idle socket";

pub(super) fn measure(effort: &Effort, progress: Progress) -> Result<Vec<Line>> {
    let Ok(example) = program(EXAMPLE) else {
        progress.step(format_args!("{EXAMPLE} is not built: no lines about single sessions"));
        return Ok(Vec::new());
    };
    let count = effort.sessions;
    let mut command = Command::new(example);
    let sizes = FIGURES.map(|(kib, _)| kib.to_string());
    let output = command.arg(count.to_string()).args(sizes).output().context(EXAMPLE)?;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{EXAMPLE} failed: {error}");
    let results = said.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{EXAMPLE}: {line}")));
    let results: Vec<Value> = results.collect::<Result<_>>()?;
    ensure!(results.len() == FIGURES.len(), "{EXAMPLE} said something else: {said}");
    let bare_us = sockets::rebuilt(count)?.as_secs_f64() * 1e6 / count as f64;
    let mut lines = Vec::new();
    for ((kib, paper), result) in FIGURES.into_iter().zip(&results) {
        let us = |name: &str| result[name].as_f64().with_context(|| format!("{EXAMPLE}: no {name} in {result}"));
        let alone = us("rebuild_one_us")? + us("revive_one_us")?;
        let figures = [
            ("alone".to_owned(), alone, GOALS.0, Some(paper)),
            (format!("each of {count}"), us("batch_us")?, GOALS.1, None),
        ];
        for (how, ours, goal, paper) in figures {
            let ours = Sample { samples: count, ..Sample::of(vec![ours]) };
            let line =
                Line::new(Group::Sessions, format!("session {kib} KB, {how}"), Unit::Micros, &ours, bare_us, BARE);
            lines.push(Line { paper, ..line.goal(Goal::AtMost(goal)) });
        }
    }
    Ok(lines)
}
