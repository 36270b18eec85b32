//! Detection: samples in, findings out. No clock, no link; the same core replays a journal.
//!
//! Three things are told apart that look alike from afar:
//!
//! * **the target hangs**: samples succeed and progress sensors stand still beyond their deadlines;
//! * **the path is lost**: no sample succeeds. Says nothing about the target and never leads to a fence;
//! * **the box is unreadable**: reads succeed and bring no Sensor Box. The target's memory or agent is in trouble, but
//!   a box that cannot be read shows no stall.
//!
//! A restart of the target or its agent (another identity in the box) begins new baselines: what a counter did before
//! says nothing about the new one. So does a path that was lost and came back.
//!
//! Invariants: no finding of a hang without successful samples on both sides of the stall; equal samples give equal
//! findings; memory and work per sample are bounded by the plan.

mod bounds;
mod plan;

use std::time::Duration;

use healing_modules::{Alarm, Symptom};

pub use bounds::{Level, Pressure, Progress, Stall};
pub use plan::{
    Bound, CLAIMED_DEADLINE_MIN, Class, DescribedSensor, PRESSURE_WINDOW, Plan, PlannedRule, PlannedSensor, Quorum,
    Raises, Rule, SAMPLES_PER_DEADLINE_MIN, samples_per_deadline,
};

/// One look at a target. Times are monotonic nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation<'a> {
    /// When the read was posted.
    pub begin_ns: u64,
    /// When it came back, or failed.
    pub end_ns: u64,
    /// What it brought.
    pub look: Look<'a>,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look<'a> {
    /// The sensors of the plan, in its order; `None` where a record could not be read whole (a torn read is normal).
    Values {
        /// Changes when the target or its agent restarted.
        identity: u64,
        /// The values.
        values: &'a [Option<u64>],
    },
    /// Bytes that are no Sensor Box.
    Unreadable,
    /// Nothing: no answer over the path.
    Lost,
}

/// What an observation changed. Hangs are repeated while they last, everything else is reported when it begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A rule that means a hang is fulfilled.
    Hung(Alarm),
    /// A sensor left its bounds, or a rule is fulfilled that means no hang.
    Suspicious {
        /// Index of the sensor in the plan.
        sensor: usize,
        /// Its value, or its growth over the window for pressure.
        value: u64,
    },
    /// A sensor is back within its bounds.
    Cleared {
        /// Index of the sensor in the plan.
        sensor: usize,
    },
    /// No sample has succeeded for the path's deadline.
    PathLost {
        /// End of the last successful sample.
        since_ns: u64,
    },
    /// Samples succeed again.
    PathBack {
        /// How long none did.
        after: Duration,
    },
    /// Reads have brought no Sensor Box for the path's deadline.
    Unreadable {
        /// End of the last sample that did.
        since_ns: u64,
    },
    /// The target or its agent restarted; the plan has to be made anew.
    Restarted {
        /// The identity so far.
        was: u64,
        /// The identity now.
        is: u64,
    },
}

#[derive(Clone, Debug)]
enum State {
    Progress(Progress),
    Level(Level),
    Pressure(Pressure),
}

impl State {
    fn observe(&mut self, begin_ns: u64, end_ns: u64, value: Option<u64>, sleep_ns: u64) {
        match (self, value) {
            (_, None) => {}
            (Self::Progress(progress), Some(value)) => progress.observe(begin_ns, end_ns, value, sleep_ns),
            (Self::Level(level), Some(value)) => level.observe(end_ns, value),
            (Self::Pressure(pressure), Some(value)) => pressure.observe(end_ns, value),
        }
    }

    /// The value, or the growth of pressure, that is beyond the bound.
    fn excess(&self) -> Option<u64> {
        match self {
            Self::Progress(progress) => progress.stall().map(|stall| stall.value),
            Self::Level(level) => level.excess(),
            Self::Pressure(pressure) => pressure.excess(),
        }
    }
}

/// A sensor of the plan, with all that a sample needs in one place: a hundred of them are gone through in each.
#[derive(Clone, Debug)]
struct Track {
    state: State,
    is_suspicious: bool,
    /// Whether its rule means a hang.
    is_grave: bool,
    /// The sensor that says how long it may sleep.
    sleep: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    PathLost,
    Unreadable,
}

