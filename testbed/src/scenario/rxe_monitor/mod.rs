//! `rxe-monitor`: two machines with RDMA adapters and no hypervisor to help. One is watched by the other through its
//! own adapter: sampled, locked, rid of a fork bomb and of a memory hog; then its user space stops, and its clients go
//! on with the other.
//!
//! ```text
//!   the monitor is killed and started again ── sampled ── locked: nobody reaches the service ── unlocked ── a fork
//!      bomb, a memory hog ── each ended by orders in the kill table ── clients ── user space stands still ── fenced by
//!      the lock word ── sessions out of tables ── clients go on
//! ```
//! Nothing reads the target's memory but what its agent has registered, and after the stop nothing of its user space
//! runs. Its adapter is Linux' soft-RoCE: a program of its kernel, which answers with the target's processors. Where
//! those are starved it has one more that no user space may use, see [`machines`]: it stands for the processor that an
//! adapter of hardware has by itself.

mod machines;

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use monitor::journal::{Event, Line, timeline};
use serde::Serialize;

use self::machines::{Machines, RSSUID_MAX_MIB, TARGET, USER, left};
use super::{
    Progress, drown, hang_download,
    incident::{self, Incident, millis_between},
};
use crate::{
    client::{self, Kind, Outcome, Session, Signals},
    topology::{FILE_PORT, SERVICE, service_v4},
};

/// For anything that is waited for, on machines that are emulated.
const BOUND: Duration = Duration::from_secs(120);

/// How long sensors are recorded, and how often in that time, in milliseconds.
const RECORD_S: u64 = 2;
const RECORD_PERIOD_MS: u64 = 20;

/// A lock lasts so long at most, and a client waits so long for a service that answers in a fraction of it.
const LEASE_MS: u32 = 8_000;
const UNREACHED: Duration = Duration::from_millis(800);

/// Processes of the bomb.
const PROCESSES: u32 = 60;

/// Processes of the memory hog, and what they leave free, in MiB: above what makes the kernel end somebody by itself.
const HOGS: u32 = 4;
const HOG_LEAVES_MIB: u32 = 24;

/// What has not changed for so long is taken for settled: spares that were not ready are asked again sooner.
const SETTLED: Duration = Duration::from_secs(5);

/// Between the clients' first bytes and the stop, and how long they go on after it.
const PAUSE: Duration = Duration::from_millis(500);
const AFTERWARDS: Duration = Duration::from_millis(2500);

/// How the user space of the target comes to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// Every process is stopped by a signal.
    Frozen,
    /// A program of a high priority keeps every processor that user space has, and nothing takes it away: neither the
    /// limit on such programs nor, from Linux 6.12 on, the server of fair ones. The adapter has one by itself.
    Starved,
}

impl Stop {
    /// The shell line that begins it a moment later, when it has been answered.
    fn line(self) -> &'static str {
        match self {
            Self::Frozen => "(sleep 0.3; kill -STOP -1) >/dev/null 2>&1 </dev/null &",
            Self::Starved => {
                "(sleep 0.3; echo -1 >/proc/sys/kernel/sched_rt_runtime_us; \
                 mount -t debugfs debugfs /sys/kernel/debug; \
                 for runtime in /sys/kernel/debug/sched/fair_server/cpu*/runtime; do echo 0 >$runtime; done; \
                 for cpu in $(seq $(nproc)); do taskset $((1 << (cpu - 1))) \
                 chrt --fifo 90 sh -c 'while :; do :; done' & done) \
                 >/dev/null 2>&1 </dev/null &"
            }
        }
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Line of kernels.
    pub kernel: String,
    /// How the target stops.
    pub stop: Stop,
    /// Clients.
    pub sessions: usize,
    /// How long the agent may be silent.
    pub deadline_ms: u64,
    /// What the clients do follows from it.
    pub seed: u64,
    /// Where results are left.
    pub out: PathBuf,
}

