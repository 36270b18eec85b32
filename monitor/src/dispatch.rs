//! Dispatch: what follows from a finding. A hang goes to the first healing module that claims it; its remedy is carried
//! out here, in order: fence, then take-over, never the other way.
//!
//! A lost path, an unreadable box and suspicions are written down and shown; none of them leads to an action here. A
//! suspicion that no treatment could end may: [`crate::escalate`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control::backdoor::LockHolder;
use control::reinstate::{Evacuation, Report};
use healing_modules::{Alarm, Cure, Diagnosis, FreshSample, Remedy};

use crate::clock::Clock;
use crate::config::OnHang;
use crate::detect::Finding;
use crate::evacuate::{Ordered, Progress};
use crate::fence::fence;
use crate::journal::Event;
use crate::partner::{IncidentWord, TargetWord};
use crate::sample::Door;
use crate::succession::distinct;
use crate::watch::{Patient, Standing, Watch, nanos};

/// How long after a failed action the next one is tried.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often it is asked whether somebody else's lock still stands: it may end before its lease.
const LOCK_ASKED_EVERY: Duration = Duration::from_millis(100);

/// Failed fences that double the pause: a target that somebody else has fenced is asked for about once a minute.
const FENCE_DOUBLINGS_MAX: u32 = 6;

/// The silence told to a spare when nobody saw the target's last sign of life. Too long does no harm (TCP time stamps
/// may jump ahead by days), too short would make clients discard what the spare sends.
const SILENCE_UNKNOWN: Duration = Duration::from_secs(3600);

impl<D: Door, C: Clock> Watch<D, C> {
    /// Does what follows from `finding`.
    pub(crate) fn follow(&mut self, finding: Finding) {
        let now_ns = self.tools.clock.now_ns();
        let name = self.target.name.clone();
        match finding {
            Finding::Hung(alarm) => {
                let is_ours = self.standing == Standing::Watching && self.inherited.is_none();
                // A target that stands still for a repair is not hung; should it be, it is still when that is over.
                let deadline = alarm.symptoms.iter().map(|symptom| symptom.deadline).max().unwrap_or_default();
                let is_excused = self.tools.ward.excuses(now_ns, deadline);
                if is_ours && now_ns >= self.quiet_until_ns && !is_excused {
                    self.dispatch(&alarm);
                }
            }
            // A fenced target stands still: its sensors have nothing to tell.
            Finding::Suspicious { .. } | Finding::Cleared { .. } if !self.is_detecting() => {}
            Finding::Suspicious { sensor, value } => {
                let sensor = self.detector.plan().sensors[sensor].name.clone();
                tracing::warn!(target_name = %name, %sensor, value, "out of bounds");
                self.tools.ward.raise(&sensor);
                self.note(now_ns, Event::Suspicious { sensor, value });
            }
            Finding::Cleared { sensor } => {
                let sensor = self.detector.plan().sensors[sensor].name.clone();
                tracing::info!(target_name = %name, %sensor, "back in bounds");
                self.tools.ward.clear(&sensor);
                self.note(now_ns, Event::Cleared { sensor });
                if self.standing == Standing::Reported && self.detector.suspicions() == 0 {
                    self.standing = Standing::Watching;
                }
            }
            Finding::PathLost { since_ns } => {
                tracing::error!(target_name = %name, "the path is lost; nothing is known of the target");
                self.tools.metrics.path_lost.set(1);
                self.tell_partner();
                self.hand_over_evidence();
                self.renew_ring();
                self.note(now_ns, Event::PathLost { since_ns });
            }
            Finding::PathBack { after } => {
                tracing::warn!(target_name = %name, ?after, "the path is back");
                self.tools.metrics.path_lost.set(0);
                self.tell_partner();
                self.note(now_ns, Event::PathBack { after_ns: nanos(after) });
            }
            Finding::Unreadable { since_ns } => {
                tracing::error!(target_name = %name, "the path works and brings no sensors");
                self.note(now_ns, Event::Unreadable { since_ns });
            }
            Finding::Restarted { .. } if self.has_reset_it() => {}
            Finding::Restarted { was, is } => {
                tracing::warn!(target_name = %name, "the target restarted");
                self.note(now_ns, Event::Restarted { was, is });
                self.watch_again();
            }
        }
    }