/// The detector of one target.
#[derive(Debug)]
pub struct Detector {
    plan: Plan,
    tracks: Vec<Track>,
    suspicions: usize,
    due_ns: Option<u64>,
    identity: Option<u64>,
    /// End of the last sample with values; the first observation sets it, whatever it brought.
    readable_ns: Option<u64>,
    /// End of the last sample that the path carried.
    carried_ns: Option<u64>,
    trouble: Trouble,
}

impl Detector {
    /// A detector without baselines.
    pub fn new(plan: Plan) -> Self {
        Self {
            tracks: baselines(&plan),
            plan,
            suspicions: 0,
            due_ns: None,
            identity: None,
            readable_ns: None,
            carried_ns: None,
            trouble: Trouble::None,
        }
    }

    /// A detector that knows the target's identity from before.
    pub fn knowing(plan: Plan, identity: Option<u64>) -> Self {
        Self { identity, ..Self::new(plan) }
    }

    /// What it watches.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The target's identity as seen last.
    pub fn identity(&self) -> Option<u64> {
        self.identity
    }

    /// Watches something else from now on; what is known of the path and of the target's identity stays.
    pub fn replan(&mut self, plan: Plan) {
        self.tracks = baselines(&plan);
        (self.suspicions, self.due_ns) = (0, None);
        self.plan = plan;
    }

    /// Sensors beyond their bounds now.
    pub fn suspicions(&self) -> usize {
        self.suspicions
    }

    /// Whether the path counts as lost now.
    pub fn is_path_lost(&self) -> bool {
        self.trouble == Trouble::PathLost
    }

    /// The earliest time at which one more sample could complete a hang: sampling then, and not at the next tick of
    /// the schedule, keeps the verdict within the deadline and one period of the target's last move.
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Takes in one observation and says what it changed.
    pub fn observe(&mut self, observation: Observation<'_>) -> Vec<Finding> {
        let Observation { begin_ns, end_ns, look } = observation;
        let mut findings = Vec::new();
        match look {
            Look::Lost => self.note_trouble(Trouble::PathLost, end_ns, &mut findings),
            Look::Unreadable => {
                self.note_path_alive(end_ns, &mut findings);
                self.note_trouble(Trouble::Unreadable, end_ns, &mut findings);
            }
            Look::Values { identity, values } => {
                self.note_path_alive(end_ns, &mut findings);
                self.trouble = Trouble::None;
                self.readable_ns = Some(end_ns);
                self.note_identity(identity, &mut findings);
                self.judge(begin_ns, end_ns, values, &mut findings);
            }
        }
        findings
    }

    fn note_trouble(&mut self, trouble: Trouble, end_ns: u64, findings: &mut Vec<Finding>) {
        let since_ns = match trouble {
            Trouble::PathLost => *self.carried_ns.get_or_insert(end_ns),
            _ => *self.readable_ns.get_or_insert(end_ns),
        };
        let is_over = end_ns.saturating_sub(since_ns) >= self.plan.path_deadline_ns;
        if !is_over || self.trouble == trouble {
            return;
        }
        self.trouble = trouble;
        findings.push(match trouble {
            Trouble::PathLost => Finding::PathLost { since_ns },
            _ => Finding::Unreadable { since_ns },
        });
    }

    fn note_path_alive(&mut self, end_ns: u64, findings: &mut Vec<Finding>) {
        let before = self.carried_ns.replace(end_ns);
        if self.trouble == Trouble::PathLost {
            self.trouble = Trouble::None;
            let after = Duration::from_nanos(end_ns.saturating_sub(before.unwrap_or(end_ns)));
            findings.push(Finding::PathBack { after });
            for track in &mut self.tracks {
                if let State::Progress(progress) = &mut track.state {
                    progress.rebase();
                }
            }
            self.due_ns = None; // nothing is counted before the next sample
        }
    }