/// What came of it. Times in milliseconds, by the watcher's clock.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Whether everything was as it has to be.
    pub pass: bool,
    /// Linux on both machines.
    pub kernel: String,
    /// How the target stopped.
    pub stop: Option<Stop>,
    /// From starting the monitor again, after it was killed, to its watching the target.
    pub watched_again_ms: Option<f64>,
    /// Samples of all sensors that were recorded over the adapter.
    pub samples: usize,
    /// Of those, the slowest read of half of them, in microseconds.
    pub sample_us: Option<f64>,
    /// From noticing the bomb to its end.
    pub cured_ms: Option<f64>,
    /// From noticing the memory hog to its end.
    pub hog_cured_ms: Option<f64>,
    /// Clients, and what became of their sessions.
    pub sessions: usize,
    /// Those that live on.
    pub resumed: usize,
    /// Those that ended too early.
    pub lost: usize,
    /// Bytes that clients have compared.
    pub bytes_checked: u64,
    /// Bytes that were others.
    pub wrong_bytes: u64,
    /// From the last sign of life to the verdict.
    pub detect_ms: Option<f64>,
    /// From asking for the fence to its being held.
    pub fence_ms: Option<f64>,
    /// From the verdict to the last session.
    pub verdict_to_live_ms: Option<f64>,
    /// What the clients do follows from it.
    pub seed: u64,
    /// What was wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// Runs it; result and journal are in `run.out` afterwards.
///
/// # Errors
/// When it cannot be carried out.
pub fn run(run: &Run, progress: Progress) -> Result<(Verdict, String)> {
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    let mut machines = Machines::build(run, progress)?;
    let result = carry_out(run, &mut machines, progress);
    let _ = fs::copy(machines.journal(), run.out.join("journal.jsonl"));
    if !result.as_ref().is_ok_and(|(verdict, _)| verdict.pass) {
        eprintln!("{}", machines.logs());
    }
    let (verdict, text) = result?;
    fs::write(run.out.join("result.json"), serde_json::to_string(&verdict)? + "\n").context("result.json")?;
    Ok((verdict, text))
}

fn carry_out(run: &Run, machines: &mut Machines, progress: Progress) -> Result<(Verdict, String)> {
    let mut verdict = Verdict {
        kernel: machines.kernel.clone(),
        stop: Some(run.stop),
        sessions: run.sessions,
        seed: run.seed,
        ..Verdict::default()
    };
    progress.step("a monitor watches, is killed, and another one goes on");
    start_monitors(machines, &mut verdict)?;
    progress.step("sensors are recorded");
    sample(machines, &mut verdict)?;
    progress.step("the target is locked and unlocked");
    lock(machines)?;
    progress.step("a fork bomb");
    verdict.cured_ms = repair(machines, &bomb(), &mut verdict)?;
    progress.step("a memory hog");
    let hog = hog(machines)?;
    verdict.hog_cured_ms = repair(machines, &hog, &mut verdict)?;
    evacuate(run, machines, progress, &mut verdict)?;
    verdict.pass = verdict.why.is_empty();
    Ok((verdict, timeline::text(&incident::read(&machines.journal())?)))
}

fn await_lines(machines: &Machines, what: &str, are_there: impl Fn(&[Line]) -> bool) -> Result<Vec<Line>> {
    incident::wait_for(&machines.journal(), what, BOUND, are_there)
}

/// The monitor is started, killed, and another one started: how long that one takes until it watches. Of the first one
/// nothing may stay in use, neither here nor at the target, which has to notice that its peer is gone.
fn start_monitors(machines: &mut Machines, verdict: &mut Verdict) -> Result<()> {
    watch(machines, 1)?;
    let before = settled(machines)?;
    machines.kill_monitor()?;
    let begin = Instant::now();
    watch(machines, 2)?;
    verdict.watched_again_ms = Some(begin.elapsed().as_secs_f64() * 1e3);
    let after = settled(machines)?;
    if after != before {
        verdict.why.push(format!(
            "in use of the adapters with a monitor, and with the one that followed it: {before:?}, {after:?}"
        ));
    }
    Ok(())
}

/// Starts a monitor, and waits until it watches, the one of that number.
fn watch(machines: &mut Machines, number: usize) -> Result<()> {
    machines.start_monitor()?;
    await_lines(machines, "the monitor watches", |lines| incident::watched_times(lines) >= number)?;
    Ok(())
}

