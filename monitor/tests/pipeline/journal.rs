//! The journal: its samples give its verdicts again.

use monitor::detect::{Class, DescribedSensor, Detector, Finding, Look, Observation, Plan, Quorum, Raises, Rule};
use monitor::journal::{Event, Line, SampleLook, replay, timeline};
use remote_memory::faults::Rates;

use crate::stage::{Log, MS, Part, Play, Setting, Spare};

#[test]
fn the_samples_of_a_journal_give_its_verdicts_again() {
    for seed in 1..=20 {
        let rates = Rates { refused_ppm: 2_000, damaged_ppm: 5_000, lost_ppm: 30_000 };
        let stops_ns = [3_000 * MS, u64::MAX];
        let mut play = Play::begin(Setting { rates, seed, stops_ns, ..Setting::default() });
        play.run_until(4_000);
        let redrawn = replay::replay(&play.end());
        // A damaged value can end a report and the stall then begin another one.
        assert!(!redrawn.is_empty(), "seed {seed}");
        assert!(redrawn.iter().all(replay::Redrawn::agrees), "seed {seed}: {redrawn:?}");
        assert_eq!(redrawn[0].journaled[0].0, "tick.cpu0");
    }
}

#[test]
fn a_journal_whose_samples_were_changed_is_found_out() {
    let mut play = Play::begin(Setting { stops_ns: [3_000 * MS; 2], ..Setting::default() });
    play.run_until(4_000);
    let mut lines = play.end();
    for line in &mut lines {
        if let Event::Sample { look: SampleLook::Values { values, .. }, .. } = &mut line.event {
            values[0] = Some(line.mono_ns); // a counter that never stood still
        }
    }
    let redrawn = replay::replay(&lines);
    assert!(!redrawn[0].agrees(), "{redrawn:?}");
}

/// What a watch writes of a processor that goes to sleep for 300 ms and never wakes: plan, samples, verdict.
fn journal_of_a_sleeper() -> Vec<Line> {
    let described = |name: &str, class, sleep: Option<&str>| DescribedSensor {
        name: name.to_owned(),
        class,
        limit: u64::MAX,
        period_ns: 0,
        floor: false,
        sleep: sleep.map(str::to_owned),
    };
    let sensors =
        [described("TICKS.cpu0", Class::Progress, Some("SLEEP.cpu0")), described("SLEEP.cpu0", Class::Level, None)];
    let deadline = Some(std::time::Duration::from_millis(20));
    let (pattern, quorum, raises) = ("TICKS.cpu*".to_owned(), Quorum::Any, Raises::Hang);
    let rule = Rule { pattern, deadline, limit: None, window: None, quorum, raises };
    let (plan, _) = Plan::new(&sensors, &[rule], std::time::Duration::from_secs(1));
    let line = |mono_ns, event| Line { wall_ns: 0, mono_ns, target: "web".to_owned(), event };
    let mut lines = vec![line(0, Event::Watching { identity: 1, plan: plan.clone() })];
    let mut detector = Detector::new(plan);
    for at_ms in 0..2_000 {
        let values = [Some(50 + at_ms.min(100) / 4), Some(if at_ms < 100 { 0 } else { 300 * MS })];
        let (begin_ns, look) = (at_ms * MS, Look::Values { identity: 1, values: &values });
        lines.push(line(begin_ns + 1, Event::Sample { begin_ns, look: look.into() }));
        for finding in detector.observe(Observation { begin_ns, end_ns: begin_ns + 1, look }) {
            if let Finding::Hung(alarm) = finding {
                assert!(
                    (420..425).contains(&at_ms),
                    "its sleep and its deadline after it fell asleep, and not {at_ms}"
                );
                lines.push(line(begin_ns + 1, Event::verdict("hang", &alarm)));
                return lines;
            }
        }
    }
    panic!("no verdict");
}

#[test]
fn the_verdict_on_a_processor_that_never_woke_is_drawn_again_with_its_sleep() {
    let written: Vec<String> =
        journal_of_a_sleeper().iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    let mut lines = replay::lines(written.concat().as_bytes()).unwrap();
    let redrawn = replay::replay(&lines);
    assert!(redrawn.len() == 1 && redrawn[0].agrees(), "{redrawn:?}");
    for line in &mut lines {
        if let Event::Sample { look: SampleLook::Values { values, .. }, .. } = &mut line.event {
            values[1] = Some(u64::MAX); // it was to sleep for ever
        }
    }
    assert!(!replay::replay(&lines)[0].agrees());
}

#[test]
fn a_timeline_shows_the_stages_and_those_of_the_spare() {
    let log = Log::default();
    let spares = vec![("a", Spare::playing("a", Part::TakesOver, &log).address)];
    let stops_ns = [3_000 * MS; 2];
    let mut play = Play::begin(Setting { stops_ns, on_hang: "evacuate", spares, log, ..Setting::default() });
    play.run_until(4_000);
    let text = timeline::text(&play.end());
    for part in [
        "last sign of life",
        "verdict: hang, 2 of 2 tick.cpu*",
        "fenced, epoch 1",
        "ordered a",
        "extract for 0.390 ms",
        "2 resumed, 1 lost",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn a_line_that_is_none_is_named() {
    let error = replay::lines(&b"{\"wall_ns\":1}\n"[..]).unwrap_err().to_string();
    assert!(error.starts_with("line 1: not a journal line: missing field"), "{error}");
}