    fn note_identity(&mut self, identity: u64, findings: &mut Vec<Finding>) {
        match self.identity.replace(identity) {
            Some(was) if was != identity => {
                findings.push(Finding::Restarted { was, is: identity });
                // Suspicions of the old life are cleared by the first sample of the new one.
                for (track, fresh) in self.tracks.iter_mut().zip(baselines(&self.plan)) {
                    track.state = fresh.state;
                }
            }
            _ => {}
        }
    }

    /// Takes in the values of a sample and says which bounds they left or came back to.
    fn judge(&mut self, begin_ns: u64, end_ns: u64, values: &[Option<u64>], findings: &mut Vec<Finding>) {
        let mut is_stalled = false;
        (self.suspicions, self.due_ns) = (0, None);
        let value_of = |sensor: usize| values.get(sensor).copied().flatten();
        for (sensor, track) in self.tracks.iter_mut().enumerate() {
            // Without a word on its sleep a sensor that may sleep says nothing.
            let sleep_ns = track.sleep.map_or(Some(0), value_of);
            track.state.observe(
                begin_ns,
                end_ns,
                value_of(sensor).filter(|_| sleep_ns.is_some()),
                sleep_ns.unwrap_or(0),
            );
            let excess = track.state.excess();
            if let State::Progress(progress) = &track.state {
                is_stalled |= excess.is_some();
                let due_ns = progress.due_ns().filter(|_| track.is_grave);
                self.due_ns = self.due_ns.into_iter().chain(due_ns).min();
            }
            self.suspicions += usize::from(excess.is_some());
            let was = std::mem::replace(&mut track.is_suspicious, excess.is_some());
            match excess {
                Some(value) if !was => findings.push(Finding::Suspicious { sensor, value }),
                None if was => findings.push(Finding::Cleared { sensor }),
                _ => {}
            }
        }
        if is_stalled {
            findings.extend(self.alarms(end_ns).map(Finding::Hung));
        }
    }

    fn alarms(&self, raised_ns: u64) -> impl Iterator<Item = Alarm> + '_ {
        let hanging = self.plan.rules.iter().enumerate().filter(|(_, rule)| rule.raises == Raises::Hang);
        hanging.filter_map(move |(index, rule)| {
            let watched =
                |sensor: &&PlannedSensor| sensor.rule == index && matches!(sensor.bound, Bound::Progress { .. });
            let watched = self.plan.sensors.iter().filter(watched).count();
            let symptoms: Vec<_> = (0..self.tracks.len()).filter_map(|at| self.symptom(at, index)).collect();
            let is_fulfilled = match rule.quorum {
                Quorum::Any => !symptoms.is_empty(),
                Quorum::All => !symptoms.is_empty() && symptoms.len() == watched,
            };
            is_fulfilled.then(|| Alarm { rule: rule.pattern.clone(), symptoms, watched, raised_ns })
        })
    }

    fn symptom(&self, at: usize, rule: usize) -> Option<Symptom> {
        let sensor = &self.plan.sensors[at];
        let (State::Progress(progress), Bound::Progress { deadline_ns }) = (&self.tracks[at].state, sensor.bound)
        else {
            return None;
        };
        let stall = progress.stall().filter(|_| sensor.rule == rule)?;
        Some(Symptom {
            sensor: sensor.name.clone(),
            index: at,
            value: stall.value,
            moved_after_ns: stall.moved_after_ns,
            moved_before_ns: stall.moved_before_ns,
            stalled: Duration::from_nanos(stall.stalled_ns),
            deadline: Duration::from_nanos(deadline_ns),
        })
    }
}

fn baselines(plan: &Plan) -> Vec<Track> {
    let track = |sensor: &PlannedSensor| {
        let state = match sensor.bound {
            Bound::Progress { deadline_ns } => State::Progress(Progress::new(deadline_ns)),
            Bound::Level { limit, hold_ns, floor } => State::Level(Level::new(limit, hold_ns, floor)),
            Bound::Pressure { limit, window_ns } => State::Pressure(Pressure::new(limit, window_ns)),
        };
        let is_grave = plan.rules.get(sensor.rule).is_some_and(|rule| rule.raises == Raises::Hang);
        Track { state, is_suspicious: false, is_grave, sleep: sensor.sleep }
    };
    plan.sensors.iter().map(track).collect()
}

#[cfg(test)]
mod tests;