/// What is in use of the adapters when that does not change any more: the monitor and the spare have all connections
/// that they want, and what those before them had is gone.
fn settled(machines: &mut Machines) -> Result<[String; 2]> {
    let (begin, mut since) = (Instant::now(), Instant::now());
    let mut used = machines.resources()?;
    while since.elapsed() < SETTLED {
        ensure!(begin.elapsed() < BOUND, "what is in use of the adapters changes without end: {used:?}");
        thread::sleep(SETTLED / 10);
        let now = machines.resources()?;
        if now != used {
            (used, since) = (now, Instant::now());
        }
    }
    Ok(used)
}

fn sample(machines: &mut Machines, verdict: &mut Verdict) -> Result<()> {
    let file = left("sensors.jsonl");
    let record = format!("record --target {TARGET} --period-ms {RECORD_PERIOD_MS} --seconds {RECORD_S} --out {file}");
    machines.operate(&record)?;
    let took_us = drown::sampled_us(&machines.found("sensors.jsonl"))?;
    (verdict.samples, verdict.sample_us) = (took_us.len(), drown::median(&took_us));
    if verdict.samples == 0 {
        verdict.why.push("no sample has all sensors".to_owned());
    }
    Ok(())
}

/// Whether a new client gets a connection.
fn is_reached(machines: &Machines) -> Result<bool> {
    let server = (service_v4(SERVICE), FILE_PORT).into();
    machines.topology.client.run(|| Ok(TcpStream::connect_timeout(&server, UNREACHED).is_ok()))
}

fn lock(machines: &mut Machines) -> Result<()> {
    ensure!(is_reached(machines)?, "the service cannot be reached");
    let token = left("token");
    machines.operate(&format!("lock {TARGET} --lease-ms {LEASE_MS} --leave {token}"))?;
    let reached = is_reached(machines)?;
    machines.operate(&format!("unlock {TARGET} --token {token}"))?;
    ensure!(!reached, "a client reached the service of a locked target");
    let begin = Instant::now();
    while !is_reached(machines)? {
        ensure!(begin.elapsed() < BOUND, "the service cannot be reached after the lock");
    }
    Ok(())
}

/// What drowns the target: an ordinary user of it, and who is to notice and to end that.
struct Illness {
    name: &'static str,
    line: String,
    sensor: &'static str,
    module: &'static str,
}

fn bomb() -> Illness {
    let line = format!("/bin/rogue --uid {USER} bomb --variant cpu --procs {PROCESSES}");
    Illness { name: "the bomb", line, sensor: "tasks", module: "forkbomb" }
}

/// Takes what is free but a rest, and takes it again when its processes end.
fn hog(machines: &mut Machines) -> Result<Illness> {
    let free = machines.target.run("sed -n 's/^MemFree: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")?.text();
    let free_mib = free.trim().parse::<u32>().with_context(|| format!("free memory: {free:?}"))? / 1024;
    let taken_mib = free_mib.checked_sub(HOG_LEAVES_MIB).filter(|taken| *taken > HOGS * RSSUID_MAX_MIB);
    let mib = taken_mib.with_context(|| format!("{free_mib} MiB are free, too few for a hog"))? / HOGS;
    let line = format!("/bin/rogue --uid {USER} hog --procs {HOGS} --mib {mib} --respawn");
    Ok(Illness { name: "the hog", line, sensor: "free-pages", module: "memhog" })
}

