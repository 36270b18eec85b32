//! `forkbomb`: an ordinary user of the guest sets off a fork bomb; the monitor ends it by writing into the guest's
//! memory, and nothing else of the guest is harmed.
//!
//! ```text
//!   sessions are served ── the bomb goes off ── `tasks` leaves its bounds ── locked, judged, marked, let go ── cured
//!      ── the guest does useful work again, its sessions go on, nobody was fenced
//! ```

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use monitor::journal::{Event, Line, replay, timeline};
use serde::Serialize;

use super::{
    incident,
    installation::{Installation, Order},
    progress::Progress,
};

/// The user that sets it off.
const USER: u32 = 1000;

/// Tasks of the whole guest, and processes of the user, that are too many.
const TASKS_MAX: u32 = 250;
const PROCESSES_MAX: u32 = 100;

/// From the bomb to the cure, on a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(120);

/// For the guest to answer once it is well.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The installation.
    pub order: Order,
    /// Where results are left.
    pub out: PathBuf,
}

/// What came of it. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// It was cured, by repairs that the journal gives again, without a fence, and the guest is well.
    pub pass: bool,
    /// From the order to set it off to the first sample out of bounds.
    pub noticed_ms: Option<f64>,
    /// From that sample to the end of the last culprit.
    pub cured_ms: Option<f64>,
    /// How long the guest stood still for each repair.
    pub locked_ms: Vec<f64>,
    /// How many processes each of them marked.
    pub culprits: Vec<usize>,
    /// Processes of the user that are left.
    pub left: u64,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

fn policy() -> String {
    format!(
        "\n[[target.rule]]\nsensors = \"tasks\"\nlimit = {TASKS_MAX}\n\n[target.repair]\nspare_uids = [0]\n\n\
         [[target.repair.module]]\nuse = \"forkbomb\"\nsensors = [\"tasks\"]\ntoo_many_procs = {PROCESSES_MAX}\n"
    )
}

/// Runs it; result and journal are in `run.out` afterwards.
///
/// # Errors
/// When it cannot be carried out.
pub fn run(run: &Run, progress: Progress) -> Result<(Report, String)> {
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    let mut installation = Installation::build(&run.order, progress)?;
    let ready = installation.ready_with(&run.order, &policy(), progress);
    let result = ready.and_then(|()| carry_out(&mut installation, progress));
    if !result.as_ref().is_ok_and(|(report, _)| report.pass) {
        installation.save_logs(&run.out)?;
        eprintln!("logs: {}\n{}", run.out.display(), installation.tails());
    }
    let (report, text) = result?;
    fs::copy(&installation.journal, run.out.join("journal.jsonl")).context("the journal")?;
    fs::write(run.out.join("result.json"), serde_json::to_string(&report)? + "\n").context("result.json")?;
    Ok((report, text))
}

fn carry_out(installation: &mut Installation, progress: Progress) -> Result<(Report, String)> {
    let passwd = format!("echo 'u:x:{USER}:{USER}::/tmp:/bin/sh' >> /etc/passwd");
    installation.vm.run(&passwd)?;
    progress.step("the bomb goes off");
    let begin_ns = monitor::clock::Clock::now_ns(&monitor::clock::Monotonic);
    installation.vm.run("(su u -s /bin/sh -c 'b() { while :; do b & done; }; b') </dev/null >/dev/null 2>&1 &")?;
    let begin = Instant::now();
    let lines = loop {
        let lines = incident::read(&installation.journal)?;
        if lines.iter().any(|line| matches!(line.event, Event::Cured { .. })) {
            break lines;
        }
        ensure!(begin.elapsed() < BOUND, "not cured within {BOUND:?}");
        thread::sleep(Duration::from_millis(20));
    };
    progress.step("cured; is the guest well?");
    let well = installation.vm.run_within("ls /proc >/dev/null && echo well", ANSWER_BOUND)?;
    let count = format!("grep -l '^Uid:.{USER}' /proc/[0-9]*/status 2>/dev/null | wc -l");
    let left = installation.vm.run_within(&count, ANSWER_BOUND)?;
    let left = left.text().trim().parse().context("a count of processes")?;
    let complaints = "dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on|Call Trace|Out of memory'";
    let complaints = installation.vm.run_within(complaints, ANSWER_BOUND)?.text();
    let mut report = judged(&lines, begin_ns, installation.kernel.clone());
    report.left = left;
    if well.text().trim() != "well" || !complaints.trim().is_empty() {
        report.why.push(format!("the guest is not well: {} {complaints}", well.text()));
    }
    if left > 0 {
        report.why.push(format!("{left} processes of the user are left"));
    }
    report.pass = report.why.is_empty();
    Ok((report, timeline::text(&lines)))
}

fn judged(lines: &[Line], begin_ns: u64, kernel: String) -> Report {
    let mut why = Vec::new();
    if lines.iter().any(|line| matches!(line.event, Event::Verdict { .. } | Event::Fenced { .. })) {
        why.push("it was taken for a hang".to_owned());
    }
    if !replay::reconsider(lines).iter().all(replay::Reconsidered::agrees) {
        why.push("the journal does not give the decisions again".to_owned());
    }
    let at = |wanted: fn(&Event) -> bool| lines.iter().find(|line| wanted(&line.event)).map(|line| line.mono_ns);
    let noticed_ns = at(|event| matches!(event, Event::Suspicious { sensor, .. } if sensor == "tasks"));
    let cured_ns = at(|event| matches!(event, Event::Cured { .. }));
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let repairs = || {
        lines.iter().filter_map(|line| match &line.event {
            Event::Repaired(repair) => Some(repair),
            _ => None,
        })
    };
    Report {
        pass: false,
        noticed_ms: noticed_ns.map(|noticed| ms(begin_ns, noticed)),
        cured_ms: noticed_ns.zip(cured_ns).map(|(noticed, cured)| ms(noticed, cured)),
        locked_ms: repairs().map(|repair| repair.locked_ns as f64 / 1e6).collect(),
        culprits: repairs().map(|repair| repair.plan.as_ref().map_or(0, |plan| plan.culprits.len())).collect(),
        left: 0,
        kernel,
        why,
    }
}
