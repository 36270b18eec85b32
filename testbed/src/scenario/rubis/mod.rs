//! The auction in its three tiers, with clients, and the check of what they were told.
//!
//! ```text
//!   PostgreSQL ◄── generator            clients ──► front ends ──► mid tiers ──► PostgreSQL ◄── check
//!   1. an empty cluster, filled         2. as long as the run                    3. when the tiers have ended
//! ```
//!
//! Either every tier is a process on this machine ([`native`]), or one machine of each tier is virtual and may break
//! ([`strike`]). In a sandbox and in memory, both.

mod crash;
mod database;
mod figure;
mod native;
mod peer;
mod recovery;
mod site;
mod snapshots;
mod strike;
mod tier;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use auction::{
    check::Findings,
    clients::{Mix, Report},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Serialize, de::DeserializeOwned};

use super::{Host, Progress, daemon::program};
use crate::{fault::Fault, sandbox, topology};
pub use peer::Peers;
use recovery::Account;
pub use recovery::{Recovery, Waiting};
pub use snapshots::{Sizes, Snapshots};

/// What is done to the tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierFault {
    /// Nothing.
    None,
    /// A front end's machine breaks.
    Fe,
    /// A mid tier's machine breaks.
    Mt,
    /// One of each, within some milliseconds.
    #[value(name = "fe+mt")]
    #[serde(rename = "fe+mt")]
    FeMt,
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
    /// How long; the recovery of what breaks comes on top of it.
    pub length: Duration,
    /// They think so many times as long.
    pub slow_down: f64,
    /// Items on sale.
    pub items: i64,
    /// Where tiers run.
    pub tiers: Tiers,
    /// Everything random follows from it.
    pub seed: u64,
    /// Where result, drawing and, after a failure, logs are left.
    pub out: PathBuf,
}

/// Where tiers run.
#[derive(Clone, Debug)]
pub enum Tiers {
    /// On this machine.
    Native {
        /// Front ends.
        front_ends: u16,
        /// Mid tiers.
        mid_tiers: u16,
    },
    /// Two of each, or three front ends; the first of them in virtual machines.
    Machines(Machines),
}

/// The virtual machines.
#[derive(Clone, Debug)]
pub struct Machines {
    /// Line of guest kernels.
    pub kernel: String,
    /// Virtual CPUs of each.
    pub vcpus: u32,
    /// The monitor's deadline for ticks.
    pub deadline_ms: u64,
    /// How they break.
    pub crash: Fault,
    /// Whether tiers keep Continuation Boxes.
    pub recoverable: bool,
    /// Where their peers are.
    pub peers: Peers,
    /// Whether the front end's machine has two service addresses, and two peers share its evacuation.
    pub is_shared: bool,
}

/// The ways in which machines break in a campaign: the kernel's own end, no interrupt ever again, no instruction, and
/// interrupts without anybody who could use them.
pub const CRASHES: [Fault; 4] = [Fault::Panic, Fault::Hardlock, Fault::Stop, Fault::Softlock];

/// How machines break in the run of `seed`, unless somebody says so.
pub fn crash_of(seed: u64) -> Fault {
    CRASHES[StdRng::seed_from_u64(seed ^ 0x0063_7261_7368).random_range(0..CRASHES.len())]
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether every promise was kept.
    pub pass: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// What was done to the tiers.
    pub fault: TierFault,
    /// What users did.
    pub mix: Mix,
    /// The seed of the run.
    pub seed: u64,
    /// Front ends and mid tiers.
    pub tiers: (u16, u16),
    /// Where the peers of virtual machines were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
    /// Release of the guests' kernel, if there were guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What became of each machine that broke.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<Recovery>,
    /// Clients that waited through the crash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Whether the healers ran ahead of everything else, as their packages have it, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub urgent: Option<bool>,
    /// What tiers' snapshots came to, if they wrote any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Snapshots>,
    /// What clients counted.
    pub clients: Report,
    /// What the check found.
    pub database: Findings,
    /// Where it ran.
    pub host: Host,
}

