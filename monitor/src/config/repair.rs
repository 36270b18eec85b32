//! `[target.repair]`: which healing modules treat a target, when they are asked, and what they must leave alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use healing_modules::{ForkBomb, Healer, MemHog, Safety};
use introspect::linux::contain::Means;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Checker, ConfigError, file};
use crate::repair::{self, Outside};

/// How long after a treatment that did not help the next one begins, unless configured.
const AGAIN: Duration = Duration::from_secs(5);

/// A healing module and its policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "use", rename_all = "lowercase")]
pub enum Module {
    /// Processes that make processes.
    ForkBomb(ForkBomb),
    /// Processes that take memory.
    MemHog(MemHog),
    /// What a program of the operator's own finds.
    Program(Outside),
}

impl Module {
    /// The module itself, if it is one of this build.
    pub fn healer(&self) -> Option<Box<dyn Healer>> {
        match self {
            Self::ForkBomb(module) => Some(Box::new(*module)),
            Self::MemHog(module) => Some(Box::new(*module)),
            Self::Program(_) => None,
        }
    }
}

/// By what a target's processes are ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// By writes into its kernel's structures, while it stands still. Nothing of ours need run in the target.
    #[default]
    Raw,
    /// By orders in the kill table of its agent, while it runs. No memory of its kernel is written to.
    Table,
    /// By the table; where there is none, or nobody takes the order up, by raw writes.
    Auto,
}

/// What is looked at of a target to judge it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Look {
    /// Its memory; where none of it can be reached but what its agent has registered, the process table of that.
    #[default]
    Auto,
    /// Its memory.
    Memory,
    /// The process table of its agent, and nothing else.
    Table,
}

/// How a target is repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Whether anything is written; if not, what would be is journaled.
    pub act: bool,
    /// By what processes are ended.
    pub hook: Hook,
    /// What is looked at of it.
    pub look: Look,
    /// How culprits are contained that do not end at once.
    pub contain: BTreeSet<Means>,
    /// What is never touched.
    pub safety: Safety,
    /// How long after a treatment that did not help the next one begins.
    pub again: Duration,
    /// Whether a target that could not be cured is evacuated.
    pub escalate: bool,
    /// Each with the patterns of the sensors that ask for it.
    pub modules: Vec<(Vec<String>, Module)>,
}

