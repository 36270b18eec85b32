//! The detector in simulated time: a target whose counters follow a script, a path that loses, delays and jitters as a
//! seed says. What must hold: no hang while every counter keeps its deadline; a hang within the deadline, one period
//! and the reads' time when one stops; never a hang out of a lost path.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const MS: u64 = 1_000_000;
const DEADLINE: u64 = 20 * MS;
const PERIOD: u64 = 4 * MS;
const READ_MAX: u64 = MS / 2;

fn plan(sensors: usize, quorum: Quorum) -> Plan {
    Plan {
        sensors: (0..sensors)
            .map(|cpu| PlannedSensor {
                name: format!("tick.cpu{cpu}"),
                bound: Bound::Progress { deadline_ns: DEADLINE },
                rule: 0,
                sleep: None,
            })
            .collect(),
        rules: vec![PlannedRule { pattern: "tick.cpu*".into(), quorum, raises: Raises::Hang }],
        path_deadline_ns: 100 * MS,
    }
}

/// A CPU that ticks every `every_ns` until it stops.
#[derive(Clone, Copy)]
struct Cpu {
    every_ns: u64,
    stops_ns: u64,
}

impl Cpu {
    fn value_at(self, now_ns: u64) -> u64 {
        1 + now_ns.min(self.stops_ns) / self.every_ns
    }

    fn last_move_ns(self) -> u64 {
        self.stops_ns / self.every_ns * self.every_ns
    }
}

/// How the path treats one sample.
struct Path {
    random: StdRng,
    lost: f64,
    torn: f64,
    late_ns: u64,
    /// Nothing gets through in this stretch.
    down: std::ops::Range<u64>,
}

impl Path {
    fn clean(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), lost: 0.0, torn: 0.0, late_ns: 0, down: 0..0 }
    }
}

/// Samples until `until_ns`, as the loop does: at the ticks of the schedule and when a stall falls due.
fn simulate(plan: Plan, cpus: &[Cpu], mut path: Path, until_ns: u64) -> Vec<(u64, Finding)> {
    let mut detector = Detector::new(plan);
    let (mut found, mut tick, mut now) = (Vec::new(), 0, 0);
    while now < until_ns {
        let late = path.random.random_range(0..=path.late_ns);
        let begin_ns = (tick * PERIOD).min(detector.due_ns().unwrap_or(u64::MAX)).max(now) + late;
        let read_ns = path.random.random_range(READ_MAX / 10..READ_MAX);
        let end_ns = begin_ns + read_ns;
        let taken_ns = begin_ns + path.random.random_range(0..read_ns);
        let values: Vec<_> =
            cpus.iter().map(|cpu| (!path.random.random_bool(path.torn)).then(|| cpu.value_at(taken_ns))).collect();
        let is_lost = path.random.random_bool(path.lost) || path.down.contains(&begin_ns);
        let look = if is_lost { Look::Lost } else { Look::Values { identity: 1, values: &values } };
        found.extend(detector.observe(Observation { begin_ns, end_ns, look }).into_iter().map(|f| (end_ns, f)));
        now = end_ns;
        tick = tick.max(now / PERIOD + 1);
    }
    found
}

fn first_hang(found: &[(u64, Finding)]) -> Option<(u64, &Alarm)> {
    found.iter().find_map(|(at, finding)| match finding {
        Finding::Hung(alarm) => Some((*at, alarm)),
        _ => None,
    })
}

const NEVER: u64 = u64::MAX;

#[test]
fn a_target_that_keeps_its_deadline_is_never_called_hung() {
    for seed in 0..200 {
        // The slowest counter that keeps the deadline: it moves just before it runs out.
        let cpus = [Cpu { every_ns: DEADLINE - 1, stops_ns: NEVER }, Cpu { every_ns: 5 * MS, stops_ns: NEVER }];
        let path = Path { lost: 0.2, torn: 0.1, late_ns: 10 * MS, ..Path::clean(seed) };
        let found = simulate(plan(2, Quorum::Any), &cpus, path, 4_000 * MS);
        assert_eq!(first_hang(&found), None, "seed {seed}");
    }
}

