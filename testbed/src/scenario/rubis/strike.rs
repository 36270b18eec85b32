//! What happens in a run with virtual machines: users come, machines break at a moment that follows from the seed,
//! their peers take over, users go on, and the database is compared with what they were told.
//!
//! ```text
//!   all users have had replies ── a third of the time, and up to a third more ── fault ── recovery ── the rest
//! ```

use std::{
    collections::HashSet,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use auction::clients::{
    Report,
    trace::{self, Met},
};
use monitor::journal::{Event, Line};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Machines, Run, TierFault, Verdict, auction, crash,
    recovery::{self, Struck},
    site::{Machine, Site},
    tier::FRONT_END,
};
use crate::scenario::{
    Daemon, Progress,
    incident::{self, Followed, Incident},
    installation::frames_from,
};

/// Over which users come: an agent in an emulated guest hands out boxes slowly, and who gets none is not protected.
const RAMP_SECONDS: &str = "4";
/// Longer than any run: users end when they are told to.
const CLIENTS_SECONDS: &str = "3600";
/// Until nearly all users have had a reply: emulated guests are slow, and some users think long.
const UNDER_WAY_BOUND: Duration = Duration::from_secs(120);
/// Of a hundred users, so many.
const UNDER_WAY_PERCENT: usize = 90;
/// From the fault to the reports of the peers.
const RECOVERY_BOUND: Duration = Duration::from_secs(60);
/// For the last replies: as long as a user waits for one, and a little.
const CLIENTS_END_BOUND: Duration = Duration::from_secs(90);
/// If both break: this much apart at most, in microseconds. Either may be first.
const APART_US: u64 = 30_000;

/// Plays it; leaves drawings, and everything that says what happened if it did not pass.
///
/// # Errors
/// When something cannot be carried out.
pub(super) fn play(run: &Run, machines: &Machines, folder: &Path, progress: Progress) -> Result<Verdict> {
    let mut site = Site::build(run, machines, folder, progress)?;
    let verdict = play_at(run, machines, &mut site, folder, progress);
    if !verdict.as_ref().is_ok_and(|verdict| verdict.pass) {
        site.keep(&run.out);
        eprintln!("{}", site.tails());
    }
    verdict
}

fn play_at(run: &Run, machines: &Machines, site: &mut Site, folder: &Path, progress: Progress) -> Result<Verdict> {
    let (record, traced) = (folder.join("record.jsonl"), folder.join("trace.jsonl"));
    progress.step(format_args!("{} clients come", run.clients));
    let arguments =
        run.client_arguments(&FRONT_END.everywhere(machines.is_shared), CLIENTS_SECONDS, &record, Some(&traced))?;
    let arguments = arguments.into_iter().chain(["--ramp-seconds", RAMP_SECONDS].map(str::to_owned));
    let mut clients =
        Daemon::start_logging(&site.topology.client, "clients", "auction", arguments, folder, Some("warn"))?;
    under_way(run, &mut clients, &traced)?;
    let struck = strike(run, machines, site, progress)?;
    progress.step("the clients come to their end");
    let status = clients.terminate_within(CLIENTS_END_BOUND)?;
    let said = clients.log();
    let report = said.lines().rev().find_map(|line| serde_json::from_str::<Report>(line).ok());
    let report = report.with_context(|| format!("the clients have no report ({status}):\n{}", clients.tail()))?;
    progress.step("the database is checked");
    let lines = incident::read(&site.journal)?;
    // Fenced are, it is to be hoped, those that were broken.
    let fenced = lines.iter().filter(|line| matches!(line.event, Event::Fenced { .. }));
    let snapshots = site.end_tiers(&fenced.map(|line| line.target.as_str()).collect::<Vec<_>>())?;
    let record = record.display().to_string();
    let database = auction(&["check", "--database", &site.database.address, "--record", &record])?.result()?;
    let account = recovery::account(struck, &lines, trace::read(&traced)?);
    crash::draw(run, machines, &account)?;
    let snapshots = machines.recoverable.then_some(snapshots);
    Ok(Verdict {
        snapshots,
        urgent: Some(site.urgent),
        ..run.judge(report, database, Some(&account), Some(site.kernel.clone()))
    })
}

