//! Requester and responder driven by virtual time over a network that loses, doubles, delays and reorders.
//!
//! What must hold, for every seed: each operation completes with exactly what carrying them out one after the other, in
//! the order of posting, would give; the memory ends up the same; every atomic is executed once. A failure prints the
//! seed, and `SIMULATION_SEED=n` runs that one alone; `SIMULATION_SEEDS=n` runs more of
//! them than a test should.

mod ground;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ground::{ALL, BASE, Ram};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdma::QpAttributes;
use rdma::requester::{Counters, Ended, Limits, Rejected, Requester};
use rdma::responder::Responder;
use rdma::wire::packet;
use remote_memory::{AccessError, Completion, RemoteAddr, RemoteKey, Request, Work};

const RAM_BYTES: usize = 64 << 10;
const LANDING_BYTES: usize = 4 << 20;
const SEEDS: u64 = 300;
/// Virtual time after which a run counts as stuck.
const STUCK: Duration = Duration::from_secs(600);

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Requester,
    Responder,
}

/// What the network does to packets, each as a chance.
#[derive(Clone, Copy, Debug)]
struct Weather {
    loss: f64,
    doubling: f64,
    lateness: f64,
    delay_max_us: u64,
}

struct World {
    rng: StdRng,
    weather: Weather,
    now: Duration,
    wire: BTreeMap<(Duration, u64), (To, Vec<u8>)>,
    sent: u64,
    requester: Requester,
    responder: Responder,
    ram: Ram,
    landing: Vec<u8>,
    completions: Vec<Completion>,
}

fn attributes(number: u32, rng: &mut StdRng, path_mtu: u16, reads_in_flight: u16) -> QpAttributes {
    // Close to the wrap-around in half of the runs.
    let first_psn = if rng.random() { 0xff_fff0 } else { rng.random_range(0..1 << 24) };
    QpAttributes { number, first_psn, address: Ipv4Addr::LOCALHOST, port: 4791, path_mtu, reads_in_flight }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weather = match seed % 4 {
            0 => Weather { loss: 0.0, doubling: 0.0, lateness: 0.0, delay_max_us: 1 },
            1 => Weather { loss: 0.02, doubling: 0.0, lateness: 0.0, delay_max_us: 1 },
            2 => Weather { loss: 0.05, doubling: 0.1, lateness: 0.05, delay_max_us: 300 },
            _ => Weather { loss: 0.2, doubling: 0.2, lateness: 0.2, delay_max_us: 5000 },
        };
        let mtu = [256, 512, 1024, 2048, 4096][rng.random_range(0..5)];
        let reads = [1, 2, 16, 128][rng.random_range(0..4)];
        let asker = attributes(17, &mut rng, mtu, reads);
        let server = attributes(18, &mut rng, mtu, reads);
        let limits = Limits {
            depth: 4096,
            landing_bytes: LANDING_BYTES,
            window_packets: [2, 8, 64, 1024][rng.random_range(0..4)],
            timeout: Duration::from_millis(2),
            tries: 60,
        };
        Self {
            weather,
            now: Duration::ZERO,
            wire: BTreeMap::new(),
            sent: 0,
            requester: Requester::new(&asker, &server, limits),
            responder: Responder::new(&server, &asker),
            ram: Ram::patterned(RAM_BYTES),
            landing: vec![0; LANDING_BYTES],
            completions: Vec::new(),
            rng,
        }
    }

    fn carry(&mut self, to: To, bytes: &[u8]) {
        let copies = if self.rng.random_bool(self.weather.doubling) { 2 } else { 1 };
        for _ in 0..copies {
            if self.rng.random_bool(self.weather.loss) {
                continue;
            }
            let late = self.rng.random_bool(self.weather.lateness);
            let extra = if late { self.rng.random_range(0..self.weather.delay_max_us) } else { 0 };
            self.sent += 1;
            let arrival = self.now + Duration::from_micros(5 + extra);
            self.wire.insert((arrival, self.sent), (to, bytes.to_vec()));
        }
    }

    /// Everything that can be sent now goes on the wire.
    fn pump(&mut self) {
        let mut out = [0xee; packet::LEN_MAX];
        while let Some(len) = self.requester.transmit(self.now, &self.landing, &mut out) {
            self.carry(To::Responder, &out[..len]);
        }
        while let Some(len) = self.responder.transmit(&self.ram, &mut out) {
            self.carry(To::Requester, &out[..len]);
        }
    }

    /// Goes to the next thing that happens. False if nothing ever will.
    fn step(&mut self) -> bool {
        self.pump();
        let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
        let Some(next) = arrival.into_iter().chain(self.requester.deadline()).min() else { return false };
        self.now = self.now.max(next);
        assert!(self.now < STUCK, "stuck");
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, bytes) = entry.remove();
            match to {
                To::Requester => self.requester.receive(self.now, &bytes, &mut self.landing),
                To::Responder => self.responder.receive(&self.ram, &bytes),
            }
        }
        self.requester.expire(self.now);
        self.completions.extend(std::iter::from_fn(|| self.requester.completion()));
        true
    }

    fn run_until_idle(&mut self) {
        while self.requester.outstanding() > 0 && self.requester.ended().is_none() {
            assert!(self.step(), "operations are outstanding, and nothing is going to happen");
        }
    }
}

