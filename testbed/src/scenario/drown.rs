//! `forkbomb` and `memhog`: an ordinary user of the guest drowns it in processes or takes its memory; the monitor ends
//! that by writing into the guest's memory, and nothing else of the guest is harmed.
//!
//! ```text
//!   useful work alone ── drowned ── a sensor leaves its bounds ── locked, judged, marked, let go ── cured
//!      ── the useful work takes as long as it did alone, nobody was fenced
//! ```
//! Without repair (`act = false`) the same is watched for a while: how long the useful work takes then.

use std::{
    fmt,
    fs::{self, File},
    io::BufReader,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use monitor::{
    clock::{Clock, Monotonic},
    journal::{Event, Line, replay, timeline},
    kernel::{Listing, recipe::READY_MADE},
    recording::{self, Sample},
    repair::OrderLine,
};
use serde::Serialize;
use serde_json::json;

use super::{
    configuration::TARGET,
    incident,
    installation::{Installation, Order},
    progress::Progress,
};

/// The user that does it.
const USER: u32 = 1000;

/// Tasks of the whole guest, and processes of the user, that are too many. A guest without load has some 65.
const TASKS_MAX: u32 = 100;
const PROCESSES_MAX: u32 = 20;

/// Memory of one process, in MiB, that is too much while little is free.
const RSS_MAX_MIB: u64 = 8;

/// Free pages of the guest below which memory is short: 48 MiB.
const FREE_PAGES_MIN: u64 = 12_288;

/// How long that may last, in milliseconds.
const HOLD_MS: u32 = 100;

/// From the beginning to the cure, on a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(120);

/// For the guest to answer, drowned or not.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// Where the useful program says how long each piece of its work took.
const WORK_LOG: &str = "/var/log/work";

/// Pieces of work before, and after the cure.
const PIECES: usize = 5;

/// What the processes of a bomb do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// They compute.
    Cpu,
    /// They write files.
    Io,
    /// The classic line of a shell, which has no number.
    Shell,
    /// They sleep.
    Sleepers,
}

/// By what the monitor ends processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// By writes into the kernel's structures, while the guest stands still.
    Raw,
    /// By orders in the kill table of the guest's agent, while it runs.
    Table,
    /// By the table if there is one.
    Auto,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Table => "table",
            Self::Auto => "auto",
        })
    }
}

/// What is done to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Illness {
    /// Processes that make processes.
    ForkBomb {
        /// What they do.
        variant: Variant,
        /// How many.
        procs: u32,
    },
    /// Processes that take memory.
    MemHog {
        /// How many.
        procs: u32,
        /// How much each takes, in MiB.
        mib: u32,
        /// Whether their controller makes those anew that die.
        respawn: bool,
    },
}

impl Illness {
    /// The line of a shell that begins it.
    fn line(self) -> String {
        match self {
            Self::ForkBomb { variant: Variant::Shell, .. } => {
                format!("su u{USER} -s /bin/sh -c 'b() {{ while :; do b & done; }}; b'")
            }
            Self::ForkBomb { variant, procs } => {
                let name = variant.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
                format!("/bin/rogue --uid {USER} bomb --variant {name} --procs {procs}")
            }
            Self::MemHog { procs, mib, respawn } => {
                let respawn = if respawn { " --respawn" } else { "" };
                format!("/bin/rogue --uid {USER} hog --procs {procs} --mib {mib}{respawn}")
            }
        }
    }

    /// The sensor that shows it: the agent's, or the kernel's own.
    fn sensor(self, agent: bool) -> &'static str {
        match (self, agent) {
            (Self::ForkBomb { .. }, true) => "tasks",
            (Self::ForkBomb { .. }, false) => "NPROCS",
            (Self::MemHog { .. }, true) => "free-pages",
            (Self::MemHog { .. }, false) => "FREE_PAGES",
        }
    }

    /// What an operator would configure against it.
    fn policy(self, run: &Run) -> String {
        let (act, agent) = (run.unrepaired_for.is_none(), run.order.agent);
        let limit = match self {
            Self::ForkBomb { .. } => u64::from(TASKS_MAX),
            Self::MemHog { .. } => FREE_PAGES_MIN,
        };
        let module = match (self, run.own_module.as_deref()) {
            (Self::ForkBomb { .. }, Some(program)) => {
                format!("command = [{program:?}]\nsettings = {{ pattern = \"rogue|sh\", limit = 0 }}\n")
            }
            (Self::ForkBomb { .. }, None) => format!("use = \"forkbomb\"\ntoo_many_procs = {PROCESSES_MAX}\n"),
            // A controller whose children come back dies with them: all of its user goes.
            (Self::MemHog { respawn: true, .. }, _) => format!("use = \"memhog\"\nmax_rssuid_mib = {RSS_MAX_MIB}\n"),
            (Self::MemHog { .. }, _) => format!("use = \"memhog\"\nmax_rss_mib = {RSS_MAX_MIB}\n"),
        };
        let (sensor, hook) = (self.sensor(agent), run.hook);
        format!(
            "\n[[target.rule]]\nsensors = \"{sensor}\"\nlimit = {limit}\nwindow_ms = {HOLD_MS}\n\n\
             [target.repair]\nact = {act}\nhook = \"{hook}\"\nspare_uids = [0]\n\n\
             [[target.repair.module]]\nsensors = [\"{sensor}\"]\n{module}"
        )
    }
}

