//! The auction in its three tiers, with clients, and the check of what they were told: every tier a process of its own
//! on this machine, over loopback, in memory.
//!
//! ```text
//!   PostgreSQL ◄── generator            clients ──► front ends ──► mid tiers ──► PostgreSQL ◄── check
//!   1. an empty cluster, filled         2. as long as the run                    3. when the tiers have ended
//! ```
//!
//! What it does not do yet: break a tier. It is the ground that faults will stand on, and the load for figures.

mod figure;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use auction::{
    check::Findings,
    clients::{Mix, Report},
    database::Server,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Daemon, Progress, daemon::program};
use crate::{
    sandbox,
    topology::{self, Place},
};

/// Where the database listens.
const DATABASE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5432);
/// Ports of the first front end and the first mid tier; the others follow.
const FRONT_ENDS: u16 = 8000;
const MID_TIERS: u16 = 8100;
/// Connections of each mid tier to the database.
const CONNECTIONS: u32 = 16;
/// Those of everybody else: generator, check, an administrator.
const CONNECTIONS_OF_OTHERS: u32 = 10;
/// A busy machine included.
const START_BOUND: Duration = Duration::from_secs(30);

/// What is done to the tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierFault {
    /// Nothing.
    None,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is done to the tiers.
    pub fault: TierFault,
    /// Emulated users.
    pub clients: u32,
    /// What they do.
    pub mix: Mix,
    /// How long.
    pub length: Duration,
    /// They think so many times as long.
    pub slow_down: f64,
    /// Items on sale.
    pub items: i64,
    /// Front ends.
    pub front_ends: u16,
    /// Mid tiers.
    pub mid_tiers: u16,
    /// Everything random follows from it.
    pub seed: u64,
    /// Where result, drawing and, after a failure, logs are left.
    pub out: PathBuf,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether every promise was kept.
    pub pass: bool,
    /// Why not.
    pub why: Option<String>,
    /// What was done to the tiers.
    pub fault: TierFault,
    /// What users did.
    pub mix: Mix,
    /// The seed of the run.
    pub seed: u64,
    /// Front ends and mid tiers.
    pub tiers: (u16, u16),
    /// What clients counted.
    pub clients: Report,
    /// What the check found.
    pub database: Findings,
}

/// Runs it, in a sandbox. Leaves `verdict.json` and `timeline.svg`, and the logs if it did not pass.
///
/// # Errors
/// When something cannot be started, or ends before it should.
pub fn run(run: &Run, progress: Progress) -> Result<Verdict> {
    topology::loopback_up()?;
    let folder = Path::new(sandbox::SCRATCH).join("rubis");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let outcome = carry_out(run, &folder, progress);
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    if !outcome.as_ref().is_ok_and(|verdict| verdict.pass) {
        keep_logs(&folder, &run.out)?;
    }
    let verdict = outcome?;
    fs::write(run.out.join("verdict.json"), serde_json::to_string_pretty(&verdict)?).context("verdict.json")?;
    fs::write(run.out.join("timeline.svg"), figure::timeline(run, &verdict.clients).svg()).context("timeline.svg")?;
    Ok(verdict)
}

fn carry_out(run: &Run, folder: &Path, progress: Progress) -> Result<Verdict> {
    progress.step(format_args!("PostgreSQL with {} items", run.items));
    let connections = CONNECTIONS * u32::from(run.mid_tiers) + CONNECTIONS_OF_OTHERS;
    let database = Server::start(&folder.join("database"), Some(DATABASE), connections)?;
    let address = Server::tcp_address(DATABASE);
    let (items, seed) = (run.items.to_string(), run.seed.to_string());
    auction(&["data", "--database", &address, "--items", &items, "--seed", &seed])?.silent()?;

    progress.step(format_args!("{} mid tiers, {} front ends", run.mid_tiers, run.front_ends));
    let connections = CONNECTIONS.to_string();
    let mut tiers = Vec::new();
    let mid_tiers = start_tiers(&mut tiers, folder, ("mt", MID_TIERS, run.mid_tiers), |listen| {
        ["mt", "--listen", listen, "--database", &address, "--connections", &connections].map(str::to_owned).into()
    })?;
    let front_ends = start_tiers(&mut tiers, folder, ("fe", FRONT_ENDS, run.front_ends), |listen| {
        ["fe", "--listen", listen, "--mid-tier", &mid_tiers].map(str::to_owned).into()
    })?;

    progress.step(format_args!("{} clients for {:?}", run.clients, run.length));
    let record = folder.join("record.jsonl").display().to_string();
    let (clients, seconds) = (run.clients.to_string(), run.length.as_secs_f64().to_string());
    let (slow_down, mix) = (run.slow_down.to_string(), serde_json::to_value(run.mix)?);
    let mix = mix.as_str().context("a mix is a word")?;
    let mut arguments = vec!["clients", "--front-end", &front_ends, "--clients", &clients, "--seconds", &seconds];
    arguments.extend(["--slow-down", &slow_down, "--mix", mix, "--items", &items, "--seed", &seed]);
    arguments.extend(["--record", &record]);
    let report: Report = auction(&arguments)?.result()?;
    for tier in &mut tiers {
        if let Some(status) = tier.ended()? {
            bail!("{} ended during the run ({status}):\n{}", tier.name(), tier.tail());
        }
    }

    progress.step("the database is checked");
    // Front ends first: the mid tiers then have nobody who asks.
    tiers.into_iter().rev().try_for_each(Daemon::terminate)?;
    let findings: Findings = auction(&["check", "--database", &address, "--record", &record])?.result()?;
    drop(database);
    Ok(judge(run, report, findings))
}

