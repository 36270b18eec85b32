//! The ward of one target: a thread that treats it when its sensors ask for that, beside the one that watches it.
//!
//! It has a link of its own and knows the target's kernel before it is needed, so that neither watching nor treating
//! waits for the other. While the target stands still for a repair its sensors stand still too: [`Ward::is_operating`]
//! says so, and no hang is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use healing_modules::{Dispatcher, HealingModule};
use introspect::Kernel;
use link::Link;

use super::{Cure, Treated, discover, treat};
use crate::clock::{Clock, Monotonic};
use crate::config::{Config, Hook, Module, Partner, Repair, Target};
use crate::inspect;
use crate::journal::{Event, Journal, RepairLine};
use crate::metrics::TargetMetrics;

/// How often a waiting ward looks whether the daemon is to end.
const NOTICE: Duration = Duration::from_millis(100);

/// How soon a target that could not be reached is tried again.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

/// What a watch tells its ward.
#[derive(Debug)]
enum Word {
    Raised(String),
    Cleared(String),
    Fenced,
}

/// The watch's end.
#[derive(Clone, Debug, Default)]
pub struct Ward {
    words: Option<Arc<Mutex<Sender<Word>>>>,
    is_operating: Arc<AtomicBool>,
}

impl Ward {
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

    /// Whether the target stands still for a repair, or may.
    pub fn is_operating(&self) -> bool {
        self.is_operating.load(Ordering::Acquire)
    }

    fn tell(&self, word: Word) {
        if let Some(words) = &self.words {
            // A ward that has ended ends the daemon by itself.
            let _ = words.lock().unwrap_or_else(PoisonError::into_inner).send(word);
        }
    }

    /// Opens the ward of `target`; one that is not to be repaired has none. Of two monitors the first repairs.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn open(
        config: &Config,
        target: &Target,
        journal: &Journal,
        metrics: &TargetMetrics,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<(Self, Option<JoinHandle<()>>)> {
        let is_second = matches!(config.partner, Partner::Second { .. });
        let Some(repair) = target.repair.clone().filter(|_| !is_second) else { return Ok((Self::default(), None)) };
        let (sender, words) = channel();
        let ward = Self { words: Some(Arc::new(Mutex::new(sender))), is_operating: Arc::default() };
        let (mut dispatcher, mut modules) = (Dispatcher::default(), BTreeMap::new());
        for (sensors, module) in &repair.modules {
            let healer = dispatcher.new_hm(module.healer());
            sensors.iter().for_each(|sensor| dispatcher.register_sensor(healer, sensor));
            modules.insert(healer, module.clone());
        }
        let duty = Duty {
            config: config.clone(),
            target: target.clone(),
            repair,
            dispatcher,
            modules,
            journal: journal.clone(),
            metrics: metrics.clone(),
            is_operating: Arc::clone(&ward.is_operating),
            patient: None,
        };
        let stop = Arc::clone(stop);
        let thread = thread::Builder::new().name(format!("ward {}", target.name));
        Ok((ward, Some(thread.spawn(move || duty.run(&words, &stop))?)))
    }
}

/// The thread's end.
struct Duty {
    config: Config,
    target: Target,
    repair: Repair,
    dispatcher: Dispatcher,
    /// Each with its policies, for the journal.
    modules: BTreeMap<HealingModule, Module>,
    journal: Journal,
    metrics: TargetMetrics,
    is_operating: Arc<AtomicBool>,
    /// The link, and the kernel behind it in that life of the backdoor.
    patient: Option<(Link, Kernel, u64)>,
}

impl Duty {
    fn run(mut self, words: &Receiver<Word>, stop: &AtomicBool) {
        let mut raised = BTreeSet::new();
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match words.recv_timeout(NOTICE) {
                Ok(Word::Raised(sensor)) => {
                    raised.insert(sensor);
                    next = Instant::now();
                }
                Ok(Word::Cleared(sensor)) => drop(raised.remove(&sensor)),
                Ok(Word::Fenced) => raised.clear(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
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
            let concerned: BTreeSet<_> = raised.iter().flat_map(|sensor| self.dispatcher.concerned(sensor)).collect();
            for module in concerned {
                self.treat(module);
                next = Instant::now() + self.repair.again;
            }
        }
    }

    /// Connects to the target and learns its kernel.
    fn meet(&mut self) -> bool {
        let met = inspect::connect(&self.config, &self.target).map_err(|error| format!("{error:#}"));
        let learnt = met.and_then(|mut link| {
            let kernel = discover(&mut link)?;
            let incarnation = link.welcome().incarnation;
            Ok((link, kernel, incarnation))
        });
        match learnt {
            Ok(patient) => {
                tracing::info!(target_name = %self.target.name, kernel = %patient.1.release, "can be repaired");
                self.patient = Some(patient);
                true
            }
            Err(why) => {
                tracing::debug!(target_name = %self.target.name, %why, "cannot be repaired yet");
                false
            }
        }
    }

    fn treat(&mut self, module: HealingModule) {
        let (Some(healer), Some(policies)) = (self.dispatcher.module(module), self.modules.get(&module)) else {
            return;
        };
        let Some((mut link, kernel, incarnation)) = self.patient.take() else { return };
        let name = healer.name().to_owned();
        let mut repairs = 0;
        let is_dry_run = !self.repair.act;
        let hook = self.repair.hook;
        // An order stops nothing: whoever hangs meanwhile hangs.
        self.is_operating.store(!is_dry_run && hook != Hook::Table, Ordering::Release);
        let safety = &self.repair.safety;
        let outcome = treat(&mut link, &kernel, healer, safety, hook, is_dry_run, |treated| {
            repairs += 1;
            self.note_repair(policies, treated);
        });
        self.is_operating.store(false, Ordering::Release);
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
            Ok(Cure::DryRun(plan)) => {
                let proof = &plan.proof;
                tracing::warn!(target_name = %self.target.name, module = %name, proof, "not repaired: act = false");
                Some(Event::RepairWithheld { module: name, plan })
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
        // A machine that was started anew has another kernel, or the same one elsewhere.
        if link.ping().is_ok() && link.welcome().incarnation == incarnation {
            self.patient = Some((link, kernel, incarnation));
        }
    }

    fn note_repair(&self, module: &Module, treated: &Treated) {
        let operation = &treated.operation;
        let culprits = operation.plan.as_ref().map_or(0, |plan| plan.culprits.len());
        self.metrics.repairs.inc();
        self.metrics.processes_ended.inc_by((culprits - treated.survivors.len()) as u64);
        let proof = operation.plan.as_ref().map_or("", |plan| plan.proof.as_str());
        tracing::warn!(target_name = %self.target.name, culprits, proof, locked = ?operation.locked, "repaired");
        let line = RepairLine {
            module: module.clone(),
            safety: self.repair.safety.clone(),
            earlier: treated.earlier.clone(),
            evidence: operation.evidence.clone(),
            plan: operation.plan.clone(),
            kill: operation.kill.clone(),
            locked_ns: operation.locked.as_nanos() as u64,
            order: operation.order.clone(),
            not_by_table: operation.not_by_table.clone(),
            survivors: treated.survivors.clone(),
        };
        self.journal.note(&self.target.name, Monotonic.now_ns(), Event::Repaired(Box::new(line)));
    }
}
