//! The watch over one target: the loop that joins sampling, detection and dispatch, step by step on one thread.
//!
//! ```text
//!   wait for the tick ─► look ─► detect ─► (dispatch ─► fence ─► order)        nothing between verdict and order waits
//!        ▲                                          │                          for another thread or for the disk
//!        └──────────────────────────────────────────┘
//! ```
//!
//! The schedule is absolute, so it does not drift; a sample that comes late is counted and the ticks it missed are
//! skipped. When a stall could be completed before the next tick, one sample more is taken then.
//!
//! Invariants: exactly one action per incident; a fence that stands is never released here but after a reset, see
//! [`crate::after`]; a target whose evacuation has begun is only looked at, until it shows a new life of its machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use control::backdoor::FenceToken;
use healing_modules::Illness;

use crate::after::After;
use crate::clock::Clock;
use crate::config::{Config, OnHang, Target};
use crate::detect::{Detector, Finding, Look, Observation, Plan};
use crate::evacuate::Standby;
use crate::journal::{Event, Heritage, Incident, Journal, Ring};
use crate::kernel::Surveyor;
use crate::metrics::TargetMetrics;
use crate::partner::Partner;
use crate::quality::{Noted, Quality};
use crate::repair::Ward;
use crate::sample::{Door, Flight, Glance, Opened, Reader, Sensors, Unreached};

/// How often a target is looked at that needs no detection any more, and how often a failed action is tried again.
const INSPECT_EVERY: Duration = Duration::from_secs(1);

/// How often the box is searched for sensors that were not there when the plan was made.
/// A whole box is as many packets as fifty samples of a few sensors.
const REPLAN_EVERY: Duration = Duration::from_secs(5);

/// The longest pause between two tries to reach a lost target.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Where an incident stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No incident.
    Watching,
    /// A hang was reported and, by configuration, nothing done.
    Reported,
    /// The target is fenced; no spare has taken over yet.
    Fenced(Patient),
    /// A spare may have taken over: its answer was lost.
    OutcomeUnknown {
        /// Who is fenced.
        patient: Patient,
        /// The only spare that may be asked again.
        spare: String,
    },
    /// A spare has taken over.
    Evacuated {
        /// The fence, if it is this monitor's to end.
        token: Option<FenceToken>,
    },
}

/// A target that is fenced and not yet known to be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patient {
    /// Its fence.
    pub token: FenceToken,
    /// Its last sign of life, if one was seen.
    pub alive_after_ns: Option<u64>,
    /// Which illness it has, by its place among the known ones.
    pub illness: usize,
    /// Which spare may have which part of the work: only it is asked for that part again.
    pub holders: BTreeMap<u32, String>,
    /// How long it has been fenced at least, where an earlier life fenced it.
    pub age: Duration,
}

/// What a watch works with.
#[derive(Debug)]
pub struct Tools<D, C> {
    /// The way to the target.
    pub door: D,
    /// Its clock.
    pub clock: C,
    /// Where decisions are recorded.
    pub journal: Journal,
    /// What is counted.
    pub metrics: TargetMetrics,
    /// Who can take over.
    pub standby: Arc<Standby>,
    /// The other monitor, if there is one.
    pub partner: Partner,
    /// Who treats the target in place, if anybody does.
    pub ward: Ward,
}

/// The watch over one target.
pub struct Watch<D, C> {
    pub(crate) target: Target,
    pub(crate) tools: Tools<D, C>,
    pub(crate) illnesses: Vec<Box<dyn Illness>>,
    pub(crate) detector: Detector,
    pub(crate) ring: Ring,
    pub(crate) standing: Standing,
    /// No action is tried before this.
    pub(crate) quiet_until_ns: u64,
    /// Fences that failed one after the other.
    pub(crate) fence_failures: u32,
    /// Names the fences of this watch.
    pub(crate) claim: u64,
    /// A fence of an earlier life that has not been looked at yet.
    pub(crate) inherited: Option<Incident>,
    /// A sample has been posted and not been taken yet.
    pub(crate) is_aloft: bool,
    /// What comes after an evacuation.
    pub(crate) after: After,
    /// The journal's file, beside which an operator's orders lie.
    pub(crate) journal_path: PathBuf,
    /// A hang that is left to the other monitor has been journaled.
    pub(crate) is_held: bool,
    /// Somebody else's lock that has been journaled, by holder and reason.
    pub(crate) lock_told: Option<(String, String)>,
    reader: Option<(Reader, Opened)>,
    pub(crate) sensors: Sensors,
    values: Vec<Option<u64>>,
    period_ns: u64,
    path_deadline: Duration,
    next_tick_ns: u64,
    /// When one look more could complete a hang.
    stall_due_ns: u64,
    replan_ns: u64,
    failures: u32,
    quality: Quality,
}

