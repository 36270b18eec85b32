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
    aim::{Aim, Aimed},
    incident::{self, Incident, millis_between},
    installation::{Installation, Order},
    progress::Progress,
    queued,
    verdict::{self, Host, Verdict},
};
use crate::{
    client::{self, Kind, Outcome, Session, Signals},
    fault::Fault,
    timeline::{Lane, Timeline},
    topology::{FILE_PORT, SERVICE, service_v4, service_v6},
    vm::Gdb,
};

/// Between the last client's first bytes and the fault, in microseconds.
const PAUSE_US: std::ops::Range<u64> = 300_000..1_100_000;

/// A cable that can be bad is so from here before the fault on.
const BAD_BEFORE: Duration = Duration::from_millis(150);

/// Until every session has its first bytes: an emulated guest with hundreds of sessions takes a while, and longer with
/// more.
const START_BOUND: Duration = Duration::from_secs(30);
const START_BOUND_EACH: Duration = Duration::from_millis(20);

/// Sessions that are drawn: more are no drawing.
const LANES_MAX: usize = 400;

/// From the fault to the spare's report. A recovery takes a fraction of a second; a loaded machine takes longer.
const RECOVERY_BOUND: Duration = Duration::from_secs(30);

/// How long sessions go on after the recovery, unless somebody wants it otherwise.
pub const AFTERWARDS: Duration = Duration::from_millis(1500);

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
    /// Where the stop shall fall; only with [`Fault::Stop`] and one vCPU.
    pub aim: Option<Aim>,
    /// How long sessions go on after the recovery, to show that they really live.
    pub afterwards: Duration,
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
    // A saved guest has what it was saved with.
    order.lockup_module = order.saved.is_some() || run.fault.needs_module();
    let queued = run.order_of_kinds().filter(|kind| *kind == Kind::Queued).count();
    order.connections_max = (queued > 0).then_some(run.sessions - queued);
    order.seed = run.seed;
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
    let aimed = run.aim.map(|aim| aim.take(&mut installation.vm, run.seed)).transpose()?;
    let queued = run.order_of_kinds().filter(|kind| *kind == Kind::Queued).count();
    let signals = Signals { others: (run.sessions - queued).into(), ..Signals::default() };
    queued::make_room(&mut installation.vm, &run.kinds)?;
    let client = installation.topology.client.try_clone()?;
    let (outcomes, broken) = thread::scope(|scope| {
        progress.step(format_args!("{} clients start", run.sessions));
        let crowd = scope.spawn(|| client.run(|| clients(clock, &signals)));
        let directed = direct(run, installation, aimed.as_ref(), &signals, progress);
        signals.finish.store(true, Ordering::Relaxed);
        progress.step("the clients come to their end");
        let outcomes = crowd.join().map_err(|_| anyhow!("the clients panicked"))??;
        let reasons = outcomes.iter().filter_map(|outcome| outcome.lost.as_deref()).collect::<Vec<_>>().join("; ");
        let broken = directed.with_context(|| format!("the clients say: {reasons}"))?;
        anyhow::Ok((outcomes, broken))
    })?;
    if let Some(capture) = capture {
        capture.finish()?;
    }
    let incident = Incident::of(&incident::read(&installation.journal)?);
    let may_lose = installation.reborn()?;
    let verdict = judge(run, installation, &outcomes, &incident, clock, &broken, may_lose);
    let timeline = draw(run, installation, &outcomes, &incident, clock, broken.at_ns);
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

/// Plays sessions to their ends, in the caller's machine.
pub(super) fn crowd(sessions: Vec<Session>, signals: &Signals) -> Vec<Outcome> {
    let silent = sessions.iter().filter(|session| session.plan.kind.is_silent()).count();
    let shares = |session: &Session| session.plan.kind.is_silent() && silent > client::SILENT_ALONE_MAX;
    let (silent, others): (Vec<_>, Vec<_>) = sessions.into_iter().partition(shares);
    thread::scope(|scope| {
        let running: Vec<_> = others.into_iter().map(|session| scope.spawn(|| session.run(signals))).collect();
        let silent = client::silent_crowd(silent, signals);
        running.into_iter().filter_map(|session| session.join().ok()).chain(silent).collect()
    })
}

impl Run {
    /// What each session does.
    fn order_of_kinds(&self) -> impl Iterator<Item = Kind> {
        self.kinds.iter().copied().cycle().take(self.sessions)
    }
}

