//! A monitor that dies half-way is succeeded: by its next life, which reads its journal, or by a second monitor, which
//! heard what it said. Whatever the step at which it dies, the sessions are taken over once and under one token.

use std::time::{Duration, Instant};

use monitor::partner::{Deputy, Duty, Herald, Partner};
use monitor::watch::Standing;

use crate::stage::{Fences, Log, MS, Part, Play, Setting, Spare, stages};

/// Spares `a` and `b` that remember an order, and what everybody told.
struct World {
    log: Log,
    spares: Vec<(&'static str, std::net::SocketAddr)>,
    fences: Fences,
}

impl World {
    fn new(first: Part) -> Self {
        let log = Log::default();
        let spares = vec![
            ("a", Spare::playing("a", first, &log).address),
            ("b", Spare::playing("b", Part::TakesOver, &log).address),
        ];
        Self { log, spares, fences: Fences::default() }
    }

    /// A monitor in this world that finds the journal `past`; the target stops at 3 s.
    fn monitor(&self, past: Vec<u8>, partner: Partner) -> Play {
        Play::begin(Setting {
            stops_ns: [3_000 * MS; 2],
            on_hang: "evacuate",
            spares: self.spares.clone(),
            log: self.log.clone(),
            fences: self.fences.clone(),
            past,
            partner,
            ..Setting::default()
        })
    }

    fn told(&self, prefix: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|what| what.starts_with(prefix)).count()
    }
}

/// A monitor dies when the line of `stage` is written; its next life asks for `fences` fences more, orders `a` again
/// `orders` times, and ends with the target evacuated.
fn check(stage: &str, fences: usize, orders: usize) {
    let world = World::new(Part::TakesOver);
    let mut first = world.monitor(Vec::new(), Partner::None);
    first.run_until(5_000);
    let left = first.killed_at(stage);
    let (fenced, ordered) = (world.told("fence"), world.told("a: ordered"));
    let mut second = world.monitor(left, Partner::None);
    second.run_until(5_000);
    assert!(matches!(second.watch.standing(), Standing::Evacuated { .. }), "after {stage}");
    assert_eq!(world.told("fence") - fenced, fences, "after {stage}");
    assert_eq!(world.told("a: ordered") - ordered, orders, "after {stage}");
    assert_eq!(world.told("b: ordered"), 0, "after {stage}");
}

#[test]
fn a_monitor_killed_before_its_fence_was_written_down_gets_the_token_of_its_claim() {
    check("watching", 1, 1);
    check("verdict", 1, 1);
}

#[test]
fn a_monitor_killed_between_fence_and_order_finishes_under_the_same_token() {
    check("fenced", 0, 1);
}

#[test]
fn a_monitor_killed_after_the_order_left_asks_the_same_spare_for_its_report() {
    check("committed", 0, 1);
    check("ordered", 0, 1);
}

#[test]
fn a_monitor_killed_after_the_evacuation_does_nothing_more() {
    check("evacuated", 0, 0);
}

#[test]
fn only_the_spare_that_may_have_the_order_is_asked_by_the_successor() {
    let world = World::new(Part::FallsSilent);
    let mut first = world.monitor(Vec::new(), Partner::None);
    first.run_until(3_500);
    let left = first.killed_at("committed");
    let mut second = world.monitor(left, Partner::None);
    second.run_until(5_000);
    assert!(matches!(second.watch.standing(), Standing::OutcomeUnknown { spare, .. } if spare == "a"));
    assert_eq!(world.told("b: ordered"), 0);
}

#[test]
fn an_inherited_fence_that_has_ended_leaves_a_healthy_target_alone() {
    let world = World::new(Part::TakesOver);
    let mut first = world.monitor(Vec::new(), Partner::None);
    first.run_until(5_000);
    let left = first.killed_at("fenced");
    *world.fences.lock().unwrap() = None;
    let fenced = world.told("fence");
    let mut second = Play::begin(Setting {
        on_hang: "evacuate",
        spares: world.spares.clone(),
        log: world.log.clone(),
        fences: world.fences.clone(),
        past: left,
        ..Setting::default()
    });
    second.run_until(5_000);
    assert_eq!((second.watch.standing(), world.told("fence")), (&Standing::Watching, fenced));
    assert!(stages(&second.end()).contains(&"succeeded".to_owned()));
}