    fn dispatch(&mut self, alarm: &Alarm) {
        if self.leaves_it_to_the_first() {
            return;
        }
        let Some(chosen) = self.illnesses.iter().position(|illness| illness.is_raised_by(alarm)) else { return };
        let illness = self.illnesses[chosen].name();
        let fresh = self.fresh_samples(self.illnesses[chosen].confirming_samples());
        match self.illnesses[chosen].confirm(alarm, &fresh) {
            Diagnosis::Confirmed if self.is_locked_by_other() => {}
            Diagnosis::Confirmed => self.decide(chosen, alarm),
            Diagnosis::Refuted { sensor } => {
                tracing::warn!(target_name = %self.target.name, %sensor, illness, "refuted: the sensor moved");
                self.tools.metrics.refuted.inc();
                self.hand_over_evidence();
                self.renew_ring();
                self.note(self.tools.clock.now_ns(), Event::Refuted { illness: illness.to_owned(), sensor });
            }
            Diagnosis::Undecided { why } => {
                tracing::warn!(target_name = %self.target.name, %why, illness, "undecided");
                self.note(self.tools.clock.now_ns(), Event::Undecided { illness: illness.to_owned(), why });
            }
        }
    }

    /// Whether the target rests because somebody else holds it locked; says so in the journal, once for each lock. It
    /// is asked again while the lock stands, and given a deadline to move in when it has ended.
    fn is_locked_by_other(&mut self) -> bool {
        let holder = self.tools.door.lock_holder();
        let now_ns = self.tools.clock.now_ns();
        let LockHolder { peer, reason, left_ms } = match holder {
            Ok(Some(holder)) => holder,
            // Nobody can say: then the fence is refused, should it be locked.
            Ok(None) | Err(_) => {
                self.lock_told = None;
                return false;
            }
        };
        let told = Some((peer.clone(), reason.clone()));
        if self.lock_told != told {
            tracing::warn!(target_name = %self.target.name, holder = peer, reason, left_ms, "it is locked, not hung");
            self.note(now_ns, Event::LockedByOther { holder: peer, reason, left_ms });
            self.lock_told = told;
        }
        self.tools.ward.excuse(now_ns, Duration::from_millis(left_ms).min(LOCK_ASKED_EVERY));
        true
    }

    /// A verdict, unless what stands still is a life that the machine has left behind.
    fn decide(&mut self, chosen: usize, alarm: &Alarm) {
        let why = match self.sensors.are_of_this_life(&mut self.tools.door) {
            Ok(true) => return self.verdict(chosen, alarm),
            Ok(false) => "the machine was reset: what stands still is what it left in its memory".to_owned(),
            Err(failure) => format!("whether the machine was reset cannot be asked: {failure}"),
        };
        let (illness, now_ns) = (self.illnesses[chosen].name(), self.tools.clock.now_ns());
        tracing::warn!(target_name = %self.target.name, %why, illness, "undecided");
        self.note(now_ns, Event::Undecided { illness: illness.to_owned(), why });
        self.forget_box();
        self.quiet_until_ns = now_ns + nanos(RETRY_AFTER);
    }

    fn fresh_samples(&mut self, count: usize) -> Vec<FreshSample> {
        (0..count)
            .map(|_| {
                let begin_ns = self.tools.clock.now_ns();
                let lost = self.tools.metrics.samples.get();
                // The alarm that is being judged would only be raised again.
                let findings = self.look().into_iter().filter(|finding| !matches!(finding, Finding::Hung(_)));
                findings.collect::<Vec<_>>().into_iter().for_each(|finding| self.follow(finding));
                let is_good = self.tools.metrics.samples.get() > lost;
                let values = if is_good { self.newest_values().to_vec() } else { Vec::new() };
                FreshSample { begin_ns, values }
            })
            .collect()
    }

