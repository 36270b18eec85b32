//! What follows a verdict: fence before take-over, one spare at a time, one action per incident.

use std::time::Instant;

use monitor::watch::Standing;

use crate::stage::Log;
use crate::stage::{MS, Part, Play, Setting, Spare, configured, stages};

/// A target that stops at 3 s and two spares that play their parts.
fn play(first: Part, second: Part) -> Play {
    let log = Log::default();
    let spares =
        vec![("a", Spare::playing("a", first, &log).address), ("b", Spare::playing("b", second, &log).address)];
    let stops_ns = [3_000 * MS; 2];
    Play::begin(Setting { stops_ns, on_hang: "evacuate", spares, log, ..Setting::default() })
}

#[test]
fn the_fence_comes_before_the_order_and_both_come_once() {
    let mut play = play(Part::TakesOver, Part::TakesOver);
    play.run_until(10_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    let told = play.told();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "fence: hang");
    assert!(told[1].starts_with("a: ordered, silent 2") || told[1].starts_with("a: ordered, silent 3"), "{told:?}");
    assert_eq!((play.metrics.sessions_resumed.get(), play.metrics.sessions_lost.get()), (2, 1));
    let stages = stages(&play.end());
    let incident = ["last_sign", "verdict", "fenced", "ordered", "evacuated"];
    // What is committed is written ahead of the lines that wait for the writer.
    let queued: Vec<_> = stages.iter().filter(|stage| *stage != "committed").collect();
    assert_eq!(queued[queued.len() - 5..], incident.iter().collect::<Vec<_>>(), "{stages:?}");
    assert_eq!(stages.len(), queued.len() + 1);
}

