//! `rescue-and-return`: a guest hangs and is evacuated; it is looked at, reset behind its fence, and given its address
//! back, while sessions that were carried over drain and new clients come all the time.
//!
//! ```text
//!   clients ── fault ── recovery ── new clients come ── inspect ── order: return ── reset ── back ── old clients end
//!      ── address returned ── new clients reach the guest ── they go on for a while ── who answers, what is left
//! ```
//!
//! Nobody may be refused or reset, old or new; every byte is checked. At the end the neighbours know the guest, and the
//! spare has no connection left that could speak for the address.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use monitor::journal::{Event, Line, timeline};
use serde::Serialize;
use serde_json::Value;

use super::{
    incident,
    installation::{Installation, Order},
    progress::Progress,
};
use crate::{
    client::{self, Kind, Outcome, Session, Signals},
    fault::Fault,
    topology::{FILE_PORT, SERVICE, service_v4, service_v6},
    vm::MAC,
};

/// The policy: nothing without an operator; then all the way.
const POLICY: &str = "\n[target.after]\nreset = \"ask\"\naddress = \"returns\"\nsettle_s = 0.5\ndrain_s = 300\n";

/// Clients that come anew again and again, once the spare serves.
const NEW_CLIENTS: usize = 2;

/// For anything but a boot.
const BOUND: Duration = Duration::from_secs(30);

/// For the guest to boot behind its fence, on a machine that is busy with other things.
const BOOT_BOUND: Duration = Duration::from_secs(180);

/// How long old sessions hold the address on the spare after the guest is back, to show that it waits for them.
const HOLD: Duration = Duration::from_millis(700);

/// How long everything is watched afterwards: a socket left behind would have repeated itself by then, and taught the
/// neighbours wrong.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// What is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is done to the guest.
    pub fault: Fault,
    /// How many clients are carried over.
    pub sessions: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// The installation.
    pub order: Order,
    /// Where results are left.
    pub out: PathBuf,
}

/// What came of it. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nobody was refused, reset or told wrong bytes, and the address really returned.
    pub pass: bool,
    /// Sessions that were carried over.
    pub recovered: usize,
    /// Of them, those that did not come to their end.
    pub lost: usize,
    /// Requests of new clients, each on a connection of its own.
    pub new_requests: u64,
    /// New clients that were refused, reset or told nothing.
    pub new_failed: usize,
    /// Bytes compared with what belongs there.
    pub bytes_checked: u64,
    /// Bytes that differed.
    pub wrong_bytes: u64,
    /// `monitor inspect`, start to end.
    pub inspect_ms: f64,
    /// From the reset to moving sensors.
    pub boot_ms: Option<f64>,
    /// From the spare's last connection to links that are up.
    pub return_ms: Option<f64>,
    /// The longest that a new client waited for anything around the return.
    pub new_gap_ms: Option<f64>,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// What was done to it.
    pub fault: Fault,
    /// Everything random follows from it.
    pub seed: u64,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// Runs it; result, timeline and what the inspection said are in `run.out` afterwards.
///
/// # Errors
/// When it cannot be carried out.
pub fn run(run: &Run, progress: Progress) -> Result<(Report, String)> {
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    let mut order = run.order.clone();
    order.lockup_module = run.fault.needs_module();
    let mut installation = Installation::build(&order, progress)?;
    let ready = installation.ready_with(&run.order, POLICY, progress);
    let result = ready.and_then(|()| carry_out(run, &mut installation, progress));
    if !result.as_ref().is_ok_and(|(report, _)| report.pass) {
        installation.save_logs(&run.out)?;
        eprintln!("logs: {}\n{}", run.out.display(), installation.tails());
    }
    let (report, text) = result?;
    fs::write(run.out.join("timeline.txt"), &text).context("timeline.txt")?;
    fs::write(run.out.join("result.json"), serde_json::to_string(&report)? + "\n").context("result.json")?;
    Ok((report, text))
}

/// What was seen while it went on.
struct Seen {
    inspection: Value,
    inspect_ms: f64,
    /// What stood in the way of a good end.
    why: Vec<String>,
}

