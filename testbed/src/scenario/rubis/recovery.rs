//! What became of each machine that broke, out of the monitor's journal and the clients' trace.
//!
//! A session is one TCP connection of the dead machine: of a client for a front end, of a front end for a mid tier. It
//! lives when its peer's application has it again. A client *waits* that had asked before the last sign of life and had
//! no reply at the verdict; its time goes on until the first byte of its reply, through all tiers.

use auction::clients::trace::{self, Met};
use control::reinstate::Outcome;
use monitor::journal::Line;
use serde::Serialize;

use crate::{
    fault::Fault,
    scenario::incident::{Incident, millis_between},
};

/// Reasons that are quoted for lost sessions; all are counted.
const QUOTED_MAX: usize = 10;

/// What was done, and what was seen meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Struck {
    pub(super) crash: Fault,
    pub(super) machines: Vec<Victim>,
    pub(super) why: Vec<String>,
}

/// A machine that was broken.
#[derive(Clone, Debug)]
pub(super) struct Victim {
    pub(super) tier: &'static str,
    pub(super) target: &'static str,
    /// Who shall take over, all of them.
    pub(super) peers: Vec<&'static str>,
    /// When that was ordered, in monotonic nanoseconds.
    pub(super) at_ns: u64,
}

/// One machine's recovery. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Recovery {
    /// `fe` or `mt`.
    pub tier: &'static str,
    /// How it was broken.
    pub crash: Fault,
    /// Who took over; several that shared the work, with `+` between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spare: Option<String>,
    /// From the last sign of life to the verdict.
    pub detect_ms: Option<f64>,
    /// The fence, request to answer.
    pub fence_ms: Option<f64>,
    /// Reading everything out of the dead memory.
    pub extract_ms: Option<f64>,
    /// From the verdict to the end of the peer's last stage: every session lives.
    pub verdict_to_live_ms: Option<f64>,
    /// Connections that were carried on.
    pub recovered: usize,
    /// Connections of somebody alive that were given up: there should be none.
    pub lost: usize,
    /// Connections that were given up because their other end died, too.
    pub orphaned: usize,
    /// Why, of the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost_why: Vec<String>,
    /// From the verdict to each session that lives again: the mean.
    pub session_ms_mean: Option<f64>,
    /// The last one.
    pub session_ms_max: Option<f64>,
}

/// Clients that waited for a reply through the crash. Times in milliseconds, from the last verdict to the first byte.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Waiting {
    /// How many.
    pub clients: usize,
    /// Of them, those that got no reply.
    pub failed: usize,
    /// The mean of the others.
    pub first_byte_ms_mean: Option<f64>,
    /// The longest.
    pub first_byte_ms_max: Option<f64>,
}

/// Everything about the crash.
pub(super) struct Account {
    pub(super) recoveries: Vec<Recovery>,
    pub(super) waiting: Option<Waiting>,
    pub(super) why: Vec<String>,
    /// For drawings.
    pub(super) struck: Struck,
    pub(super) incidents: Vec<Incident>,
    pub(super) trace: Vec<trace::Line>,
}

/// The lines of a journal about one target.
pub(super) fn about(lines: &[Line], target: &str) -> Vec<Line> {
    lines.iter().filter(|line| line.target == target).cloned().collect()
}

/// Joins what was done with what journal and trace say.
pub(super) fn account(struck: Struck, lines: &[Line], trace: Vec<trace::Line>) -> Account {
    let mut why = struck.why.clone();
    let (mut recoveries, mut incidents) = (Vec::new(), Vec::new());
    let dead: Vec<&str> = struck.machines.iter().map(|victim| victim.target).collect();
    for victim in &struck.machines {
        let incident = Incident::of(&about(lines, victim.target));
        let recovery = recovery(victim, struck.crash, &incident, &dead);
        why.extend(incident.trouble.iter().map(|trouble| format!("{}: {trouble}", victim.target)));
        if incident.report.is_none() {
            why.push(format!("nobody took {} over", victim.target));
        } else if !took_part(victim, &incident) {
            why.push(format!("{} was taken over by {:?}, not by {:?}", victim.target, incident.spare, victim.peers));
        } else if recovery.recovered == 0 {
            why.push(format!("no session of {} was carried on", victim.target));
        }
        if recovery.lost > 0 {
            why.push(format!("{} sessions of {} were lost: {:?}", recovery.lost, victim.target, recovery.lost_why));
        }
        recoveries.push(recovery);
        incidents.push(incident);
    }
    let waiting = waiting(&incidents, &trace);
    Account { recoveries, waiting, why, struck, incidents, trace }
}