impl fmt::Display for Illness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForkBomb { variant: Variant::Shell, .. } => f.write_str("a shell's fork bomb"),
            Self::ForkBomb { procs, .. } => write!(f, "a fork bomb of {procs}"),
            Self::MemHog { procs, mib, .. } => write!(f, "{procs} times {mib} MiB"),
        }
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is done to the guest.
    pub illness: Illness,
    /// By what.
    pub hook: Hook,
    /// Whether it is repaired; if not, it is watched for so long.
    pub unrepaired_for: Option<Duration>,
    /// A program that treats a fork bomb in place of the monitor's module.
    pub own_module: Option<PathBuf>,
    /// How long a piece of useful work takes alone.
    pub piece: Duration,
    /// The installation.
    pub order: Order,
    /// Where results are left.
    pub out: PathBuf,
}

/// What came of it. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// It was cured, by repairs that the journal gives again, without a fence, and the guest is well. Without repair:
    /// nothing was written.
    pub pass: bool,
    /// What was done.
    pub illness: Illness,
    /// By what it was to be repaired.
    pub hook: Hook,
    /// From the order to do it to the first sample out of bounds.
    pub noticed_ms: Option<f64>,
    /// From that sample to the end of the last culprit.
    pub cured_ms: Option<f64>,
    /// How long the guest stood still for each repair.
    pub locked_ms: Vec<f64>,
    /// How many processes each of them marked.
    pub culprits: Vec<usize>,
    /// For each that was ordered through the kill table: until it was in force, how many the guest says it ended, and
    /// how many of them were asleep.
    pub ordered: Vec<(f64, u64, u64)>,
    /// Pieces of useful work before.
    pub alone_ms: Vec<f64>,
    /// Those that were begun or done while it was drowned.
    pub drowned_ms: Vec<f64>,
    /// Those after the cure.
    pub after_ms: Vec<f64>,
    /// Median of those after by the median of those alone.
    pub after_by_alone: Option<f64>,
    /// Without an agent: how long one sample of every ready-made kernel sensor takes, in microseconds, at the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_us: Option<f64>,
    /// Processes of the user that are left.
    pub left: u64,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
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
    let work = format!("(/bin/rogue work --ms {} >{WORK_LOG} 2>&1 </dev/null &)", run.piece.as_millis());
    installation.vm.run(&work)?;
    let alone_ms = wait_for_pieces(installation, PIECES)?;

    progress.step(format_args!("{}", run.illness));
    let begin_ns = Monotonic.now_ns();
    installation.vm.run_within(&format!("({}) </dev/null >/dev/null 2>&1 &", run.illness.line()), ANSWER_BOUND)?;
    let drowned = match run.unrepaired_for {
        Some(time) => {
            thread::sleep(time);
            None
        }
        None => {
            wait_for_cure(installation)?;
            Some(pieces(installation)?.len())
        }
    };
    let mut report = judged(run, &incident::read(&installation.journal)?, begin_ns, installation.kernel.clone());
    if let Some(drowned) = drowned {
        progress.step("cured; is the guest well?");
        // The piece under way has seen both.
        let all = wait_for_pieces(installation, drowned + 1 + PIECES)?;
        report.drowned_ms = all[alone_ms.len()..=drowned].to_vec();
        report.after_ms = all[drowned + 1..].to_vec();
        look_after(installation, &mut report)?;
        if !run.order.agent {
            look_at_sensors(installation, &mut report)?;
            if matches!(run.illness, Illness::ForkBomb { .. }) {
                progress.step("the guest is reset: another kernel, elsewhere");
                reset(installation, &mut report)?;
            }
        }
    } else {
        // A machine that does not answer any more has not done a piece either.
        report.drowned_ms = pieces(installation).map(|all| all[alone_ms.len()..].to_vec()).unwrap_or_default();
    }
    report.after_by_alone = median(&report.after_ms).zip(median(&alone_ms)).map(|(after, alone)| after / alone);
    report.alone_ms = alone_ms;
    report.pass = report.why.is_empty();
    Ok((report, timeline::text(&incident::read(&installation.journal)?)))
}