fn carry_out(run: &Run, installation: &mut Installation, progress: Progress) -> Result<(Report, String)> {
    let (zero, place) = (Instant::now(), installation.topology.client.try_clone()?);
    let (old, new) = (Signals::default(), Signals::default());
    let plans = client::mix(&[Kind::Paced, Kind::Idle], run.sessions, run.seed);
    let newcomers = client::mix(&[Kind::Fresh], NEW_CLIENTS, run.seed + 1);
    let (old_ones, new_ones, seen) = thread::scope(|scope| {
        let (old, new) = (&old, &new);
        let place = &place;
        let olds = scope.spawn(move || place.run(|| Ok(crowd(plans, old, zero))));
        let mut news = None;
        let outcome = direct(run, installation, old, new, progress, || {
            news = Some(scope.spawn(move || place.run(|| Ok(crowd(newcomers, new, zero)))));
        });
        [old, new].iter().for_each(|signals| signals.finish.store(true, Ordering::Relaxed));
        let joined = |name: &str, handle: thread::ScopedJoinHandle<'_, Result<Vec<Outcome>>>| {
            handle.join().map_err(|_| anyhow!("{name} clients panicked"))?
        };
        let old_ones = joined("old", olds)?;
        let new_ones = news.map_or(Ok(Vec::new()), |news| joined("new", news))?;
        let said: Vec<_> = old_ones.iter().chain(&new_ones).filter_map(|outcome| outcome.lost.clone()).collect();
        anyhow::Ok((old_ones, new_ones, outcome.with_context(|| format!("the clients say: {}", said.join("; ")))?))
    })?;
    let lines = incident::read(&installation.journal)?;
    fs::write(run.out.join("inspect.json"), serde_json::to_string(&seen.inspection)?).context("inspect.json")?;
    Ok((judge(run, installation, &old_ones, &new_ones, seen, &lines), timeline::text(&lines)))
}

fn crowd(plans: Vec<client::Plan>, signals: &Signals, clock: Instant) -> Vec<Outcome> {
    let server = |number: usize| match number % 2 {
        1 => (service_v6(SERVICE), FILE_PORT).into(),
        _ => (service_v4(SERVICE), FILE_PORT).into(),
    };
    thread::scope(|scope| {
        let sessions = plans.into_iter().enumerate();
        let sessions = sessions.map(|(number, plan)| Session { plan, server: server(number), clock });
        let running: Vec<_> = sessions.map(|session| scope.spawn(|| session.run(signals))).collect();
        running.into_iter().filter_map(|session| session.join().ok()).collect()
    })
}

fn direct(
    run: &Run,
    installation: &mut Installation,
    old: &Signals,
    new: &Signals,
    progress: Progress,
    start_newcomers: impl FnOnce(),
) -> Result<Seen> {
    let mut why = Vec::new();
    wait("the first bytes of every client", BOUND, || Ok(old.under_way.load(Ordering::Relaxed) >= run.sessions))?;
    thread::sleep(Duration::from_millis(500));
    progress.step(format_args!("fault: {}", run.fault.name()));
    run.fault.inject(&mut installation.vm)?;
    let journal = installation.journal.clone();
    let has = |wanted: fn(&Event) -> bool| Ok(incident::read(&journal)?.iter().any(|line| wanted(&line.event)));
    wait("the recovery", BOUND, || has(|event| matches!(event, Event::Evacuated { .. })))?;
    progress.step("recovered; new clients come, an operator looks at the fenced guest");
    start_newcomers();
    wait("new clients at the spare", BOUND, || Ok(new.under_way.load(Ordering::Relaxed) >= NEW_CLIENTS))?;
    let begin = Instant::now();
    let said = installation.operate(&["inspect", super::configuration::TARGET, "--json"])?;
    let inspect_ms = begin.elapsed().as_secs_f64() * 1e3;
    let inspection: Value = serde_json::from_str(&said).context("what the inspection said")?;
    progress.step(format_args!("inspected in {inspect_ms:.0} ms; the operator orders the guest's return"));
    installation.operate(&["order", "return", super::configuration::TARGET])?;
    wait("the guest behind its fence", BOOT_BOUND, || has(|event| matches!(event, Event::TargetBack { .. })))?;
    // As its service manager would; the sessions that are left keep the address where it is until then.
    installation.serve_again(&run.order, BOUND)?;
    progress.step("the guest is back and serves; the sessions that were carried over are still on the spare");
    thread::sleep(HOLD);
    if has(|event| matches!(event, Event::AddressReturned { .. }))? {
        why.push("the address returned while sessions were left".to_owned());
    }
    old.finish.store(true, Ordering::Relaxed);
    wait("the end of the fence", BOUND, || has(|event| matches!(event, Event::Released { .. })))?;
    progress.step("the address is back, the guest's links are up");
    thread::sleep(AFTERWARDS);
    let neighbours = installation.topology.client.run(service_neighbours)?;
    if neighbours != BTreeSet::from([MAC.to_owned()]) {
        why.push(format!("the clients look for the service at {neighbours:?} and not at {MAC}"));
    }
    let left = installation.topology.spare.run(connections_of_service)?;
    if !left.is_empty() {
        why.push(format!("the spare still has {left:?}"));
    }
    Ok(Seen { inspection, inspect_ms, why })
}

