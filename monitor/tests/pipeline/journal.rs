//! The journal: its samples give its verdicts again.

use monitor::journal::{Event, SampleLook, replay, timeline};
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