fn look_after(installation: &mut Installation, report: &mut Report) -> Result<()> {
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
    let begin = Instant::now();
    let lines = loop {
        let lines = incident::read(&installation.journal)?;
        if lines.iter().any(|line| matches!(line.event, Event::Restarted { .. })) {
            break lines;
        }
        if begin.elapsed() > BOUND {
            bail!("its new life was not seen within {BOUND:?}");
        }
        thread::sleep(Duration::from_millis(200));
    };
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
    let recordings = recording::read(BufReader::new(File::open(&file).context("the recording")?))?;
    let whole = |Sample(_, _, values): &&Sample| values.as_ref().is_some_and(|all| all.iter().all(Option::is_some));
    let samples = recordings.iter().flat_map(|one| one.samples.iter().filter(whole));
    let took_us: Vec<f64> = samples.map(|Sample(_, took_ns, _)| *took_ns as f64 / 1e3).collect();
    report.sample_us = median(&took_us);
    if took_us.is_empty() {
        report.why.push(format!("no sample of {out} has all values"));
    }
    Ok(())
}

fn wait_for_cure(installation: &Installation) -> Result<()> {
    let begin = Instant::now();
    loop {
        let lines = incident::read(&installation.journal)?;
        if lines.iter().any(|line| matches!(line.event, Event::Cured { .. })) {
            return Ok(());
        }
        if begin.elapsed() > BOUND {
            bail!("not cured within {BOUND:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// How long each piece of the useful work took so far.
fn pieces(installation: &mut Installation) -> Result<Vec<f64>> {
    let said = installation.vm.run_within(&format!("cat {WORK_LOG}"), ANSWER_BOUND)?.text();
    let numbers = said.lines().filter(|line| !line.starts_with("rounds"));
    numbers.map(|line| line.trim().parse().with_context(|| format!("the useful program says {line:?}"))).collect()
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

/// The middle one of some values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn ordered(order: &OrderLine) -> (f64, u64, u64) {
    (order.acknowledged_ns as f64 / 1e6, order.ended, order.ended_asleep)
}

fn judged(run: &Run, lines: &[Line], begin_ns: u64, kernel: String) -> Report {
    let mut why = Vec::new();
    if run.unrepaired_for.is_none() && lines.iter().any(incident::is_act) {
        why.push("it was taken for a hang".to_owned());
    }
    if !replay::reconsider(lines, false).iter().all(replay::Reconsidered::agrees) {
        why.push("the journal does not give the decisions again".to_owned());
    }
    let after = || lines.iter().filter(|line| line.mono_ns >= begin_ns);
    let sensor = run.illness.sensor(run.order.agent);
    let noticed = after().find(|line| matches!(&line.event, Event::Suspicious { sensor: name, .. } if name == sensor));
    let cured = after().find(|line| matches!(line.event, Event::Cured { .. }));
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let repairs: Vec<_> = after()
        .filter_map(|line| match &line.event {
            Event::Repaired(repair) => Some(repair),
            _ => None,
        })
        .collect();
    let by_table = repairs.iter().filter(|repair| repair.order.is_some()).count();
    let is_as_told = match run.hook {
        Hook::Raw => by_table == 0,
        Hook::Table => {
            repairs.iter().all(|repair| repair.order.is_some() == repair.plan.is_some() && repair.locked_ns == 0)
        }
        Hook::Auto => true,
    };
    if !is_as_told {
        why.push(format!("{by_table} of {} repairs were ordered, the hook was {}", repairs.len(), run.hook));
    }
    if run.unrepaired_for.is_some() && !repairs.is_empty() {
        why.push("it was written to".to_owned());
    }
    Report {
        pass: false,
        illness: run.illness,
        hook: run.hook,
        noticed_ms: noticed.map(|line| ms(begin_ns, line.mono_ns)),
        cured_ms: noticed.zip(cured).map(|(noticed, cured)| ms(noticed.mono_ns, cured.mono_ns)),
        locked_ms: repairs.iter().map(|repair| repair.locked_ns as f64 / 1e6).collect(),
        culprits: repairs.iter().map(|repair| repair.plan.as_ref().map_or(0, |plan| plan.culprits.len())).collect(),
        ordered: repairs.iter().filter_map(|repair| repair.order.as_ref().map(ordered)).collect(),
        alone_ms: Vec::new(),
        drowned_ms: Vec::new(),
        after_ms: Vec::new(),
        after_by_alone: None,
        sample_us: None,
        left: 0,
        kernel,
        why,
    }
}