#[test]
fn a_spare_that_refuses_is_followed_by_the_next() {
    let mut play = play(Part::Refuses, Part::TakesOver);
    play.run_until(4_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    let told = play.told();
    assert!(told.len() == 3 && told[1].starts_with("a: ordered") && told[2].starts_with("b: ordered"), "{told:?}");
}

#[test]
fn a_spare_that_cannot_be_reached_is_followed_by_the_next() {
    let log = Log::default();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spares = vec![("gone", gone), ("b", Spare::playing("b", Part::TakesOver, &log).address)];
    let stops_ns = [3_000 * MS; 2];
    let mut play = Play::begin(Setting { stops_ns, on_hang: "evacuate", spares, log, ..Setting::default() });
    play.run_until(4_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    assert!(play.told()[1].starts_with("b: ordered"));
    assert!(stages(&play.end()).contains(&"passed".to_owned()));
}

#[test]
fn a_spare_that_is_ready_is_asked_before_one_that_is_not() {
    let log = Log::default();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spares = vec![("gone", gone), ("b", Spare::playing("b", Part::TakesOver, &log).address)];
    let stops_ns = [3_000 * MS; 2];
    let mut play = Play::begin(Setting { stops_ns, on_hang: "evacuate", spares, log, ..Setting::default() });
    play.standby.prepare();
    play.run_until(4_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    assert!(!stages(&play.end()).contains(&"passed".to_owned()));
}

#[test]
fn a_spare_that_falls_silent_after_the_order_is_followed_by_nobody() {
    let mut play = play(Part::FallsSilent, Part::TakesOver);
    play.run_until(10_000);
    assert!(matches!(play.watch.standing(), Standing::OutcomeUnknown { spare, .. } if spare == "a"));
    let told = play.told();
    assert_eq!(told[0], "fence: hang");
    assert!(told.len() > 2 && told[1..].iter().all(|what| what.starts_with("a: ordered")), "{told:?}");
    assert_eq!(stages(&play.end()).last().unwrap(), "outcome_unknown");
}

#[test]
fn a_spare_that_dies_half_way_is_followed_by_another_once_its_next_life_lets_go() {
    let mut play = play(Part::DiesAndIsBack, Part::TakesOver);
    play.standby.prepare();
    play.run_until(10_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    let told = play.told();
    let steps: Vec<_> = told.iter().map(|what| what.split(", silent").next().unwrap()).collect();
    assert_eq!(steps, ["fence: hang", "a: ordered", "a: asked to let go", "b: ordered"], "each once");
    assert_eq!((play.metrics.evacuations.get(), play.metrics.sessions_resumed.get()), (1, 2));
    let stages = stages(&play.end());
    let end = ["passed", "ordered", "evacuated"];
    let queued: Vec<_> = stages.iter().filter(|stage| *stage != "committed").collect();
    assert_eq!(queued[queued.len() - 3..], end.iter().collect::<Vec<_>>(), "{stages:?}");
}

#[test]
fn a_spare_that_did_the_work_keeps_it_when_it_is_asked_to_let_go() {
    let mut play = play(Part::LosesAnAnswer, Part::TakesOver);
    play.standby.prepare();
    play.run_until(10_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    let told = play.told();
    assert!(told.iter().all(|what| !what.starts_with("b:")), "two machines for one address: {told:?}");
    assert_eq!(play.metrics.evacuations.get(), 1);
}

#[test]
fn a_lost_answer_is_asked_for_again() {
    let mut play = play(Part::LosesAnAnswer, Part::TakesOver);
    play.run_until(10_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    let told = play.told();
    assert!(told.len() == 3 && told[1..].iter().all(|what| what.starts_with("a: ordered")), "{told:?}");
    assert_eq!(play.metrics.evacuations.get(), 1);
}

#[test]
fn when_every_spare_refuses_the_fence_stands_and_they_are_asked_again() {
    let mut play = play(Part::Refuses, Part::Refuses);
    play.run_until(6_000);
    assert!(matches!(play.watch.standing(), Standing::Fenced(_)));
    let told = play.told();
    assert_eq!(told.iter().filter(|what| what.starts_with("fence")).count(), 1, "{told:?}");
    assert!(told.iter().filter(|what| what.starts_with("b: ordered")).count() >= 2, "{told:?}");
}

#[test]
fn a_target_that_cannot_be_fenced_is_not_taken_over() {
    let log = Log::default();
    let spares = vec![("a", Spare::playing("a", Part::TakesOver, &log).address)];
    let fence = Err("the hypervisor does not obey");
    let stops_ns = [3_000 * MS; 2];
    let mut play = Play::begin(Setting { stops_ns, on_hang: "evacuate", spares, fence, log, ..Setting::default() });
    play.run_until(6_000);
    assert_eq!(*play.watch.standing(), Standing::Watching);
    let told = play.told();
    assert!(told.len() >= 2 && told.iter().all(|what| what == "fence: hang"), "{told:?}");
    assert!(told.len() <= 4, "asked again too often: {told:?}");
}

#[test]
fn a_hang_that_is_only_reported_touches_nothing() {
    let log = Log::default();
    let spares = vec![("a", Spare::playing("a", Part::TakesOver, &log).address)];
    let mut play = Play::begin(Setting { stops_ns: [3_000 * MS; 2], spares, log, ..Setting::default() });
    play.run_until(5_000);
    assert_eq!(play.told(), Vec::<String>::new());
    assert_eq!(stages(&play.end())[2..].iter().filter(|stage| *stage == "reported").count(), 1);
}

#[test]
fn an_evacuated_target_that_comes_back_is_watched_and_healed_again() {
    let mut play = play(Part::TakesOver, Part::TakesOver);
    play.run_until(5_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    play.target.borrow_mut().reboot();
    play.run_until(8_000);
    assert_eq!(*play.watch.standing(), Standing::Watching);
    play.target.borrow_mut().stops_ns = [9_000 * MS; 2];
    play.run_until(11_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    assert_eq!(play.told().len(), 4);
}

/// Two spares that share what stops at 3 s.
fn shared(first: Part, second: Part) -> Play {
    let log = Log::default();
    let spares =
        vec![("a", Spare::playing("a", first, &log).address), ("b", Spare::playing("b", second, &log).address)];
    let stops_ns = [3_000 * MS; 2];
    Play::begin(Setting { stops_ns, on_hang: "evacuate", spares, log, share: true, ..Setting::default() })
}

fn orders(play: &Play) -> Vec<String> {
    let mut orders: Vec<_> =
        play.told().iter().filter_map(|what| Some(what.split_once(", silent")?.0.to_owned())).collect();
    orders.sort();
    orders
}

#[test]
fn two_spares_that_share_get_their_parts_under_one_fence_and_their_reports_are_joined() {
    let mut play = shared(Part::TakesOver, Part::TakesOver);
    play.run_until(6_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    assert_eq!(orders(&play), ["a: ordered part 0 of 2", "b: ordered part 1 of 2"]);
    assert_eq!(play.told().iter().filter(|what| what.starts_with("fence")).count(), 1);
    assert_eq!((play.metrics.sessions_resumed.get(), play.metrics.sessions_lost.get()), (4, 2));
}

#[test]
fn the_part_of_a_spare_that_does_nothing_goes_to_the_other_one() {
    let mut play = shared(Part::Refuses, Part::TakesOver);
    play.run_until(6_000);
    assert!(matches!(play.watch.standing(), Standing::Evacuated { .. }));
    assert_eq!(orders(&play), ["a: ordered part 0 of 2", "b: ordered part 0 of 2", "b: ordered part 1 of 2"]);
}

#[test]
fn the_part_of_a_spare_that_fell_silent_stays_with_it() {
    let mut play = shared(Part::FallsSilent, Part::TakesOver);
    play.run_until(6_000);
    assert!(matches!(play.watch.standing(), Standing::OutcomeUnknown { spare, .. } if spare == "a"));
    let orders = orders(&play);
    assert!(orders.iter().any(|order| order == "b: ordered part 1 of 2"), "{orders:?}");
    assert!(!orders.iter().any(|order| order == "b: ordered part 0 of 2"), "{orders:?}");
}

#[test]
fn a_spare_is_told_which_clients_were_fenced_too_and_the_others_are_told_of_this_one() {
    let log = Log::default();
    let spares = vec![("a", Spare::playing("a", Part::TakesOver, &log).address)];
    let setting = Setting { stops_ns: [3_000 * MS; 2], on_hang: "evacuate", spares, log, ..Setting::default() };
    let mut play = Play::begin(setting);
    play.absent.fenced("front", vec!["10.0.0.9".parse().unwrap()], Instant::now());
    play.run_until(6_000);
    assert_eq!(orders(&play), ["a: ordered without 10.0.0.9"]);
    let services = configured(&Setting::default()).targets[0].speaks_from();
    assert_eq!(play.absent.beside("front", Instant::now()), services);
}
