//! The configuration of a monitor: one TOML file, checked as a whole before anything is started.
//!
//! What is impossible is an error that names file, line and key and says how to put it right: a deadline that holds too
//! few samples, two targets of one name, an evacuation without a spare. The sampling period may be left out: it then
//! follows from the shortest deadline by the dissertation's rule, R >= log PM / log p_ml samples per deadline, and is
//! [`PERIOD_MAX`] at most, or what a thread needs for the samples of all its targets.
//!
//! See `monitor.example.toml` for every key; a test keeps that file valid.

mod file;
mod kernel;
mod repair;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::reinstate::Service;
use link::Carrier;
use serde::{Deserialize, Serialize};
pub use service::config::ConfigError;
use service::config::Source;
use toml::Spanned;

pub use repair::{Hook, Module, Repair};

use crate::detect::{Quorum, Raises, Rule, samples_per_deadline};
use crate::kernel::KernelSensor;

/// The shortest sampling period: below it a round trip over a software path no longer fits.
pub const PERIOD_MIN: Duration = Duration::from_micros(100);

/// The longest derived sampling period of a few targets. A verdict may come that much later than its deadline, as the
/// last move of a sensor is known to a period: with this, 2 ms later at most. Costs some 2 % of a processor for a box.
pub const PERIOD_MAX: Duration = Duration::from_micros(1500);

/// Time that a thread has for one sample where a period is derived: twice what one of many costs it.
const SAMPLE_ROOM: Duration = Duration::from_micros(10);

/// Without a word for so long the first of two monitors counts as dead, unless configured.
const SILENCE: Duration = Duration::from_secs(1);

/// Three heartbeats: one may be late.
const SILENCE_MIN: Duration = Duration::from_millis(300);

/// Until the services of a target that is back have started, unless configured.
const SETTLE: Duration = Duration::from_secs(10);

/// How long connections may keep an address on the spare, unless configured.
const DRAIN: Duration = Duration::from_secs(3600);

/// Times above this are typing errors.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// What is done when a target hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHang {
    /// Fence it and carry its sessions over to a spare.
    Evacuate,
    /// Say so and do nothing: a dry run, or a target without spares.
    Report,
}

/// When an evacuated target is reset. Until then it stays fenced, to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Not by this monitor, whoever asks.
    Never,
    /// When an operator says so.
    Ask,
    /// So long after its evacuation, or when an operator says so.
    After(Duration),
    /// When the sessions that were carried over have come to their end, or when an operator says so.
    Drained,
}

/// Where the service is after the target was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// On the spare, until an operator says otherwise; the target's links stay down.
    Stays,
    /// On the target again, as soon as it is back and the spare has drained.
    Returns,
}

/// What becomes of a target and its service after an evacuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// When the target is reset.
    pub reset: Reset,
    /// Where the service is then.
    pub address: Address,
    /// How long the target is left to itself once it is back, so that its services have started when clients come.
    pub settle: Duration,
    /// How long connections on the spare may stand in the way of the address's return; what is left is reset then.
    pub drain: Duration,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This monitor's name.
    pub name: String,
    /// Address from which the targets' memory is read.
    pub local: Ipv4Addr,
    /// The journal's file.
    pub journal: PathBuf,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The other monitor of the same targets.
    pub partner: Partner,
    /// The first CPU that sampling threads are pinned to; the others follow, one each.
    pub cpu: Option<usize>,
    /// Threads that sample; a target that has one to itself is watched without sharing.
    pub threads: usize,
    /// Time from one sample to the next.
    pub period: Duration,
    /// Samples that every deadline holds at least.
    pub samples_per_deadline: u32,
    /// Without a successful sample for so long, the path counts as lost.
    pub path_deadline: Duration,
    /// The targets.
    pub targets: Vec<Target>,
}

impl Config {
    /// Makes it one for a dry run: hangs are reported, and repairs withheld.
    pub fn touch_nothing(&mut self) {
        for target in &mut self.targets {
            target.on_hang = OnHang::Report;
            target.repair.iter_mut().for_each(|repair| repair.act = false);
        }
    }
}

/// Where the other monitor of the same targets is, and who of the two acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partner {
    /// There is none.
    None,
    /// This one acts, and says so to whoever connects here.
    First {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// This one acts where the first cannot.
    Second {
        /// Where the first one listens.
        first: SocketAddr,
        /// Without a word for so long, the first counts as dead.
        silence: Duration,
    },
}

