//! After an evacuation: what is done by policy, what by an operator's order, in which order, and once.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use monitor::after::Order;
use monitor::watch::Standing;

use crate::stage::{Fences, Log, MS, Part, Play, Setting, Spare, stages};

/// A target that stops at 3 s, and a spare that has `left` of its sessions.
struct World {
    log: Log,
    spare: std::net::SocketAddr,
    fences: Fences,
    is_reset: Rc<Cell<bool>>,
    left: Arc<AtomicU64>,
}

impl World {
    fn new(left: u64) -> Self {
        let (log, left) = (Log::default(), Arc::new(AtomicU64::new(left)));
        let spare = Spare::holding("a", Part::TakesOver, &log, Arc::clone(&left)).address;
        Self { log, spare, fences: Fences::default(), is_reset: Rc::default(), left }
    }

    fn monitor(&self, after: &'static str, past: Vec<u8>) -> Play {
        Play::begin(Setting {
            // Its next life, if it was reset before this monitor began, does not stop.
            stops_ns: if self.is_reset.get() { [u64::MAX; 2] } else { [3_000 * MS; 2] },
            on_hang: "evacuate",
            spares: vec![("a", self.spare)],
            log: self.log.clone(),
            fences: self.fences.clone(),
            is_reset: Rc::clone(&self.is_reset),
            after,
            past,
            ..Setting::default()
        })
    }

    fn told(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|told| told.as_str() == what).count()
    }
}

/// The stages from the reset on.
fn after_reset(play: Play) -> Vec<String> {
    let stages = stages(&play.end());
    let first = stages.iter().position(|stage| stage == "reset_ordered");
    stages[first.unwrap_or(stages.len())..].to_vec()
}

const RETURNS: &str = "reset = \"after\", reset_after_s = 2, address = \"returns\", settle_s = 0.5, drain_s = 60";

#[test]
fn without_a_policy_the_target_stays_fenced_to_be_looked_at() {
    let world = World::new(0);
    let mut play = world.monitor("", Vec::new());
    play.run_until(600_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { token: Some(_) }));
    assert_eq!((world.told("reset"), world.told("links up")), (0, 0));
    assert_eq!(after_reset(play), Vec::<String>::new());
}

#[test]
fn links_come_up_only_when_the_target_is_back_and_the_spare_has_nothing_left() {
    let world = World::new(2);
    let mut play = world.monitor(RETURNS, Vec::new());
    play.run_until(4_000);
    assert_eq!(world.told("reset"), 0, "not before its time");
    play.run_until(20_000);
    assert_eq!((world.told("reset"), world.told("links up")), (1, 0), "sessions are left");
    assert!(world.told("a: asked to give back, 2 left") > 2);
    world.left.store(0, Ordering::Relaxed);
    play.run_until(22_000);
    assert_eq!(*play.watch.standing(), Standing::Watching);
    let told = world.log.lock().unwrap().clone();
    assert_eq!(told[told.len() - 2..], ["a: asked to give back, 0 left", "links up"]);
    let expected = ["reset_ordered", "reset", "target_back", "drained", "address_returned", "released"];
    assert_eq!(after_reset(play), expected);
}

#[test]
fn connections_that_never_end_hold_the_address_for_the_configured_time_only() {
    let world = World::new(3);
    let mut play = world.monitor(RETURNS, Vec::new());
    play.run_until(60_000);
    assert_eq!(world.told("links up"), 0);
    play.run_until(70_000);
    assert_eq!((world.told("links up"), *play.watch.standing() == Standing::Watching), (1, true));
    let returned = play.end().into_iter().find_map(|line| match line.event {
        monitor::journal::Event::AddressReturned { aborted } => Some(aborted),
        _ => None,
    });
    assert_eq!(returned, Some(3));
}

#[test]
fn a_target_can_be_reset_when_its_sessions_have_ended_and_not_before() {
    let world = World::new(1);
    let mut play = world.monitor("reset = \"drained\"", Vec::new());
    play.run_until(60_000);
    assert_eq!(world.told("reset"), 0);
    world.left.store(0, Ordering::Relaxed);
    play.run_until(65_000);
    assert_eq!((world.told("reset"), world.told("links up")), (1, 0), "the address stays");
    assert_eq!(after_reset(play), ["reset_ordered", "reset", "target_back"]);
}

#[test]
fn an_operator_can_order_each_step_and_an_order_counts_once() {
    let world = World::new(0);
    let mut play = world.monitor("", Vec::new());
    play.run_until(5_000);
    play.leave(Order::Plug);
    play.run_until(10_000);
    assert_eq!((world.told("reset"), world.told("links up")), (0, 0), "never without a reset");
    play.leave(Order::Reset);
    play.run_until(20_000);
    assert_eq!((world.told("reset"), world.told("links up")), (1, 0));
    play.leave(Order::Return);
    play.run_until(25_000);
    assert_eq!((world.told("reset"), world.told("links up")), (1, 1));
    assert_eq!(*play.watch.standing(), Standing::Watching);
    play.run_until(60_000);
    assert_eq!(world.told("reset"), 1);
}

#[test]
fn a_monitor_that_never_resets_takes_no_order_to() {
    let world = World::new(0);
    let mut play = world.monitor("reset = \"never\"", Vec::new());
    play.run_until(5_000);
    play.leave(Order::Return);
    play.run_until(20_000);
    assert_eq!((world.told("reset"), world.told("links up")), (0, 0));
}

#[test]
fn a_fence_that_is_no_longer_its_own_is_left_alone() {
    let world = World::new(0);
    let mut play = world.monitor(RETURNS, Vec::new());
    play.run_until(4_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    *world.fences.lock().unwrap() = None;
    play.run_until(10_000);
    assert_eq!((world.told("reset"), world.told("links up")), (0, 0));
}

#[test]
fn whatever_a_monitor_had_begun_its_next_life_brings_to_an_end_once() {
    for stage in ["evacuated", "reset_ordered", "reset", "target_back"] {
        let world = World::new(1);
        let mut first = world.monitor(RETURNS, Vec::new());
        first.run_until(if stage == "evacuated" { 4_000 } else { 9_000 });
        let left = first.killed_at(stage);
        world.left.store(0, Ordering::Relaxed);
        let mut second = world.monitor(RETURNS, left);
        second.run_until(12_000);
        assert_eq!(*second.watch.standing(), Standing::Watching, "after {stage}");
        assert_eq!((world.told("reset"), world.told("links up")), (1, 1), "after {stage}");
        assert_eq!(world.log.lock().unwrap().iter().filter(|told| told.contains("ordered")).count(), 1, "{stage}");
    }
}