fn wait(what: &str, bound: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        if begin.elapsed() > bound {
            bail!("no {what} within {bound:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Link addresses at which this machine looks for the service.
fn service_neighbours() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/thread-self/net/arp").context("the neighbour table")?;
    let address = service_v4(SERVICE).to_string();
    let of_service = table.lines().filter(|line| line.split_whitespace().next() == Some(&address));
    Ok(of_service.filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect())
}

/// Connections of this machine that could speak for the service.
fn connections_of_service() -> Result<Vec<String>> {
    const LISTEN: &str = "0A";
    const TIME_WAIT: &str = "06";
    let v4 = u32::from_le_bytes(service_v4(SERVICE).octets());
    let v6: String = service_v6(SERVICE).octets().chunks(4).map(hex_word).collect();
    let ours = [format!("{v4:08X}:"), format!("{v6}:"), format!("0000000000000000FFFF0000{v4:08X}:")];
    let mut found = Vec::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let text = fs::read_to_string(table).context(table)?;
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().take(4).collect();
            ensure!(fields.len() == 4, "{table}: {line}");
            if ours.iter().any(|start| fields[1].starts_with(start.as_str()))
                && ![LISTEN, TIME_WAIT].contains(&fields[3])
            {
                found.push(line.trim().to_owned());
            }
        }
    }
    Ok(found)
}

fn hex_word(bytes: &[u8]) -> String {
    let word = <[u8; 4]>::try_from(bytes).unwrap_or_default();
    format!("{:08X}", u32::from_le_bytes(word))
}

fn judge(
    run: &Run,
    installation: &Installation,
    old: &[Outcome],
    new: &[Outcome],
    seen: Seen,
    lines: &[Line],
) -> Report {
    let incident = incident::Incident::of(lines);
    let mut why = seen.why;
    why.extend(incident.lost());
    for (name, outcomes) in [("old", old), ("new", new)] {
        let lost = outcomes.iter().enumerate().filter_map(|(number, outcome)| Some((number, outcome.lost.as_ref()?)));
        why.extend(lost.map(|(number, reason)| format!("{name} client {number}: {reason}")));
    }
    let all = || old.iter().chain(new);
    let wrong_bytes = all().map(|outcome| outcome.wrong_bytes).sum();
    if wrong_bytes > 0 {
        why.push(format!("{wrong_bytes} bytes were not the ones that belong there"));
    }
    if incident.resumed() < old.len() {
        why.push(format!("{} of {} sessions were carried over", incident.resumed(), old.len()));
    }
    let aborted = lines.iter().find_map(|line| match line.event {
        Event::AddressReturned { aborted } => Some(aborted),
        _ => None,
    });
    if aborted != Some(0) {
        why.push(format!("connections that were reset for the return: {aborted:?}"));
    }
    if run.fault == Fault::Panic && !said_panic(&seen.inspection) {
        why.push("the inspection does not say that the kernel panicked".to_owned());
    }
    let at = |wanted: fn(&Event) -> bool| lines.iter().find(|line| wanted(&line.event)).map(|line| line.mono_ns);
    let between = |from: Option<u64>, to: Option<u64>| Some(incident::millis_between(from?, to?));
    let reset = at(|event| matches!(event, Event::Reset));
    let back = at(|event| matches!(event, Event::TargetBack { .. }));
    let returned = at(|event| matches!(event, Event::AddressReturned { .. }));
    let released = at(|event| matches!(event, Event::Released { .. }));
    let gaps = new.iter().flat_map(|outcome| outcome.arrivals.windows(2).map(|pair| pair[1].at - pair[0].at));
    Report {
        pass: why.is_empty(),
        recovered: incident.resumed(),
        lost: old.iter().filter(|outcome| outcome.lost.is_some()).count(),
        new_requests: new.iter().map(|outcome| outcome.requests).sum(),
        new_failed: new.iter().filter(|outcome| outcome.lost.is_some()).count(),
        bytes_checked: all().map(|outcome| outcome.bytes_checked).sum(),
        wrong_bytes,
        inspect_ms: seen.inspect_ms,
        boot_ms: between(reset, back),
        return_ms: between(returned, released),
        new_gap_ms: gaps.max().map(|gap| gap.as_secs_f64() * 1e3),
        kernel: installation.kernel.clone(),
        fault: run.fault,
        seed: run.seed,
        why,
    }
}

fn said_panic(inspection: &Value) -> bool {
    let log = inspection["log"].as_array().map(Vec::as_slice).unwrap_or_default();
    log.iter().filter_map(|record| record["text"].as_str()).any(|text| text.contains("Kernel panic - not syncing"))
}
