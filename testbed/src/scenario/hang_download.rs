//! `hang-download`: clients are served by a guest, the guest hangs, and every client must get every byte exactly once.
//!
//! ```text
//!   installation ready ── clients start ── all under way ── seeded pause ── fault ── recovery ── clients end
//! ```
//!
//! The clients are real TCP connections, the fault is real, and nothing tells the healers about it. Time zero of
//! everything that is measured is the last sign of life that the monitor saw; where there is none, the fault's order.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    incident::{self, Incident, millis_between},
    installation::{Installation, Order},
    progress::Progress,
    verdict::{self, Host, Verdict},
};
use crate::{
    client::{self, Kind, Outcome, Session, Signals},
    fault::Fault,
    timeline::{Lane, Timeline},
    topology::{FILE_PORT, SERVICE, service_v4, service_v6},
};

/// Until every session has its first bytes: an emulated guest with hundreds of sessions takes a while.
const START_BOUND: Duration = Duration::from_secs(30);

/// From the fault to the spare's report. A recovery takes a fraction of a second; a loaded machine takes longer.
const RECOVERY_BOUND: Duration = Duration::from_secs(30);

/// How long sessions go on after the recovery, to show that they really live.
const AFTERWARDS: Duration = Duration::from_millis(1500);

/// What is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is done to the guest.
    pub fault: Fault,
    /// How many clients.
    pub sessions: usize,
    /// What they do, in turn.
    pub kinds: Vec<Kind>,
    /// Whether every second session uses IPv6.
    pub ipv6: bool,
    /// Everything random follows from it.
    pub seed: u64,
    /// The installation.
    pub order: Order,
    /// Where results are left.
    pub out: PathBuf,
    /// Whether logs are left there after a success, too.
    pub keep_logs: bool,
    /// Where the RDMA network is recorded, if it is.
    pub capture: Option<PathBuf>,
}

/// Runs it; results and drawings are in `run.out` afterwards.
///
/// # Errors
/// When it cannot be carried out. A run that was carried out and failed is a verdict, not an error.
pub fn run(run: &Run, progress: Progress) -> Result<(Verdict, Timeline)> {
    run_with(run, progress, |clock, signals| Ok(crowd(sessions(run, clock), signals)))
}

/// Runs it with clients of the caller's: `clients` is called on a thread in the clients' machine, says through the
/// signals that all `run.sessions` are under way, and returns when they have come to their end.
///
/// # Errors
/// See [`run`].
pub fn run_with(
    run: &Run,
    progress: Progress,
    clients: impl FnOnce(Clock, &Signals) -> Result<Vec<Outcome>> + Send,
) -> Result<(Verdict, Timeline)> {
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    let mut order = run.order.clone();
    order.lockup_module = run.fault.needs_module();
    let mut installation = Installation::build(&order, progress)?;
    let result =
        installation.ready(&run.order, progress).and_then(|()| carry_out(run, &mut installation, progress, clients));
    let passed = result.as_ref().is_ok_and(|(verdict, _)| verdict.pass);
    if run.keep_logs || !passed {
        installation.save_logs(&run.out)?;
        eprintln!("logs: {}", run.out.display());
    }
    if !passed {
        eprintln!("{}", installation.tails());
    }
    let (verdict, timeline) = result?;
    save(&run.out, &verdict, &timeline)?;
    Ok((verdict, timeline))
}

