//! What repairs in place have to do with verdicts: which they excuse, and what becomes of one that failed.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use monitor::clock::Clock;
use monitor::escalate::{Failure, Failures};
use monitor::journal::{Event, timeline};
use monitor::repair::{Standstill, Ward};
use monitor::watch::Standing;

use crate::stage::{Log, MS, Part, Play, Setting, Spare, stages};

#[test]
fn a_standstill_is_no_hang_and_a_hang_after_it_is_found_while_the_treatment_goes_on() {
    let standstill = Standstill::default();
    let ward = Ward::beside(standstill.clone(), Failures::default());
    let mut play = Play::begin(Setting { stops_ns: [3_000 * MS; 2], ward, ..Setting::default() });
    play.run_until(2_999);
    standstill.begin(play.clock.now_ns(), Duration::from_secs(2));
    play.run_until(3_500);
    assert_eq!(*play.watch.standing(), Standing::Watching, "it stands still for a repair");
    standstill.end(play.clock.now_ns());
    // Nothing ends the treatment, which waits for its culprits.
    play.run_until(3_510);
    assert_eq!(*play.watch.standing(), Standing::Watching, "it has had no time to move");
    play.run_until(3_540);
    assert_eq!(*play.watch.standing(), Standing::Reported);
}

fn failure() -> Failure {
    Failure { module: "forkbomb".into(), why: "3 of 9 culprits live on".into(), sensors: vec!["tasks".into()] }
}

/// A living target with too many tasks, whose treatment gives up at 2 s.
fn drowned(on_hang: &'static str, part: Part) -> Play {
    let (log, failures) = (Log::default(), Failures::default());
    let spares = vec![("a", Spare::playing("a", part, &log).address)];
    let ward = Ward::beside(Standstill::default(), failures.clone());
    let mut play = Play::begin(Setting { on_hang, spares, log, ward, ..Setting::default() });
    play.run_until(1_500);
    play.target.borrow().set_tasks(101);
    play.run_until(2_000);
    assert_eq!(*play.watch.standing(), Standing::Watching, "to be out of bounds is no verdict");
    failures.tell(failure());
    play.run_until(2_100);
    play
}

#[test]
fn a_target_that_could_not_be_cured_is_fenced_and_evacuated_and_the_journal_says_what_led_to_it() {
    let play = drowned("evacuate", Part::TakesOver);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    let told = play.told();
    assert!(told.len() == 2 && told[0] == "fence: drowned" && told[1].starts_with("a: ordered"), "{told:?}");
    assert_eq!((play.metrics.verdicts.get(), play.metrics.sessions_resumed.get()), (1, 2));
    let lines = play.end();
    let queued: Vec<_> = stages(&lines).into_iter().filter(|stage| stage != "committed").collect();
    assert_eq!(queued[queued.len() - 6..], ["suspicious", "last_sign", "given_up", "fenced", "ordered", "evacuated"]);
    let is_told = |event: &Event| match event {
        Event::GivenUp { illness, module, why, sensors } => {
            let Failure { module: of, why: because, sensors: at } = failure();
            (illness.as_str(), module, why, sensors) == ("drowned", &of, &because, &at)
        }
        _ => false,
    };
    assert!(lines.iter().any(|line| is_told(&line.event)));
    assert!(timeline::text(&lines).contains("verdict: drowned, forkbomb did not cure it: 3 of 9 culprits live on"));
}

#[test]
fn where_hangs_are_only_reported_nothing_more_is_done_about_a_failed_cure_and_hangs_are_found() {
    let mut play = drowned("report", Part::TakesOver);
    assert_eq!((play.watch.standing(), play.told().len()), (&Standing::Watching, 0));
    play.target.borrow_mut().stops_ns = [2_200 * MS; 2];
    play.run_until(2_400);
    assert_eq!(*play.watch.standing(), Standing::Reported);
    let stages = stages(&play.end());
    assert_eq!(stages.iter().filter(|stage| *stage == "reported").count(), 2, "{stages:?}");
}

#[test]
fn a_target_whose_sensors_are_back_in_bounds_is_not_evacuated() {
    let failures = Failures::default();
    let ward = Ward::beside(Standstill::default(), failures.clone());
    let mut play = Play::begin(Setting { on_hang: "report", ward, ..Setting::default() });
    play.run_until(1_500);
    failures.tell(failure());
    play.run_until(1_600);
    assert!(failures.is_empty(), "taken");
    assert!(!stages(&play.end()).contains(&"given_up".to_owned()));
}

#[test]
fn a_successor_goes_on_with_the_evacuation_of_what_could_not_be_cured() {
    let play = drowned("evacuate", Part::Refuses);
    assert!(matches!(play.watch.standing(), Standing::Fenced(_)));
    let past = play.killed_at("fenced");
    let log = Log::default();
    let spares = vec![("a", Spare::playing("a", Part::TakesOver, &log).address)];
    let fences = std::sync::Arc::new(std::sync::Mutex::new(Some(1)));
    let mut play = Play::begin(Setting { on_hang: "evacuate", spares, log, past, fences, ..Setting::default() });
    play.run_until(2_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }), "{:?}", play.watch.standing());
    assert_eq!(play.told().len(), 1, "no second fence: {:?}", play.told());
}

#[test]
fn a_target_that_an_operator_has_locked_is_no_hang_and_one_that_dies_under_the_lock_is_found_after_it() {
    let locked_until_ns = Rc::new(Cell::new(3_700 * MS));
    let setting =
        Setting { stops_ns: [3_000 * MS; 2], locked_until_ns: Rc::clone(&locked_until_ns), ..Setting::default() };
    let mut play = Play::begin(setting);
    play.run_until(3_400);
    // The lease is renewed.
    locked_until_ns.set(4_200 * MS);
    play.run_until(4_190);
    assert_eq!((play.watch.standing(), play.metrics.verdicts.get()), (&Standing::Watching, 0));
    // It does not go on when the lock has ended: found after the last question, its answer's hold and a deadline.
    play.run_until(4_400);
    assert_eq!(*play.watch.standing(), Standing::Reported);
    let lines = play.end();
    let told = lines.iter().filter_map(|line| match &line.event {
        Event::LockedByOther { holder, reason, .. } => Some((holder.as_str(), reason.as_str())),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [("ops", "a look")], "once for the lock");
}

#[test]
fn a_target_that_goes_on_after_an_operator_s_lock_was_never_ill() {
    let locked_until_ns = Rc::new(Cell::new(2_500 * MS));
    let mut play = Play::begin(Setting { stops_ns: [2_000 * MS; 2], locked_until_ns, ..Setting::default() });
    play.run_until(2_480);
    play.target.borrow_mut().stops_ns = [u64::MAX; 2];
    play.run_until(3_500);
    assert_eq!((play.watch.standing(), play.metrics.verdicts.get()), (&Standing::Watching, 0));
}
