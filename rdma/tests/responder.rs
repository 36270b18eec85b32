//! What a responder answers to single packets, in and out of order.

mod ground;

use std::net::Ipv4Addr;

use ground::{ALL, BASE, READ_ONLY, Ram};
use rdma::QpAttributes;
use rdma::responder::{Memory, Refusal, Responder, Resumption};
use rdma::wire::{Opcode, Psn, aeth, atomic, bth, packet, reth};
use remote_memory::{RemoteKey, Rights};

const MTU: usize = 256;
const FIRST: u32 = 0xff_fffe;

struct Bench {
    responder: Responder,
    ram: Ram,
}

/// An answer in short: opcode, PSN relative to the first, syndrome (0xff if it has none), what follows the AETH.
type Answer = (Opcode, i32, u8, Vec<u8>);

fn ack(psn: i32, syndrome: u8) -> Answer {
    (Opcode::ACKNOWLEDGE, psn, syndrome, Vec::new())
}

impl Bench {
    fn new() -> Self {
        let end = |number, first_psn| QpAttributes {
            number,
            first_psn,
            address: Ipv4Addr::LOCALHOST,
            port: 4791,
            path_mtu: MTU as u16,
            reads_in_flight: 4,
        };
        Self { responder: Responder::new(&end(18, 0), &end(17, FIRST)), ram: Ram::patterned(4096) }
    }

    fn send(&mut self, opcode: Opcode, psn: u32, extension: &[u8], payload: usize) {
        let header = bth::Repr { ack_request: true, ..bth::Repr::new(opcode, 18, Psn::new(FIRST).plus(psn)) };
        let mut out = [0; packet::LEN_MAX];
        let (place, len) = packet::begin(&mut out, header, &[extension], payload);
        out[place].fill(0xee);
        self.responder.receive(&self.ram, &out[..len]);
    }

    fn answers(&mut self) -> Vec<Answer> {
        let mut out = [0; packet::LEN_MAX];
        let mut answers = Vec::new();
        while let Some(len) = self.responder.transmit(&self.ram, &mut out) {
            let answer = packet::split(&out[..len]).unwrap();
            let psn = answer.header.psn.distance_from(Psn::new(FIRST));
            if answer.header.opcode == Opcode::READ_RESPONSE_MIDDLE {
                answers.push((answer.header.opcode, psn, 0xff, answer.body.to_vec()));
            } else {
                let (aeth, rest) = aeth::split(answer.body).unwrap();
                answers.push((answer.header.opcode, psn, aeth.syndrome.0, rest.to_vec()));
            }
        }
        answers
    }

    fn opcodes(&mut self) -> Vec<(Opcode, i32)> {
        self.answers().into_iter().map(|(opcode, psn, ..)| (opcode, psn)).collect()
    }
}

fn reth(key: RemoteKey, offset: u64, len: usize) -> [u8; reth::LEN] {
    reth::Repr { addr: BASE + offset, key, len: len as u32 }.bytes()
}

fn fetch_add(offset: u64, add: u64) -> [u8; atomic::LEN] {
    atomic::Repr { addr: BASE + offset, key: ALL, swap_or_add: add, compare: 0 }.bytes()
}

#[test]
fn a_gap_is_reported_once_and_again_only_after_an_expected_packet() {
    let mut bench = Bench::new();
    bench.send(Opcode::WRITE_ONLY, 1, &reth(ALL, 0, 4), 4);
    bench.send(Opcode::WRITE_ONLY, 2, &reth(ALL, 0, 4), 4);
    assert_eq!(bench.answers(), [ack(0, 0x60)]);
    bench.send(Opcode::WRITE_ONLY, 0, &reth(ALL, 8, 4), 4);
    bench.send(Opcode::WRITE_ONLY, 5, &reth(ALL, 0, 4), 4);
    assert_eq!(bench.answers(), [ack(0, 0x1f), ack(1, 0x60)]);
    assert_eq!(bench.responder.counters().writes, 1);
}

