//! `[target.repair]`: which healing modules treat a target, when they are asked, and what they must leave alone.

use std::time::Duration;

use healing_modules::{ForkBomb, Healer, MemHog, Safety};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Checker, ConfigError, file};

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
}

impl Module {
    /// The module itself.
    pub fn healer(&self) -> Box<dyn Healer> {
        match self {
            Self::ForkBomb(module) => Box::new(*module),
            Self::MemHog(module) => Box::new(*module),
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

/// How a target is repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Whether anything is written; if not, what would be is journaled.
    pub act: bool,
    /// By what processes are ended.
    pub hook: Hook,
    /// What is never touched.
    pub safety: Safety,
    /// How long after a treatment that did not help the next one begins.
    pub again: Duration,
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
        Ok(Repair { act: table.act.unwrap_or(true), hook: table.hook, safety, again: again.unwrap_or(AGAIN), modules })
    }

    fn module(&self, table: &Spanned<file::Module>) -> Result<(Vec<String>, Module), ConfigError> {
        let file::Module { name, sensors, policies } = table.get_ref();
        if sensors.get_ref().is_empty() {
            let what = "without a sensor the module is never asked; name those whose leaving their bounds asks for it";
            return Err(self.source.error(sensors.span(), "target.repair.module.sensors", what));
        }
        if policies.is_empty() {
            let what = "without a policy the module finds nothing; add one, such as too_many_procs or max_rss_mib";
            return Err(self.source.error(table.span(), "target.repair.module", what));
        }
        let policies = policies.clone();
        let wrong = |error: toml::de::Error| {
            let what = format!("{} for {}", error.message(), name.get_ref());
            self.source.error(table.span(), "target.repair.module", what)
        };
        let module = match name.get_ref().as_str() {
            "forkbomb" => Module::ForkBomb(policies.try_into().map_err(wrong)?),
            "memhog" => Module::MemHog(policies.try_into().map_err(wrong)?),
            other => {
                let what = format!("no module {other:?}; there are forkbomb and memhog");
                return Err(self.source.error(name.span(), "target.repair.module.use", what));
            }
        };
        Ok((sensors.get_ref().clone(), module))
    }
}