    fn verdict(&mut self, chosen: usize, alarm: &Alarm) {
        let now_ns = self.tools.clock.now_ns();
        let alive_after_ns = alarm.alive_after_ns();
        let illness = self.illnesses[chosen].name();
        self.hand_over_evidence();
        self.note(alive_after_ns.unwrap_or(now_ns), Event::LastSign { known: alive_after_ns.is_some() });
        self.note(now_ns, Event::verdict(illness, alarm));
        self.tools.metrics.verdicts.inc();
        match (self.illnesses[chosen].remedy(), self.target.on_hang) {
            (_, OnHang::Report) => {
                self.standing = Standing::Reported;
                self.note(now_ns, Event::Reported);
                tracing::error!(target_name = %self.target.name, illness, rule = %alarm.rule, "verdict; only reported");
            }
            // What is logged of this is logged when it is done.
            (Remedy::Evacuate, OnHang::Evacuate) => self.act(chosen, alive_after_ns),
        }
        self.renew_ring();
    }

    pub(crate) fn fence_target(&mut self, illness: usize, alive_after_ns: Option<u64>) {
        let asked_ns = self.tools.clock.now_ns();
        match fence(&mut self.tools.door, self.illnesses[illness].name(), self.claim) {
            Ok(token) => {
                self.fence_failures = 0;
                self.tools.standby.rest(true);
                self.tools.ward.fenced();
                self.note(self.tools.clock.now_ns(), Event::Fenced { token: token.clone(), asked_ns });
                self.tools.metrics.fences.inc();
                self.standing = Standing::Fenced(Patient {
                    token,
                    alive_after_ns,
                    illness,
                    holders: BTreeMap::new(),
                    age: Duration::ZERO,
                });
                self.tell_partner();
                self.order();
            }
            Err(failure) => {
                tracing::error!(target_name = %self.target.name, %failure, "not fenced, so nothing is taken over");
                let now_ns = self.tools.clock.now_ns();
                self.note(now_ns, Event::FenceFailed { why: failure.to_string() });
                self.tools.metrics.failed_fences.inc();
                let pause = RETRY_AFTER * (1 << self.fence_failures.min(FENCE_DOUBLINGS_MAX));
                self.fence_failures = self.fence_failures.saturating_add(1);
                self.quiet_until_ns = now_ns + nanos(pause);
            }
        }
    }