/// What the operations would do one after the other.
struct Model {
    ram: Vec<u8>,
    /// By id: what a READ must have left in the landing buffer, and where.
    landed: Vec<Option<(usize, Vec<u8>)>>,
    values: Vec<u64>,
    atomics: u64,
}

impl Model {
    fn apply(&mut self, work: &Work, landing: &[u8]) {
        let place = |at: &RemoteAddr| (at.addr - BASE) as usize;
        let (mut landed, mut value) = (None, 0);
        match work {
            Work::Read { at, len, landing } => {
                landed = Some((*landing as usize, self.ram[place(at)..][..*len as usize].to_vec()));
            }
            Work::Write { at, len, landing: from } => {
                self.ram[place(at)..][..*len as usize].copy_from_slice(&landing[*from as usize..][..*len as usize]);
            }
            Work::CompareSwap { at, expect, swap } => {
                value = self.word(place(at), |word| if word == *expect { *swap } else { word });
            }
            Work::FetchAdd { at, add } => value = self.word(place(at), |word| word.wrapping_add(*add)),
        }
        self.landed.push(landed);
        self.values.push(value);
    }

    fn word(&mut self, at: usize, change: impl Fn(u64) -> u64) -> u64 {
        let original = u64::from_ne_bytes(self.ram[at..at + 8].try_into().unwrap());
        self.ram[at..at + 8].copy_from_slice(&change(original).to_ne_bytes());
        self.atomics += 1;
        original
    }
}

/// A random operation whose data lie at `landing`.
fn operation(rng: &mut StdRng, landing: u32) -> Work {
    let words = RAM_BYTES as u64 / 8;
    let word = RemoteAddr::new(ALL, BASE + 8 * rng.random_range(0..words.min(4)));
    let len = match rng.random_range(0..10) {
        0 => 0,
        1..6 => rng.random_range(1..=300),
        6..9 => rng.random_range(1..=9000),
        _ => rng.random_range(1..=40_000_u32),
    };
    let at = RemoteAddr::new(ALL, BASE + rng.random_range(0..=RAM_BYTES as u64 - u64::from(len)));
    match rng.random_range(0..10) {
        0..5 => Work::Read { at, len, landing },
        5..8 => Work::Write { at, len, landing },
        8 => Work::CompareSwap { at: word, expect: rng.random_range(0..3), swap: rng.random_range(0..3) },
        _ => Work::FetchAdd { at: word, add: rng.random_range(0..3) },
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    rng.fill(&mut world.landing[..]);
    let count = rng.random_range(1..80);
    let mut model = Model { ram: world.ram.snapshot(), landed: Vec::new(), values: Vec::new(), atomics: 0 };
    for id in 0..count {
        let work = operation(&mut rng, id * 40_000);
        model.apply(&work, &world.landing);
        world.requester.post(Request { id: u64::from(id), work }).unwrap();
        if rng.random_bool(0.2) {
            world.step();
        }
    }
    world.run_until_idle();
    assert_eq!(world.requester.ended(), None);
    let expected: Vec<_> =
        model.values.iter().enumerate().map(|(id, value)| Completion { id: id as u64, outcome: Ok(*value) }).collect();
    assert_eq!(world.completions, expected);
    for (id, landed) in model.landed.iter().enumerate() {
        if let Some((from, bytes)) = landed {
            assert!(world.landing[*from..from + bytes.len()] == bytes[..], "READ {id} landed wrong");
        }
    }
    assert!(world.ram.snapshot() == model.ram, "memory differs");
    assert_eq!(world.ram.atomics(), model.atomics, "atomics are executed once");
}

#[test]
fn every_operation_takes_effect_once_and_in_order_whatever_the_weather() {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("failed with SIMULATION_SEED={seed}"));
    }
}

