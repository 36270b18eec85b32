//! The ward of one target: a thread that treats it when its sensors ask for that, beside the one that watches it.
//!
//! It has a link of its own and knows the target's kernel before it is needed, so that neither watching nor treating
//! waits for the other. While the target stands still for a repair its sensors stand still too: [`Ward::excuses`] says
//! so, and no hang is made of it. A treatment that gives up is told to the watch, see [`crate::escalate`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::known::Known;
use super::patient::Patient;
use super::{Announced, Cure, Program, RepairError, Sight, Standstill, Treated, Ways, give_back, treat};
use crate::clock::{Clock, Monotonic};
use crate::config::{Config, Module, Repair, Target};
use crate::escalate::{Failure, Failures};
use crate::inspect;
use crate::journal::{Event, Journal, RepairLine};
use crate::metrics::TargetMetrics;
use crate::partner::Partner;
use crate::sample::Life;
use healing_modules::{Dispatcher, HealingModule};
use introspect::linux::contain::Contained;

/// How often a waiting ward looks whether the daemon is to end.
const NOTICE: Duration = Duration::from_millis(100);

/// How soon a target that could not be reached is tried again.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

/// How long an answer of the target's memory is waited for. Longer than a watch does, which is to notice a lost path: a
/// target that drowns may keep a software adapter without a processor for seconds, and a new connection, once those
/// that stand by are used up, would need its agent, which waits longer still.
const MEMORY_PATIENCE: Duration = Duration::from_secs(8);

/// How soon a treatment that lost its path is begun again, and how often in a row before the target is left alone for
/// as long as after any other treatment: a target that drowns loses paths, and is to be treated for just that.
const LOST_AGAIN: Duration = Duration::from_millis(20);
const LOST_MAX: u32 = 10;

/// What a watch tells its ward.
#[derive(Debug)]
enum Word {
    Raised(String),
    Cleared(String),
    Fenced,
}

impl Word {
    /// What is out of bounds once this has been said.
    fn heard(self, raised: &mut BTreeSet<String>) {
        match self {
            Self::Raised(sensor) => drop(raised.insert(sensor)),
            Self::Cleared(sensor) => drop(raised.remove(&sensor)),
            Self::Fenced => raised.clear(),
        }
    }
}

/// The watch's end.
#[derive(Clone, Debug, Default)]
pub struct Ward {
    words: Option<Arc<Mutex<Sender<Word>>>>,
    standstill: Standstill,
    failures: Failures,
}

impl Ward {
    /// A ward without a thread: whoever holds the other ends of `standstill` and `failures` treats the target.
    pub fn beside(standstill: Standstill, failures: Failures) -> Self {
        Self { words: None, standstill, failures }
    }

    /// A sensor has left its bounds.
    pub fn raise(&self, sensor: &str) {
        self.tell(Word::Raised(sensor.to_owned()));
    }

    /// A sensor is back within them.
    pub fn clear(&self, sensor: &str) {
        self.tell(Word::Cleared(sensor.to_owned()));
    }

    /// The target is fenced: nothing of it is to be repaired any more.
    pub fn fenced(&self) {
        self.tell(Word::Fenced);
    }

    /// Whether a sensor that was allowed `deadline` may rest because the target stands still for a repair, or did.
    pub fn excuses(&self, now_ns: u64, deadline: Duration) -> bool {
        self.standstill.excuses(now_ns, deadline)
    }

    /// The target stands still for `lease` at most, by somebody else's will.
    pub fn excuse(&self, now_ns: u64, lease: Duration) {
        self.standstill.begin(now_ns, lease);
    }

    /// Whether a treatment has given up, and the watch has not taken that yet.
    pub fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Takes the treatment that has given up, if one has.
    pub fn failed(&self) -> Option<Failure> {
        self.failures.take()
    }