fn carry_out(
    run: &Run,
    installation: &mut Installation,
    progress: Progress,
    clients: impl FnOnce(Clock, &Signals) -> Result<Vec<Outcome>> + Send,
) -> Result<(Verdict, Timeline)> {
    let capture = run.capture.as_deref().map(|file| installation.capture(file)).transpose()?;
    let clock = Clock::begin();
    let signals = Signals::default();
    let client = installation.topology.client.try_clone()?;
    let (outcomes, fault_ns) = thread::scope(|scope| {
        progress.step(format_args!("{} clients start", run.sessions));
        let crowd = scope.spawn(|| client.run(|| clients(clock, &signals)));
        let directed = direct(run, installation, &signals, progress);
        signals.finish.store(true, Ordering::Relaxed);
        progress.step("the clients come to their end");
        let outcomes = crowd.join().map_err(|_| anyhow!("the clients panicked"))??;
        let reasons = outcomes.iter().filter_map(|outcome| outcome.lost.as_deref()).collect::<Vec<_>>().join("; ");
        let fault_ns = directed.with_context(|| format!("the clients say: {reasons}"))?;
        anyhow::Ok((outcomes, fault_ns))
    })?;
    if let Some(capture) = capture {
        capture.finish()?;
    }
    let incident = Incident::of(&incident::read(&installation.journal)?);
    let verdict = judge(run, installation, &outcomes, &incident, clock, fault_ns);
    let timeline = draw(run, installation, &outcomes, &incident, clock, fault_ns);
    Ok((verdict, timeline))
}

/// The clients' clock and its zero on the monotonic clock that journals use.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The clients' zero.
    pub zero: Instant,
    /// The same moment in monotonic nanoseconds.
    pub zero_ns: u64,
}

impl Clock {
    fn begin() -> Self {
        Self { zero: Instant::now(), zero_ns: monotonic_ns() }
    }

    /// A journal's time as the clients count it.
    fn since_zero(self, mono_ns: u64) -> Duration {
        Duration::from_nanos(mono_ns.saturating_sub(self.zero_ns))
    }
}

fn monotonic_ns() -> u64 {
    use monitor::clock::Clock as _;
    monitor::clock::Monotonic.now_ns()
}

/// A monotonic time on the clock of the world.
fn unix_ns(mono_ns: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    now - (monotonic_ns() - mono_ns)
}

fn sessions(run: &Run, clock: Clock) -> Vec<Session> {
    let plans = client::mix(&run.kinds, run.sessions, run.seed).into_iter().enumerate();
    let address = |number: usize| match run.ipv6 && number % 2 == 1 {
        true => (service_v6(SERVICE), FILE_PORT).into(),
        false => (service_v4(SERVICE), FILE_PORT).into(),
    };
    plans.map(|(number, plan)| Session { plan, server: address(number), clock: clock.zero }).collect()
}

fn crowd(sessions: Vec<Session>, signals: &Signals) -> Vec<Outcome> {
    thread::scope(|scope| {
        let running: Vec<_> = sessions.into_iter().map(|session| scope.spawn(|| session.run(signals))).collect();
        running.into_iter().filter_map(|session| session.join().ok()).collect()
    })
}