/// A target to watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name, also that of its backdoor.
    pub name: String,
    /// Control address of its backdoor.
    pub backdoor: SocketAddr,
    /// By what its memory is read.
    pub carrier: Carrier,
    /// What is done when it hangs.
    pub on_hang: OnHang,
    /// Rules for its sensors, its own ones first.
    pub rules: Vec<Rule>,
    /// Spares in the order in which they are asked.
    pub spares: Vec<Spare>,
    /// Whether the spares share one evacuation, by service address, instead of waiting for one another's refusal.
    pub share: bool,
    /// What moves to the spare.
    pub services: Vec<Service>,
    /// Where it speaks from, beside the addresses of its services.
    pub addresses: Vec<IpAddr>,
    /// How often spares are asked to get ready.
    pub prepare_every: Duration,
    /// How long an evacuation may take until its outcome counts as unknown.
    pub evacuation_patience: Duration,
    /// What becomes of it after that.
    pub after: After,
    /// What is cured in place, if anything is.
    pub repair: Option<Repair>,
    /// Whether an agent runs in it, which makes a Sensor Box.
    pub agent: bool,
    /// What is read of its kernel itself.
    pub kernel_sensors: Vec<KernelSensor>,
}

impl Target {
    /// All addresses that packets of it may come from.
    pub fn speaks_from(&self) -> Vec<IpAddr> {
        let services = self.services.iter().map(|service| service.address);
        services.chain(self.addresses.iter().copied()).collect()
    }
}

/// A node that can take sessions over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spare {
    /// Its name, for the journal.
    pub name: String,
    /// Control address of its `reinstate` daemon.
    pub control: SocketAddr,
}

/// Reads and checks a configuration file.
///
/// # Errors
/// [`ConfigError`], the first that is found.
pub fn load(file: &Path) -> Result<Config, ConfigError> {
    parse(file, &service::config::read(file)?)
}

/// Checks the text of a configuration file.
///
/// # Errors
/// [`ConfigError`], the first that is found.
pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let source = Source { file, text };
    Checker { source }.config(source.parse()?)
}

struct Checker<'a> {
    source: Source<'a>,
}

