//! Random and mutated packets: nothing a peer sends may panic either half, or reach memory that was not granted.

mod ground;

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use ground::{ALL, BASE, Ram};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdma::QpAttributes;
use rdma::requester::{Limits, Requester};
use rdma::responder::{Memory, Refusal, Responder};
use rdma::wire::{Opcode, Psn, aeth, atomic, bth, icrc, immediate, ipv4, packet, reth, udp};
use remote_memory::{RemoteAddr, RemoteKey, Request, Rights, Work};

const RAM_BYTES: usize = 1 << 16;
/// Landing bytes in front of, between and behind what READs may fill.
const GUARD: u8 = 0xa5;

/// Passes on to memory, and fails the test if the responder goes where it did not ask first.
struct Witness {
    ram: Ram,
    granted: Mutex<Vec<(RemoteKey, u64, u64, Rights)>>,
}

impl Witness {
    fn new() -> Self {
        Self { ram: Ram::patterned(RAM_BYTES), granted: Mutex::default() }
    }

    fn assert_granted(&self, key: RemoteKey, addr: u64, len: usize, rights: Rights) {
        let covered = self.granted.lock().unwrap().iter().any(|(k, start, all, r)| {
            *k == key && *start <= addr && addr + len as u64 <= start + all && r.covers(rights)
        });
        assert!(covered, "{rights:?} of {len} bytes at {addr:#x} without asking");
    }
}

impl Memory for Witness {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        assert!(len > 0 && addr.checked_add(len).is_some());
        self.ram.check(key, addr, len, rights)?;
        self.granted.lock().unwrap().push((key, addr, len, rights));
        Ok(())
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.assert_granted(key, addr, into.len(), Rights::READ);
        self.ram.read(key, addr, into)
    }

    fn write(&self, key: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.assert_granted(key, addr, bytes.len(), Rights::WRITE);
        self.ram.write(key, addr, bytes)
    }

    fn compare_swap(&self, key: RemoteKey, addr: u64, expect: u64, swap: u64) -> Result<u64, Refusal> {
        assert_eq!(addr % 8, 0);
        self.ram.compare_swap(key, addr, expect, swap)
    }

    fn fetch_add(&self, key: RemoteKey, addr: u64, add: u64) -> Result<u64, Refusal> {
        assert_eq!(addr % 8, 0);
        self.ram.fetch_add(key, addr, add)
    }
}

fn attributes(number: u32) -> QpAttributes {
    QpAttributes { number, first_psn: 100, address: Ipv4Addr::LOCALHOST, port: 4791, path_mtu: 256, reads_in_flight: 4 }
}

fn limits() -> Limits {
    Limits { depth: 64, landing_bytes: 8192, window_packets: 16, timeout: Duration::from_millis(2), tries: 1000 }
}

