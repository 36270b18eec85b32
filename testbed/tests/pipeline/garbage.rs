//! Extraction from recorded machines with garbage in their memory: whatever is admitted for take-over is what the
//! undamaged machine held, or the extraction says that something is wrong. A failure prints its seed.
//!
//! One place of memory is spoilt at a time, in the kernel's objects or in the boxes, so that nothing else covers for
//! it. Some things nobody can tell: other payload behind a good pointer, or a log's bytes, which only the application
//! knows; and a number that no other place in memory repeats. They are counted, and the client's own answer is there
//! for the second (`reinstate/src/position.rs`).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reinstate::extract::{Extracted, extract};
use reinstate::session::Session;
use remote_memory::image::Image;
use remote_memory::{PAGE_BYTES, Region, RemoteKey, Rights};

use crate::application::finished_pool;
use crate::chain::stories;
use crate::golden::Ends;
use crate::recorded::{Machine, filter, machine};

/// Corruptions of both machines together, unless the variable says another number: a campaign takes 100000.
const RUNS: u64 = 1_000;
const RUNS_VARIABLE: &str = "BACKDOORS_CORRUPTIONS";

/// Above every page that was recorded.
const POOL_AT: u64 = 1 << 40;

/// Of ten thousand corruptions, how many may change a number that no other place repeats.
const ALONE_MAX: u64 = 40;

struct Target {
    machine: &'static Machine,
    memory: Image,
    pool: Region,
    /// Places that hold kernel pointers, and those pointers.
    pointers: Vec<(u64, u64)>,
    truth: HashMap<Ends, Session>,
}

impl Target {
    fn of(number: u64) -> Self {
        let machine = machine(number);
        let mut rng = StdRng::seed_from_u64(number);
        let boxes = finished_pool(&stories(machine, false, &mut rng), &mut rng);
        let mut memory = machine.ram.clone();
        let pointers = pointers(&memory);
        memory.write_at(POOL_AT, &boxes);
        let len = boxes.len() as u64;
        let pool = Region { name: "cb".into(), key: RemoteKey::new(3), base: POOL_AT, len, rights: Rights::READ };
        let mut target = Self { machine, memory, pool, pointers, truth: HashMap::new() };
        let undamaged = target.extract();
        assert!(undamaged.damage.is_empty() && undamaged.sessions.len() > 5);
        target.truth = undamaged.sessions.into_iter().map(|session| (ends(&session), session)).collect();
        target
    }

    fn extract(&mut self) -> Extracted {
        let kernel = &self.machine.kernel;
        let silent = Duration::from_millis(300);
        let extracted = extract(kernel, &mut self.memory, RemoteKey::new(0), Some(&self.pool), &filter(), silent);
        extracted.expect("an image does not lose its path")
    }

    /// Spoils one place; returns it with what was there.
    fn spoil(&mut self, rng: &mut StdRng) -> (u64, Vec<u8>) {
        let (place, _) = self.pointers[rng.random_range(0..self.pointers.len())];
        let (_, other) = self.pointers[rng.random_range(0..self.pointers.len())];
        let (place, garbage) = match rng.random_range(0..6) {
            0 => (place, other.to_le_bytes().to_vec()),
            1 => (place, rng.random::<u64>().to_le_bytes().to_vec()),
            2 => (place ^ rng.random_range(0..64), vec![rng.random()]),
            3 => (place & !(PAGE_BYTES - 1), vec![[0, 0xff, 0x6b][rng.random_range(0..3)]; PAGE_BYTES as usize]),
            4 => (POOL_AT + rng.random_range(0..self.pool.len), vec![rng.random()]),
            _ => (POOL_AT + (rng.random_range(0..self.pool.len - 8) & !7), other.to_le_bytes().to_vec()),
        };
        let mut before = vec![0; garbage.len()];
        self.memory.copy_out(place, &mut before).expect("a page that is there");
        self.memory.write_at(place, &garbage);
        (place, before)
    }
}

fn pointers(image: &Image) -> Vec<(u64, u64)> {
    let words = image.page_numbers().flat_map(|page| (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).step_by(8));
    let found = words.filter_map(|place| {
        let mut raw = [0; 8];
        image.copy_out(place, &mut raw)?;
        let value = u64::from_le_bytes(raw);
        (value > 0xff00_0000_0000_0000 && value != u64::MAX).then_some((place, value))
    });
    found.collect()
}

fn ends(session: &Session) -> Ends {
    (session.snapshot.local, session.snapshot.peer)
}

/// In what an admitted session differs from what it truly was.
fn difference(session: &Session, truth: &HashMap<Ends, Session>) -> Option<&'static str> {
    let Some(true_one) = truth.get(&ends(session)) else { return Some("identity") };
    let (found, expected) = (&session.snapshot, &true_one.snapshot);
    if session.image.snapshot != true_one.image.snapshot || session.image.local != true_one.image.local {
        return Some("state of the application");
    }
    if (session.copied, session.written, session.discard) != (true_one.copied, true_one.written, true_one.discard) {
        return Some("position in the stream");
    }
    let numbers = |it: &reinstate::snapshot::Snapshot| (it.snd_una, it.snd_nxt, it.rcv_nxt, it.closed, it.peer_closed);
    if numbers(found) != numbers(expected) {
        return Some("sequence numbers");
    }
    if (found.sending.len(), found.receiving.len()) != (expected.sending.len(), expected.receiving.len()) {
        return Some("length of a queue");
    }
    if found.sending != expected.sending || found.receiving != expected.receiving {
        return Some("payload");
    }
    if session.image.logged != true_one.image.logged {
        return Some("log");
    }
    (session != true_one).then_some("properties of the connection")
}

#[test]
fn nothing_is_taken_over_wrongly_from_a_machine_with_garbage_in_its_memory() {
    let runs = std::env::var(RUNS_VARIABLE).map_or(RUNS, |text| text.parse().expect("a number of corruptions"));
    let mut silent: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut reported, mut harmed) = (0, 0);
    for number in 0..2 {
        let mut target = Target::of(number);
        for seed in (number..runs).step_by(2) {
            let mut rng = StdRng::seed_from_u64(seed);
            let (place, before) = target.spoil(&mut rng);
            let extracted = target.extract();
            target.memory.write_at(place, &before);
            let mut seen: Vec<_> = extracted.sessions.iter().map(ends).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), extracted.sessions.len(), "seed {seed}: a session twice");
            let says_so = !extracted.damage.is_empty();
            reported += u64::from(says_so);
            let missing = target.truth.keys().filter(|ends| !seen.contains(ends)).count();
            // What is not resumed is lost with a reason, or its whole chain is reported.
            assert!(missing <= extracted.lost.len() || says_so, "seed {seed}: {missing} sessions vanish in silence");
            harmed += u64::from(missing > 0);
            let wrong = extracted.sessions.iter().filter_map(|session| difference(session, &target.truth));
            for what in wrong.filter(|_| !says_so) {
                *silent.entry(what).or_default() += 1;
                let alone = ["payload", "log", "sequence numbers", "properties of the connection"];
                assert!(alone.contains(&what), "seed {seed}: {what} of an admitted session differs, at {place:#x}");
            }
        }
    }
    println!("{runs} corruptions: {reported} reported, {harmed} cost a session, in silence: {silent:?}");
    assert!(reported * 20 > runs && harmed * 50 > runs, "the corruptions missed");
    let alone = silent.get("sequence numbers").copied().unwrap_or(0);
    assert!(alone * 10_000 <= ALONE_MAX * runs.max(1_000), "{alone} of {runs} changed a number in silence");
}
