//! `forkbomb` and `memhog`: an ordinary user of the guest drowns it in processes or takes its memory; the monitor ends
//! that by writing into the guest's memory, and nothing else of the guest is harmed.
//!
//! ```text
//!   useful work alone ── drowned ── a sensor leaves its bounds ── locked, judged, marked, let go ── cured
//!      ── the useful work takes as long as it did alone, nobody was fenced
//! ```
//! Without repair (`act = false`) the same is watched for a while: how long the useful work takes then.

mod bystanders;
mod illness;
mod report;

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use monitor::{
    clock::{Clock, Monotonic},
    journal::{Event, Line, timeline},
    kernel::{Listing, recipe::READY_MADE},
    recording::{self, Sample},
};
use serde_json::json;

use super::{
    configuration::TARGET,
    incident,
    installation::{Installation, Order},
    progress::Progress,
};
use bystanders::{Bystanders, Spared};
use illness::USER;
pub use illness::{Hook, Illness, Variant};
use report::judged;
pub use report::{Memory, Report};

/// From the beginning to the cure, on a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(120);

/// How long a sensor may be out of its bounds, unless something else is wanted.
pub const HOLD: Duration = Duration::from_millis(100);

/// For the guest to answer, drowned or not.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// Where the useful program says how long each piece of its work took.
const WORK_LOG: &str = "/var/log/work";

/// Pieces of work before, and after the cure.
const PIECES: usize = 5;

/// What is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is done to the guest.
    pub illness: Illness,
    /// By what.
    pub hook: Hook,
    /// Whether it is repaired; if not, it is watched for so long.
    pub unrepaired_for: Option<Duration>,
    /// How long a sensor may be out of its bounds before anything is done.
    pub hold: Duration,
    /// A program that treats a fork bomb in place of the monitor's module.
    pub own_module: Option<PathBuf>,
    /// How long a piece of useful work takes alone.
    pub piece: Duration,
    /// The installation.
    pub order: Order,
    /// Where results are left.
    pub out: PathBuf,
}

/// Runs it; result and journal are in `run.out` afterwards.
///
/// # Errors
/// When it cannot be carried out.
pub fn run(run: &Run, progress: Progress) -> Result<(Report, String)> {
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    let mut installation = Installation::build(&run.order, progress)?;
    let ready = installation.ready_with(&run.order, &run.illness.policy(run), progress);
    let result = ready.and_then(|()| carry_out(run, &mut installation, progress));
    if !result.as_ref().is_ok_and(|(report, _)| report.pass) {
        installation.save_logs(&run.out)?;
        eprintln!("logs: {}\n{}", run.out.display(), installation.tails());
    }
    let (report, text) = result?;
    fs::copy(&installation.journal, run.out.join("journal.jsonl")).context("the journal")?;
    fs::write(run.out.join("result.json"), serde_json::to_string(&report)? + "\n").context("result.json")?;
    Ok((report, text))
}

fn carry_out(run: &Run, installation: &mut Installation, progress: Progress) -> Result<(Report, String)> {
    progress.step("useful work alone");
    let passwd = format!("echo 'u{USER}:x:{USER}:{USER}::/tmp:/bin/sh' >> /etc/passwd; chmod 1777 /tmp");
    installation.vm.run(&passwd)?;
    // What measures how long a piece takes begins when all others have.
    let bystanders = Bystanders::begin(installation)?;
    let (ms, mib) = (run.piece.as_millis(), run.illness.work_mib());
    let work = format!("(/bin/rogue work --ms {ms} --mib {mib} >{WORK_LOG} 2>&1 </dev/null &)");
    installation.vm.run(&work)?;
    let alone_ms = wait_for_pieces(installation, PIECES)?;

    progress.step(format_args!("{}", run.illness));
    let begin_ns = Monotonic.now_ns();
    installation.vm.run_within(&format!("({}) </dev/null >/dev/null 2>&1 &", run.illness.line()), ANSWER_BOUND)?;
    let cured = match run.unrepaired_for {
        Some(time) => {
            thread::sleep(time);
            None
        }
        None => {
            incident::wait_for(&installation.journal, "cured", BOUND, incident::is_cured)?;
            let drowned = pieces(installation)?.len();
            Some((drowned, Monotonic.now_ns()))
        }
    };
    let mut report = judged(run, &incident::read(&installation.journal)?, begin_ns, installation.kernel.clone());
    if let Some((drowned, answered_ns)) = cured {
        report.usable_ms = report.noticed_ms.map(|noticed| (answered_ns - begin_ns) as f64 / 1e6 - noticed);
        progress.step("cured; is the guest well?");
        // The piece under way has seen both.
        let all = wait_for_pieces(installation, drowned + 1 + PIECES)?;
        report.drowned_ms = all[alone_ms.len()..=drowned].to_vec();
        report.after_ms = all[drowned + 1..].to_vec();
        look_after(installation, &bystanders, &mut report)?;
        report.memory = memory(installation);
        if !run.order.agent {
            look_at_sensors(installation, &mut report)?;
            if matches!(run.illness, Illness::ForkBomb { .. }) {
                progress.step("the guest is reset: another kernel, elsewhere");
                reset(installation, &mut report)?;
            }
        }
    } else if let Ok(all) = pieces(installation) {
        report.drowned_ms = all[alone_ms.len()..].to_vec();
        report.memory = memory(installation);
    } // A machine that does not answer any more has not done a piece either.
    report.after_by_alone = median(&report.after_ms).zip(median(&alone_ms)).map(|(after, alone)| after / alone);
    report.alone_ms = alone_ms;
    report.pass = report.why.is_empty();
    Ok((report, timeline::text(&incident::read(&installation.journal)?)))
}

