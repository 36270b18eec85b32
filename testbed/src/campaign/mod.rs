//! A campaign: the matrix of faults, kernels, processors and sessions, run again and again with new seeds.
//!
//! Each run is a process of its own (`testbed run hang-download …`), so that one that dies costs one line. Results are
//! appended to a file, one JSON line per run; a campaign that is started again goes on where that file ends. Cases come
//! in an order shuffled by the campaign's seed: wherever it is stopped, what has run covers the matrix evenly.

mod matrix;
mod summary;

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub use matrix::{Case, Matrix};
pub use summary::Summary;

/// A run that has not ended by then is ended and counted as failed: boot, recovery and clients have bounds of their own
/// that add up to less.
const RUN_BOUND: Duration = Duration::from_secs(300);

/// What a campaign is asked for.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The results, one JSON line per run.
    pub results: PathBuf,
    /// Runs in all, those that the file holds already included.
    pub runs: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// What is combined.
    pub matrix: Matrix,
    /// The monitor's deadline.
    pub deadline_ms: u64,
}

/// Runs what is missing and returns the summary of all there is.
///
/// # Errors
/// When results cannot be read or written, or a run cannot be started at all.
pub fn campaign(order: &Campaign) -> Result<Summary> {
    let mut lines = read(&order.results)?;
    let done: HashSet<String> = lines.iter().filter_map(|line| line["case"].as_str().map(str::to_owned)).collect();
    let cases = order.matrix.cases(order.seed, order.runs);
    let missing: Vec<&Case> = cases.iter().filter(|case| !done.contains(&case.name())).collect();
    eprintln!("campaign: {} runs, {} of them done before", cases.len(), cases.len() - missing.len());
    let mut file = append(&order.results)?;
    for (index, case) in missing.iter().enumerate() {
        let line = run(case, order)?;
        let words = if line["pass"] == json!(true) { "passed".to_owned() } else { format!("FAILED: {}", line["why"]) };
        eprintln!("campaign: {}/{} {} {words}", index + 1, missing.len(), case.name());
        writeln!(file, "{line}").context("writing the result")?;
        lines.push(line);
    }
    Ok(Summary::of(&lines))
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let Ok(file) = File::open(path) else { return Ok(Vec::new()) };
    let parse = |(number, line): (usize, std::io::Result<String>)| {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&line).with_context(|| format!("{}:{}: no result", path.display(), number + 1))
    };
    BufReader::new(file).lines().enumerate().map(parse).collect()
}

fn append(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("opening {}", path.display()))
}

/// One run; whatever comes of it is a line.
fn run(case: &Case, order: &Campaign) -> Result<Value> {
    let out = order.results.with_extension("failed").join(case.name());
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(["run", "hang-download"]).args(case.arguments()).arg("--out").arg(&out);
    command.args(["--deadline-ms", &order.deadline_ms.to_string()]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("starting a run")?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a run")? {
            break Some(status);
        }
        if begun.elapsed() > RUN_BOUND {
            // Its sandbox is a process namespace: everything in it ends with it.
            child.kill().context("ending a run")?;
            child.wait().context("ending a run")?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let Some(output) = child.stdout.take() else { bail!("a run without output") };
    let last = BufReader::new(output).lines().map_while(Result::ok).last().unwrap_or_default();
    let mut line = match (status, serde_json::from_str::<Value>(&last)) {
        (Some(_), Ok(line @ Value::Object(_))) => line,
        (Some(status), _) => json!({ "pass": false, "why": [format!("no result, {status}")] }),
        (None, _) => json!({ "pass": false, "why": [format!("no end within {} s", RUN_BOUND.as_secs())] }),
    };
    line["case"] = json!(case.name());
    if line["pass"] == json!(true) {
        let _ = fs::remove_dir_all(&out); // drawings of runs without incident are of no use in such numbers
    }
    Ok(line)
}