impl Checker<'_> {
    pub(super) fn repair(&self, table: &Spanned<file::Repair>) -> Result<Repair, ConfigError> {
        let span = table.span();
        let table = table.get_ref();
        if table.module.is_empty() {
            let what = "nothing is repaired without a [[target.repair.module]]; add one or leave [target.repair] out";
            return Err(self.source.error(span, "target.repair", what));
        }
        let standard = Safety::default();
        let blast_cap = match &table.blast_cap {
            Some(cap) if *cap.get_ref() == 0 => {
                let what = "no repair may end a process: set act = false for a dry run, or raise it";
                return Err(self.source.error(cap.span(), "target.repair.blast_cap", what));
            }
            cap => cap.as_ref().map_or(standard.blast_cap, |cap| *cap.get_ref()),
        };
        let safety = Safety {
            spare_uids: table.spare_uids.clone().unwrap_or(standard.spare_uids),
            spare_comms: table.spare_comms.clone().unwrap_or(standard.spare_comms),
            blast_cap,
        };
        let again = table.again_s.as_ref().map(|value| self.time(value, 1.0, "target.repair.again_s")).transpose()?;
        let modules = table.module.iter().map(|module| self.module(module)).collect::<Result<_, _>>()?;
        let (act, escalate) = (table.act.unwrap_or(true), table.escalate.unwrap_or(false));
        if table.look == Look::Table && table.hook != Hook::Table {
            let what = "look = \"table\" leaves its kernel's memory alone, and so must the hook: set hook = \"table\"";
            return Err(self.source.error(span, "target.repair.look", what));
        }
        let contain = self.contain(table)?;
        Ok(Repair {
            act,
            hook: table.hook,
            look: table.look,
            contain,
            safety,
            again: again.unwrap_or(AGAIN),
            escalate,
            modules,
        })
    }

    fn contain(&self, table: &file::Repair) -> Result<BTreeSet<Means>, ConfigError> {
        match (&table.contain, table.hook) {
            (None, Hook::Table) => Ok(BTreeSet::new()),
            (None, Hook::Raw | Hook::Auto) => Ok(repair::standard()),
            (Some(means), Hook::Table) if !means.get_ref().is_empty() => {
                let what = "an order in the kill table contains nobody; set hook to raw or auto, or leave this out";
                Err(self.source.error(means.span(), "target.repair.contain", what))
            }
            (Some(means), _) => Ok(means.get_ref().iter().copied().collect()),
        }
    }

    fn module(&self, table: &Spanned<file::Module>) -> Result<(Vec<String>, Module), ConfigError> {
        let sensors = &table.get_ref().sensors;
        if sensors.get_ref().is_empty() {
            let what = "without a sensor the module is never asked; name those whose leaving their bounds asks for it";
            return Err(self.source.error(sensors.span(), "target.repair.module.sensors", what));
        }
        let module = match (&table.get_ref().name, &table.get_ref().command) {
            (Some(name), None) => self.in_tree(table, name)?,
            (None, Some(command)) => Module::Program(self.outside(table, command)?),
            (Some(_), Some(_)) | (None, None) => {
                let what = "a module is one of this build (use) or a program of your own (command); say one of the two";
                return Err(self.source.error(table.span(), "target.repair.module", what));
            }
        };
        Ok((sensors.get_ref().clone(), module))
    }

    fn in_tree(&self, table: &Spanned<file::Module>, name: &Spanned<String>) -> Result<Module, ConfigError> {
        let policies = table.get_ref().policies.clone();
        if policies.is_empty() {
            let what = "without a policy the module finds nothing; add one, such as too_many_procs or max_rss_mib";
            return Err(self.source.error(table.span(), "target.repair.module", what));
        }
        let wrong = |error: toml::de::Error| {
            let what = format!("{} for {}", error.message(), name.get_ref());
            self.source.error(table.span(), "target.repair.module", what)
        };
        match name.get_ref().as_str() {
            "forkbomb" => Ok(Module::ForkBomb(policies.try_into().map_err(wrong)?)),
            "memhog" => Ok(Module::MemHog(policies.try_into().map_err(wrong)?)),
            other => {
                let what = format!("no module {other:?}; there are forkbomb and memhog, and command for your own");
                Err(self.source.error(name.span(), "target.repair.module.use", what))
            }
        }
    }

    fn outside(&self, table: &Spanned<file::Module>, command: &Spanned<Vec<String>>) -> Result<Outside, ConfigError> {
        let program = command.get_ref().first().map(Path::new);
        let file = program.filter(|program| program.is_absolute()).and_then(Path::file_name);
        let Some(file) = file else {
            let what = "name the program by its absolute path, then its arguments";
            return Err(self.source.error(command.span(), "target.repair.module.command", what));
        };
        let wrong = |error: toml::de::Error| {
            let what = format!("{} for a program; what it is to know goes into settings", error.message());
            self.source.error(table.span(), "target.repair.module", what)
        };
        let own: Own = table.get_ref().policies.clone().try_into().map_err(wrong)?;
        let settings = serde_json::to_value(own.settings).ok();
        let Some(serde_json::Value::Object(settings)) = settings else {
            let what = "settings must be a table of what JSON has: text, numbers, true and false, lists, tables";
            return Err(self.source.error(table.span(), "target.repair.module.settings", what));
        };
        let name = own.name.unwrap_or_else(|| file.to_string_lossy().into_owned());
        Ok(Outside { name, command: command.get_ref().clone(), user: own.user, settings })
    }
}

/// What else stands in the table of a program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    name: Option<String>,
    user: Option<u32>,
    #[serde(default)]
    settings: toml::Table,
}