/// Waits for the clients, breaks the guest, waits for the recovery; returns when the fault was ordered.
fn direct(run: &Run, installation: &mut Installation, signals: &Signals, progress: Progress) -> Result<u64> {
    let (begin, count) = (Instant::now(), run.sessions);
    while signals.under_way.load(Ordering::Relaxed) < count {
        if begin.elapsed() > START_BOUND {
            bail!("{} of {count} clients got bytes within {START_BOUND:?}", signals.under_way.load(Ordering::Relaxed));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let pause = Duration::from_micros(StdRng::seed_from_u64(run.seed).random_range(700_000..1_700_000));
    thread::sleep(pause);
    if incident::read(&installation.journal)?.iter().any(incident::is_verdict) {
        bail!("the monitor gave a verdict on a healthy guest: the deadline is too short for this machine");
    }
    progress.step(format_args!("fault: {}", run.fault.name()));
    let fault_ns = monotonic_ns();
    run.fault.inject(&mut installation.vm)?;
    let begin = Instant::now();
    loop {
        let incident = Incident::of(&incident::read(&installation.journal)?);
        if let Some(ms) = incident.reinstate_ms() {
            progress.step(format_args!("the spare took over: {} sessions in {ms:.1} ms", incident.resumed()));
            break;
        }
        if begin.elapsed() > RECOVERY_BOUND {
            progress.step(format_args!("no recovery within {RECOVERY_BOUND:?}"));
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(AFTERWARDS);
    Ok(fault_ns)
}

fn judge(
    run: &Run,
    installation: &Installation,
    outcomes: &[Outcome],
    incident: &Incident,
    clock: Clock,
    fault_ns: u64,
) -> Verdict {
    let zero = clock.since_zero(incident.last_sign_ns.unwrap_or(fault_ns));
    let gaps = verdict::gaps(outcomes, zero);
    let wrong_bytes = outcomes.iter().map(|outcome| outcome.wrong_bytes).sum();
    let mut why = incident.trouble.clone();
    why.extend(incident.lost());
    for (number, outcome) in outcomes.iter().enumerate() {
        why.extend(outcome.lost.iter().map(|reason| format!("session {number} ({:?}): {reason}", outcome.kind)));
    }
    if incident.report.is_none() {
        why.push("the recovery did not come to its end".to_owned());
    }
    if wrong_bytes > 0 {
        why.push(format!("{wrong_bytes} bytes were not the ones that belong there"));
    }
    // Somebody must have been carried over, or nothing was shown.
    if incident.report.is_some() && incident.resumed() < outcomes.len() {
        why.push(format!("{} of {} sessions were carried over", incident.resumed(), outcomes.len()));
    }
    Verdict {
        pass: why.is_empty(),
        sessions: outcomes.len(),
        lost: outcomes.iter().filter(|outcome| outcome.lost.is_some()).count(),
        bytes_checked: outcomes.iter().map(|outcome| outcome.bytes_checked).sum(),
        wrong_bytes,
        detect_ms: incident.detect_ms().or_else(|| Some(millis_between(fault_ns, incident.verdict_ns?))),
        fence_ms: incident.fence_ms(),
        extract_ms: incident.stage_ms("extract"),
        reinstate_ms: incident.reinstate_ms(),
        verdict_to_live_ms: incident.verdict_to_live_ms(),
        gap_ms_p50: gaps.map(|(median, ..)| median),
        gap_ms_p99: gaps.map(|(_, high, _)| high),
        gap_ms_max: gaps.map(|(.., longest)| longest),
        fault: run.fault,
        kernel: installation.kernel.clone(),
        vcpus: run.order.vcpus,
        seed: run.seed,
        deadline_ms: run.order.deadline_ms,
        host: Host::here(),
        why,
    }
}

fn draw(
    run: &Run,
    installation: &Installation,
    outcomes: &[Outcome],
    incident: &Incident,
    clock: Clock,
    fault_ns: u64,
) -> Timeline {
    let zero_ns = incident.last_sign_ns.unwrap_or(fault_ns);
    let zero = clock.since_zero(zero_ns);
    let ms = |at: Duration| (at.as_secs_f64() - zero.as_secs_f64()) * 1e3;
    let lanes = outcomes.iter().enumerate().map(|(number, outcome)| {
        let near = outcome.arrivals.iter().map(|arrival| (ms(arrival.at), arrival.bytes));
        Lane {
            label: format!("{} {}", outcome.kind.name(), number + 1),
            arrivals: near.filter(|(at, _)| (-2_000.0..4_000.0).contains(at)).collect(),
            gap_ms: outcome.gap(zero).map(|(begin, end)| (ms(begin), ms(end))),
            lost: outcome.lost.clone(),
        }
    });
    Timeline {
        fault: run.fault.name().to_owned(),
        subtitle: format!(
            "Linux {}, {} vCPU, {}, deadline {} ms, seed {}",
            installation.kernel,
            run.order.vcpus,
            if outcomes.len() == 1 { "1 session".to_owned() } else { format!("{} sessions", outcomes.len()) },
            run.order.deadline_ms,
            run.seed
        ),
        zero_unix_ns: unix_ns(zero_ns),
        deadline_ms: run.order.deadline_ms as f64,
        lanes: lanes.collect(),
        stages: incident.stages(zero_ns),
    }
}

/// Leaves result and drawings in `out`.
pub fn save(out: &Path, verdict: &Verdict, timeline: &Timeline) -> Result<()> {
    fs::write(out.join("timeline.svg"), timeline.svg()).context("timeline.svg")?;
    fs::write(out.join("timeline.json"), serde_json::to_string(timeline)?).context("timeline.json")?;
    fs::write(out.join("result.json"), serde_json::to_string(verdict)? + "\n").context("result.json")
}
