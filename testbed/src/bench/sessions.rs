//! What it costs to bring a session back, by the bytes it has: extraction and reinstatement together, then the latter
//! by itself.
//!
//! The first is a real guest that stops with so many KiB in each session's send queue, and a box for each: from the
//! order on everything is in it: walk, boxes, clients asked, sockets, application. Divided among the sessions it is
//! what each of many costs; a lone session pays for all that is done once.
//!
//! The second is `reinstate/examples/scale.rs` on real connections whose values come from this kernel. The limit of
//! both is the system calls that make one idle socket.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
    sockets,
};
use crate::{
    client::Kind,
    fault::Fault,
    scenario::{Order, Progress, Run, Verdict, hang_download, program},
};

/// What a session has to send, in KiB; then the paper's microseconds.
const FIGURES: [(Kind, usize, f64); 3] =
    [(Kind::Unread1, 1, 158.0), (Kind::Unread5, 5, 258.0), (Kind::Unread10, 10, 358.0)];
/// Microseconds that one session may take alone, and each of many.
const GOALS: (f64, f64) = (60.0, 25.0);
const EXAMPLE: &str = "examples/scale";
const BARE: &str = "the system calls that make one idle socket";

/// Boxes of the guest: with so many it has memory for what its sessions leave with it.
const POOL_SLOTS: u32 = 4_000;
/// A response's head, and the request in the log of the box, are part of a session's bytes.
const BESIDE_BYTES: usize = 1_000;

pub(super) fn measure(effort: &Effort, out: &Path, order: &Order, progress: Progress) -> Result<Vec<Line>> {
    let count = effort.sessions;
    let bare_us = sockets::rebuilt(count)?.as_secs_f64() * 1e6 / count as f64;
    let mut lines = Vec::new();
    for (kind, kib, paper) in FIGURES {
        let line = |name: String, ours: Sample| Line::new(Group::Sessions, name, Unit::Micros, &ours, bare_us, BARE);
        let (alone, _) = brought_back(kind, kib, 1, effort.recoveries, out, order, progress)?;
        lines.push(line(format!("{kib} KB brought back, alone"), alone).paper(paper).goal(Goal::AtMost(GOALS.0)));
        // A guest of many sessions may not have got to the last of them when it stops: the line says what was found.
        let (each, found) = brought_back(kind, kib, count, 1, out, order, progress)?;
        lines.push(line(format!("{kib} KB, each of {count} ({found} B)"), each).goal(Goal::AtMost(GOALS.1)));
    }
    lines.extend(reinstated(count, bare_us, progress)?);
    Ok(lines)
}

/// Microseconds from the order on for each of `sessions`, and the bytes that each had at least, on average.
fn brought_back(
    kind: Kind,
    kib: usize,
    sessions: usize,
    runs: u64,
    out: &Path,
    order: &Order,
    progress: Progress,
) -> Result<(Sample, usize)> {
    let mut least_found = usize::MAX;
    let each = (1..=runs).map(|seed| {
        let run = Run {
            fault: Fault::Panic,
            sessions,
            kinds: vec![kind],
            ipv6: false,
            aim: None,
            afterwards: hang_download::AFTERWARDS,
            seed,
            order: Order { pool_slots: if sessions == 1 { order.pool_slots } else { POOL_SLOTS }, ..order.clone() },
            out: out.join(format!("sessions-{kib}-{sessions}-{seed}")),
            keep_logs: false,
            capture: None,
        };
        let (verdict, _) = hang_download::run(&run, progress)?;
        let Verdict { pass, why, bytes_carried, reinstate_ms, .. } = verdict;
        ensure!(pass, "a recovery failed, its time means nothing: {why:?}");
        let (meant, found) = (kib << 10, bytes_carried as usize / sessions);
        let is_meant = (1..=meant + BESIDE_BYTES).contains(&found);
        ensure!(is_meant, "{found} bytes found in each session, {meant} were meant to be");
        least_found = least_found.min(found);
        Ok(reinstate_ms.context("a recovery without its time")? * 1e3 / sessions as f64)
    });
    Ok((Sample::of(each.collect::<Result<_>>()?), least_found))
}

/// The reinstatement by itself.
fn reinstated(count: usize, bare_us: f64, progress: Progress) -> Result<Vec<Line>> {
    let Ok(example) = program(EXAMPLE) else {
        progress.step(format_args!("{EXAMPLE} is not built: no lines about reinstatement by itself"));
        return Ok(Vec::new());
    };
    let mut command = Command::new(example);
    let sizes = FIGURES.map(|(_, kib, _)| kib.to_string());
    let output = command.arg(count.to_string()).args(sizes).output().context(EXAMPLE)?;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{EXAMPLE} failed: {error}");
    let results = said.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{EXAMPLE}: {line}")));
    let results: Vec<Value> = results.collect::<Result<_>>()?;
    ensure!(results.len() == FIGURES.len(), "{EXAMPLE} said something else: {said}");
    let mut lines = Vec::new();
    for ((_, kib, _), result) in FIGURES.into_iter().zip(&results) {
        let us = |name: &str| result[name].as_f64().with_context(|| format!("{EXAMPLE}: no {name} in {result}"));
        let alone = us("rebuild_one_us")? + us("revive_one_us")?;
        for (how, ours) in [("alone".to_owned(), alone), (format!("each of {count}"), us("batch_us")?)] {
            let ours = Sample { samples: count, ..Sample::of(vec![ours]) };
            let name = format!("{kib} KB reinstated only, {how}");
            lines.push(Line::new(Group::Sessions, name, Unit::Micros, &ours, bare_us, BARE));
        }
    }
    Ok(lines)
}
