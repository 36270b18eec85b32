//! Many runs of `testbed run`, each a process of its own, so that one that dies costs one line.
//!
//! Results are appended to a file, one JSON line per run; who asks again for the same runs gets those that are missing.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};

/// A run that has not ended by then is ended and counted as failed: boot, recovery and clients have bounds of their own
/// that add up to less.
const RUN_BOUND: Duration = Duration::from_secs(300);

/// One run, which can be repeated.
pub(super) trait Case: Sync {
    /// Names it; equal names are the same run.
    fn name(&self) -> String;

    /// The arguments of `testbed run` that repeat it, its scenario first.
    fn arguments(&self) -> Vec<String>;
}

/// The first `count` cases of the campaign `seed`: round after round, each in an order of its own, so that a longer
/// campaign begins with the shorter one. Fewer if a round is empty; `round` is given its number.
pub(super) fn rounds<C>(seed: u64, count: usize, round: impl Fn(usize, &mut StdRng) -> Vec<C>) -> Vec<C> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases = Vec::with_capacity(count);
    for number in 0.. {
        if cases.len() >= count {
            break;
        }
        let mut round = round(number, &mut random);
        if round.is_empty() {
            break;
        }
        round.shuffle(&mut random);
        round.truncate(count - cases.len());
        cases.append(&mut round);
    }
    cases
}

/// Where and how they are made.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The results, one JSON line per run.
    pub results: PathBuf,
    /// Runs at the same time.
    pub parallel: usize,
    /// Put before the command of each run: a lock, `taskset`, …
    pub through: Vec<String>,
}

/// What a run gets beside its arguments.
pub(super) struct Equipment<G> {
    /// More arguments.
    pub(super) arguments: Vec<String>,
    /// What is added to its line.
    pub(super) noted: Vec<(&'static str, Value)>,
    /// What must live as long as the run.
    pub(super) held: G,
}

impl Runs {
    /// Makes those of `cases` that the file does not have, and returns all lines of the file. `equip` gives each what
    /// it needs.
    pub(super) fn all<C: Case, G>(
        &self,
        cases: &[C],
        equip: impl Fn(&C) -> Result<Equipment<G>> + Sync,
    ) -> Result<Vec<Value>> {
        let mut lines = read(&self.results)?;
        let done: HashSet<String> = lines.iter().filter_map(|line| line["case"].as_str().map(str::to_owned)).collect();
        let missing: Vec<&C> = cases.iter().filter(|case| !done.contains(&case.name())).collect();
        eprintln!("campaign: {} runs, {} of them done before", cases.len(), cases.len() - missing.len());
        let file = append(&self.results)?;
        let (next, results) = (AtomicUsize::new(0), Mutex::new((file, &mut lines)));
        let worker = || -> Result<()> {
            while let Some(case) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let line = self.run(*case, equip(case)?)?;
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                writeln!(results.0, "{line}").context("writing the result")?;
                results.1.push(line.clone());
                let words = if line["pass"] == true { "passed".to_owned() } else { format!("FAILED: {}", line["why"]) };
                eprintln!("campaign: {}/{} {} {words}", results.1.len(), cases.len(), case.name());
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })?;
        Ok(lines)
    }

    /// This program, through whatever shall be before it.
    pub(super) fn testbed(&self) -> Result<Command> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = match self.through.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// One run; whatever comes of it is a line.
    fn run<G>(&self, case: &impl Case, equipment: Equipment<G>) -> Result<Value> {
        let Equipment { arguments, noted, held } = equipment;
        let out = self.results.with_extension("failed").join(case.name());
        fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
        let log_path = out.join("run.log");
        let log = File::create(&log_path).context("run.log")?;
        let mut command = self.testbed()?;
        command.arg("run").args(case.arguments()).args(arguments).arg("--out").arg(&out);
        let begun = Instant::now();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().context("starting a run")?;
        let status = await_end(&mut child)?;
        drop(held);
        let mut said = String::new();
        child.stdout.take().context("a run without output")?.read_to_string(&mut said).context("a run's output")?;
        let last = said.lines().last().unwrap_or_default();
        let mut line = match (status, serde_json::from_str::<Value>(last)) {
            (Some(_), Ok(line @ Value::Object(_))) => line,
            (Some(status), _) => no_result(&format!("no result, {status}"), &log_path),
            (None, _) => no_result(&format!("no end within {} s", RUN_BOUND.as_secs()), &log_path),
        };
        line["case"] = json!(case.name());
        line["arguments"] = json!(case.arguments().join(" "));
        noted.into_iter().for_each(|(name, value)| line[name] = value);
        line["seconds"] = json!((begun.elapsed().as_secs_f64() * 10.0).round() / 10.0);
        if line["pass"] == true {
            let _ = fs::remove_dir_all(&out); // drawings of runs without incident are of no use in such numbers
        }
        Ok(line)
    }
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

/// The line of a run that has none, with what it said last: why it gave up, or what it was doing.
fn no_result(what: &str, log: &Path) -> Value {
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    json!({ "pass": false, "why": [format!("{what}: {}", last.trim())] })
}

/// Waits for a run's end; `None` if it had to be ended. Its sandbox is a process namespace: all in it ends with it.
fn await_end(child: &mut Child) -> Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("waiting for a run")? {
            return Ok(Some(status));
        }
        if begun.elapsed() > RUN_BOUND {
            child.kill().context("ending a run")?;
            child.wait().context("ending a run")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_gave_up_says_why_in_its_line() {
        let log = std::env::temp_dir().join(format!("testbed-run-log-{}", std::process::id()));
        let why = |said: &str| {
            fs::write(&log, said).unwrap();
            no_result("no result, exit status: 2", &log)["why"][0].as_str().unwrap().to_owned()
        };
        assert_eq!(
            why("a guest boots\ntestbed: the clients say: : no way\n\n"),
            "no result, exit status: 2: testbed: the clients say: : no way"
        );
        assert_eq!(why(""), "no result, exit status: 2: it said nothing");
        fs::remove_file(&log).unwrap();
    }
}