#[test]
fn a_stopped_target_is_found_within_deadline_period_and_read_time() {
    for seed in 0..500 {
        let stops_ns = StdRng::seed_from_u64(seed).random_range(50 * MS..100 * MS);
        let cpu = Cpu { every_ns: MS, stops_ns };
        let found = simulate(plan(1, Quorum::Any), &[cpu], Path::clean(seed), 300 * MS);
        let (at, alarm) = first_hang(&found).expect("a stopped target hangs");
        let delay = at - cpu.last_move_ns();
        assert!(delay >= DEADLINE, "seed {seed}: verdict after {delay} ns, before the deadline");
        assert!(delay <= DEADLINE + PERIOD + 2 * READ_MAX, "seed {seed}: verdict after {delay} ns");
        let symptom = &alarm.symptoms[0];
        assert!(symptom.moved_after_ns.unwrap() <= cpu.last_move_ns() && cpu.last_move_ns() <= symptom.moved_before_ns);
    }
}

#[test]
fn loss_delays_a_verdict_but_does_not_prevent_it() {
    for seed in 0..200 {
        let cpu = Cpu { every_ns: MS, stops_ns: 60 * MS };
        let path = Path { lost: 0.3, torn: 0.1, ..Path::clean(seed) };
        let found = simulate(plan(1, Quorum::Any), &[cpu], path, 1_000 * MS);
        let (at, _) = first_hang(&found).expect("a stopped target hangs");
        assert!(at < 60 * MS + 4 * DEADLINE, "seed {seed}: verdict at {at}");
    }
}

#[test]
fn a_lost_path_is_reported_as_such_and_never_as_a_hang() {
    for seed in 0..100 {
        let cpus = [Cpu { every_ns: 5 * MS, stops_ns: NEVER }];
        let path = Path { down: 100 * MS..2_000 * MS, lost: 0.01, ..Path::clean(seed) };
        let found = simulate(plan(1, Quorum::Any), &cpus, path, 3_000 * MS);
        assert_eq!(first_hang(&found), None, "seed {seed}");
        let lost: Vec<_> = found.iter().filter(|(_, f)| matches!(f, Finding::PathLost { .. })).collect();
        assert_eq!(lost.len(), 1, "seed {seed}: {found:?}");
        assert!((lost[0].0 - 100 * MS) < 110 * MS, "seed {seed}: lost at {}", lost[0].0);
        assert_eq!(found.iter().filter(|(_, f)| matches!(f, Finding::PathBack { .. })).count(), 1);
    }
}

#[test]
fn a_target_that_dies_behind_a_lost_path_is_found_when_the_path_is_back() {
    let cpus = [Cpu { every_ns: 5 * MS, stops_ns: 500 * MS }];
    let path = Path { down: 100 * MS..2_000 * MS, ..Path::clean(1) };
    let found = simulate(plan(1, Quorum::Any), &cpus, path, 3_000 * MS);
    let (at, alarm) = first_hang(&found).unwrap();
    assert!(at >= 2_000 * MS + DEADLINE, "the time without samples counted: {at}");
    assert!(at <= 2_000 * MS + DEADLINE + 2 * PERIOD + 2 * READ_MAX, "{at}");
    assert!(alarm.symptoms[0].moved_after_ns.unwrap() < 100 * MS + PERIOD, "silent since before the path went");
}

#[test]
fn the_quorum_decides_whether_one_dead_cpu_of_two_is_a_hang() {
    let cpus = [Cpu { every_ns: MS, stops_ns: 60 * MS }, Cpu { every_ns: MS, stops_ns: NEVER }];
    let any = simulate(plan(2, Quorum::Any), &cpus, Path::clean(3), 500 * MS);
    let (_, alarm) = first_hang(&any).unwrap();
    assert_eq!((alarm.symptoms.len(), alarm.watched, alarm.symptoms[0].sensor.as_str()), (1, 2, "tick.cpu0"));
    let all = simulate(plan(2, Quorum::All), &cpus, Path::clean(3), 500 * MS);
    assert_eq!(first_hang(&all), None);
    assert!(all.iter().any(|(_, finding)| matches!(finding, Finding::Suspicious { sensor: 0, .. })));
}

fn observe(detector: &mut Detector, at_ms: u64, identity: u64, value: u64) -> Vec<Finding> {
    let values = [Some(value)];
    let look = Look::Values { identity, values: &values };
    detector.observe(Observation { begin_ns: at_ms * MS, end_ns: at_ms * MS + 1, look })
}

