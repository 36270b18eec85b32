//! A target dies: from the last tick to sessions that can go on.

use std::rc::Rc;
use std::time::Duration;

use monitor::clock::Clock;
use monitor::journal::{Event, Line};
use monitor::watch::Standing;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reinstate::extract::{ExtractError, Extracted, extract};
use remote_memory::{Blocking, LinkError, RemoteKey};

use crate::application::{Story, finished_pool, stopped_pool};
use crate::for_each_seed;
use crate::golden::Place;
use crate::judge::{from_boxes, judge, judge_streams};
use crate::network::{MS, VirtualClock, Weather, Wire};
use crate::queue::VirtualQueue;
use crate::recorded::{Machine, filter, machine};
use crate::stage::{BEGIN_NS, DEADLINE_NS, Looked, PERIOD_NS, Play, stages};
use crate::target::{TICK_NS, Target};

/// What the spare's own link waits for an answer.
const SPARE_PATIENCE: Duration = Duration::from_secs(2);
/// Times a spare is asked again after its link failed.
const ORDERS: u32 = 40;
const RETRY_NS: u64 = 1_000 * MS;

/// One death and what came of it.
struct Incident {
    clock: VirtualClock,
    target: Rc<Target>,
    stops_ns: u64,
    lines: Vec<Line>,
    looks: Vec<Looked>,
    ram: RemoteKey,
    silent: Duration,
}

impl Incident {
    /// Lets a target with this pool live and die, and the monitor see it.
    fn play(machine: &'static Machine, pool: Vec<u8>, weather: Weather, seed: u64, rng: &mut StdRng) -> Self {
        let clock = VirtualClock::default();
        clock.sleep_until(BEGIN_NS);
        let stops_ns = BEGIN_NS + rng.random_range(500 * MS..2_000 * MS);
        // One processor may go on for a while, or for ever.
        let other_ns = [stops_ns, stops_ns + 7 * MS, u64::MAX][rng.random_range(0..3)];
        let target = Rc::new(Target::new(clock.clone(), &machine.ram, pool, [stops_ns, other_ns]));
        let mut play = Play::begin(&target, &clock, weather, seed);
        play.run_until(stops_ns + 20_000 * MS);
        let standing = play.watch.standing().clone();
        let Standing::Fenced(patient) = standing else {
            panic!("not fenced: {standing:?}, {:?}", stages(&play.end()));
        };
        assert!(target.is_fenced());
        let alive_ns = patient.alive_after_ns.expect("its last sign of life was seen");
        assert!(alive_ns <= stops_ns, "the spare would be told of too short a silence");
        let silent = Duration::from_nanos(clock.now_ns() - alive_ns);
        let looks = play.record.looks.borrow().clone();
        let ram = RemoteKey::new(patient.token.ram_key);
        Self { clock, target, stops_ns, lines: play.end(), looks, ram, silent }
    }

    fn verdict_ns(&self) -> u64 {
        let verdicts: Vec<_> =
            self.lines.iter().filter(|line| matches!(line.event, Event::Verdict { .. })).map(|it| it.mono_ns).collect();
        *verdicts.first().expect("a verdict")
    }

    /// The latest time at which the verdict must have fallen. `gap` is the longest stretch from the begin of one look
    /// that brought something to the end of the next, which is all that the network can take from the monitor: the
    /// look that first shows the last value ends within one gap of the death; the look that completes the deadline
    /// within one more of its passing, or, of looks further apart than half of it, is the fifth; then one look
    /// confirms, and each one that failed to costs two.
    fn bound_ns(&self) -> u64 {
        let verdict_ns = self.verdict_ns();
        let before = self.lines.iter().filter(|line| line.mono_ns <= verdict_ns);
        let is_back = |line: &&Line| matches!(line.event, Event::PathBack { .. });
        let from_ns = before.clone().filter(is_back).map(|line| line.mono_ns).fold(self.stops_ns, u64::max);
        let undecided = before.filter(|line| matches!(line.event, Event::Undecided { .. })).count() as u64;
        let good: Vec<_> = self.looks.iter().filter(|(_, end_ns, is_good)| *is_good && *end_ns <= verdict_ns).collect();
        let gaps = good.windows(2).filter(|pair| pair[1].1 > from_ns).map(|pair| pair[1].1 - pair[0].0);
        let gap = gaps.max().unwrap_or(0);
        let completed = if gap > DEADLINE_NS / 2 { 5 * gap } else { DEADLINE_NS + gap };
        from_ns + gap + completed + gap * (1 + 2 * undecided)
    }

