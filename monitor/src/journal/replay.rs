//! `monitor replay`: draws the verdicts of a journal again from its samples, through the same detector.
//!
//! A verdict that the samples do not give again is a defect of the detector or a damaged journal; both are worth a
//! failing exit code.

use std::collections::HashMap;
use std::io::BufRead;
use std::time::Duration;

use healing_modules::{Healer, Moment, Plan, Safety};

use super::{Event, Line, RepairLine, SymptomLine};
use crate::config::Module;
use crate::detect::{Detector, Finding, Observation};
use crate::repair::{Outside, Program};

/// How long a program may take to be ready to be asked again.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// A journal that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file failed.
    #[error("the journal cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A line is no journal line; a journal cut short by a crash ends in one.
    #[error("line {line}: not a journal line: {source}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// One verdict of the journal, drawn again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrawn {
    /// The target.
    pub target: String,
    /// The rule that raised it.
    pub rule: String,
    /// End of the sample that raised it.
    pub raised_ns: u64,
    /// The stalled sensors with their values, as journaled.
    pub journaled: Vec<(String, u64)>,
    /// The same, as the samples give them; `None` if they give no verdict at that sample.
    pub derived: Option<Vec<(String, u64)>>,
}

impl Redrawn {
    /// Whether the samples give the journaled verdict.
    pub fn agrees(&self) -> bool {
        self.derived.as_ref() == Some(&self.journaled)
    }
}

/// One repair of the journal, looked at again.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconsidered {
    /// The target.
    pub target: String,
    /// When the target ran again.
    pub mono_ns: u64,
    /// What was decided, as journaled.
    pub journaled: Option<Plan>,
    /// What comes of it again.
    pub again: Again,
    /// Measures that contained somebody.
    pub contained: usize,
    /// Whether nobody was contained but culprits, by means that were configured.
    pub is_contained_rightly: bool,
}

/// What comes of a repair when it is looked at again.
#[derive(Clone, Debug, PartialEq)]
pub enum Again {
    /// Module, bounds and evidence give this.
    Decided(Option<Plan>),
    /// Another program decided, and was not run again. What it said is within its bounds, or not.
    Checked {
        /// Whether it is.
        is_in_bounds: bool,
    },
    /// Another program decided, and does not answer now.
    Unanswered {
        /// Why.
        why: String,
    },
}

impl Reconsidered {
    /// Whether nothing speaks against the journaled decision.
    pub fn agrees(&self) -> bool {
        self.is_contained_rightly && self.is_decided_again()
    }

    fn is_decided_again(&self) -> bool {
        match &self.again {
            Again::Decided(plan) => *plan == self.journaled,
            Again::Checked { is_in_bounds } => *is_in_bounds,
            Again::Unanswered { .. } => false,
        }
    }
}

/// Looks at every repair again: decides it, where a module of this build decided; else checks what the other program
/// said, or with `runs_programs` asks it once more.
pub fn reconsider(lines: &[Line], runs_programs: bool) -> Vec<Reconsidered> {
    let mut programs = Vec::new();
    let repair = |line: &Line| match &line.event {
        Event::Repaired(repair) => Some(Reconsidered {
            target: line.target.clone(),
            mono_ns: line.mono_ns,
            journaled: repair.plan.clone(),
            contained: repair.contained.len(),
            is_contained_rightly: repair.is_contained_rightly(),
            again: match (repair.derived(), &repair.module) {
                (Some(derived), _) => Again::Decided(derived),
                (None, Module::Program(outside)) if runs_programs => ask(&mut programs, outside, &line.target, repair),
                (None, _) => Again::Checked { is_in_bounds: repair.is_in_bounds() },
            },
        }),
        _ => None,
    };
    lines.iter().filter_map(repair).collect()
}

/// Programs that have been started for a replay, with what they were told.
type Started = Vec<(Outside, String, Safety, Program)>;

fn ask(started: &mut Started, outside: &Outside, target: &str, repair: &RepairLine) -> Again {
    let is_it = |(one, about, safety, _): &&(Outside, String, Safety, Program)| {
        (one, about.as_str(), safety) == (outside, target, &repair.safety)
    };
    let program = started.iter().find(is_it).map(|(.., program)| program.clone()).unwrap_or_else(|| {
        let program = Program::new(outside, target, &repair.safety);
        started.push((outside.clone(), target.to_owned(), repair.safety.clone(), program.clone()));
        program
    });
    let answer = program
        .await_ready(START_PATIENCE)
        .and_then(|()| program.consult(Moment::Running, &repair.evidence, repair.earlier.as_ref(), &repair.safety));
    match answer {
        Ok(plan) => Again::Decided(plan),
        Err(error) => Again::Unanswered { why: error.to_string() },
    }
}

/// Reads the lines of a journal.
///
/// # Errors
/// See [`ReplayError`].
pub fn lines(from: impl BufRead) -> Result<Vec<Line>, ReplayError> {
    let mut lines = Vec::new();
    for (index, text) in from.lines().enumerate() {
        let parsed = serde_json::from_str(&text?);
        lines.push(parsed.map_err(|source| ReplayError::Line { line: index + 1, source })?);
    }
    Ok(lines)
}

/// Draws every verdict again.
pub fn replay(lines: &[Line]) -> Vec<Redrawn> {
    let mut targets: HashMap<&str, Redrawing> = HashMap::new();
    let mut redrawn = Vec::new();
    for line in lines {
        match &line.event {
            Event::Watching { plan, .. } => {
                let fresh = || Redrawing { detector: Detector::new(plan.clone()), alarms: Vec::new() };
                targets.entry(&line.target).or_insert_with(fresh).detector.replan(plan.clone());
            }
            Event::Sample { begin_ns, look } => {
                if let Some(target) = targets.get_mut(line.target.as_str()) {
                    let look = look.as_look();
                    target.observe(Observation { begin_ns: *begin_ns, end_ns: line.mono_ns, look });
                }
            }
            Event::Verdict { rule, raised_ns, symptoms, .. } => {
                let alarms = targets.get(line.target.as_str()).map_or(&[][..], |target| &target.alarms);
                let found = alarms.iter().find(|alarm| alarm.rule == *rule && alarm.raised_ns == *raised_ns);
                redrawn.push(Redrawn {
                    target: line.target.clone(),
                    rule: rule.clone(),
                    raised_ns: *raised_ns,
                    journaled: named(symptoms),
                    derived: found.map(|alarm| alarm.symptoms.clone()),
                });
            }
            _ => {}
        }
    }
    redrawn
}

struct Alarmed {
    rule: String,
    raised_ns: u64,
    symptoms: Vec<(String, u64)>,
}

struct Redrawing {
    detector: Detector,
    alarms: Vec<Alarmed>,
}

impl Redrawing {
    fn observe(&mut self, observation: Observation<'_>) {
        for finding in self.detector.observe(observation) {
            if let Finding::Hung(alarm) = finding {
                let symptoms: Vec<_> = alarm.symptoms.iter().map(SymptomLine::from).collect();
                let symptoms = named(&symptoms);
                self.alarms.push(Alarmed { rule: alarm.rule, raised_ns: alarm.raised_ns, symptoms });
            }
        }
    }
}

fn named(symptoms: &[SymptomLine]) -> Vec<(String, u64)> {
    symptoms.iter().map(|symptom| (symptom.sensor.clone(), symptom.value)).collect()
}