/// A packet that makes sense for the most part: headers that fit the opcode and a payload that fits the headers. `psn`
/// moves on with it. One in three is then spoilt.
fn plausible(rng: &mut StdRng, dest_qp: u32, psn: &mut Psn, opcodes: &[Opcode]) -> Vec<u8> {
    let opcode = opcodes[rng.random_range(0..opcodes.len())];
    let len = [0, 1, 3, 88, 255, 256, 257, 600][rng.random_range(0..8)];
    let addr = BASE + rng.random_range(0..RAM_BYTES as u64 - 600);
    let reth = reth::Repr { addr, key: ALL, len }.bytes();
    let atomic = atomic::Repr { addr: addr & !7, key: ALL, swap_or_add: 1, compare: 2 }.bytes();
    let aeth = aeth::Repr { syndrome: aeth::Syndrome::ACK, msn: 1 }.bytes();
    let (extension, payload): (&[&[u8]], usize) = match opcode {
        Opcode::READ_REQUEST => (&[&reth], 0),
        Opcode::WRITE_FIRST | Opcode::WRITE_ONLY => (&[&reth], len.min(256) as usize),
        Opcode::COMPARE_SWAP | Opcode::FETCH_ADD => (&[&atomic], 0),
        Opcode::ACKNOWLEDGE => (&[&aeth], 0),
        Opcode::ATOMIC_ACKNOWLEDGE => (&[&aeth, &[7; 8]], 0),
        Opcode::READ_RESPONSE_FIRST => (&[&aeth], 256),
        Opcode::READ_RESPONSE_LAST => (&[&aeth], 88),
        Opcode::READ_RESPONSE_ONLY => (&[&aeth], len.min(256) as usize),
        _ => (&[], 256),
    };
    let header = bth::Repr { ack_request: rng.random(), ..bth::Repr::new(opcode, dest_qp, *psn) };
    let mut out = [0x77; packet::LEN_MAX];
    let (_, end) = packet::begin(&mut out, header, extension, payload);
    let mut bytes = out[..end].to_vec();
    *psn = psn.plus(if opcode == Opcode::READ_REQUEST { len.div_ceil(256).max(1) } else { 1 });
    match rng.random_range(0..15) {
        0 => bytes.truncate(rng.random_range(0..end)),
        1 => bytes.extend([0; 4]),
        2 => bytes[9..12].copy_from_slice(&rng.random::<[u8; 3]>()),
        3 => bytes[11] = bytes[11].wrapping_add(rng.random_range(0..9)).wrapping_sub(4),
        4 => {
            let at = rng.random_range(0..end);
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        _ => {}
    }
    bytes
}

const REQUESTS: [Opcode; 10] = [
    Opcode::WRITE_ONLY,
    Opcode::WRITE_ONLY,
    Opcode::READ_REQUEST,
    Opcode::READ_REQUEST,
    Opcode::FETCH_ADD,
    Opcode::COMPARE_SWAP,
    Opcode::WRITE_FIRST,
    Opcode::WRITE_MIDDLE,
    Opcode::WRITE_LAST,
    Opcode(0x04),
];

const ANSWERS: [Opcode; 6] = [
    Opcode::ACKNOWLEDGE,
    Opcode::ATOMIC_ACKNOWLEDGE,
    Opcode::READ_RESPONSE_FIRST,
    Opcode::READ_RESPONSE_MIDDLE,
    Opcode::READ_RESPONSE_LAST,
    Opcode::READ_RESPONSE_ONLY,
];

#[test]
fn a_responder_survives_and_asks_before_it_touches() {
    let mut out = [0; packet::LEN_MAX];
    let mut executed = 0;
    for seed in 0..3000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let witness = Witness::new();
        let mut responder = Responder::new(&attributes(18), &attributes(17));
        let mut psn = Psn::new(100);
        for _ in 0..40 {
            let bytes = plausible(&mut rng, 18, &mut psn, &REQUESTS);
            responder.receive(&witness, &bytes);
            for _ in 0..rng.random_range(0..8) {
                if let Some(len) = responder.transmit(&witness, &mut out) {
                    let answer = packet::split(&out[..len]).unwrap();
                    assert!(answer.header.opcode.is_response() && answer.header.dest_qp == 17, "seed {seed}");
                }
            }
        }
        let counters = responder.counters();
        executed += counters.reads + counters.writes + counters.atomics;
    }
    assert!(executed > 1000, "the packets are plausible enough to be executed: {executed}");
}

#[test]
fn a_requester_survives_and_fills_only_what_was_asked_for() {
    let mut out = [0; packet::LEN_MAX];
    let mut finished = 0;
    for seed in 0..3000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut requester = Requester::new(&attributes(17), &attributes(18), limits());
        let mut landing = vec![GUARD; 8192];
        for id in 0..6_u32 {
            let at = RemoteAddr::new(ALL, BASE);
            let landing = 1000 + id * 1000;
            let work = match id % 3 {
                0 => Work::Read { at, len: 600, landing },
                1 => Work::Write { at, len: 600, landing },
                _ => Work::FetchAdd { at, add: 1 },
            };
            requester.post(Request { id: id.into(), work }).unwrap();
        }
        let mut now = Duration::ZERO;
        for _ in 0..200 {
            while requester.transmit(now, &landing, &mut out).is_some() {}
            now += Duration::from_millis(1);
            let mut psn = Psn::new(100 + rng.random_range(0..16));
            let bytes = plausible(&mut rng, 17, &mut psn, &ANSWERS);
            requester.receive(now, &bytes, &mut landing);
            requester.expire(now);
            while let Some(completion) = requester.completion() {
                assert!(completion.id < 6);
                finished += u32::from(completion.outcome.is_ok());
            }
        }
        for (place, byte) in landing.iter().enumerate() {
            let asked = [1000, 4000].iter().any(|start| (*start..start + 600).contains(&place));
            assert!(asked || *byte == GUARD, "seed {seed}: landing byte {place} changed");
        }
    }
    assert!(finished > 100, "the packets are plausible enough to finish something: {finished}");
}

proptest! {
    #[test]
    fn parsers_survive_noise(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (bth::split(&bytes).map(|(bth, _)| bth.repr()), reth::split(&bytes), aeth::split(&bytes));
        let _ = (atomic::split(&bytes), atomic::split_ack(&bytes), immediate::split(&bytes));
        let _ = (udp::split(&bytes), ipv4::split(&bytes), packet::split(&bytes), packet::peek(&bytes));
        icrc::over_ipv4(&[0x45; ipv4::LEN], &[0; udp::LEN], &bytes);
    }

    #[test]
    fn both_halves_survive_noise(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20),
    ) {
        let ram = Ram::patterned(64);
        let mut responder = Responder::new(&attributes(18), &attributes(17));
        let mut requester = Requester::new(&attributes(17), &attributes(18), limits());
        let mut landing = [0; 64];
        for bytes in &packets {
            responder.receive(&ram, bytes);
            requester.receive(Duration::ZERO, bytes, &mut landing);
        }
        prop_assert!(ram.snapshot() == Ram::patterned(64).snapshot());
        prop_assert_eq!(landing, [0; 64]);
    }
}
