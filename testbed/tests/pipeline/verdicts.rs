//! What the watch says of a target that is well and of a path that is not.

use std::rc::Rc;

use monitor::clock::Clock;
use monitor::journal::Event;
use monitor::watch::Standing;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::for_each_seed;
use crate::network::{Incidents, MS, To, VirtualClock, Weather};
use crate::recorded::machine;
use crate::stage::{BEGIN_NS, PATH_DEADLINE_NS, PATIENCE, Play, stages};
use crate::target::Target;

fn target(clock: &VirtualClock, stops_ns: u64) -> Rc<Target> {
    clock.sleep_until(BEGIN_NS);
    Rc::new(Target::new(clock.clone(), &machine(0).ram, Vec::new(), [stops_ns; 2]))
}

#[test]
fn a_healthy_target_is_never_called_hung_whatever_the_network_does() {
    for_each_seed(100, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let end_ns = 8_000 * MS;
        let weather = match seed % 3 {
            0 => Weather::heavy(),
            1 => Weather::heavy().with_blackouts(&mut rng, BEGIN_NS, end_ns),
            _ => Weather { loss: 0.4, late_ns: 30 * MS, ..Weather::heavy() },
        };
        let clock = VirtualClock::default();
        let target = target(&clock, u64::MAX);
        let mut play = Play::begin(&target, &clock, weather, seed);
        play.run_until(end_ns);
        assert_eq!(*play.watch.standing(), Standing::Watching);
        assert_eq!((play.record.fences.get(), target.is_fenced()), (0, false));
        let Incidents { lost, doubled, damaged, late } = play.record.incidents.get();
        assert!(lost > 0 && doubled > 0 && damaged > 0 && late > 0, "the network was too good");
        let good = play.record.looks.borrow().iter().filter(|look| look.2).count();
        assert!(good > 20, "only {good} looks brought something");
        let stages = stages(&play.end());
        let harmless = ["opened", "watching", "path_lost", "path_back"];
        assert!(stages.iter().all(|stage| harmless.contains(&stage.as_str())), "{stages:?}");
    });
}

#[test]
fn a_path_that_dies_for_good_is_called_lost_and_never_leads_to_a_fence() {
    for_each_seed(100, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let dies_ns = BEGIN_NS + rng.random_range(500..3_000) * MS + rng.random_range(0..MS);
        let weather = Weather::of(seed);
        let weather = match seed / 4 % 3 {
            0 => weather.ending(dies_ns),
            1 => weather.muting(To::Asker, dies_ns),
            _ => weather.muting(To::Server, dies_ns),
        };
        // The target may die with its path, before anything could be seen of it.
        let stops_ns = if rng.random() { u64::MAX } else { dies_ns - 8 * MS + rng.random_range(0..20) * MS };
        let clock = VirtualClock::default();
        let target = target(&clock, stops_ns);
        let mut play = Play::begin(&target, &clock, weather, seed);
        play.run_until(dies_ns + 20_000 * MS);
        assert_eq!(*play.watch.standing(), Standing::Watching);
        assert_eq!((play.record.fences.get(), target.is_fenced()), (0, false));
        let lines = play.end();
        let lost: Vec<_> =
            lines.iter().filter(|line| matches!(line.event, Event::PathLost { .. })).map(|line| line.mono_ns).collect();
        let last = *lost.last().expect("the path counts as lost");
        // Pauses between tries double, so the last one is no longer than what had passed before it.
        let bound_ns = 2 * PATH_DEADLINE_NS + PATIENCE.as_nanos() as u64;
        assert!(last <= dies_ns + bound_ns, "lost {} ms after its death", (last - dies_ns) / MS);
        let stages = stages(&lines);
        assert_eq!(stages.last().map(String::as_str), Some("path_lost"), "{stages:?}");
        assert!(!stages.iter().any(|stage| stage == "verdict"), "{stages:?}");
    });
}
