//! `soak`: a healthy guest under a load, for a long time, watched by the real monitor: it must give no verdict. At the
//! end the guest is broken, still under its load: now it must.
//!
//! ```text
//!   installation ready ── load ── settle ── recording beside the monitor …… ── panic ── verdict ── the spare answers
//!                            └── a visitor asks each second, over one connection, from here to the end ──┘
//! ```
//!
//! Each load has a guest of its own, so that a false verdict, which fences the guest, costs the others nothing. The
//! recording is judged afterwards for every deadline; what the host gave the guest meanwhile is recorded, too.

mod figures;
mod flood;
mod host;
mod load;
mod stalls;
mod verdict;
mod visitor;

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use monitor::{
    journal::{Event, Line},
    recording::{self, Recording},
};

use self::{
    host::{HostRecord, Vcpus},
    load::{Counters, Seen},
    visitor::Visit,
};
use super::{
    incident::{self, Incident},
    installation::{Installation, Order, TAP},
    progress::Progress,
    verdict::Host,
};
use crate::{
    fault::Fault,
    topology::{FILE_PORT, SERVICE, service_v4},
};

pub use figures::{Record, draw, read as read_records};
pub use load::Load;
pub use verdict::{Part, Verdict, Watched};

/// The deadlines that a recording is judged for, in milliseconds.
const DEADLINES_MS: [u64; 18] = [5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 400, 500];

/// The sensors of the rule.
const TICKS: &str = "tick.cpu*";

/// Points of each line that shows a counter over time.
const POINTS: u64 = 120;

/// From the load's begin to the recording's: what is measured is the load and not its beginning.
const SETTLE: Duration = Duration::from_secs(3);

/// Until the visitor has its first answer.
const FIRST_ANSWER_BOUND: Duration = Duration::from_secs(60);

/// For the recorder to end after its time, and for the recovery after the fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers from the spare that show that the service goes on.
const ANSWERS_AFTER: usize = 3;

/// Between two looks at the journal.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What is run.
#[derive(Clone, Debug)]
pub struct Soak {
    /// The loads, one after the other.
    pub loads: Vec<Load>,
    /// How long each.
    pub length: Duration,
    /// From one recorded sample to the next, in milliseconds.
    pub period_ms: f64,
    /// Everything random follows from it.
    pub seed: u64,
    /// The installation.
    pub order: Order,
    /// Where results are left.
    pub out: PathBuf,
}

/// Runs it; result, figures and their data are in `soak.out` afterwards, and the logs of what failed.
///
/// # Errors
/// When it cannot be carried out. A soak that was carried out and failed is a verdict, not an error.
pub fn run(soak: &Soak, progress: Progress) -> Result<Verdict> {
    let (mut parts, mut records) = (Vec::new(), Vec::new());
    for load in &soak.loads {
        progress.step(format_args!("load: {}", load.name()));
        let (part, record) = under(*load, soak, progress)?;
        parts.push(part);
        records.push(record);
        // After each load, so that what has been measured is not lost with what comes.
        draw(&records, &soak.out)?;
        fs::write(soak.out.join("detection.json"), serde_json::to_string(&records)?).context("detection.json")?;
    }
    let verdict = Verdict {
        pass: parts.iter().all(|part| part.pass),
        minutes: parts.iter().map(|part| part.seconds).sum::<f64>() / 60.0,
        kernel: records.first().map(|record| record.kernel.clone()).unwrap_or_default(),
        vcpus: soak.order.vcpus,
        deadline_ms: soak.order.deadline_ms,
        period_ms: soak.period_ms,
        host: Host::here(),
        loads: parts,
    };
    fs::write(soak.out.join("result.json"), serde_json::to_string(&verdict)? + "\n").context("result.json")?;
    Ok(verdict)
}

fn under(load: Load, soak: &Soak, progress: Progress) -> Result<(Part, Record)> {
    let logs = soak.out.join(load.name());
    fs::create_dir_all(&soak.out).with_context(|| format!("cannot make {}", soak.out.display()))?;
    let change = |spec: &mut _, folder: &Path| load.furnish(spec, folder);
    let mut installation = Installation::build_with(&soak.order, progress, change)?;
    let ready = installation.ready(&soak.order, progress);
    let result = ready.and_then(|()| carry_out(load, soak, &mut installation, progress));
    if !result.as_ref().is_ok_and(|(part, _)| part.pass) {
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        installation.save_logs(&logs)?;
        eprintln!("{}\nlogs: {}", installation.tails(), logs.display());
    }
    result
}

