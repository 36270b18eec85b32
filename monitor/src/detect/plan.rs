//! What is watched: the sensors of one Sensor Box, each with the rule that the configuration or the box gives it.
//!
//! A plan is made once per box (and anew when the target or its agent restarted), so that nothing is looked up by name
//! while sampling. It is written to the journal: together with the samples it makes the detector's answer repeatable.

use std::time::Duration;

use healing_modules::pattern::fits;
use serde::{Deserialize, Serialize};

/// The three classes of sensors (Table 3.1 of the dissertation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Changes as long as the target makes progress; must change within its deadline.
    Progress,
    /// A quantity of a resource; must stay at or below its limit.
    Level,
    /// A count of events; its growth over a window must stay at or below its limit.
    Pressure,
}

/// How many sensors of a rule must stall before the rule speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quorum {
    /// One is enough: a CPU in a hard lock-up never comes back, whatever the others do.
    Any,
    /// Every one of them.
    All,
}

/// What a rule's stall means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Raises {
    /// The target hangs: the healing modules are asked.
    Hang,
    /// Worth a line in the log and a metric, never an action.
    Suspicion,
}

/// What a rule demands of one sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "lowercase")]
pub enum Bound {
    /// The value must change within `deadline_ns`.
    Progress {
        /// In nanoseconds.
        deadline_ns: u64,
    },
    /// The value must not be beyond `limit` for `hold_ns` or longer.
    Level {
        /// In the sensor's unit.
        limit: u64,
        /// In nanoseconds; 0 means that one sample is enough.
        hold_ns: u64,
        /// Whether the limit is a floor and not a ceiling.
        floor: bool,
    },
    /// The value must not grow by more than `limit` within `window_ns`.
    Pressure {
        /// In the sensor's unit.
        limit: u64,
        /// In nanoseconds.
        window_ns: u64,
    },
}

/// One sensor of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSensor {
    /// Its name in the box.
    pub name: String,
    /// What is demanded of it.
    pub bound: Bound,
    /// Index of its rule in [`Plan::rules`].
    pub rule: usize,
    /// Index of the sensor that says for how many nanoseconds this one may stand still with good reason, beyond its
    /// deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<usize>,
}

/// A rule as it takes part in the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRule {
    /// The pattern that names it, as in the configuration.
    pub pattern: String,
    /// How many of its sensors it takes.
    pub quorum: Quorum,
    /// What it means.
    pub raises: Raises,
}

/// Everything the detector needs to know about one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The watched sensors; samples have their values in this order.
    pub sensors: Vec<PlannedSensor>,
    /// The rules they follow.
    pub rules: Vec<PlannedRule>,
    /// Without a successful sample for so long, the path counts as lost.
    pub path_deadline_ns: u64,
}

/// A rule of the configuration, before it meets a box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Sensor name; `*` stands for any run of characters.
    pub pattern: String,
    /// Overrides the deadline of progress sensors.
    pub deadline: Option<Duration>,
    /// Overrides the limit of level and pressure sensors.
    pub limit: Option<u64>,
    /// The window of pressure sensors; how long level sensors may be beyond their limit.
    pub window: Option<Duration>,
    /// How many must stall.
    pub quorum: Quorum,
    /// What that means.
    pub raises: Raises,
}

/// A sensor as the box describes it. A claim of the target: the name may be anything, the limit may be nonsense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedSensor {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// Limit of a level or of a pressure's growth, in the sensor's unit.
    pub limit: u64,
    /// Deadline of progress, window of pressure, patience of a level, in nanoseconds; 0 where the box sets none.
    pub period_ns: u64,
    /// For a level: the limit is a floor.
    pub floor: bool,
    /// Name of the sensor that says for how many nanoseconds this one may stand still with good reason: processors
    /// that idle without ticks count nothing until they are next due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<String>,
}

/// The window of pressure sensors that no rule names.
pub const PRESSURE_WINDOW: Duration = Duration::from_secs(1);

/// No deadline that a box claims is taken below this: a box full of garbage must not make every sample a verdict.
pub const CLAIMED_DEADLINE_MIN: Duration = Duration::from_millis(1);