/// Waits until the second monitor knows what it must know; words travel over TCP in real time.
fn heard(deputy: &Deputy, expected: impl Fn(&Duty) -> bool) {
    let begin = Instant::now();
    while !expected(&deputy.duty("web")) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it stays {:?}", deputy.duty("web"));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_second_monitor_leaves_a_hang_to_a_first_one_that_speaks() {
    let world = World::new(Part::TakesOver);
    let herald = Herald::listen("m1", "127.0.0.1:0".parse().unwrap()).unwrap();
    let deputy = Deputy::follow(herald.address(), Duration::from_secs(60)).unwrap();
    let mut first = world.monitor(Vec::new(), Partner::First(herald));
    let mut second = world.monitor(Vec::new(), Partner::Second(deputy.clone()));
    heard(&deputy, |duty| matches!(duty, Duty::Hold { .. }));
    second.run_until(4_000);
    assert_eq!((second.watch.standing(), world.told("fence")), (&Standing::Watching, 0));
    first.run_until(5_000);
    heard(&deputy, |duty| *duty == Duty::Done);
    second.run_until(5_000);
    assert_eq!(*second.watch.standing(), Standing::Evacuated { token: None });
    assert_eq!((world.told("fence"), world.told("a: ordered"), world.told("b: ordered")), (1, 1, 0));
    assert!(stages(&second.end()).contains(&"held".to_owned()));
}

#[test]
fn a_second_monitor_finishes_what_a_first_one_began_that_fell_silent() {
    let world = World::new(Part::TakesOver);
    let herald = Herald::listen("m1", "127.0.0.1:0".parse().unwrap()).unwrap();
    // Shorter than a heartbeat: to this deputy the first is silent between two of them, as if it had died.
    let deputy = Deputy::follow(herald.address(), Duration::from_millis(30)).unwrap();
    let mut first = world.monitor(Vec::new(), Partner::First(herald.clone()));
    first.run_until(3_010);
    let token = crate::stage::token();
    *world.fences.lock().unwrap() = Some(first.watch.claim());
    let incident = monitor::partner::IncidentWord { token, holders: [(0, "b".to_owned())].into(), is_done: false };
    let (target, claim) = ("web".into(), first.watch.claim());
    herald.tell(monitor::partner::TargetWord { target, claim, is_path_lost: false, incident: Some(incident) });
    heard(&deputy, |duty| matches!(duty, Duty::StandIn { incident: Some(_), .. }));
    let mut second = world.monitor(Vec::new(), Partner::Second(deputy.clone()));
    while !matches!(second.watch.standing(), Standing::Evacuated { .. }) {
        second.watch.step(); // a heartbeat now and then makes it wait
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((world.told("fence"), world.told("a: ordered"), world.told("b: ordered")), (0, 0, 1));
}

#[test]
fn a_second_monitor_acts_when_the_first_has_lost_its_path_and_one_fence_stands() {
    let world = World::new(Part::TakesOver);
    let herald = Herald::listen("m1", "127.0.0.1:0".parse().unwrap()).unwrap();
    let deputy = Deputy::follow(herald.address(), Duration::from_secs(60)).unwrap();
    let mut first = Play::begin(Setting {
        stops_ns: [3_000 * MS; 2],
        on_hang: "evacuate",
        spares: world.spares.clone(),
        log: world.log.clone(),
        fences: world.fences.clone(),
        down: 2_000 * MS..6_000 * MS,
        partner: Partner::First(herald),
        ..Setting::default()
    });
    first.run_until(4_000);
    heard(&deputy, |duty| matches!(duty, Duty::StandIn { .. }));
    let mut second = world.monitor(Vec::new(), Partner::Second(deputy));
    second.run_until(5_000);
    assert!(matches!(second.watch.standing(), Standing::Evacuated { .. }));
    first.run_until(9_000);
    assert_eq!(*first.watch.standing(), Standing::Watching, "the fence is the other one's");
    assert_eq!((world.told("a: ordered"), world.told("b: ordered")), (1, 0));
    assert!(stages(&second.end()).contains(&"deputized".to_owned()));
}