/// Waits until nearly all users have had a reply.
fn under_way(run: &Run, clients: &mut Daemon, traced: &Path) -> Result<()> {
    let (begun, enough) = (Instant::now(), (run.clients as usize * UNDER_WAY_PERCENT).div_ceil(100));
    loop {
        let lines = if traced.exists() { trace::read(traced)? } else { Vec::new() };
        let answered = lines.iter().filter(|line| matches!(line.met, Met::Answered { .. }));
        let answered = answered.map(|line| line.client).collect::<HashSet<_>>().len();
        if answered >= enough {
            return Ok(());
        }
        if let Some(status) = clients.ended()? {
            bail!("the clients ended ({status}):\n{}", clients.tail());
        }
        let failures = trace::failures(&lines);
        ensure!(begun.elapsed() < UNDER_WAY_BOUND, "{answered} of {} clients had a reply; {failures:?}", run.clients);
        thread::sleep(Duration::from_millis(200));
    }
}

/// Breaks what is to be broken and waits for its recovery, in the midst of the run's time.
fn strike(run: &Run, machines: &Machines, site: &mut Site, progress: Progress) -> Result<Struck> {
    let mut random = StdRng::seed_from_u64(run.seed);
    let third = run.length / 3;
    let pause = third + third.mul_f64(random.random_range(0.0..1.0));
    thread::sleep(pause);
    let mut struck = Struck { crash: machines.crash, why: Vec::new(), machines: Vec::new() };
    if incident::read(&site.journal)?.iter().any(incident::is_act) {
        struck.why.push("verdict or fence before the fault: the deadline is too short for this machine".to_owned());
    }
    let mut victims: Vec<usize> = match run.fault {
        TierFault::None => Vec::new(),
        TierFault::Fe => vec![0],
        TierFault::Mt => vec![1],
        TierFault::FeMt => vec![0, 1],
    };
    if random.random() {
        victims.reverse();
    }
    let apart = Duration::from_micros(random.random_range(0..APART_US));
    // What happens from here on, and not the hundreds of lines before: the processors are the healers' now.
    let journal = Followed::from_now(&site.journal)?;
    for (turn, place) in victims.iter().enumerate() {
        thread::sleep(if turn == 0 { Duration::ZERO } else { apart });
        let Machine { tier, vm } = &mut site.machines[*place];
        progress.step(format_args!("fault: {} of {}", machines.crash.name(), tier.target));
        let peers = tier.peers(machines.is_shared).iter().map(|peer| peer.peer).collect();
        let at_ns = trace::now_ns();
        struck.machines.push(recovery::Victim { tier: tier.name, target: tier.target, peers, at_ns });
        machines.crash.inject(vm)?;
    }
    if !victims.is_empty() {
        struck.why.extend(await_recovery(site, journal, &victims, progress)?);
    }
    thread::sleep(run.length.saturating_sub(pause));
    let acted: Vec<Line> = incident::read(&site.journal)?.into_iter().filter(incident::is_act).collect();
    for tier in site.machines.iter().map(|machine| machine.tier) {
        let victim = struck.machines.iter().any(|victim| victim.target == tier.target);
        if !victim && acted.iter().any(|line| line.target == tier.target) {
            struck.why.push(format!("{} was taken for dead, and nothing was done to it", tier.target));
        }
    }
    Ok(struck)
}

/// Waits for the reports of all peers; returns what shows that a machine was not gone after its fence.
fn await_recovery(
    site: &mut Site,
    mut journal: Followed,
    victims: &[usize],
    progress: Progress,
) -> Result<Vec<String>> {
    let begun = Instant::now();
    let mut sent_when_fenced = [None, None];
    let mut open: Vec<usize> = victims.to_vec();
    while !open.is_empty() && begun.elapsed() < RECOVERY_BOUND {
        let Some(lines) = journal.grown()? else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        for place in open.clone() {
            let tier = site.machines[place].tier;
            let incident = Incident::of(&recovery::about(lines, tier.target));
            if incident.fence_ns.is_some() && sent_when_fenced[place].is_none() {
                sent_when_fenced[place] = Some(frames_from(tier.tap)?);
            }
            if let Some(ms) = incident.reinstate_ms() {
                let who = incident.spare.as_deref().unwrap_or(tier.peer);
                progress.step(format_args!("{who} took over: {} sessions in {ms:.1} ms", incident.resumed()));
                open.retain(|other| *other != place);
            }
        }
    }
    let mut why = Vec::new();
    for &place in victims {
        let Machine { tier, vm } = &mut site.machines[place];
        let spoke = sent_when_fenced[place].map_or(Ok(0), |before| anyhow::Ok(frames_from(tier.tap)? - before))?;
        if spoke > 0 {
            why.push(format!("{} sent {spoke} frames after its fence", tier.target));
        }
        if vm.qmp().status()? == "running" {
            why.push(format!("{} still runs", tier.target));
        }
    }
    Ok(why)
}