    /// What the spare does: extracts over a link of its own, again while the link fails.
    fn extract(&self, machine: &Machine, weather: Weather, seed: u64) -> Extracted {
        let queue = VirtualQueue::new(self.clock.clone(), Rc::clone(&self.target), Wire::new(weather, seed));
        let mut memory = Blocking::new(queue, SPARE_PATIENCE);
        for _ in 0..ORDERS {
            let pool = self.target.cb();
            match extract(&machine.kernel, &mut memory, self.ram, Some(&pool), &filter(), self.silent) {
                Ok(extracted) => return extracted,
                Err(ExtractError::Link(LinkError::Lost { .. })) => self.clock.pass(RETRY_NS),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("no extraction in {ORDERS} tries");
    }
}

/// Stories for the connections of `machine` that were accepted; some are left out, and have no box.
pub fn stories(machine: &Machine, all: bool, rng: &mut StdRng) -> Vec<Story> {
    let sockets: Vec<_> = machine.sockets.iter().filter(|socket| socket.accepted).collect();
    let kept: Vec<_> = sockets.into_iter().filter(|_| all || rng.random_bool(0.9)).collect();
    kept.into_iter().map(|socket| Story::before(socket, rng)).collect()
}

#[test]
fn a_dead_target_is_found_in_time_and_its_sessions_are_those_of_the_golden_text() {
    for_each_seed(24, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let machine = machine(seed / 4);
        let stories = stories(machine, false, &mut rng);
        let pool = finished_pool(&stories, &mut rng);
        let weather = match seed % 8 {
            7 => Weather::of(seed).with_blackouts(&mut rng, BEGIN_NS, 30_000 * MS),
            _ => Weather::of(seed),
        };
        let incident = Incident::play(machine, pool, weather.clone(), seed, &mut rng);
        let (verdict_ns, bound_ns) = (incident.verdict_ns(), incident.bound_ns());
        let after = |at_ns: u64| at_ns.saturating_sub(incident.stops_ns) as f64 / 1e6;
        println!("seed {seed}: verdict {} ms after the death, bound {} ms", after(verdict_ns), after(bound_ns));
        assert!(verdict_ns >= incident.stops_ns - TICK_NS + DEADLINE_NS, "{} ms after", after(verdict_ns));
        assert!(verdict_ns <= bound_ns, "{} ms after, bound {} ms", after(verdict_ns), after(bound_ns));
        if seed % 4 == 0 {
            // Nothing stands between the monitor and the target: deadline, one period, and what three looks take.
            assert!(verdict_ns <= incident.stops_ns + DEADLINE_NS + PERIOD_NS + MS, "{} ms after", after(verdict_ns));
        }
        let begin_ns = incident.clock.now_ns();
        let extracted = incident.extract(machine, weather, !seed);
        println!("seed {seed}: extracted in {} ms", (incident.clock.now_ns() - begin_ns) as f64 / 1e6);
        judge(machine, &stories, &extracted);
        for (session, _, story) in from_boxes(&stories, &extracted) {
            assert_eq!(session.image.snapshot, story.newest()[1]);
            judge_streams(session, story, &machine.golden[&story.ends]);
        }
    });
}

#[test]
fn a_stop_at_any_store_of_an_export_leaves_sessions_that_go_on_with_every_byte_once() {
    for_each_seed(3, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let machine = machine(seed);
        let stories = stories(machine, true, &mut rng);
        let mut seen = [0; 2];
        for stores in 0.. {
            let (pool, through) = stopped_pool(&stories, |_| stores);
            let incident = Incident::play(machine, pool, Weather::of(seed + stores as u64), seed, &mut rng);
            let extracted = incident.extract(machine, Weather::of(seed + stores as u64), seed);
            judge(machine, &stories, &extracted);
            for (session, index, story) in from_boxes(&stories, &extracted) {
                let newest = story.newest();
                let which = newest.iter().position(|snapshot| *snapshot == session.image.snapshot);
                let which = which.unwrap_or_else(|| panic!("{stores} stores: {:?}", session.image.snapshot));
                // Of two equal snapshots the position is that of the old one.
                assert!(!through[index] || session.image.snapshot == newest[1], "{stores} stores");
                assert!(stores > 0 || which == 0, "no store yet");
                seen[which] += 1;
                judge_streams(session, story, &machine.golden[&story.ends]);
            }
            if through.iter().all(|through| *through) {
                assert!(stores > 6, "an export takes more than {stores} stores");
                break;
            }
        }
        assert!(seen.iter().all(|count| *count > 0), "old and new: {seen:?}");
    });
}

/// So that no judgement above is about nothing.
#[test]
fn each_recording_holds_connections_for_every_place() {
    for number in 0..2 {
        let golden = &machine(number).golden;
        let count = |has_box, place| golden.values().filter(|it| it.accepted && it.place(has_box) == place).count();
        assert!(golden.values().filter(|it| !it.accepted).all(|it| it.receiving.0 > 0 && it.written() == 0));
        assert!(golden.values().any(|it| !it.accepted), "begins anew");
        assert!(golden.values().any(|it| it.orphaned), "closed by its application");
        assert!(count(true, Place::FromBox) > 0 && count(false, Place::NoBox) > 0);
        assert!(count(false, Place::ToItsEnd) > count(true, Place::ToItsEnd), "shut down, but still read from");
        let half_closed: Vec<_> = golden.values().filter(|it| it.state == "CloseWait").collect();
        assert!(!half_closed.is_empty() && half_closed.iter().all(|it| it.fin_received && !it.fin_queued));
        assert!(half_closed.iter().all(|it| it.place(true) == Place::FromBox && it.place(false) == Place::NoBox));
    }
}