    fn tell(&self, word: Word) {
        if let Some(words) = &self.words {
            // A ward that has ended ends the daemon by itself.
            let _ = words.lock().unwrap_or_else(PoisonError::into_inner).send(word);
        }
    }

    /// Opens the ward of `target`; one that is not to be repaired has none. Of two monitors the second is as ready as
    /// the first, and repairs while the first is silent or has lost its path: that two do not at once is the lock's.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn open(
        config: &Config,
        target: &Target,
        journal: &Journal,
        metrics: &TargetMetrics,
        partner: &Partner,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<(Self, Option<JoinHandle<()>>)> {
        let Some(repair) = target.repair.clone() else { return Ok((Self::default(), None)) };
        let (sender, words) = channel();
        let ward = Self { words: Some(Arc::new(Mutex::new(sender))), ..Self::default() };
        let (mut dispatcher, mut modules, mut programs) = (Dispatcher::default(), BTreeMap::new(), Vec::new());
        for (sensors, module) in &repair.modules {
            let healer = dispatcher.new_hm(match module {
                Module::ForkBomb(bomb) => Box::new(*bomb),
                Module::MemHog(hog) => Box::new(*hog),
                Module::Program(outside) => {
                    let program = Program::new(outside, &target.name, &repair.safety);
                    programs.push(program.clone());
                    Box::new(program)
                }
            });
            sensors.iter().for_each(|sensor| dispatcher.register_sensor(healer, sensor));
            modules.insert(healer, module.clone());
        }
        let duty = Duty {
            config: config.clone(),
            target: target.clone(),
            repair,
            dispatcher,
            modules,
            programs,
            journal: journal.clone(),
            metrics: metrics.clone(),
            partner: partner.clone(),
            standstill: ward.standstill.clone(),
            failures: ward.failures.clone(),
            patient: None,
            owed: Vec::new(),
            known: None,
        };
        let stop = Arc::clone(stop);
        let thread = thread::Builder::new().name(format!("ward {}", target.name));
        Ok((ward, Some(thread.spawn(move || duty.run(&words, &stop))?)))
    }
}

/// What a treatment that is over leaves to be done.
#[derive(Default)]
struct Treatment {
    /// Why the target cannot be cured in place, if that is so.
    failed: Option<String>,
    /// Whether it ended because the path was lost.
    is_path_lost: bool,
}

/// The thread's end.
struct Duty {
    config: Config,
    target: Target,
    repair: Repair,
    dispatcher: Dispatcher,
    /// Each with its policies, for the journal.
    modules: BTreeMap<HealingModule, Module>,
    /// Modules that are programs: to be started before they are needed.
    programs: Vec<Program>,
    journal: Journal,
    metrics: TargetMetrics,
    partner: Partner,
    standstill: Standstill,
    failures: Failures,
    /// The link, and the kernel behind it in this life of the target.
    patient: Option<Patient>,
    /// What was lent in repairs and could not be given back yet, in the life of the target that was known last.
    owed: Vec<Contained>,
    known: Option<Life>,
}