/// rxe gave up WRITEs of 64 packets over a path that loses every twentieth: it counts NAKs, and only an ACK ends that.
#[test]
fn a_gap_inside_a_long_write_is_reported_behind_an_acknowledgement_of_what_came() {
    let mut bench = Bench::new();
    let send = |bench: &mut Bench, opcode, psn, extension: &[u8]| {
        let header = bth::Repr::new(opcode, 18, Psn::new(FIRST).plus(psn)); // asks for no acknowledgement
        let mut out = [0; packet::LEN_MAX];
        let (_, len) = packet::begin(&mut out, header, &[extension], MTU);
        bench.responder.receive(&bench.ram, &out[..len]);
    };
    send(&mut bench, Opcode::WRITE_FIRST, 0, &reth(ALL, 0, 8 * MTU));
    send(&mut bench, Opcode::WRITE_MIDDLE, 1, &[]);
    send(&mut bench, Opcode::WRITE_MIDDLE, 3, &[]);
    send(&mut bench, Opcode::WRITE_MIDDLE, 4, &[]);
    assert_eq!(bench.answers(), [ack(1, 0x1f), ack(2, 0x60)]);
    send(&mut bench, Opcode::WRITE_MIDDLE, 2, &[]);
    send(&mut bench, Opcode::WRITE_MIDDLE, 5, &[]);
    assert_eq!(bench.answers(), [ack(2, 0x1f), ack(3, 0x60)]);
}

#[test]
fn acknowledgements_that_wait_are_merged_and_never_overtake_a_read() {
    let mut bench = Bench::new();
    bench.send(Opcode::WRITE_ONLY, 0, &reth(ALL, 0, 4), 4);
    bench.send(Opcode::WRITE_ONLY, 1, &reth(ALL, 4, 4), 4);
    bench.send(Opcode::READ_REQUEST, 2, &reth(ALL, 0, 600), 0);
    bench.send(Opcode::WRITE_ONLY, 5, &reth(ALL, 1000, 4), 4);
    let expected = [
        (Opcode::ACKNOWLEDGE, 1),
        (Opcode::READ_RESPONSE_FIRST, 2),
        (Opcode::READ_RESPONSE_MIDDLE, 3),
        (Opcode::READ_RESPONSE_LAST, 4),
        (Opcode::ACKNOWLEDGE, 5),
    ];
    assert_eq!(bench.opcodes(), expected);
    bench.send(Opcode::WRITE_ONLY, 1, &reth(ALL, 4, 4), 4);
    assert_eq!(bench.answers(), [ack(1, 0x1f)], "a repeated WRITE is acknowledged, but not past the READ");
    bench.send(Opcode::WRITE_ONLY, 5, &reth(READ_ONLY, 4, 4), 4);
    assert_eq!(bench.answers(), [ack(5, 0x1f)], "a repeated WRITE is not looked at");
    assert_eq!(bench.responder.counters().writes, 3);
}

#[test]
fn a_repeated_atomic_is_answered_as_before_and_not_executed() {
    let mut bench = Bench::new();
    let before = u64::from_ne_bytes(bench.ram.snapshot()[8..16].try_into().unwrap());
    let answer = |psn, value: u64| (Opcode::ATOMIC_ACKNOWLEDGE, psn, 0x1f, value.to_be_bytes().to_vec());
    bench.send(Opcode::FETCH_ADD, 0, &fetch_add(8, 5), 0);
    bench.send(Opcode::FETCH_ADD, 1, &fetch_add(8, 5), 0);
    assert_eq!(bench.answers(), [answer(0, before), answer(1, before + 5)]);
    bench.send(Opcode::FETCH_ADD, 0, &fetch_add(8, 5), 0);
    bench.send(Opcode::FETCH_ADD, 0, &fetch_add(8, 5), 0);
    assert_eq!(bench.answers(), [answer(0, before)]);
    assert_eq!(bench.ram.atomics(), 2);
    for psn in 2..6 {
        bench.send(Opcode::FETCH_ADD, psn, &fetch_add(8, 5), 0);
    }
    bench.answers();
    bench.send(Opcode::FETCH_ADD, 0, &fetch_add(8, 5), 0);
    assert_eq!(bench.answers(), [], "older than what may be in flight: silence");
    assert_eq!(bench.ram.atomics(), 6);
}