/// Runs it, in a sandbox. Leaves `verdict.json` and drawings, and the logs if it did not pass.
///
/// # Errors
/// When something cannot be started, or ends before it should.
pub fn run(run: &Run, progress: Progress) -> Result<Verdict> {
    let folder = Path::new(sandbox::SCRATCH).join("rubis");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    let outcome = match &run.tiers {
        Tiers::Native { .. } => on_this_machine(run, &folder, progress),
        Tiers::Machines(machines) => strike::play(run, machines, &folder, progress),
    };
    if !outcome.as_ref().is_ok_and(|verdict| verdict.pass) {
        keep_logs(&folder, &run.out)?;
    }
    let verdict = outcome?;
    fs::write(run.out.join("verdict.json"), serde_json::to_string_pretty(&verdict)?).context("verdict.json")?;
    fs::write(run.out.join("timeline.svg"), figure::timeline(run, &verdict.clients).svg()).context("timeline.svg")?;
    Ok(verdict)
}

fn on_this_machine(run: &Run, folder: &Path, progress: Progress) -> Result<Verdict> {
    topology::loopback_up()?;
    let (clients, database) = native::play(run, folder, progress)?;
    Ok(run.judge(clients, database, None, None))
}

impl Run {
    /// Front ends and mid tiers.
    fn counts(&self) -> (u16, u16) {
        match &self.tiers {
            Tiers::Native { front_ends, mid_tiers } => (*front_ends, *mid_tiers),
            Tiers::Machines(machines) => (2 + u16::from(machines.is_shared), 2),
        }
    }

    /// The words after `auction` for the users of this run.
    fn client_arguments(&self, at: &str, seconds: &str, record: &Path, trace: Option<&Path>) -> Result<Vec<String>> {
        let mix = serde_json::to_value(self.mix)?;
        let mut words = vec![
            ("--front-end", at.to_owned()),
            ("--clients", self.clients.to_string()),
            ("--seconds", seconds.to_owned()),
            ("--slow-down", self.slow_down.to_string()),
            ("--mix", mix.as_str().context("a mix is a word")?.to_owned()),
            ("--items", self.items.to_string()),
            ("--seed", self.seed.to_string()),
            ("--record", record.display().to_string()),
        ];
        words.extend(trace.map(|file| ("--trace", file.display().to_string())));
        let words = words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        Ok(std::iter::once("clients".to_owned()).chain(words).collect())
    }

    fn judge(&self, clients: Report, database: Findings, account: Option<&Account>, kernel: Option<String>) -> Verdict {
        let mut why = Vec::new();
        if clients.replies == 0 {
            why.push("no client got any reply".to_owned());
        }
        if clients.mismatched > 0 {
            why.push(format!("{} replies did not belong to their requests", clients.mismatched));
        }
        // With boxes, a fault is nothing that a client may notice.
        if clients.failures > 0 {
            why.push(format!("{} requests failed: {}", clients.failures, clients.quoted.join("; ")));
        }
        if !database.is_clean() {
            why.push("the database is not what clients were told".to_owned());
        }
        why.extend(account.iter().flat_map(|account| account.why.clone()));
        Verdict {
            pass: why.is_empty(),
            why,
            fault: self.fault,
            mix: self.mix,
            seed: self.seed,
            tiers: self.counts(),
            peers: match &self.tiers {
                Tiers::Machines(machines) => Some(machines.peers),
                Tiers::Native { .. } => None,
            },
            kernel,
            recoveries: account.map(|account| account.recoveries.clone()).unwrap_or_default(),
            waiting: account.and_then(|account| account.waiting.clone()),
            urgent: None,
            snapshots: None,
            clients,
            database,
            host: Host::here(),
        }
    }
}

/// A call of the auction's program that has ended.
pub(crate) struct Called {
    what: String,
    said: String,
    status: std::process::ExitStatus,
}

pub(crate) fn auction(arguments: &[&str]) -> Result<Called> {
    let mut command = Command::new(program("auction")?);
    command.args(arguments).env("BACKDOORS_LOG", "warn").env("NO_COLOR", "1").stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().context("cannot start auction")?;
    let (what, said) = (arguments[0].to_owned(), String::from_utf8_lossy(&output.stdout).into_owned());
    Ok(Called { what, said, status: output.status })
}

impl Called {
    pub(crate) fn silent(self) -> Result<()> {
        ensure!(self.status.success(), "auction {}: {}", self.what, self.status);
        Ok(())
    }

    /// The last line. A status of 1 says that promises were broken, which the result tells in detail.
    pub(crate) fn result<T: DeserializeOwned>(self) -> Result<T> {
        ensure!(matches!(self.status.code(), Some(0 | 1)), "auction {}: {}", self.what, self.status);
        let line = self.said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("auction {} said {line:?}", self.what))
    }
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