    /// Orders spares to take over the fenced target, or asks those again whose answers were lost.
    pub(crate) fn order(&mut self) {
        let mut patient = match &self.standing {
            Standing::Fenced(patient) | Standing::OutcomeUnknown { patient, .. } => patient.clone(),
            _ => return,
        };
        let standby = Arc::clone(&self.tools.standby);
        let silent_ms = silent_ms(self.tools.clock.now_ns(), &patient);
        let token = patient.token.clone();
        let assignment = standby.assignment().clone();
        let evacuation = Evacuation { token, silent_ms, assignment, share: None, absent: Vec::new() };
        let (journal, partner, clock) = (self.tools.journal.clone(), self.tools.partner.clone(), Frozen::of(self));
        let holders = Mutex::new(patient.holders.clone());
        let was_held = &patient.holders;
        let note = |progress: Progress<'_>| {
            let event = match progress {
                Progress::Ordering { part, spare } => {
                    let holders = {
                        let mut holders = holders.lock().unwrap_or_else(PoisonError::into_inner);
                        holders.insert(part, spare.to_owned());
                        holders.clone()
                    };
                    let (token, spare) = (evacuation.token.clone(), spare.to_owned());
                    let event = Event::Committed { token: token.clone(), part, spare };
                    journal.commit(&clock.target, clock.now_ns(), event);
                    let incident = Some(IncidentWord { token, holders, is_done: false });
                    partner.tell(TargetWord { incident, ..clock.word.clone() });
                    return;
                }
                Progress::Ordered { spare } => Event::Ordered { spare: spare.to_owned(), silent_ms },
                // Unlike a refusal, this says that nothing happened earlier either.
                Progress::Withdrawn { part, spare, why } => {
                    tracing::warn!(target_name = %clock.target, spare, %why, "it has let go of the order");
                    holders.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
                    Event::Passed { spare: spare.to_owned(), why }
                }
                Progress::Passed { part, spare, why } => {
                    tracing::warn!(target_name = %clock.target, spare, %why, "passed");
                    if !was_held.contains_key(&part) {
                        holders.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
                    }
                    Event::Passed { spare: spare.to_owned(), why }
                }
            };
            journal.note(&clock.target, clock.now_ns(), event);
        };
        let outcomes = standby.order_parts(&evacuation, was_held, note);
        patient.holders = holders.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.conclude(patient, merged(outcomes));
        self.tell_partner();
    }

    fn conclude(&mut self, patient: Patient, outcome: Ordered) {
        let now_ns = self.tools.clock.now_ns();
        let illness = self.illnesses[patient.illness].name();
        tracing::error!(target_name = %self.target.name, illness, "verdict; fenced, and spares asked to take over");
        match outcome {
            Ordered::Evacuated { spare, report } => self.close(now_ns, patient, spare, report),
            Ordered::Unknown { spare, why } => {
                tracing::error!(
                    target_name = %self.target.name, %spare, %why,
                    "the spare got the order and did not answer; it may have taken over, so it alone is asked again"
                );
                self.note(now_ns, Event::OutcomeUnknown { spare: spare.clone(), why });
                self.standing = Standing::OutcomeUnknown { patient, spare };
                self.quiet_until_ns = now_ns + nanos(RETRY_AFTER);
            }
            Ordered::Nobody => {
                tracing::error!(target_name = %self.target.name, "no spare takes over; the fence stands, trying again");
                self.note(now_ns, Event::Unserved);
                self.quiet_until_ns = now_ns + nanos(RETRY_AFTER);
            }
        }
    }

    fn close(&mut self, now_ns: u64, patient: Patient, spare: String, report: Report) {
        let (resumed, lost) = match self.illnesses[patient.illness].proof_of_cure(&report) {
            Cure::Complete { sessions } => (sessions, 0),
            Cure::Partial { resumed, lost } => (resumed, lost),
        };
        tracing::error!(target_name = %self.target.name, %spare, resumed, lost, "evacuated");
        self.tools.metrics.evacuations.inc();
        self.tools.metrics.sessions_resumed.inc_by(resumed as u64);
        self.tools.metrics.sessions_lost.inc_by(lost as u64);
        self.note(now_ns, Event::Evacuated { spare, resumed, lost, report });
        self.begin_after(distinct(&patient.holders));
        self.standing = Standing::Evacuated { token: Some(patient.token) };
    }
}

/// What the threads that order need of a watch: its clock is not theirs, so times are counted on from when they began.
struct Frozen {
    target: String,
    word: TargetWord,
    begin_ns: u64,
    begin: Instant,
}

impl Frozen {
    fn of<D: Door, C: Clock>(watch: &Watch<D, C>) -> Self {
        let begin_ns = watch.tools.clock.now_ns();
        Self { target: watch.target.name.clone(), word: watch.word(None), begin_ns, begin: Instant::now() }
    }

    fn now_ns(&self) -> u64 {
        self.begin_ns + nanos(self.begin.elapsed())
    }
}

/// One outcome of all parts: finished if every part is.
fn merged(outcomes: Vec<Ordered>) -> Ordered {
    let (mut spares, mut whole, mut is_served) = (Vec::new(), Report::default(), true);
    let mut unknown = None;
    for outcome in outcomes {
        match outcome {
            Ordered::Evacuated { spare, report } => {
                whole.sessions.extend(report.sessions);
                whole.stages.extend(report.stages);
                whole.damage.extend(report.damage);
                spares.push(spare);
            }
            Ordered::Nobody => is_served = false,
            other => unknown = Some(other),
        }
    }
    spares.dedup();
    match (unknown, is_served) {
        (Some(unknown), _) => unknown,
        (None, false) => Ordered::Nobody,
        (None, true) => Ordered::Evacuated { spare: spares.join("+"), report: whole },
    }
}

/// Upper bound of the target's silence, in milliseconds.
fn silent_ms(now_ns: u64, patient: &Patient) -> u64 {
    let unknown = nanos(SILENCE_UNKNOWN.saturating_add(patient.age));
    let silent_ns = patient.alive_after_ns.map_or(unknown, |alive_ns| now_ns.saturating_sub(alive_ns));
    silent_ns.div_ceil(1_000_000)
}