fn recovery(victim: &Victim, crash: Fault, incident: &Incident, dead: &[&str]) -> Recovery {
    let sessions = incident.report.iter().flat_map(|(_, report)| &report.sessions);
    let (mut recovered, mut lost, mut orphaned, mut lost_why, mut live_ms) = (0, 0, 0, Vec::new(), Vec::new());
    let before_order = incident.verdict_ns.zip(incident.ordered_ns).map(|(from, to)| millis_between(from, to));
    for session in sessions {
        match &session.outcome {
            Outcome::Resumed => {
                recovered += 1;
                live_ms.extend(session.live_us.zip(before_order).map(|(us, before)| before + us as f64 / 1e3));
            }
            // Its other end was the front end that broke.
            Outcome::Lost { .. } if super::tier::is_of(session.peer.ip(), dead) => orphaned += 1,
            Outcome::Lost { why } => {
                lost += 1;
                lost_why.push(format!("{}: {why}", session.peer));
            }
        }
    }
    lost_why.truncate(QUOTED_MAX);
    Recovery {
        tier: victim.tier,
        crash,
        spare: incident.spare.clone(),
        detect_ms: incident.detect_ms().or_else(|| Some(millis_between(victim.at_ns, incident.verdict_ns?))),
        fence_ms: incident.fence_ms(),
        extract_ms: incident.stage_ms("extract"),
        verdict_to_live_ms: incident.verdict_to_live_ms(),
        recovered,
        lost,
        orphaned,
        lost_why,
        session_ms_mean: mean(&live_ms),
        session_ms_max: live_ms.iter().copied().reduce(f64::max),
    }
}

/// Whether all peers of a machine had a part in its recovery, and nobody else.
fn took_part(victim: &Victim, incident: &Incident) -> bool {
    let mut spares: Vec<&str> = incident.spare.iter().flat_map(|spare| spare.split('+')).collect();
    spares.sort_unstable();
    spares == victim.peers
}

/// When the last sign of life of the first machine was, and when the last verdict fell.
pub(super) fn stretch(incidents: &[Incident]) -> Option<(u64, u64)> {
    let signs = incidents.iter().map(|incident| incident.last_sign_ns.or(incident.verdict_ns));
    let verdicts = incidents.iter().map(|incident| incident.verdict_ns);
    Some((
        signs.collect::<Option<Vec<_>>>()?.into_iter().min()?,
        verdicts.collect::<Option<Vec<_>>>()?.into_iter().max()?,
    ))
}

fn waiting(incidents: &[Incident], trace: &[trace::Line]) -> Option<Waiting> {
    let (sign_ns, verdict_ns) = stretch(incidents)?;
    let (mut waiting, mut waited_ms) = (Waiting::default(), Vec::new());
    for line in trace {
        let (asked, end, failed) = match line.met {
            Met::Answered { asked_ns, first_ns, .. } => (asked_ns, first_ns, false),
            Met::Failed { asked_ns, at_ns, .. } => (asked_ns, at_ns, true),
            _ => continue,
        };
        if asked > sign_ns || end < verdict_ns {
            continue;
        }
        waiting.clients += 1;
        waiting.failed += usize::from(failed);
        waited_ms.extend((!failed).then(|| millis_between(verdict_ns, end)));
    }
    waiting.first_byte_ms_mean = mean(&waited_ms);
    waiting.first_byte_ms_max = waited_ms.iter().copied().reduce(f64::max);
    Some(waiting)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shall_share_a_recovery_has_to() {
        let victim = Victim { tier: "fe", target: "fe1", peers: vec!["fe2", "fe3"], at_ns: 0 };
        let by = |spare: &str| Incident { spare: Some(spare.to_owned()), ..Incident::default() };
        assert!(took_part(&victim, &by("fe2+fe3")) && took_part(&victim, &by("fe3+fe2")));
        assert!(!took_part(&victim, &by("fe3")) && !took_part(&victim, &Incident::default()));
    }

    #[test]
    fn who_had_asked_before_the_crash_and_had_nothing_at_the_verdict_waits() {
        let ms = |ms: u64| ms * 1_000_000;
        let incident = Incident { last_sign_ns: Some(ms(1000)), verdict_ns: Some(ms(1200)), ..Incident::default() };
        let answered = |asked, first| Met::Answered { asked_ns: ms(asked), first_ns: ms(first), whole_ns: ms(first) };
        let failed =
            Met::Failed { asked_ns: ms(900), at_ns: ms(1300), failure: trace::Failure::Broken, why: String::new() };
        let met = [answered(990, 1220), answered(980, 1240), answered(1100, 1230), answered(900, 1100), failed];
        let trace: Vec<_> = met.into_iter().map(|met| trace::Line { client: 0, front_end: 0, met }).collect();
        let waiting = waiting(&[incident], &trace).unwrap();
        assert_eq!((waiting.clients, waiting.failed), (3, 1));
        assert_eq!((waiting.first_byte_ms_mean, waiting.first_byte_ms_max), (Some(30.0), Some(40.0)));
    }
}