impl Checker<'_> {
    fn config(&self, file: file::File) -> Result<Config, ConfigError> {
        let sampling = &file.sampling;
        let missed = self.probability(sampling.missed_probability.as_ref(), "sampling.missed_probability", 1e-6)?;
        let lost = self.probability(sampling.lost_probability.as_ref(), "sampling.lost_probability", 0.01)?;
        let samples = samples_per_deadline(missed, lost);
        let general = self.rules(&file.rule, "rule")?;
        if file.target.is_empty() {
            let what = "no target is named; add a [[target]] table with name, backdoor and on_hang";
            return Err(self.source.whole("target", what));
        }
        let threads = self.threads(file.monitor.threads.as_ref(), file.target.len())?;
        let per_thread = u32::try_from(file.target.len().div_ceil(threads)).unwrap_or(u32::MAX);
        let longest = PERIOD_MAX.max(SAMPLE_ROOM.saturating_mul(per_thread));
        let period = self.period(sampling, &file, samples, longest)?;
        let path_deadline = match &sampling.path_deadline_ms {
            Some(value) => self.time(value, 1e3, "sampling.path_deadline_ms")?,
            None => Duration::from_millis(500).max(period * samples),
        };
        if let Some(value) = sampling.path_deadline_ms.as_ref().filter(|_| path_deadline < period * 2) {
            let what = format!("shorter than two sampling periods of {period:?}; raise it or lower sampling.period_ms");
            return Err(self.source.error(value.span(), "sampling.path_deadline_ms", what));
        }
        let targets = self.targets(&file.target, &general)?;
        self.source.check_address("monitor.local", file.monitor.local)?;
        file.monitor.cpu.map_or(Ok(()), |cpu| self.source.check_cpu("monitor.cpu", cpu))?;
        Ok(Config {
            name: self.name(&file.monitor.name, "monitor.name")?,
            local: file.monitor.local,
            journal: file.monitor.journal,
            metrics: file.monitor.metrics,
            partner: self.partner(file.partner.as_ref())?,
            cpu: file.monitor.cpu,
            threads,
            period,
            samples_per_deadline: samples,
            path_deadline,
            targets,
        })
    }

    fn partner(&self, table: Option<&Spanned<file::Partner>>) -> Result<Partner, ConfigError> {
        let Some(table) = table else { return Ok(Partner::None) };
        let wrong = |what: &str| Err(self.source.error(table.span(), "partner", what));
        let silence = table.get_ref().silence_ms.as_ref();
        match (table.get_ref().listen, table.get_ref().first) {
            (Some(_), None) if silence.is_some() => {
                wrong("silence_ms is for the second monitor, which waits for the first; leave it out here")
            }
            (Some(listen), None) => Ok(Partner::First { listen }),
            (None, Some(first)) => {
                let silence = silence.map(|value| self.time(value, 1e3, "partner.silence_ms")).transpose()?;
                let silence = silence.unwrap_or(SILENCE);
                match silence < SILENCE_MIN {
                    true => wrong("silence_ms is shorter than three heartbeats of 100 ms; raise it to 300 or more"),
                    false => Ok(Partner::Second { first, silence }),
                }
            }
            (None, None) => wrong(
                "say where this monitor listens (listen, on the first) or where the first one does \
                                   (first, on the second)",
            ),
            (Some(_), Some(_)) => wrong("a monitor is the first (listen) or the second (first), not both"),
        }
    }

    /// The period, or the shortest deadline divided by the samples it must hold, and `longest` at most.
    fn period(
        &self,
        sampling: &file::Sampling,
        file: &file::File,
        samples: u32,
        longest: Duration,
    ) -> Result<Duration, ConfigError> {
        let rules = file.rule.iter().chain(file.target.iter().flat_map(|target| &target.get_ref().rule));
        let mut deadlines = Vec::new();
        for value in rules.filter_map(|rule| rule.get_ref().deadline_ms.as_ref()) {
            deadlines.push((value.span(), self.time(value, 1e3, "rule.deadline_ms")?));
        }
        let shortest = deadlines.iter().map(|(_, deadline)| *deadline).min();
        let period = match &sampling.period_ms {
            Some(value) => self.time(value, 1e3, "sampling.period_ms")?,
            None => shortest.map_or(longest, |deadline| (deadline / samples).min(longest)),
        };
        for (span, deadline) in deadlines {
            if period * samples > deadline {
                let what = format!(
                    "{deadline:?} hold fewer than the {samples} samples that the probabilities under [sampling] ask \
                     for, at a period of {period:?}; raise the deadline or set sampling.period_ms to {} or less",
                    (deadline / samples).as_secs_f64() * 1e3
                );
                return Err(self.source.error(span, "rule.deadline_ms", what));
            }
            if period < PERIOD_MIN {
                let what = format!(
                    "{deadline:?} need a sampling period of {period:?}, below the {PERIOD_MIN:?} that are possible; \
                     raise the deadline"
                );
                return Err(self.source.error(span, "rule.deadline_ms", what));
            }
        }
        match &sampling.period_ms {
            Some(value) if period < PERIOD_MIN => {
                let what = format!("below the {PERIOD_MIN:?} that are possible; raise it");
                Err(self.source.error(value.span(), "sampling.period_ms", what))
            }
            _ => Ok(period),
        }
    }

    fn rules(&self, rules: &[Spanned<file::Rule>], key: &str) -> Result<Vec<Rule>, ConfigError> {
        let mut seen = HashMap::new();
        rules.iter().map(|rule| self.rule(rule.get_ref(), key, &mut seen)).collect()
    }

    fn rule(&self, rule: &file::Rule, key: &str, seen: &mut HashMap<String, ()>) -> Result<Rule, ConfigError> {
        let pattern = self.name(&rule.sensors, &format!("{key}.sensors"))?;
        if seen.insert(pattern.clone(), ()).is_some() {
            let what = format!("a second rule for {pattern:?} would never be reached; join the two");
            return Err(self.source.error(rule.sensors.span(), format!("{key}.sensors"), what));
        }
        let raises = rule.raises.unwrap_or(Raises::Suspicion);
        if raises == Raises::Hang && rule.deadline_ms.is_none() {
            let what = "a rule that raises a hang needs its own deadline_ms: what a box claims is not enough to act on";
            return Err(self.source.error(rule.sensors.span(), format!("{key}.sensors"), what));
        }
        let time = |value: &Option<Spanned<f64>>, name: &str| {
            value.as_ref().map(|value| self.time(value, 1e3, &format!("{key}.{name}"))).transpose()
        };
        let window = time(&rule.window_ms, "window_ms")?;
        let deadline = time(&rule.deadline_ms, "deadline_ms")?;
        let quorum = rule.quorum.unwrap_or(Quorum::Any);
        Ok(Rule { pattern, deadline, limit: rule.limit, window, quorum, raises })
    }

    fn targets(&self, targets: &[Spanned<file::Target>], general: &[Rule]) -> Result<Vec<Target>, ConfigError> {
        let (mut names, mut doors) = (HashMap::new(), HashMap::new());
        let mut checked = Vec::new();
        for target in targets {
            let table = target.get_ref();
            self.unique(&mut names, table.name.get_ref().clone(), table.name.span(), "target.name")?;
            self.unique(&mut doors, *table.backdoor.get_ref(), table.backdoor.span(), "target.backdoor")?;
            checked.push(self.target(table, general)?);
        }
        Ok(checked)
    }

    fn target(&self, table: &file::Target, general: &[Rule]) -> Result<Target, ConfigError> {
        let mut rules = self.rules(&table.rule, "target.rule")?;
        rules.extend(general.iter().cloned());
        let on_hang = *table.on_hang.get_ref();
        if !rules.iter().any(|rule| rule.raises == Raises::Hang) {
            let what = "no rule of this target raises a hang; add a [[rule]] with raises = \"hang\" and a deadline_ms";
            return Err(self.source.error(table.on_hang.span(), "target.on_hang", what));
        }
        for (missing, what) in [(table.spare.is_empty(), "spare"), (table.service.is_empty(), "service")] {
            if missing && on_hang == OnHang::Evacuate {
                let what = format!("evacuate needs a [[target.{what}]]; add one or set on_hang = \"report\"");
                return Err(self.source.error(table.on_hang.span(), "target.on_hang", what));
            }
        }
        if let Some(share) = table.share.as_ref().filter(|share| *share.get_ref()) {
            let addresses: HashSet<_> = table.service.iter().map(|service| service.get_ref().address).collect();
            if table.spare.len() < 2 || addresses.len() < 2 {
                let what = "sharing needs two spares and two service addresses: an address is never on two machines; \
                            add what is missing or leave share out";
                return Err(self.source.error(share.span(), "target.share", what));
            }
        }
        let seconds = |value: &Option<Spanned<f64>>, key: &str, default: u64| match value {
            Some(value) => self.time(value, 1.0, key),
            None => Ok(Duration::from_secs(default)),
        };
        let kernel_sensors = self.kernel_sensors(&table.kernel_sensor)?;
        Ok(Target {
            agent: self.agent(table.agent.as_ref(), &kernel_sensors, &rules)?,
            kernel_sensors,
            name: self.name(&table.name, "target.name")?,
            backdoor: *table.backdoor.get_ref(),
            carrier: self.carrier(table)?,
            on_hang,
            rules,
            spares: self.spares(&table.spare)?,
            share: table.share.as_ref().is_some_and(|share| *share.get_ref()),
            services: self.services(&table.service)?,
            addresses: table.addresses.clone(),
            prepare_every: seconds(&table.prepare_every_s, "target.prepare_every_s", 10)?,
            evacuation_patience: seconds(&table.evacuation_patience_s, "target.evacuation_patience_s", 60)?,
            after: self.after(table.after.as_ref())?,
            repair: table.repair.as_ref().map(|table| self.repair(table)).transpose()?,
        })
    }

    fn carrier(&self, table: &file::Target) -> Result<Carrier, ConfigError> {
        let (device, port) = (table.device.as_ref(), table.device_port.as_ref());
        let name = device.map(|device| device.get_ref().clone());
        let configured =
            Carrier::configured(table.carrier == file::Carrier::Verbs, name, port.map(|one| *one.get_ref()));
        configured.map_err(|(key, what)| {
            let span = if key == "device" { device.map(Spanned::span) } else { port.map(Spanned::span) };
            self.source.error(span.unwrap_or_default(), format!("target.{key}"), what)
        })
    }

    fn after(&self, table: Option<&file::After>) -> Result<After, ConfigError> {
        let standard = After { reset: Reset::Ask, address: Address::Stays, settle: SETTLE, drain: DRAIN };
        let Some(table) = table else { return Ok(standard) };
        let time = |value: &Spanned<f64>, key: &str| self.time(value, 1.0, &format!("target.after.{key}"));
        let reset = match (table.reset.as_ref().map(|reset| *reset.get_ref()), &table.reset_after_s) {
            (Some(file::Reset::After), Some(seconds)) => Reset::After(time(seconds, "reset_after_s")?),
            (Some(file::Reset::After), None) => {
                let span = table.reset.as_ref().map_or(0..0, Spanned::span);
                let what = "say after how many seconds: add reset_after_s";
                return Err(self.source.error(span, "target.after.reset", what));
            }
            (_, Some(seconds)) => {
                let what = "has a meaning with reset = \"after\" only; set that or leave this out";
                return Err(self.source.error(seconds.span(), "target.after.reset_after_s", what));
            }
            (Some(file::Reset::Never), None) => Reset::Never,
            (Some(file::Reset::Drained), None) => Reset::Drained,
            (Some(file::Reset::Ask) | None, None) => Reset::Ask,
        };
        let drain = table.drain_s.as_ref().map(|value| time(value, "drain_s")).transpose()?.unwrap_or(DRAIN);
        let settle = table.settle_s.as_ref().map(|value| time(value, "settle_s")).transpose()?.unwrap_or(SETTLE);
        Ok(After { reset, address: table.address.unwrap_or(standard.address), settle, drain })
    }

    fn spares(&self, spares: &[file::Spare]) -> Result<Vec<Spare>, ConfigError> {
        let (mut names, mut controls) = (HashMap::new(), HashMap::new());
        let mut checked = Vec::new();
        for spare in spares {
            let name = self.name(&spare.name, "target.spare.name")?;
            self.unique(&mut names, name.clone(), spare.name.span(), "target.spare.name")?;
            self.unique(&mut controls, *spare.control.get_ref(), spare.control.span(), "target.spare.control")?;
            checked.push(Spare { name, control: *spare.control.get_ref() });
        }
        Ok(checked)
    }

    fn services(&self, services: &[Spanned<file::Service>]) -> Result<Vec<Service>, ConfigError> {
        let mut checked = Vec::new();
        for service in services {
            let file::Service { address, ports } = service.get_ref();
            if ports.get_ref().is_empty() || ports.get_ref().contains(&0) {
                let what = "name the TCP ports that are served at this address, each from 1 to 65535";
                return Err(self.source.error(ports.span(), "target.service.ports", what));
            }
            checked.push(Service { address: *address, ports: ports.get_ref().clone() });
        }
        Ok(checked)
    }

    fn unique<T: std::hash::Hash + Eq + std::fmt::Display>(
        &self,
        seen: &mut HashMap<T, Range<usize>>,
        value: T,
        span: Range<usize>,
        key: &str,
    ) -> Result<(), ConfigError> {
        if seen.contains_key(&value) {
            let what = format!("{value} stands twice; give each its own");
            return Err(self.source.error(span, key, what));
        }
        seen.insert(value, span);
        Ok(())
    }

    fn name(&self, value: &Spanned<String>, key: &str) -> Result<String, ConfigError> {
        match value.get_ref().trim() {
            "" => Err(self.source.error(value.span(), key, "empty; give it a name")),
            name => Ok(name.to_owned()),
        }
    }

    fn time(&self, value: &Spanned<f64>, per_second: f64, key: &str) -> Result<Duration, ConfigError> {
        let seconds = *value.get_ref() / per_second;
        match Duration::try_from_secs_f64(seconds) {
            Ok(time) if !time.is_zero() && time <= TIME_MAX => Ok(time),
            _ => {
                let what = format!("{} is no time here; above 0 and up to a day is", value.get_ref());
                Err(self.source.error(value.span(), key, what))
            }
        }
    }

    fn probability(&self, value: Option<&Spanned<f64>>, key: &str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        match *value.get_ref() {
            probability if probability > 0.0 && probability < 1.0 => Ok(probability),
            other => {
                let what = format!("{other} is no probability to reckon with; above 0 and below 1 is");
                Err(self.source.error(value.span(), key, what))
            }
        }
    }

    /// A thread for each target as long as there are processors for them; else one for all.
    fn threads(&self, value: Option<&Spanned<usize>>, targets: usize) -> Result<usize, ConfigError> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        match value {
            None => Ok(if targets <= count { targets } else { 1 }),
            Some(value) if *value.get_ref() == 0 || *value.get_ref() > targets => {
                let what = format!("with {targets} targets, 1 to {targets} threads have something to do");
                Err(self.source.error(value.span(), "monitor.threads", what))
            }
            Some(value) => Ok(*value.get_ref()),
        }
    }
}

#[cfg(test)]
mod tests;