/// Of a sensor that may sleep, so much of a sleep is kept as evidence. Stock kernels wake each processor every 4 s, for
/// their own watchdog.
const SLEEP_KEPT: Duration = Duration::from_secs(5);

impl Plan {
    /// Joins the sensors of a box with the rules: the first rule whose pattern fits counts. A sensor without a rule is
    /// watched by what the box says of it, as a rule of its own that raises suspicions only; progress without a
    /// deadline is left out. Returns the plan and, for each sensor of the plan, its index in `described`.
    pub fn new(described: &[DescribedSensor], rules: &[Rule], path_deadline: Duration) -> (Self, Vec<usize>) {
        let mut plan = Self { sensors: Vec::new(), rules: Vec::new(), path_deadline_ns: nanos(path_deadline) };
        plan.rules.extend(rules.iter().map(|rule| PlannedRule {
            pattern: rule.pattern.clone(),
            quorum: rule.quorum,
            raises: rule.raises,
        }));
        let mut places = Vec::new();
        for (place, sensor) in described.iter().enumerate() {
            let found = rules.iter().position(|rule| fits(&rule.pattern, &sensor.name));
            let Some(bound) = bound(sensor, found.map(|index| &rules[index])) else { continue };
            let rule = found.unwrap_or_else(|| {
                plan.rules.push(PlannedRule {
                    pattern: sensor.name.clone(),
                    quorum: Quorum::Any,
                    raises: Raises::Suspicion,
                });
                plan.rules.len() - 1
            });
            plan.sensors.push(PlannedSensor { name: sensor.name.clone(), bound, rule, sleep: None });
            places.push(place);
        }
        for (at, place) in places.iter().enumerate() {
            let Some(sleep) = &described[*place].sleep else { continue };
            plan.sensors[at].sleep = places.iter().position(|other| described[*other].name == *sleep);
        }
        (plan, places)
    }

    /// Rules that mean a hang and have a progress sensor to see it: without one the target is watched in vain.
    pub fn can_raise_hang(&self) -> bool {
        self.sensors.iter().any(|sensor| {
            self.rules[sensor.rule].raises == Raises::Hang && matches!(sensor.bound, Bound::Progress { .. })
        })
    }

    /// The longest deadline whose stall means a hang, with a sleep before it: how far back the evidence of a verdict
    /// can reach.
    pub fn longest_deadline(&self) -> Duration {
        let deadline = |sensor: &PlannedSensor| match sensor.bound {
            Bound::Progress { deadline_ns } if self.rules[sensor.rule].raises == Raises::Hang => {
                deadline_ns.saturating_add(sensor.sleep.map_or(0, |_| nanos(SLEEP_KEPT)))
            }
            _ => 0,
        };
        Duration::from_nanos(self.sensors.iter().map(deadline).max().unwrap_or(0))
    }
}