#[test]
fn calm_weather_needs_no_repetition() {
    for seed in (0..SEEDS).step_by(4) {
        let mut world = World::new(seed);
        for id in 0..500_u32 {
            let at = RemoteAddr::new(ALL, BASE + u64::from(id) * 64);
            world
                .requester
                .post(Request { id: id.into(), work: Work::Read { at, len: 64, landing: id * 64 } })
                .unwrap();
        }
        world.run_until_idle();
        let counters = *world.requester.counters();
        assert_eq!((counters.sent, counters.go_backs, counters.ignored), (500, 0, 0), "seed {seed}");
        assert_eq!(world.responder.counters().reads, 500);
    }
}

#[test]
fn a_refusal_reaches_the_asker_through_losses_and_flushes_what_follows() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        let before = world.ram.snapshot();
        for id in 0..9_u32 {
            let key = if id == 4 { RemoteKey::new(0xbad) } else { ALL };
            let at = RemoteAddr::new(key, BASE + 8 * u64::from(id));
            let work = match id {
                0..5 => Work::Read { at, len: 3000, landing: id * 4000 },
                _ => Work::Write { at, len: 3000, landing: id * 4000 },
            };
            world.requester.post(Request { id: id.into(), work }).unwrap();
        }
        world.run_until_idle();
        assert_eq!(world.requester.ended(), Some(Ended::Refused), "seed {seed}");
        assert_eq!(world.completions.len(), 9, "seed {seed}");
        for (id, completion) in world.completions.iter().enumerate() {
            // A READ before the refused one is answered first, unless its answer was lost: then it is to be asked
            // again.
            let good = match id {
                0..4 => matches!(completion.outcome, Ok(0) | Err(AccessError::Flushed)),
                4 => completion.outcome == Err(AccessError::Refused),
                _ => completion.outcome == Err(AccessError::Flushed),
            };
            assert!(good && completion.id == id as u64, "seed {seed}: {completion:?}");
        }
        assert!(world.ram.snapshot() == before, "nothing after a refusal is executed");
        assert_eq!(
            world.requester.post(Request { id: 9, work: Work::FetchAdd { at: RemoteAddr::new(ALL, BASE), add: 1 } }),
            Err(Rejected::Broken)
        );
    }
}

#[test]
fn a_dead_peer_is_noticed_in_bounded_time() {
    let mut world = World::new(0);
    world.weather.loss = 1.0;
    world.requester.post(Request { id: 0, work: Work::FetchAdd { at: RemoteAddr::new(ALL, BASE), add: 1 } }).unwrap();
    world.run_until_idle();
    assert_eq!(world.requester.ended(), Some(Ended::Lost { tries: 60 }));
    assert!(world.now < Duration::from_secs(60), "{:?}", world.now);
    assert_eq!(world.requester.deadline(), None);
    assert!(world.completions.is_empty());
}

/// The longest of 2000 samples, a hundred records of a Sensor Box in one READ each, over a path that loses so many
/// packets of both directions.
fn longest_sample(seed: u64, path_mtu: u16, loss: f64) -> (Duration, Counters) {
    const SAMPLE_BYTES: u32 = 6464;
    let mut world = World::new(seed * 4);
    let [asker, server] = [17, 18].map(|number| attributes(number, &mut world.rng, path_mtu, 128));
    let (depth, window_packets) = (64, 64);
    let limits =
        Limits { depth, landing_bytes: LANDING_BYTES, window_packets, timeout: Duration::from_millis(2), tries: 9 };
    (world.requester, world.responder) = (Requester::new(&asker, &server, limits), Responder::new(&server, &asker));
    world.weather = Weather { loss, doubling: 0.0, lateness: 0.0, delay_max_us: 1 };
    let mut longest = Duration::ZERO;
    for sample in 0..2000 {
        let begin = world.now;
        let work = Work::Read { at: RemoteAddr::new(ALL, BASE), len: SAMPLE_BYTES, landing: 0 };
        world.requester.post(Request { id: sample, work }).unwrap();
        world.run_until_idle();
        assert_eq!(world.requester.ended(), None, "seed {seed}, sample {sample}");
        longest = longest.max(world.now - begin);
        world.now += Duration::from_millis(5);
    }
    (longest, *world.requester.counters())
}

#[test]
fn a_sample_over_a_path_that_loses_one_packet_in_twenty_comes_within_a_deadline_of_20_ms() {
    for seed in 0..50 {
        for path_mtu in [1024, 4096] {
            let (longest, counters) = longest_sample(seed, path_mtu, 0.05);
            assert!(counters.go_backs > 100, "nothing was lost: {counters:?}");
            assert!(longest < Duration::from_millis(20), "seed {seed}, MTU {path_mtu}: {longest:?}, {counters:?}");
            let (longest, counters) = longest_sample(seed, path_mtu, 0.01);
            assert!(longest < Duration::from_millis(10), "seed {seed}, MTU {path_mtu}: {longest:?}, {counters:?}");
        }
    }
}