fn look_after(installation: &mut Installation, bystanders: &Bystanders, report: &mut Report) -> Result<()> {
    report.spared = bystanders.look(installation, &incident::read(&installation.journal)?)?;
    let Spared { killed, judged, .. } = &report.spared;
    if !killed.is_empty() || !judged.is_empty() {
        report.why.push(format!("bystanders were killed ({killed:?}) or judged ({judged:?})"));
    }
    let count = format!("grep -l '^Uid:.{USER}' /proc/[0-9]*/status 2>/dev/null | wc -l");
    let left = installation.vm.run_within(&count, ANSWER_BOUND)?;
    report.left = left.text().trim().parse().context("a count of processes")?;
    let complaints = "dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on'";
    let complaints = installation.vm.run_within(complaints, ANSWER_BOUND)?.text();
    if !complaints.trim().is_empty() {
        report.why.push(format!("the guest's kernel complains: {complaints}"));
    }
    // A hog's controller without children is no illness.
    let most = if matches!(report.illness, Illness::MemHog { respawn: false, .. }) { 1 } else { 0 };
    if report.left > most {
        report.why.push(format!("{} processes of the user are left", report.left));
    }
    Ok(())
}

/// A guest that is reset is found again in its new life, and not taken for one that hangs in its old one.
fn reset(installation: &mut Installation, report: &mut Report) -> Result<()> {
    installation.vm.qmp().execute("system_reset", json!({}))?;
    installation.vm.wait_ready(BOUND)?;
    let is_seen = |lines: &[Line]| lines.iter().any(|line| matches!(line.event, Event::Restarted { .. }));
    let lines = incident::wait_for(&installation.journal, "its new life is seen", BOUND, is_seen)?;
    if lines.iter().any(incident::is_act) {
        report.why.push("a guest that was reset was taken for one that hangs".to_owned());
    }
    Ok(())
}

/// What an operator sees of a guest without an agent, once it is well: its kernel sensors, and a recording of them.
fn look_at_sensors(installation: &Installation, report: &mut Report) -> Result<()> {
    let said = installation.operate(&["sensors", TARGET, "--json"])?;
    let listing: Listing = serde_json::from_str(&said).with_context(|| said.clone())?;
    let has_value = |name: &str| listing.sensors.iter().any(|one| one.name == name && one.value.is_some());
    if !listing.missing.is_empty()
        || !READY_MADE.iter().all(|name| has_value(name) || has_value(&format!("{name}.cpu0")))
    {
        report.why.push(format!("kernel sensors are missing: {listing:?}"));
    }
    let file = installation.journal.with_file_name("sensors.jsonl");
    let out = file.display().to_string();
    installation.operate(&["record", "--target", TARGET, "--period-ms", "20", "--seconds", "1", "--out", &out])?;
    let took_us = sampled_us(&file)?;
    report.sample_us = median(&took_us);
    if took_us.is_empty() {
        report.why.push(format!("no sample of {out} has all values"));
    }
    Ok(())
}

/// How long each piece of the useful work took so far.
fn pieces(installation: &mut Installation) -> Result<Vec<f64>> {
    let said = installation.vm.run_within(&format!("cat {WORK_LOG}"), ANSWER_BOUND)?.text();
    let numbers = said.lines().filter(|line| !line.starts_with("rounds"));
    numbers.map(|line| line.trim().parse().with_context(|| format!("the useful program says {line:?}"))).collect()
}

/// What the guest says of its memory, if it does.
fn memory(installation: &mut Installation) -> Option<Memory> {
    Memory::parse(&installation.vm.run_within(Memory::ASK, ANSWER_BOUND).ok()?.text())
}

fn wait_for_pieces(installation: &mut Installation, count: usize) -> Result<Vec<f64>> {
    let begin = Instant::now();
    loop {
        let found = pieces(installation)?;
        if found.len() >= count {
            return Ok(found);
        }
        if begin.elapsed() > BOUND {
            bail!("{} of {count} pieces of useful work within {BOUND:?}", found.len());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// How long each sample of a recording took that has all values, in microseconds.
pub(super) fn sampled_us(recording: &Path) -> Result<Vec<f64>> {
    let recordings = recording::read(BufReader::new(File::open(recording).context("the recording")?))?;
    let whole = |Sample(_, _, values): &&Sample| values.as_ref().is_some_and(|all| all.iter().all(Option::is_some));
    let samples = recordings.iter().flat_map(|one| one.samples.iter().filter(whole));
    Ok(samples.map(|Sample(_, took_ns, _)| *took_ns as f64 / 1e3).collect())
}

/// The middle one of some values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
