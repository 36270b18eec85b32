//! What drowns a guest, and what an operator would configure against it.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use super::{
    Run,
    bystanders::{PROCESSES_MAX, RSS_MAX_MIB, SPARED_USER},
};

/// The user that does it.
pub(super) const USER: u32 = 1000;

/// Tasks of the whole guest that are too many. A guest without load has some 65, or 55 without an agent, and 15 of
/// bystanders.
const TASKS_MAX: u32 = 100;

/// Memory of all processes of one user, in MiB, that is too much: what they share counts for each of them.
const RSSUID_MAX_MIB: u64 = 24;

/// Free pages of the guest below which memory is short: 48 MiB.
const FREE_PAGES_MIN: u64 = 12_288;

/// Memory that the useful program works on, in MiB: beside a bomb little, so that a piece is many rounds over it;
/// beside hogs enough to be worth taking from it.
const BOMB_WORK_MIB: u32 = 4;
const HOG_WORK_MIB: u32 = 32;

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
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// By writes into the kernel's structures, while the guest stands still.
    Raw,
    /// By orders in the kill table of the guest's agent, while it runs.
    Table,
    /// The same, and the guest is judged by the process table of its agent: nothing but what that registered is read.
    TableAlone,
    /// By the table if there is one.
    Auto,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Table => "table",
            Self::TableAlone => "table-alone",
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
    pub(super) fn line(self) -> String {
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

    /// Memory that the useful program works on, in MiB.
    pub(super) fn work_mib(self) -> u32 {
        match self {
            Self::ForkBomb { .. } => BOMB_WORK_MIB,
            Self::MemHog { .. } => HOG_WORK_MIB,
        }
    }

    /// The sensor that shows it: the agent's, or the kernel's own.
    pub(super) fn sensor(self, agent: bool) -> &'static str {
        match (self, agent) {
            (Self::ForkBomb { .. }, true) => "tasks",
            (Self::ForkBomb { .. }, false) => "NPROCS",
            (Self::MemHog { .. }, true) => "free-pages",
            (Self::MemHog { .. }, false) => "FREE_PAGES",
        }
    }

    /// What an operator would configure against it.
    pub(super) fn policy(self, run: &Run) -> String {
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
            (Self::MemHog { respawn: true, .. }, _) => format!("use = \"memhog\"\nmax_rssuid_mib = {RSSUID_MAX_MIB}\n"),
            (Self::MemHog { .. }, _) => format!("use = \"memhog\"\nmax_rss_mib = {RSS_MAX_MIB}\n"),
        };
        let (sensor, hold_ms) = (self.sensor(agent), run.hold.as_millis());
        let (hook, look) = match run.hook {
            Hook::TableAlone => ("table".to_owned(), "table"),
            hook => (hook.to_string(), "auto"),
        };
        format!(
            "\n[[target.rule]]\nsensors = \"{sensor}\"\nlimit = {limit}\nwindow_ms = {hold_ms}\n\n\
             [target.repair]\nact = {act}\nhook = \"{hook}\"\nlook = \"{look}\"\nspare_uids = [0, {SPARED_USER}]\n\n\
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
