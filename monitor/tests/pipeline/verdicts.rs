//! Which verdicts fall, over paths that fail as a seed says.

use monitor::watch::Standing;
use remote_memory::faults::Rates;

use crate::stage::{MS, Play, Setting, stages};

/// A path on which everything goes wrong now and then.
const BAD: Rates = Rates { refused_ppm: 5_000, damaged_ppm: 20_000, lost_ppm: 50_000 };

#[test]
fn a_healthy_target_behind_a_bad_path_is_never_fenced() {
    for seed in 1..=20 {
        let mut play = Play::begin(Setting { rates: BAD, seed, ..Setting::default() });
        play.run_until(6_000);
        assert_eq!(*play.watch.standing(), Standing::Watching, "seed {seed}");
        assert!(play.metrics.lost_samples.get() > 0, "seed {seed}: the path was not bad");
        let stages = stages(&play.end());
        assert!(!stages.iter().any(|stage| stage == "verdict"), "seed {seed}: {stages:?}");
    }
}

#[test]
fn a_hung_target_behind_a_bad_path_is_found() {
    for seed in 1..=20 {
        let stops_ns = [3_000 * MS; 2];
        let mut play = Play::begin(Setting { rates: BAD, seed, stops_ns, ..Setting::default() });
        play.run_until(5_000);
        assert_eq!(*play.watch.standing(), Standing::Reported, "seed {seed}");
        assert_eq!(play.metrics.verdicts.get(), 1, "seed {seed}");
        let lines = play.end();
        let verdict = lines.iter().find(|line| stages(std::slice::from_ref(line)) == ["verdict"]).unwrap();
        assert!(verdict.mono_ns >= 3_020 * MS, "seed {seed}: before the deadline");
    }
}

#[test]
fn over_a_good_path_the_verdict_falls_within_deadline_and_period() {
    let mut play = Play::begin(Setting { stops_ns: [3_000 * MS; 2], ..Setting::default() });
    play.run_until(3_100);
    let lines = play.end();
    let at = |name: &str| lines.iter().find(|line| stages(std::slice::from_ref(line)) == [name]).unwrap().mono_ns;
    let (last_sign, verdict) = (at("last_sign"), at("verdict"));
    assert!((2_990 * MS..=3_000 * MS).contains(&last_sign), "last sign at {last_sign}");
    assert!((3_020 * MS..=3_026 * MS).contains(&verdict), "verdict at {verdict}");
}

#[test]
fn one_dead_cpu_of_two_is_a_hang() {
    let mut play = Play::begin(Setting { stops_ns: [u64::MAX, 3_000 * MS], ..Setting::default() });
    play.run_until(3_200);
    assert_eq!(*play.watch.standing(), Standing::Reported);
    let text = format!("{:?}", play.end());
    assert!(text.contains("tick.cpu1") && text.contains("watched: 2"), "{text}");
}

#[test]
fn a_lost_path_is_journaled_and_never_leads_to_a_fence() {
    let mut play = Play::begin(Setting { down: 2_000 * MS..4_000 * MS, ..Setting::default() });
    play.run_until(3_000);
    assert_eq!(play.metrics.path_lost.get(), 1);
    play.run_until(6_000);
    assert_eq!(*play.watch.standing(), Standing::Watching);
    assert_eq!(play.metrics.path_lost.get(), 0);
    assert_eq!(play.told(), Vec::<String>::new());
    assert_eq!(stages(&play.end()), ["opened", "watching", "path_lost", "path_back"]);
}

#[test]
fn a_target_that_cannot_be_reached_at_the_start_is_watched_once_it_can() {
    let mut play = Play::begin(Setting { down: 0..3_000 * MS, stops_ns: [4_000 * MS; 2], ..Setting::default() });
    play.run_until(5_000);
    assert_eq!(*play.watch.standing(), Standing::Reported);
    let stages = stages(&play.end());
    assert_eq!(stages[..3], ["opened", "path_lost", "watching"], "{stages:?}");
}

#[test]
fn a_rebooted_target_is_watched_anew_and_its_reset_counters_are_no_hang() {
    let mut play = Play::begin(Setting { stops_ns: [2_000 * MS; 2], ..Setting::default() });
    play.run_until(2_500);
    assert_eq!(*play.watch.standing(), Standing::Reported);
    play.target.borrow_mut().reboot();
    play.run_until(3_500);
    assert_eq!(*play.watch.standing(), Standing::Watching);
    play.target.borrow_mut().stops_ns = [4_000 * MS; 2];
    play.run_until(4_500);
    assert_eq!(play.metrics.verdicts.get(), 2);
}

#[test]
fn a_level_beyond_its_limit_is_a_suspicion_and_nothing_more() {
    let mut play = Play::begin(Setting::default());
    play.run_until(1_500);
    play.target.borrow().set_tasks(101);
    play.run_until(2_000);
    assert_eq!(play.metrics.suspicious_sensors.get(), 1);
    play.target.borrow().set_tasks(100);
    play.run_until(2_500);
    assert_eq!(*play.watch.standing(), Standing::Watching);
    assert_eq!(stages(&play.end()), ["opened", "watching", "suspicious", "cleared"]);
}