impl<D: Door, C: Clock> Watch<D, C> {
    /// A watch over `target` that has not looked yet.
    pub fn new(config: &Config, target: &Target, tools: Tools<D, C>) -> Self {
        Self::succeed(config, target, tools, Heritage::default())
    }

    /// A watch that goes on where an earlier one stopped.
    pub fn succeed(config: &Config, target: &Target, tools: Tools<D, C>, heritage: Heritage) -> Self {
        let claim = heritage.claim.unwrap_or_else(rand::random);
        let (plan, _) = Plan::new(&[], &target.rules, config.path_deadline);
        let period_ns = nanos(config.period);
        let now_ns = tools.clock.now_ns();
        let (monitor, on_hang) = (config.name.clone(), target.on_hang);
        tools.journal.note(&target.name, now_ns, Event::Opened { monitor, period_ns, on_hang, claim: Some(claim) });
        let inherited = heritage.incident.filter(|_| on_hang == OnHang::Evacuate);
        tools.standby.rest(inherited.is_some());
        let watch = Self {
            target: target.clone(),
            tools,
            illnesses: healing_modules::known(),
            detector: Detector::knowing(plan, heritage.identity),
            ring: Ring::new(0, Duration::ZERO, config.period),
            standing: Standing::Watching,
            quiet_until_ns: 0,
            fence_failures: 0,
            claim,
            inherited,
            after: After::default(),
            journal_path: config.journal.clone(),
            is_held: false,
            lock_told: None,
            is_aloft: false,
            reader: None,
            sensors: Sensors::new(target, Surveyor::default()),
            values: Vec::new(),
            period_ns,
            path_deadline: config.path_deadline,
            next_tick_ns: now_ns,
            stall_due_ns: u64::MAX,
            replan_ns: now_ns,
            failures: 0,
            quality: Quality::default(),
        };
        watch.tell_partner();
        watch
    }

    /// The same with kernel sensors, which `surveyor` finds.
    #[must_use]
    pub fn with_surveyor(mut self, surveyor: Surveyor) -> Self {
        self.sensors = Sensors::new(&self.target, surveyor);
        self
    }

    /// Where the incident stands, if there is one.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Names the fences of this watch.
    pub fn claim(&self) -> u64 {
        self.claim
    }

