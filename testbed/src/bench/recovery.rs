//! What a whole recovery takes: real guests panic. The limit is what is not ours: QEMU's answer to the fence, and the
//! system calls that make as many sockets.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
    sockets,
};
use crate::{
    client::Kind,
    fault::Fault,
    scenario::{Order, Progress, Run, Verdict, hang_download},
};

/// The paper's longest reinstatement, in milliseconds, and our goal.
const CROWD: (f64, f64) = (25.0, 10.0);
/// The longest median gap beyond the deadline.
const GAP_MS_MAX: f64 = 50.0;
/// Microseconds of one session from the order on: the paper's for the smallest, our goals for one and for each of many.
const ONE: (f64, f64) = (158.0, 60.0);
const EACH_US_MAX: f64 = 25.0;
const BARE_SOCKET: &str = "the system calls that make one socket";
const BARE: &str = "QEMU's answer to the fence, and the system calls that make the sockets";

pub(super) fn measure(effort: &Effort, out: &Path, order: &Order, progress: Progress) -> Result<Vec<Line>> {
    let runs = effort.recoveries;
    let recovered = |sessions| recoveries(sessions, runs, out, order, progress);
    let (paper, goal) = CROWD;
    let crowd = recovered(effort.crowd)?;
    let name = format!("verdict to last of {} live", effort.crowd);
    let mut lines =
        vec![line(name, &crowd, |verdict| verdict.verdict_to_live_ms)?.paper(paper).goal(Goal::AtMost(goal))];
    let each = order_to_live(format!("order to live, each of {}", effort.crowd), &crowd)?;
    lines.push(each.goal(Goal::AtMost(EACH_US_MAX)));
    for (place, sessions) in effort.gaps.into_iter().enumerate() {
        let verdicts = recovered(sessions)?;
        if place == 0 {
            let (paper, goal) = ONE;
            let alone = order_to_live("order to live, one session".to_owned(), &verdicts)?;
            lines.insert(1, alone.paper(paper).goal(Goal::AtMost(goal)));
        }
        let name = format!("gap past the deadline, {sessions}");
        let past = |verdict: &Verdict| Some(verdict.gap_ms_p50? - verdict.deadline_ms as f64);
        lines.push(line(name, &verdicts, past)?.goal(Goal::AtMost(GAP_MS_MAX)));
    }
    Ok(lines)
}

fn recoveries(sessions: usize, runs: u64, out: &Path, order: &Order, progress: Progress) -> Result<Vec<Verdict>> {
    let one = |seed| {
        let run = Run {
            fault: Fault::Panic,
            sessions,
            kinds: vec![Kind::Paced],
            ipv6: false,
            aim: None,
            afterwards: hang_download::AFTERWARDS,
            seed,
            order: order.clone(),
            out: out.join(format!("recovery-{sessions}-{seed}")),
            keep_logs: false,
            capture: None,
        };
        let (verdict, _) = hang_download::run(&run, progress)?;
        ensure!(verdict.pass, "a recovery failed, its time means nothing: {:?}", verdict.why);
        Ok(verdict)
    };
    (1..=runs).map(one).collect()
}

/// From the order on, with everything that the spare does, divided among the sessions.
fn order_to_live(name: String, verdicts: &[Verdict]) -> Result<Line> {
    let sessions = verdicts.first().map_or(1, |verdict| verdict.sessions);
    let each_us = |verdict: &Verdict| Some(verdict.reinstate_ms? * 1e3 / sessions as f64);
    let each = verdicts.iter().map(each_us).collect::<Option<Vec<f64>>>().context("a recovery without its time")?;
    let bare_us = sockets::rebuilt(sessions)?.as_secs_f64() * 1e6 / sessions as f64;
    Ok(Line::new(Group::Recovery, name, Unit::Micros, &Sample::of(each), bare_us, BARE_SOCKET))
}

fn line(name: String, verdicts: &[Verdict], figure: impl Fn(&Verdict) -> Option<f64>) -> Result<Line> {
    let of = |figure: &dyn Fn(&Verdict) -> Option<f64>| {
        verdicts.iter().map(figure).collect::<Option<Vec<f64>>>().context("a recovery without one of its times")
    };
    let sessions = verdicts.first().map_or(0, |verdict| verdict.sessions);
    let bare_ms = Sample::of(of(&|verdict| verdict.fence_ms)?).median + sockets::rebuilt(sessions)?.as_secs_f64() * 1e3;
    Ok(Line::new(Group::Recovery, name, Unit::Millis, &Sample::of(of(&figure)?), bare_ms, BARE))
}