/// Starts one tier's processes and waits until they listen; returns their addresses, with commas.
fn start_tiers(
    tiers: &mut Vec<Daemon>,
    folder: &Path,
    (name, port, count): (&str, u16, u16),
    arguments: impl Fn(&str) -> Vec<String>,
) -> Result<String> {
    let mut addresses = Vec::new();
    for number in 0..count {
        let listen = SocketAddr::new(DATABASE.ip(), port + number);
        let name = format!("{name}{number}");
        let arguments = arguments(&listen.to_string());
        let mut tier = Daemon::start_logging(&Place::here("rubis"), &name, "auction", arguments, folder, None)?;
        tier.wait_until("listening", START_BOUND, || TcpStream::connect(listen).is_ok())?;
        tiers.push(tier);
        addresses.push(listen.to_string());
    }
    Ok(addresses.join(","))
}

/// A call of the auction's program that has ended.
struct Called {
    what: String,
    said: String,
    status: std::process::ExitStatus,
}

fn auction(arguments: &[&str]) -> Result<Called> {
    let mut command = Command::new(program("auction")?);
    command.args(arguments).env("BACKDOORS_LOG", "warn").env("NO_COLOR", "1").stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().context("cannot start auction")?;
    let (what, said) = (arguments[0].to_owned(), String::from_utf8_lossy(&output.stdout).into_owned());
    Ok(Called { what, said, status: output.status })
}

impl Called {
    fn silent(self) -> Result<()> {
        ensure!(self.status.success(), "auction {}: {}", self.what, self.status);
        Ok(())
    }

    /// The last line. A status of 1 says that promises were broken, which the result tells in detail.
    fn result<T: DeserializeOwned>(self) -> Result<T> {
        ensure!(matches!(self.status.code(), Some(0 | 1)), "auction {}: {}", self.what, self.status);
        let line = self.said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("auction {} said {line:?}", self.what))
    }
}

fn judge(run: &Run, clients: Report, database: Findings) -> Verdict {
    let why = if clients.replies == 0 {
        Some("no client got any reply".to_owned())
    } else if clients.mismatched > 0 {
        Some(format!("{} replies did not belong to their requests", clients.mismatched))
    } else if run.fault == TierFault::None && clients.failures > 0 {
        Some(format!("{} requests failed, and nothing was broken", clients.failures))
    } else if !database.is_clean() {
        Some("the database is not what clients were told".to_owned())
    } else {
        None
    };
    let tiers = (run.front_ends, run.mid_tiers);
    Verdict { pass: why.is_none(), why, fault: run.fault, mix: run.mix, seed: run.seed, tiers, clients, database }
}

/// Everything that says what happened: logs, and the clients' record.
fn keep_logs(folder: &Path, out: &Path) -> Result<()> {
    let database = folder.join("database");
    for place in [folder, &database] {
        let Ok(entries) = fs::read_dir(place) else { continue };
        for file in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let Some(name) = file.file_name() else { continue };
            if [".log", ".jsonl"].iter().any(|end| name.to_string_lossy().ends_with(end)) {
                fs::copy(&file, out.join(name)).with_context(|| format!("keeping {}", file.display()))?;
            }
        }
    }
    Ok(())
}