/// How the guest was broken, and what it did then.
struct Broken {
    /// When that was ordered.
    at_ns: u64,
    /// Where an aimed stop fell.
    place: Option<String>,
    /// What shows that somebody was taken over who was not to be, or was not gone.
    false_takeovers: Vec<String>,
    /// Packets that the clients' cable harmed.
    harmed: u64,
    /// Keeps an aimed stop's guest stopped.
    _debugger: Option<Gdb>,
}

/// Waits for the clients, breaks the guest, waits for the recovery.
fn direct(
    run: &Run,
    installation: &mut Installation,
    aimed: Option<&Aimed>,
    signals: &Signals,
    progress: Progress,
) -> Result<Broken> {
    start(run.sessions, signals)?;
    queued::wait(&mut installation.vm, &run.kinds, run.sessions, progress)?;
    let weather = installation.topology.weather();
    let turn = |bad| weather.iter().for_each(|weather| weather.turn(bad));
    let pause = Duration::from_micros(StdRng::seed_from_u64(run.seed).random_range(PAUSE_US));
    thread::sleep(pause.saturating_sub(BAD_BEFORE));
    turn(true);
    thread::sleep(pause.min(BAD_BEFORE));
    let mut false_takeovers = Vec::new();
    if incident::read(&installation.journal)?.iter().any(incident::is_act) {
        false_takeovers
            .push("verdict or fence before the fault: the deadline is too short for this machine".to_owned());
    }
    progress.step(format_args!("fault: {}", run.fault.name()));
    let at_ns = monotonic_ns();
    let stopped = match aimed {
        Some(aimed) => Some(aimed.stop(&mut installation.vm)?),
        None => {
            run.fault.inject(&mut installation.vm)?;
            None
        }
    };
    let sent_when_fenced = await_recovery(installation, progress)?;
    thread::sleep(run.afterwards / 2);
    turn(false);
    thread::sleep(run.afterwards / 2);
    if let Some(sent_when_fenced) = sent_when_fenced {
        false_takeovers.extend(alive_after(installation, sent_when_fenced)?);
    }
    let (place, debugger) = stopped.unzip();
    let harmed = weather.map_or(0, |weather| weather.harmed.load(Ordering::Relaxed));
    Ok(Broken { at_ns, place, false_takeovers, harmed, _debugger: debugger })
}