/// What the director and the threads beside it tell each other.
#[derive(Debug, Default)]
struct Signals {
    /// The soak is over: flood and visitor end.
    stop: AtomicBool,
    /// The recording is over: the host is not looked at any more.
    recorded: AtomicBool,
    answered: AtomicUsize,
}

/// Ends the threads however the director ends; the scope would wait for them for ever.
struct EndWithMe<'a>(&'a Signals);

impl Drop for EndWithMe<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.0.recorded.store(true, Ordering::Relaxed);
    }
}

fn carry_out(load: Load, soak: &Soak, installation: &mut Installation, progress: Progress) -> Result<(Part, Record)> {
    let signals = Signals::default();
    let vcpus = Vcpus::of(&mut installation.vm, TAP)?;
    let (client, attacker) = (installation.topology.client.try_clone()?, installation.topology.client.try_clone()?);
    let server = (service_v4(SERVICE), FILE_PORT).into();
    let (watched, visit, host) = thread::scope(|scope| {
        let end = EndWithMe(&signals);
        load.apply(&mut installation.vm, soak.order.vcpus)?;
        let visit = || Ok(visitor::visit(server, soak.seed, &signals.stop, &signals.answered));
        let visitor = scope.spawn(move || client.run(visit));
        let flood = (load == Load::Network).then(|| scope.spawn(|| attacker.run(|| flood::flood(&signals.stop))));
        settle(&signals)?;
        let sampler = scope.spawn(|| vcpus.record(&signals.recorded));
        let watched = watch(soak, installation, &signals, progress);
        drop(end);
        let panicked = |_| anyhow!("a thread of the soak panicked");
        if let Some(flood) = flood {
            flood.join().map_err(panicked)??;
        }
        let visit = visitor.join().map_err(panicked)??;
        let watched = watched.with_context(|| format!("the visitor says: {}", visit.failures.join("; ")))?;
        anyhow::Ok((watched, visit, sampler.join().map_err(panicked)?))
    })?;
    conclude(load, soak, installation, &watched, &visit, &host)
}

fn settle(signals: &Signals) -> Result<()> {
    let begin = Instant::now();
    while signals.answered.load(Ordering::Relaxed) == 0 {
        ensure!(begin.elapsed() < FIRST_ANSWER_BOUND, "the service gave no answer within {FIRST_ANSWER_BOUND:?}");
        thread::sleep(LOOK_AGAIN);
    }
    thread::sleep(SETTLE);
    Ok(())
}

/// What the director saw.
struct Watch {
    /// What the monitor counted until the recording's end.
    monitor: Watched,
    /// The guest's own counts; none if it was fenced.
    seen: Option<Seen>,
    recordings: Vec<Recording>,
    /// When the fault was ordered; none if a false verdict came before.
    fault: Option<Instant>,
    incident: Incident,
}

fn watch(soak: &Soak, installation: &mut Installation, signals: &Signals, progress: Progress) -> Result<Watch> {
    let seconds = soak.length.as_secs().max(1);
    let before = Counters::read(&mut installation.vm)?;
    let (mut recorder, file) = installation.record(soak.period_ms, seconds)?;
    let begin = Instant::now();
    progress.step(format_args!("{seconds} s begin"));
    let mut false_verdict_ns = None;
    while recorder.ended()?.is_none() && false_verdict_ns.is_none() {
        thread::sleep(LOOK_AGAIN);
        false_verdict_ns = verdict_ns(&incident::read(&installation.journal)?);
        ensure!(begin.elapsed() < soak.length + PATIENCE, "the recorder does not end: {}", recorder.tail());
    }
    let seen = match false_verdict_ns {
        None => Some(Counters::read(&mut installation.vm)?.since(before, begin.elapsed())),
        Some(_) => None,
    };
    signals.recorded.store(true, Ordering::Relaxed);
    let lines = incident::read(&installation.journal)?;
    // Once more: a verdict may have come while the guest was asked.
    let false_verdict_ns = verdict_ns(&lines);
    let counted = Watched::parse(&installation.metrics()?);
    let paths_lost = lines.iter().filter(|line| matches!(line.event, Event::PathLost { .. })).count() as u64;
    let monitor = Watched { paths_lost, ..counted };
    let recordings = read_recording(&file, false_verdict_ns).with_context(|| recorder.tail())?;
    drop(recorder);
    let fault = false_verdict_ns.is_none().then(|| break_guest(installation, signals, progress)).transpose()?;
    let incident = Incident::of(&incident::read(&installation.journal)?);
    Ok(Watch { monitor, seen, recordings, fault, incident })
}