fn bound(sensor: &DescribedSensor, rule: Option<&Rule>) -> Option<Bound> {
    let limit = rule.and_then(|rule| rule.limit).unwrap_or(sensor.limit);
    match sensor.class {
        Class::Progress => {
            let claimed =
                (sensor.period_ns > 0).then(|| Duration::from_nanos(sensor.period_ns).max(CLAIMED_DEADLINE_MIN));
            let deadline = rule.and_then(|rule| rule.deadline).or(claimed)?;
            Some(Bound::Progress { deadline_ns: nanos(deadline) })
        }
        Class::Level => {
            let hold_ns = rule.and_then(|rule| rule.window).map_or(sensor.period_ns, nanos);
            Some(Bound::Level { limit, hold_ns, floor: sensor.floor })
        }
        Class::Pressure => {
            let claimed = (sensor.period_ns > 0).then_some(sensor.period_ns);
            let window_ns = rule.and_then(|rule| rule.window).map(nanos).or(claimed);
            Some(Bound::Pressure { limit, window_ns: window_ns.unwrap_or(nanos(PRESSURE_WINDOW)) })
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How many samples a deadline must hold so that losing them all by chance is no likelier than `missed`, if one sample
/// is lost with probability `lost`: R >= log PM / log p_ml (the dissertation's rule), and never fewer than
/// [`SAMPLES_PER_DEADLINE_MIN`].
pub fn samples_per_deadline(missed: f64, lost: f64) -> u32 {
    let needed = (missed.ln() / lost.ln()).ceil();
    if needed.is_finite() { (needed as u32).max(SAMPLES_PER_DEADLINE_MIN) } else { SAMPLES_PER_DEADLINE_MIN }
}

/// One stretch between two samples counts for half a deadline at most, so a verdict takes the sample that saw the last
/// change and two more.
pub const SAMPLES_PER_DEADLINE_MIN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, raises: Raises) -> Rule {
        let deadline = Some(Duration::from_millis(20));
        Rule { pattern: pattern.into(), deadline, limit: None, window: None, quorum: Quorum::Any, raises }
    }

    fn described(name: &str, class: Class, limit: u64, period_ns: u64) -> DescribedSensor {
        DescribedSensor { name: name.into(), class, limit, period_ns, floor: false, sleep: None }
    }

    #[test]
    fn a_sensor_that_may_sleep_knows_which_sensor_says_so_in_the_plan() {
        let sleepy =
            DescribedSensor { sleep: Some("SLEEP.cpu0".into()), ..described("TICKS.cpu0", Class::Progress, 0, 0) };
        let described = [
            described("unbounded", Class::Progress, 1, 0),
            sleepy,
            described("FORKS", Class::Pressure, u64::MAX, 0),
            described("SLEEP.cpu0", Class::Level, u64::MAX, 0),
        ];
        let (plan, places) = Plan::new(&described, &[rule("TICKS.cpu*", Raises::Hang)], Duration::from_secs(1));
        assert_eq!(places, [1, 2, 3]);
        assert_eq!(plan.sensors.iter().map(|sensor| sensor.sleep).collect::<Vec<_>>(), [Some(2), None, None]);
    }

    #[test]
    fn the_sampling_rule_gives_the_papers_numbers() {
        assert_eq!(samples_per_deadline(1e-6, 1e-2), 3);
        assert_eq!(samples_per_deadline(1e-9, 0.05), 7);
        assert_eq!(samples_per_deadline(0.5, 1e-3), SAMPLES_PER_DEADLINE_MIN);
    }

    #[test]
    fn the_first_fitting_rule_counts_and_the_box_speaks_for_the_rest() {
        let described = [
            described("forks", Class::Pressure, 100, 0),
            described("tick.cpu0", Class::Progress, 1, 5),
            described("beat", Class::Progress, 1, 70_000_000),
            described("unbounded", Class::Progress, 1, 0),
        ];
        let rules = [rule("tick.*", Raises::Hang), rule("*cpu*", Raises::Suspicion)];
        let (plan, places) = Plan::new(&described, &rules, Duration::from_secs(1));
        assert_eq!(places, [0, 1, 2]);
        assert_eq!(plan.sensors[0].bound, Bound::Pressure { limit: 100, window_ns: 1_000_000_000 });
        assert_eq!((plan.sensors[1].bound, plan.sensors[1].rule), (Bound::Progress { deadline_ns: 20_000_000 }, 0));
        assert_eq!(plan.sensors[2].bound, Bound::Progress { deadline_ns: 70_000_000 });
        assert_eq!(plan.rules[plan.sensors[2].rule].raises, Raises::Suspicion);
        assert!(plan.can_raise_hang());
        assert_eq!(plan.longest_deadline(), Duration::from_millis(20), "a suspicion needs no evidence");
    }

    #[test]
    fn a_deadline_that_a_box_claims_cannot_be_absurdly_short() {
        let (plan, _) = Plan::new(&[described("x", Class::Progress, 1, 1)], &[], Duration::from_secs(1));
        assert_eq!(plan.sensors[0].bound, Bound::Progress { deadline_ns: 1_000_000 });
        assert!(!plan.can_raise_hang());
    }
}