/// From noticing the illness to its end, in milliseconds.
fn repair(machines: &mut Machines, illness: &Illness, verdict: &mut Verdict) -> Result<Option<f64>> {
    let Illness { name, line, sensor, module } = illness;
    machines.target.run(&format!("({line}) </dev/null >/dev/null 2>&1 &"))?;
    let is_end = |event: &Event| matches!(event, Event::Cured { module: by, .. } if by == module);
    let what = format!("{name} is ended");
    let lines = await_lines(machines, &what, |lines| lines.iter().any(|line| is_end(&line.event)))?;
    let at = |what: &dyn Fn(&Event) -> bool| lines.iter().find(|line| what(&line.event)).map(|line| line.mono_ns);
    let noticed = at(&|event| matches!(event, Event::Suspicious { sensor: by, .. } if by == sensor));
    let count = format!("grep -l '^Uid:.{USER}' /proc/[0-9]*/status 2>/dev/null | wc -l");
    let remaining = machines.target.run(&count)?.text();
    if remaining.trim() != "0" {
        verdict.why.push(format!("{} processes of {name} are left", remaining.trim()));
    }
    if lines.iter().any(incident::is_act) {
        verdict.why.push("the target was taken for one that hangs while it lived".to_owned());
    }
    Ok(noticed.zip(at(&is_end)).map(|(noticed, ended)| millis_between(noticed, ended)))
}

fn evacuate(run: &Run, machines: &mut Machines, progress: Progress, verdict: &mut Verdict) -> Result<()> {
    progress.step(format_args!("{} clients start", run.sessions));
    let (signals, zero) = (Signals { others: run.sessions.into(), ..Signals::default() }, Instant::now());
    let client = machines.topology.client.try_clone()?;
    let outcomes = thread::scope(|scope| {
        let crowd = scope.spawn(|| client.run(|| Ok(hang_download::crowd(sessions(run, zero), &signals))));
        let directed = direct(run, machines, &signals, progress);
        signals.finish.store(true, Ordering::Relaxed);
        let outcomes = crowd.join().map_err(|_| anyhow!("the clients panicked"))??;
        let lost = outcomes.iter().filter_map(|outcome| outcome.lost.as_deref()).collect::<Vec<_>>().join("; ");
        directed.with_context(|| format!("the clients say: {lost}"))?;
        anyhow::Ok(outcomes)
    })?;
    let incident = Incident::of(&incident::read(&machines.journal())?);
    verdict.resumed = incident.resumed();
    verdict.detect_ms = incident.detect_ms();
    verdict.fence_ms = incident.fence_ms();
    verdict.verdict_to_live_ms = incident.verdict_to_live_ms();
    verdict.lost = outcomes.iter().filter(|outcome| outcome.lost.is_some()).count();
    verdict.bytes_checked = outcomes.iter().map(|outcome| outcome.bytes_checked).sum();
    verdict.wrong_bytes = outcomes.iter().map(|outcome| outcome.wrong_bytes).sum();
    let client_s = |(number, outcome): (usize, &Outcome)| {
        let reason = outcome.lost.as_ref()?;
        Some(format!("session {number} ({:?}): {reason}", outcome.kind))
    };
    verdict.why.extend(incident.trouble.iter().cloned().chain(incident.lost()));
    verdict.why.extend(outcomes.iter().enumerate().filter_map(client_s));
    if verdict.wrong_bytes > 0 {
        verdict.why.push(format!("{} wrong bytes", verdict.wrong_bytes));
    }
    let lasting = outcomes.iter().filter(|outcome| !outcome.kind.reconnects()).count();
    if verdict.resumed < lasting {
        verdict.why.push(format!("{} of at least {lasting} sessions were carried over", verdict.resumed));
    }
    Ok(())
}

fn sessions(run: &Run, clock: Instant) -> Vec<Session> {
    let kinds = [Kind::Paced, Kind::Fast, Kind::Upload, Kind::Small, Kind::Idle];
    let server = (service_v4(SERVICE), FILE_PORT).into();
    client::mix(&kinds, run.sessions, run.seed).into_iter().map(|plan| Session { plan, server, clock }).collect()
}

fn direct(run: &Run, machines: &mut Machines, signals: &Signals, progress: Progress) -> Result<()> {
    hang_download::start(run.sessions, signals)?;
    thread::sleep(PAUSE);
    progress.step(format_args!("the target's user space is {:?}", run.stop));
    machines.target.run(run.stop.line())?;
    await_lines(machines, "sessions go on", |lines| Incident::of(lines).is_over())?;
    progress.step("the clients go on");
    thread::sleep(AFTERWARDS);
    Ok(())
}