#[test]
fn a_read_repeated_from_its_middle_is_answered_as_the_peer_understands_it() {
    let check = |resumption, expected: [Opcode; 2]| {
        let mut bench = Bench::new();
        bench.responder = bench.responder.resuming(resumption);
        bench.send(Opcode::READ_REQUEST, 0, &reth(ALL, 0, 600), 0);
        let whole = bench.answers();
        bench.send(Opcode::READ_REQUEST, 0, &reth(ALL, 0, 600), 0);
        assert_eq!(bench.answers(), whole, "from its start: all over again");
        bench.send(Opcode::READ_REQUEST, 1, &reth(ALL, 256, 344), 0);
        assert_eq!(bench.opcodes(), [(expected[0], 1), (expected[1], 2)]);
        bench.send(Opcode::READ_REQUEST, 1, &reth(ALL, 256, 600), 0);
        assert_eq!(bench.answers(), [], "longer than what it repeats: silence");
    };
    check(Resumption::Continued, [Opcode::READ_RESPONSE_MIDDLE, Opcode::READ_RESPONSE_LAST]);
    check(Resumption::Anew, [Opcode::READ_RESPONSE_FIRST, Opcode::READ_RESPONSE_LAST]);
}

#[test]
fn a_request_that_makes_no_sense_ends_the_connection() {
    let check = |what: &str, syndrome, send: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new();
        let before = bench.ram.snapshot();
        send(&mut bench);
        let answers = bench.answers();
        assert_eq!(answers.last().map(|answer| (answer.0, answer.2)), Some((Opcode::ACKNOWLEDGE, syndrome)), "{what}");
        assert!(bench.responder.is_broken(), "{what}");
        let psn = answers.last().map_or(0, |answer| answer.1).cast_unsigned();
        bench.send(Opcode::WRITE_ONLY, psn + 1, &reth(ALL, 0, 4), 4);
        assert_eq!(bench.answers(), [], "{what}: nothing is answered afterwards");
        bench.send(Opcode::WRITE_ONLY, psn, &reth(ALL, 0, 4), 4);
        assert_eq!(bench.answers(), [ack(psn.cast_signed(), syndrome)], "{what}: but the verdict is repeated");
        assert!(bench.ram.snapshot()[..MTU] == before[..MTU], "{what}");
    };
    check("MIDDLE without FIRST", 0x61, &|bench| bench.send(Opcode::WRITE_MIDDLE, 0, &[], MTU));
    check("SEND", 0x61, &|bench| bench.send(Opcode(0x04), 0, &[], 4));
    check("WRITE shorter than it says", 0x61, &|bench| bench.send(Opcode::WRITE_ONLY, 0, &reth(ALL, 0, 8), 4));
    check("FIRST of one packet", 0x61, &|bench| bench.send(Opcode::WRITE_FIRST, 0, &reth(ALL, 0, MTU), MTU));
    check("WRITE of 16 MiB", 0x61, &|bench| bench.send(Opcode::WRITE_FIRST, 0, &reth(ALL, 0, 16 << 20), MTU));
    check("READ with payload", 0x61, &|bench| bench.send(Opcode::READ_REQUEST, 0, &reth(ALL, 0, 8), 4));
    check("misaligned atomic", 0x61, &|bench| bench.send(Opcode::FETCH_ADD, 0, &fetch_add(4, 1), 0));
    check("READ inside a WRITE", 0x61, &|bench| {
        bench.send(Opcode::WRITE_FIRST, 0, &reth(ALL, 1024, 600), MTU);
        bench.send(Opcode::READ_REQUEST, 1, &reth(ALL, 0, 8), 0);
    });
    check("unknown key", 0x62, &|bench| bench.send(Opcode::READ_REQUEST, 0, &reth(RemoteKey::new(9), 0, 8), 0));
    check("out of bounds", 0x62, &|bench| bench.send(Opcode::READ_REQUEST, 0, &reth(ALL, 4090, 8), 0));
    check("past the address space", 0x62, &|bench| {
        bench.send(Opcode::READ_REQUEST, 0, &reth(ALL, u64::MAX - BASE, 8), 0);
    });
    check("no right to write", 0x62, &|bench| bench.send(Opcode::WRITE_ONLY, 0, &reth(READ_ONLY, 0, 4), 4));
}