impl Duty {
    fn run(mut self, words: &Receiver<Word>, stop: &AtomicBool) {
        let mut raised = BTreeSet::new();
        let mut next = Instant::now();
        let mut lost_in_a_row = 0;
        while !stop.load(Ordering::Relaxed) {
            match words.recv_timeout(NOTICE) {
                Ok(word) => {
                    if matches!(word, Word::Raised(_)) {
                        next = Instant::now();
                    }
                    word.heard(&mut raised);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.programs.iter().for_each(Program::tend);
            if Instant::now() < next {
                continue;
            }
            if self.patient.is_none() {
                next = Instant::now() + CONNECT_AGAIN;
                if !self.meet() {
                    continue;
                }
                next = Instant::now();
            }
            if !self.owed.is_empty() && !self.give_back() {
                next = Instant::now() + CONNECT_AGAIN;
                continue;
            }
            if raised.is_empty() || !self.partner.duty(&self.target.name).lets_repair() {
                continue;
            }
            let concerned: BTreeSet<_> = raised.iter().flat_map(|sensor| self.dispatcher.concerned(sensor)).collect();
            let mut is_raised = false;
            if !self.patient.as_mut().is_some_and(Patient::is_the_same) {
                self.patient = None;
                continue;
            }
            for module in concerned {
                let Treatment { failed, is_path_lost } = self.treat(module);
                lost_in_a_row = if is_path_lost { lost_in_a_row + 1 } else { 0 };
                let is_soon = (1..=LOST_MAX).contains(&lost_in_a_row);
                next = Instant::now() + if is_soon { LOST_AGAIN } else { self.repair.again };
                // What has happened to the sensors meanwhile counts.
                for word in words.try_iter() {
                    is_raised |= matches!(word, Word::Raised(_));
                    word.heard(&mut raised);
                }
                if let Some(why) = failed.filter(|_| self.repair.escalate) {
                    self.escalate(module, why, &raised);
                }
            }
            if is_raised {
                next = Instant::now();
            }
        }
    }

    /// Connects to the target and learns its kernel.
    fn meet(&mut self) -> bool {
        let met = inspect::connect_patiently(&self.config, &self.target, MEMORY_PATIENCE)
            .map_err(|error| format!("{error:#}"));
        match met.and_then(|link| Patient::meet(link, self.repair.look)) {
            Ok(patient) => {
                tracing::info!(target_name = %self.target.name, by = %patient.eyes.what(), "can be repaired");
                // Limits of a kernel end with it.
                if self.known.replace(patient.life) != Some(patient.life) {
                    self.owed.clear();
                }
                self.patient = Some(patient);
                true
            }
            Err(why) => {
                tracing::debug!(target_name = %self.target.name, %why, "cannot be repaired yet");
                false
            }
        }
    }

    /// Gives back what is owed; false if the target cannot be reached or held for that now.
    fn give_back(&mut self) -> bool {
        let Some(mut patient) = self.patient.take() else { return false };
        if !patient.is_the_same() {
            return false;
        }
        let mut table = Announced::new(&mut patient.link, &self.standstill);
        let outcome = match patient.eyes.sight() {
            Sight::Memory(kernel) => give_back(&mut table, kernel, &self.owed),
            Sight::Processes => Err(RepairError::NoMemory), // nothing was ever lent
        };
        let is_over = match outcome {
            Ok(limits) => {
                self.journal.note(&self.target.name, Monotonic.now_ns(), Event::GivenBack { limits });
                true
            }
            // Somebody else has written there meanwhile: theirs stands.
            Err(RepairError::Changed { .. }) => true,
            Err(why) => {
                tracing::warn!(target_name = %self.target.name, %why, "limits cannot be given back yet");
                false
            }
        };
        if is_over {
            self.owed.clear();
        }
        self.patient = patient.is_the_same().then_some(patient);
        is_over
    }

    /// Leaves a treatment that failed to the watch, if the target is ill still.
    fn escalate(&self, module: HealingModule, why: String, raised: &BTreeSet<String>) {
        let asks = |sensor: &&String| self.dispatcher.concerned(sensor).contains(&module);
        let sensors: Vec<String> = raised.iter().filter(asks).cloned().collect();
        let name = self.dispatcher.module(module).map_or("", |healer| healer.name());
        if !sensors.is_empty() {
            self.failures.tell(Failure { module: name.to_owned(), why, sensors });
        }
    }

    /// Treats the target.
    fn treat(&mut self, module: HealingModule) -> Treatment {
        let known = self.dispatcher.module(module).zip(self.modules.get(&module));
        let Some(((healer, policies), patient)) = known.zip(self.patient.take()) else { return Treatment::default() };
        let Patient { mut link, eyes, life, met, mut regions } = patient;
        let name = healer.name().to_owned();
        let mut repairs = 0;
        let is_dry_run = !self.repair.act;
        let safety = &self.repair.safety;
        let ways = Ways { hook: self.repair.hook, contain: self.repair.contain.clone() };
        let mut owed = Vec::new();
        // An order stops nothing, and announces no standstill: whoever hangs meanwhile hangs.
        let mut known = Known::new(&mut link, &regions);
        let mut table = Announced::new(&mut known, &self.standstill);
        let outcome = treat(&mut table, eyes.sight(), healer, safety, ways, is_dry_run, |treated| {
            repairs += 1;
            if treated.not_given_back.is_some() {
                owed.extend(treated.operation.contained.iter().filter(|one| one.is_lent()).cloned());
            }
            self.note_repair(policies, treated);
        });
        let failed = match &outcome {
            Ok(Cure::Ill { why }) => Some(why.clone()),
            Err(error) if error.speaks_of_the_target() && !is_dry_run => Some(error.to_string()),
            _ => None,
        };
        let is_path_lost = outcome.as_ref().is_err_and(RepairError::is_path);
        if outcome.is_err() && !is_path_lost {
            regions.clear(); // a key may have died
        }
        let event = match outcome {
            Ok(Cure::Healthy) if repairs == 0 => {
                tracing::info!(target_name = %self.target.name, module = %name, "asked, and nothing found");
                None
            }
            Ok(Cure::Healthy) => {
                tracing::warn!(target_name = %self.target.name, module = %name, repairs, "cured");
                self.metrics.cures.inc();
                Some(Event::Cured { module: name, repairs })
            }
            Ok(Cure::DryRun(plan, contained)) => {
                let proof = &plan.proof;
                tracing::warn!(target_name = %self.target.name, module = %name, proof, "not repaired: act = false");
                Some(Event::RepairWithheld { module: name, plan, contained })
            }
            Ok(Cure::Ill { why }) => Some(Event::NotCured { module: name, why }),
            Err(error) => Some(Event::NotCured { module: name, why: error.to_string() }),
        };
        if let Some(Event::NotCured { module, why }) = &event {
            tracing::error!(target_name = %self.target.name, %module, %why, "not cured");
            self.metrics.failed_cures.inc();
        }
        if let Some(event) = event {
            self.journal.note(&self.target.name, Monotonic.now_ns(), event);
        }
        self.owed.extend(owed);
        let mut patient = Patient { link, eyes, life, met, regions };
        self.patient = patient.is_the_same().then_some(patient);
        Treatment { failed, is_path_lost }
    }

    fn note_repair(&self, module: &Module, treated: &Treated) {
        let operation = &treated.operation;
        let culprits = operation.plan.as_ref().map_or(0, |plan| plan.culprits.len());
        self.metrics.repairs.inc();
        self.metrics.processes_ended.inc_by((culprits - treated.survivors.len()) as u64);
        let proof = operation.plan.as_ref().map_or("", |plan| plan.proof.as_str());
        let (locked, contained) = (operation.locked, operation.contained.len());
        tracing::warn!(target_name = %self.target.name, culprits, contained, proof, ?locked, "repaired");
        let line = RepairLine {
            module: module.clone(),
            safety: self.repair.safety.clone(),
            earlier: treated.earlier.clone(),
            evidence: operation.evidence.clone(),
            plan: operation.plan.clone(),
            kill: operation.kill.clone(),
            contain: self.repair.contain.clone(),
            contained: operation.contained.clone(),
            not_given_back: treated.not_given_back.clone(),
            wakings: operation.wakings.clone(),
            locked_ns: operation.locked.as_nanos() as u64,
            order: operation.order.clone(),
            not_by_table: operation.not_by_table.clone(),
            survivors: treated.survivors.clone(),
        };
        self.journal.note(&self.target.name, Monotonic.now_ns(), Event::Repaired(Box::new(line)));
    }
}