/// Waits until `count` sessions are under way.
pub(super) fn start(count: usize, signals: &Signals) -> Result<()> {
    let begin = Instant::now();
    let bound = START_BOUND + START_BOUND_EACH * u32::try_from(count).unwrap_or(u32::MAX);
    while signals.under_way.load(Ordering::Relaxed) < count {
        if begin.elapsed() > bound {
            bail!("{} of {count} clients got bytes within {bound:?}", signals.under_way.load(Ordering::Relaxed));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits for the spare's report. Returns how many frames the guest had sent when its fence was seen.
fn await_recovery(installation: &Installation, progress: Progress) -> Result<Option<u64>> {
    let (begin, mut sent_when_fenced, mut seen) = (Instant::now(), None, 0);
    while begin.elapsed() < RECOVERY_BOUND {
        // What has not grown is not read again: the processors are the healers'.
        let len = fs::metadata(&installation.journal).map_or(0, |journal| journal.len());
        if std::mem::replace(&mut seen, len) == len {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let incident = Incident::of(&incident::read(&installation.journal)?);
        if sent_when_fenced.is_none() && incident.fence_ns.is_some() {
            sent_when_fenced = Some(installation.frames_from_guest()?);
        }
        if let Some(ms) = incident.reinstate_ms() {
            progress.step(format_args!("the spare took over: {} sessions in {ms:.1} ms", incident.resumed()));
            return Ok(sent_when_fenced);
        }
        thread::sleep(Duration::from_millis(5));
    }
    progress.step(format_args!("no recovery within {RECOVERY_BOUND:?}"));
    Ok(sent_when_fenced)
}

/// What shows that the guest was not gone after its fence: two machines with one address.
fn alive_after(installation: &mut Installation, sent_when_fenced: u64) -> Result<Vec<String>> {
    let (sent, status) = (installation.frames_from_guest()?, installation.vm.qmp().status()?);
    let spoke = sent - sent_when_fenced;
    let spoke = (spoke > 0).then(|| format!("the guest sent {spoke} frames after its fence"));
    let runs = (status == "running").then(|| "the guest runs after its fence".to_owned());
    Ok(spoke.into_iter().chain(runs).collect())
}

/// Why a session was lost, with what leads to it in the logs.
fn loss(number: usize, outcome: &Outcome, zero: Duration) -> Option<String> {
    let reason = outcome.lost.as_ref()?;
    let address = outcome.local.map_or("not connected".to_owned(), |local| local.to_string());
    let heard = outcome.arrivals.last().map_or("never heard".to_owned(), |last| {
        format!("last heard at {:.0} ms", (last.at.as_secs_f64() - zero.as_secs_f64()) * 1e3)
    });
    Some(format!("session {number} ({:?}, {address}, {heard}): {reason}", outcome.kind))
}

fn judge(
    run: &Run,
    installation: &Installation,
    outcomes: &[Outcome],
    incident: &Incident,
    clock: Clock,
    broken: &Broken,
    may_lose: bool,
) -> Verdict {
    let zero = clock.since_zero(incident.last_sign_ns.unwrap_or(broken.at_ns));
    let gaps = verdict::gaps(outcomes, zero);
    let wrong_bytes = outcomes.iter().map(|outcome| outcome.wrong_bytes).sum();
    let dead = run.order.spare_dies;
    let mut why = incident.trouble.clone();
    why.extend(broken.false_takeovers.iter().cloned());
    // A spare that was killed passes the order on; what it had said to clients is lost, and reported.
    if dead.is_some() && !why.iter().any(|trouble| trouble.starts_with("spare did not take over")) {
        why.push("the spare had reported before it was killed: its sessions died with it".to_owned());
    }
    why.retain(|trouble| dead.is_none() || !trouble.starts_with("spare did not take over"));
    let reported_lost = incident.lost();
    let lost = outcomes.iter().filter(|outcome| outcome.lost.is_some()).count();
    if may_lose && lost > reported_lost.len() {
        why.push(format!(
            "{lost} clients lost their session, {} were reported: {reported_lost:?}",
            reported_lost.len()
        ));
    }
    why.extend(reported_lost.into_iter().filter(|_| !may_lose));
    for (number, outcome) in outcomes.iter().enumerate().filter(|_| !may_lose) {
        why.extend(loss(number, outcome, zero));
    }
    if incident.report.is_none() {
        why.push("the recovery did not come to its end".to_owned());
    }
    if wrong_bytes > 0 {
        why.push(format!("{wrong_bytes} bytes were not the ones that belong there"));
    }
    // Somebody must have been carried over, or nothing was shown. Those that connect anew each time may have had no
    // connection at that moment.
    let lasting = outcomes.iter().filter(|outcome| !outcome.kind.reconnects()).count();
    if incident.report.is_some() && incident.resumed() + incident.lost().len() < lasting {
        why.push(format!("{} of at least {lasting} sessions were carried over", incident.resumed()));
    }
    Verdict {
        pass: why.is_empty(),
        sessions: outcomes.len(),
        lost: outcomes.iter().filter(|outcome| outcome.lost.is_some()).count(),
        resumed: incident.resumed(),
        bytes_carried: incident.bytes_carried(),
        bytes_checked: outcomes.iter().map(|outcome| outcome.bytes_checked).sum(),
        wrong_bytes,
        doubled_bytes: outcomes.iter().map(|outcome| outcome.doubled_bytes).sum(),
        false_takeovers: broken.false_takeovers.len(),
        detect_ms: incident.detect_ms().or_else(|| Some(millis_between(broken.at_ns, incident.verdict_ns?))),
        fence_ms: incident.fence_ms(),
        extract_ms: incident.stage_ms("extract"),
        reinstate_ms: incident.reinstate_ms(),
        verdict_to_live_ms: incident.verdict_to_live_ms(),
        gap_ms_p50: gaps.map(|(median, ..)| median),
        gap_ms_p99: gaps.map(|(_, high, _)| high),
        gap_ms_max: gaps.map(|(.., longest)| longest),
        fault: run.fault,
        aimed: broken.place.clone(),
        wire: run.order.wire,
        packets_harmed: broken.harmed,
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
    let lanes = outcomes.iter().enumerate().take(LANES_MAX).map(|(number, outcome)| {
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