    /// Watches until `stop` is set.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.step();
        }
    }

    /// Waits for the next look, takes it, and does what follows from it.
    pub fn step(&mut self) {
        let planned_ns = self.next_look_ns();
        self.tools.clock.sleep_until(planned_ns);
        self.step_now(planned_ns);
    }

    fn step_now(&mut self, planned_ns: u64) {
        if self.inherited.is_some() && self.tools.clock.now_ns() >= self.quiet_until_ns {
            self.take_up_heritage();
        }
        self.sensors.heed(&mut self.reader);
        let begin_ns = self.tools.clock.now_ns();
        self.advance_tick(begin_ns, planned_ns);
        let findings = if self.reader.is_some() { self.look() } else { self.open() };
        self.attend(findings);
    }

    /// Moves the schedule on; a look that began late is counted.
    fn advance_tick(&mut self, begin_ns: u64, planned_ns: u64) {
        let late_ns = begin_ns.saturating_sub(planned_ns);
        self.tools.metrics.late_seconds.observe(Duration::from_nanos(late_ns).as_secs_f64());
        if late_ns > self.period_ns / 2 {
            self.tools.metrics.late_samples.inc();
        }
        if begin_ns >= self.next_tick_ns {
            let passed = (begin_ns - self.next_tick_ns) / self.period_ns + 1;
            self.next_tick_ns += passed * self.period_ns;
        }
    }

    /// Does what follows from `findings`, and what is due of an incident.
    pub(crate) fn attend(&mut self, mut findings: Vec<Finding>) {
        // Nothing is worth a line in the log before a hang has been dealt with.
        findings.sort_by_key(|finding| !matches!(finding, Finding::Hung(_)));
        for finding in findings {
            self.follow(finding);
        }
        self.escalate();
        let is_open = matches!(self.standing, Standing::Fenced(_) | Standing::OutcomeUnknown { .. });
        if is_open && self.tools.clock.now_ns() >= self.quiet_until_ns {
            self.order();
        }
        self.look_after();
        self.tools.metrics.suspicious_sensors.set(self.detector.suspicions() as i64);
    }

    /// Whether the target is not fenced, so that its sensors mean something.
    pub(crate) fn is_detecting(&self) -> bool {
        matches!(self.standing, Standing::Watching | Standing::Reported)
    }

    fn next_look_ns(&self) -> u64 {
        let now_ns = self.tools.clock.now_ns();
        if !self.is_detecting() {
            return now_ns + nanos(self.looks_after_every().unwrap_or(INSPECT_EVERY));
        }
        match self.failures {
            0 => self.due_ns(),
            failures => now_ns + self.backoff_ns(failures),
        }
    }

    /// A period at first, since single losses are normal, then doubled with every failure.
    fn backoff_ns(&self, failures: u32) -> u64 {
        let doubled = self.period_ns.saturating_mul(1 << (failures - 1).min(16));
        doubled.min(nanos(BACKOFF_MAX).max(self.period_ns))
    }

    /// Takes one sample and gives it to ring and detector.
    pub(crate) fn look(&mut self) -> Vec<Finding> {
        let begin_ns = self.tools.clock.now_ns();
        let whole = begin_ns >= self.replan_ns;
        let glance = match (&mut self.reader, self.tools.door.memory()) {
            (Some((reader, _)), Some(memory)) => reader.look(memory, begin_ns, &mut self.values, whole),
            _ => Glance::Lost,
        };
        self.take(begin_ns, self.tools.clock.now_ns(), glance, whole)
    }

    /// Posts a sample without waiting for it, at `now_ns`, if one is due and nothing stands in the way.
    pub(crate) fn post(&mut self, now_ns: u64) -> Option<Flight> {
        self.sensors.heed(&mut self.reader);
        if !self.is_calm() {
            return None;
        }
        let whole = now_ns >= self.replan_ns;
        let (reader, _) = self.reader.as_ref()?;
        let flight = reader.post(self.tools.door.queue()?, whole)?;
        // A look that begins a little early, along with others, is the one of its tick.
        let planned_ns = self.due_ns();
        self.advance_tick(now_ns.max(planned_ns), planned_ns);
        Some(flight)
    }

    /// Takes what had come back by `end_ns` of a sample that was posted at `begin_ns`; its findings once it is
    /// complete.
    pub(crate) fn collect(&mut self, begin_ns: u64, end_ns: u64, flight: &mut Flight) -> Option<Vec<Finding>> {
        let (Some((reader, _)), Some(queue)) = (&mut self.reader, self.tools.door.queue()) else {
            return Some(self.take(begin_ns, end_ns, Glance::Lost, false));
        };
        let glance = reader.collect(queue, flight, begin_ns, &mut self.values)?;
        Some(self.take(begin_ns, end_ns, glance, flight.is_whole()))
    }

    /// Gives a sample up that was posted at `begin_ns`.
    pub(crate) fn give_up(&mut self, begin_ns: u64) -> Vec<Finding> {
        self.tools.door.renew();
        self.take(begin_ns, self.tools.clock.now_ns(), Glance::Lost, false)
    }

    /// Whether nothing but sampling is to be done for this target.
    pub(crate) fn is_calm(&self) -> bool {
        let is_quiet = self.reader.is_some() && self.failures == 0 && self.is_detecting() && self.inherited.is_none();
        is_quiet && !self.tools.ward.has_failed()
    }

    /// When the next look is due.
    pub(crate) fn due_ns(&self) -> u64 {
        self.next_tick_ns.min(self.stall_due_ns)
    }

    /// When the next look is due by the schedule alone.
    pub(crate) fn next_tick_ns(&self) -> u64 {
        self.next_tick_ns
    }

    fn take(&mut self, begin_ns: u64, end_ns: u64, glance: Glance, whole: bool) -> Vec<Finding> {
        match glance {
            Glance::Values { identity, changed } => {
                self.failures = 0;
                self.tools.metrics.samples.inc();
                let took = Duration::from_nanos(end_ns.saturating_sub(begin_ns));
                self.tools.metrics.sample_seconds.observe(took.as_secs_f64());
                self.judge_path();
                let findings = self.observe(begin_ns, end_ns, Some(identity));
                self.look_for_new_sensors(end_ns, whole, changed);
                findings
            }
            Glance::Lost => self.fail(begin_ns, end_ns, true),
            Glance::Refused | Glance::Unreadable => {
                // The region may have been registered anew: its table tells.
                self.reader = None;
                self.fail(begin_ns, end_ns, false)
            }
        }
    }

    /// Counts what had to be sent again for this sample.
    fn judge_path(&mut self) {
        let Noted { repetitions, turned } = self.quality.note(self.tools.door.repetitions());
        if repetitions > 0 {
            self.tools.metrics.repetitions.inc_by(repetitions);
        }
        if let Some((is_lossy, percent)) = turned {
            self.tools.metrics.path_lossy.set(i64::from(is_lossy));
            tracing::warn!(target_name = %self.target.name, is_lossy, percent, "samples that had to be asked again");
        }
    }

    fn look_for_new_sensors(&mut self, now_ns: u64, whole: bool, changed: bool) {
        let Some((reader, opened)) = &self.reader else { return };
        if whole {
            self.replan_ns = now_ns + nanos(REPLAN_EVERY);
        }
        if changed || whole && reader.differs_from(opened) {
            self.reader = None;
        }
    }

    fn fail(&mut self, begin_ns: u64, end_ns: u64, is_path: bool) -> Vec<Finding> {
        self.failures = self.failures.saturating_add(1);
        let look = if is_path { Look::Lost } else { Look::Unreadable };
        match is_path {
            true => self.tools.metrics.lost_samples.inc(),
            false => self.tools.metrics.unreadable_samples.inc(),
        };
        let observation = Observation { begin_ns, end_ns, look };
        self.ring.push(&observation);
        let findings = self.detector.observe(observation);
        self.stall_due_ns = self.detector.due_ns().unwrap_or(u64::MAX);
        findings
    }

    fn observe(&mut self, begin_ns: u64, end_ns: u64, identity: Option<u64>) -> Vec<Finding> {
        let look = match identity {
            Some(identity) => Look::Values { identity, values: &self.values },
            None => Look::Lost,
        };
        let observation = Observation { begin_ns, end_ns, look };
        self.ring.push(&observation);
        let findings = self.detector.observe(observation);
        self.stall_due_ns = self.detector.due_ns().unwrap_or(u64::MAX);
        findings
    }

    /// Finds the sensors and makes a plan for them.
    fn open(&mut self) -> Vec<Finding> {
        let begin_ns = self.tools.clock.now_ns();
        let found = self.sensors.open(&mut self.tools.door);
        let end_ns = self.tools.clock.now_ns();
        match found {
            Ok(Some((reader, opened))) => {
                self.failures = 0;
                self.adopt(reader, opened, end_ns);
                Vec::new()
            }
            // The path works, and its surveyor is at it: nothing to be told, and nothing to hurry for.
            Ok(None) => {
                self.failures = self.failures.saturating_add(1);
                Vec::new()
            }
            Err(Unreached { is_path, why }) => {
                if self.failures == 0 {
                    tracing::warn!(target_name = %self.target.name, %why, "the sensors cannot be reached");
                }
                self.fail(begin_ns, end_ns, is_path)
            }
        }
    }

    fn adopt(&mut self, mut reader: Reader, opened: Opened, now_ns: u64) {
        let (plan, places) = Plan::new(&opened.described, &self.target.rules, self.path_deadline);
        reader.keep(&places);
        if *self.detector.plan() != plan {
            if !plan.can_raise_hang() {
                let sensors: Vec<_> = opened.described.iter().map(|sensor| sensor.name.as_str()).collect();
                tracing::error!(
                    target_name = %self.target.name, ?sensors,
                    "no sensor fits a rule that raises a hang: the target is watched in vain"
                );
            }
            let event = Event::Watching { identity: opened.identity, plan: plan.clone() };
            self.tools.journal.note(&self.target.name, now_ns, event);
            self.detector.replan(plan);
            self.stall_due_ns = u64::MAX;
            self.renew_ring();
        }
        tracing::info!(
            target_name = %self.target.name, sensors = places.len(), damaged = opened.damaged, "watching"
        );
        self.reader = Some((reader, opened));
    }

    /// An empty ring for the present plan.
    pub(crate) fn renew_ring(&mut self) {
        let plan = self.detector.plan();
        let period = Duration::from_nanos(self.period_ns);
        self.ring = Ring::new(plan.sensors.len(), plan.longest_deadline(), period);
    }

    /// Hands the samples so far to the journal; cheap, as the ring is moved.
    pub(crate) fn hand_over_evidence(&mut self) {
        self.tools.journal.evidence(&self.target.name, std::mem::take(&mut self.ring));
    }

    /// The incident is over: the target is watched as if nothing had been.
    pub(crate) fn watch_again(&mut self) {
        self.standing = Standing::Watching;
        (self.quiet_until_ns, self.fence_failures) = (0, 0);
        (self.inherited, self.is_held) = (None, false);
        self.tools.standby.rest(false);
        self.tell_partner();
    }

    /// What was known of the box is of no more use.
    pub(crate) fn forget_box(&mut self) {
        self.reader = None;
        self.values.clear();
    }

    /// The values of the newest look.
    pub(crate) fn newest_values(&self) -> &[Option<u64>] {
        &self.values
    }

    pub(crate) fn note(&self, mono_ns: u64, event: Event) {
        self.tools.journal.note(&self.target.name, mono_ns, event);
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