#[test]
fn nothing_is_checked_for_an_empty_message() {
    let mut bench = Bench::new();
    bench.send(Opcode::READ_REQUEST, 0, &reth(RemoteKey::new(9), 1 << 50, 0), 0);
    bench.send(Opcode::WRITE_ONLY, 1, &reth(RemoteKey::new(9), 1 << 50, 0), 0);
    assert_eq!(bench.answers(), [(Opcode::READ_RESPONSE_ONLY, 0, 0x1f, Vec::new()), ack(1, 0x1f)]);
}

#[test]
fn a_flood_of_requests_is_dropped_rather_than_queued() {
    let mut bench = Bench::new();
    for psn in 0..10_000 {
        bench.send(Opcode::READ_REQUEST, psn, &reth(ALL, 0, 4), 0);
    }
    let counters = *bench.responder.counters();
    assert!(counters.reads < 200 && counters.reads + counters.dropped == 10_000, "{counters:?}");
    assert_eq!(bench.answers().len() as u64, counters.reads);
    bench.send(Opcode::READ_REQUEST, counters.reads as u32, &reth(ALL, 0, 4), 0);
    assert_eq!(bench.opcodes().len(), 1, "and it goes on where it stopped");
}

/// Memory that its asker has replaced since, if it says so.
struct Replaced<'a> {
    ram: &'a Ram,
    is_outdated: bool,
}

impl Memory for Replaced<'_> {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        if self.is_outdated { Err(Refusal::Outdated) } else { self.ram.check(key, addr, len, rights) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        if self.is_outdated { Err(Refusal::Outdated) } else { self.ram.read(key, addr, into) }
    }
}

#[test]
fn a_repeated_read_of_what_was_replaced_gets_no_answer_and_breaks_nothing() {
    let Bench { mut responder, ram } = Bench::new();
    let mut out = [0; packet::LEN_MAX];
    let request = |psn| {
        let header =
            bth::Repr { ack_request: true, ..bth::Repr::new(Opcode::READ_REQUEST, 18, Psn::new(FIRST).plus(psn)) };
        let mut out = vec![0; packet::LEN_MAX];
        let (_, len) = packet::begin(&mut out, header, &[&reth(ALL, 0, 8)], 0);
        out.truncate(len);
        out
    };
    let (now, later) = (Replaced { ram: &ram, is_outdated: false }, Replaced { ram: &ram, is_outdated: true });
    responder.receive(&now, &request(0));
    assert!(responder.transmit(&now, &mut out).is_some());
    // Repeated before it was replaced, answered after; and repeated after.
    responder.receive(&now, &request(0));
    assert!(responder.transmit(&later, &mut out).is_none());
    responder.receive(&later, &request(0));
    assert!(responder.transmit(&later, &mut out).is_none() && !responder.is_broken());
    responder.receive(&now, &request(1));
    assert!(responder.transmit(&now, &mut out).is_some());
    // Asked for the first time, it is a mistake.
    responder.receive(&later, &request(2));
    assert!(responder.transmit(&later, &mut out).is_some() && responder.is_broken());
}