/// Panics the guest, under its load, and waits until the spare answers for it; a recovery that does not come is judged
/// later.
fn break_guest(installation: &mut Installation, signals: &Signals, progress: Progress) -> Result<Instant> {
    progress.step("healthy to the end; now a real fault: panic");
    let fault = Instant::now();
    Fault::Panic.inject(&mut installation.vm)?;
    let mut answered = None;
    while fault.elapsed() < PATIENCE {
        if Incident::of(&incident::read(&installation.journal)?).is_over() {
            let now = signals.answered.load(Ordering::Relaxed);
            if now >= *answered.get_or_insert(now) + ANSWERS_AFTER {
                break;
            }
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(fault)
}

fn verdict_ns(lines: &[Line]) -> Option<u64> {
    lines.iter().find(|line| matches!(line.event, Event::Verdict { .. })).map(|line| line.mono_ns)
}

/// The recording up to a verdict: after it the guest was fenced, and its silence is nobody's fault.
fn read_recording(file: &Path, until_ns: Option<u64>) -> Result<Vec<Recording>> {
    let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    // A recorder that was ended leaves half a line.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut recordings = recording::read(Cursor::new(whole))?;
    if let Some(until_ns) = until_ns {
        recordings.iter_mut().for_each(|recording| recording.samples.retain(|sample| sample.0 <= until_ns));
    }
    Ok(recordings)
}

fn conclude(
    load: Load,
    soak: &Soak,
    installation: &Installation,
    watched: &Watch,
    visit: &Visit,
    host: &HostRecord,
) -> Result<(Part, Record)> {
    let recordings = &watched.recordings;
    let deadlines = DEADLINES_MS.map(Duration::from_millis);
    let tallies = recording::false_verdicts(recordings, TICKS, &deadlines);
    let seconds = tallies.first().map_or(0.0, |tally| tally.hours * 3600.0);
    // Of the longest stretch: there is more than one only where the agent was replaced.
    let longest = recordings.iter().max_by_key(|recording| recording.samples.len()).context("nothing was recorded")?;
    let step_ns = (soak.length.as_nanos() as u64 / POINTS).max(1_000_000_000);
    let motions = recording::motions(longest, step_ns);
    let record = Record {
        load,
        kernel: installation.kernel.clone(),
        vcpus: soak.order.vcpus,
        deadline_ms: soak.order.deadline_ms,
        tallies,
        packets: host.packets((step_ns / 1_000_000_000) as usize),
        motions,
    };
    let (answers, slowest) = visit.before(watched.fault.unwrap_or_else(Instant::now));
    let mut part = Part {
        pass: false,
        load,
        seconds,
        monitor: watched.monitor,
        recorded_samples: recordings.iter().map(|recording| recording.samples.len()).sum(),
        safe_deadline_ms: record.safe_deadline_ms(),
        silence_ms: record.motions.iter().map(|motion| (motion.sensor.clone(), motion.longest_stand_ms)).collect(),
        stalls: stalls::longest(recordings, host),
        guest: watched.seen,
        host: host.summary(),
        answers,
        slowest_answer_ms: slowest.as_secs_f64() * 1e3,
        answers_after: visit.answers.len() - answers,
        detect_ms: watched.fault.and(watched.incident.detect_ms()),
        why: Vec::new(),
    };
    part.why = reasons(&part, soak, watched, visit);
    part.pass = part.why.is_empty();
    Ok((part, record))
}

fn reasons(part: &Part, soak: &Soak, watched: &Watch, visit: &Visit) -> Vec<String> {
    let mut why = Vec::new();
    let mut require = |holds: bool, or: String| {
        if !holds {
            why.push(or);
        }
    };
    require(
        watched.fault.is_some(),
        format!("the monitor gave a verdict on a healthy guest after {:.0} s", part.seconds),
    );
    require(part.monitor.paths_lost == 0, format!("the path was lost {} times", part.monitor.paths_lost));
    require(part.monitor.samples > 0, "the monitor took no sample".into());
    let wanted = soak.length.as_secs_f64() * 0.95;
    require(watched.fault.is_none() || part.seconds >= wanted, format!("only {:.0} s were recorded", part.seconds));
    require(visit.failures.is_empty(), format!("the service did not answer: {}", visit.failures.join("; ")));
    require(visit.wrong_bytes == 0, format!("{} bytes of answers were wrong", visit.wrong_bytes));
    if let Some(missing) = watched.seen.as_ref().and_then(|seen| part.load.missing(seen)) {
        require(false, missing);
    }
    if watched.fault.is_some() {
        require(part.detect_ms.is_some(), "the real fault was not detected".into());
        require(watched.incident.is_over(), "the recovery did not come to its end".into());
        let after = part.answers_after;
        require(after >= ANSWERS_AFTER, format!("the spare answered {after} times only after the recovery"));
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::reinstate::Report;

    fn soak() -> Soak {
        let order = Order::new("6.1", 1, 200);
        let length = Duration::from_secs(100);
        Soak { loads: vec![Load::Cpu], length, period_ms: 1.0, seed: 1, order, out: PathBuf::new() }
    }

    fn healthy() -> (Part, Watch, Visit) {
        let seen = Seen { busy_share: 1.0, reclaimed_per_s: 0.0, received_per_s: 1.0, oom_kills: 0 };
        let monitor = Watched { samples: 20_000, ..Watched::default() };
        let part = Part {
            pass: true,
            load: Load::Cpu,
            seconds: 100.0,
            monitor,
            recorded_samples: 100_000,
            safe_deadline_ms: Some(20.0),
            silence_ms: std::collections::BTreeMap::new(),
            stalls: Vec::new(),
            guest: Some(seen),
            host: HostRecord::default().summary(),
            answers: 100,
            slowest_answer_ms: 9.0,
            answers_after: ANSWERS_AFTER,
            detect_ms: Some(205.0),
            why: Vec::new(),
        };
        let incident = Incident { report: Some((1, Report::default())), ..Incident::default() };
        let fault = Some(Instant::now());
        (part, Watch { monitor, seen: Some(seen), recordings: Vec::new(), fault, incident }, Visit::default())
    }

    fn check(change: impl FnOnce(&mut Part, &mut Watch, &mut Visit), expected: &str) {
        let (mut part, mut watched, mut visit) = healthy();
        change(&mut part, &mut watched, &mut visit);
        let why = reasons(&part, &soak(), &watched, &visit).join("; ");
        assert!(why.contains(expected) && why.is_empty() == expected.is_empty(), "{why:?} instead of {expected:?}");
    }

    #[test]
    fn everything_that_can_be_wrong_with_a_soak_is_said() {
        check(|_, _, _| {}, "");
        check(|_, watched, _| watched.fault = None, "a verdict on a healthy guest after 100 s");
        check(|part, _, _| part.monitor.paths_lost = 1, "the path was lost 1 times");
        check(|part, _, _| part.monitor.samples = 0, "no sample");
        check(|part, _, _| part.seconds = 90.0, "only 90 s were recorded");
        check(|_, _, visit| visit.failures.push("question 2: timed out".into()), "question 2: timed out");
        check(|_, _, visit| visit.wrong_bytes = 3, "3 bytes");
        check(|_, watched, _| watched.seen.as_mut().unwrap().busy_share = 0.1, "busy for 0.10 of the time only");
        check(|part, _, _| part.detect_ms = None, "the real fault was not detected");
        check(|_, watched, _| watched.incident.report = None, "did not come to its end");
        check(|part, _, _| part.answers_after = 0, "answered 0 times");
    }
}