#[test]
fn a_restart_begins_new_baselines() {
    let mut detector = Detector::new(plan(1, Quorum::Any));
    for at in 0..4 {
        assert_eq!(observe(&mut detector, at * 5, 1, 7), []);
    }
    assert_eq!(observe(&mut detector, 19, 2, 7), [Finding::Restarted { was: 1, is: 2 }]);
    assert_eq!(observe(&mut detector, 25, 2, 7), [], "the stall before the restart does not count");
}

#[test]
fn a_box_that_cannot_be_read_is_neither_a_hang_nor_a_lost_path() {
    let mut detector = Detector::new(plan(1, Quorum::Any));
    observe(&mut detector, 0, 1, 7);
    let mut found = Vec::new();
    for at in 1..60 {
        let (begin_ns, end_ns) = (at * 5 * MS, at * 5 * MS + 1);
        found.extend(detector.observe(Observation { begin_ns, end_ns, look: Look::Unreadable }));
    }
    assert_eq!(found, [Finding::Unreadable { since_ns: 1 }]);
}

#[test]
fn limits_raise_suspicions_and_clear_them_once() {
    let mut plan = plan(1, Quorum::Any);
    plan.sensors[0].bound = Bound::Level { limit: 10, hold_ns: 0, floor: false };
    let mut detector = Detector::new(plan);
    assert_eq!(observe(&mut detector, 0, 1, 10), []);
    assert_eq!(observe(&mut detector, 1, 1, 11), [Finding::Suspicious { sensor: 0, value: 11 }]);
    assert_eq!(observe(&mut detector, 2, 1, 12), []);
    assert_eq!(observe(&mut detector, 3, 1, 9), [Finding::Cleared { sensor: 0 }]);
}

#[test]
fn equal_observations_give_equal_findings() {
    let run = || {
        let cpus = [Cpu { every_ns: MS, stops_ns: 200 * MS }];
        let path = Path { lost: 0.2, torn: 0.2, late_ns: MS, ..Path::clean(9) };
        simulate(plan(1, Quorum::Any), &cpus, path, 400 * MS)
    };
    assert_eq!(run(), run());
}

/// A sensor, and how long it may sleep.
fn sleepy() -> Plan {
    let mut plan = plan(1, Quorum::Any);
    plan.sensors[0].sleep = Some(1);
    let bound = Bound::Level { limit: u64::MAX, hold_ns: 0, floor: false };
    plan.sensors.push(PlannedSensor { name: "SLEEP.cpu0".into(), bound, rule: 0, sleep: None });
    plan
}

/// Samples each millisecond: the sensor's value and its sleep are those of `values`; when an alarm is raised first.
fn first_alarm(until_ms: u64, values: impl Fn(u64) -> [Option<u64>; 2]) -> Option<u64> {
    let mut detector = Detector::new(sleepy());
    (0..until_ms).find(|at_ms| {
        let values = values(*at_ms);
        let look = Look::Values { identity: 1, values: &values };
        let found = detector.observe(Observation { begin_ns: at_ms * MS, end_ns: at_ms * MS + 1, look });
        found.iter().any(|finding| matches!(finding, Finding::Hung(_)))
    })
}

#[test]
fn a_processor_that_sleeps_as_long_as_it_said_is_no_hang_and_one_that_does_not_wake_is() {
    let sleeps = |at_ms: u64| [Some(100 + at_ms / 700), Some(800 * MS)];
    assert_eq!(first_alarm(5_000, sleeps), None);
    let never_wakes = |at_ms: u64| [Some(100 + at_ms.min(1400) / 700), Some(800 * MS)];
    assert_eq!(first_alarm(5_000, never_wakes), Some(1400 + 800 + DEADLINE / MS + 1));
    // Awake, it is judged by its deadline alone.
    let stops_awake = |at_ms: u64| [Some(100 + at_ms.min(1000)), Some(0)];
    assert_eq!(first_alarm(5_000, stops_awake), Some(1000 + DEADLINE / MS + 1));
}

#[test]
fn a_sensor_that_may_sleep_says_nothing_without_a_word_on_its_sleep() {
    assert_eq!(first_alarm(1_000, |_| [Some(7), None]), None);
    assert_eq!(first_alarm(1_000, |_| [None, Some(0)]), None);
    assert_eq!(first_alarm(1_000, |_| [Some(7), Some(u64::MAX)]), None);
}
