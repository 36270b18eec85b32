//! What a requester makes of single answers.

use std::net::Ipv4Addr;
use std::time::Duration;

use rdma::QpAttributes;
use rdma::requester::{Ended, Limits, Requester};
use rdma::wire::aeth::{self, Syndrome};
use rdma::wire::{Opcode, Psn, bth, packet};
use remote_memory::{AccessError, Completion, RemoteAddr, RemoteKey, Request, Work};

const MTU: usize = 256;
const FIRST: u32 = 0xff_ffff;
const MS: Duration = Duration::from_millis(1);

struct Bench {
    requester: Requester,
    landing: Vec<u8>,
    now: Duration,
}

impl Bench {
    fn new(window_packets: u32, reads_in_flight: u16) -> Self {
        let end = |number, first_psn| QpAttributes {
            number,
            first_psn,
            address: Ipv4Addr::LOCALHOST,
            port: 4791,
            path_mtu: MTU as u16,
            reads_in_flight,
        };
        let limits = Limits { depth: 64, landing_bytes: 1 << 20, window_packets, timeout: 2 * MS, tries: 4 };
        let requester = Requester::new(&end(17, FIRST), &end(18, 0), limits);
        Self { requester, landing: vec![0; 1 << 20], now: Duration::ZERO }
    }

    fn read(&mut self, id: u64, len: u32) {
        let at = RemoteAddr::new(RemoteKey::new(1), 0x1000);
        self.requester.post(Request { id, work: Work::Read { at, len, landing: 0 } }).unwrap();
    }

    fn write(&mut self, id: u64, len: u32) {
        let at = RemoteAddr::new(RemoteKey::new(1), 0x1000);
        self.requester.post(Request { id, work: Work::Write { at, len, landing: 0 } }).unwrap();
    }

    /// What is sent now: opcode, PSN relative to the first, whether an answer is asked for.
    fn sent(&mut self) -> Vec<(Opcode, i32, bool)> {
        let mut out = [0; packet::LEN_MAX];
        let mut sent = Vec::new();
        while let Some(len) = self.requester.transmit(self.now, &self.landing, &mut out) {
            let header = packet::split(&out[..len]).unwrap().header;
            sent.push((header.opcode, header.psn.distance_from(Psn::new(FIRST)), header.ack_request));
        }
        sent
    }

    fn answer(&mut self, opcode: Opcode, psn: u32, syndrome: Syndrome, payload: &[u8]) {
        let header = bth::Repr::new(opcode, 17, Psn::new(FIRST).plus(psn));
        let aeth = aeth::Repr { syndrome, msn: 0 }.bytes();
        let extension: &[&[u8]] = if opcode == Opcode::READ_RESPONSE_MIDDLE { &[] } else { &[&aeth] };
        let mut out = [0; packet::LEN_MAX];
        let (place, len) = packet::begin(&mut out, header, extension, payload.len());
        out[place].copy_from_slice(payload);
        self.requester.receive(self.now, &out[..len], &mut self.landing);
    }

    fn completed(&mut self) -> Vec<(u64, Result<u64, AccessError>)> {
        std::iter::from_fn(|| self.requester.completion()).map(|Completion { id, outcome }| (id, outcome)).collect()
    }
}

#[test]
fn after_a_repetition_both_ways_of_going_on_are_taken() {
    let check = |third: Opcode, last: Opcode| {
        let mut bench = Bench::new(64, 4);
        bench.read(7, 1000);
        assert_eq!(bench.sent(), [(Opcode::READ_REQUEST, 0, true)]);
        bench.answer(Opcode::READ_RESPONSE_FIRST, 0, Syndrome::ACK, &[1; MTU]);
        bench.answer(Opcode::READ_RESPONSE_MIDDLE, 1, Syndrome::ACK, &[2; MTU]);
        bench.now += 10 * MS;
        bench.requester.expire(bench.now);
        assert_eq!(bench.sent(), [(Opcode::READ_REQUEST, 0, true)], "a READ is repeated from its first PSN");
        bench.answer(Opcode::READ_RESPONSE_FIRST, 0, Syndrome::ACK, &[9; MTU]);
        bench.answer(third, 2, Syndrome::ACK, &[3; MTU]);
        bench.answer(last, 3, Syndrome::ACK, &[4; 1000 - 3 * MTU]);
        assert_eq!(bench.completed(), [(7, Ok(0))]);
        assert_eq!((bench.landing[0], bench.landing[256], bench.landing[512], bench.landing[999]), (1, 2, 3, 4));
        assert_eq!(bench.landing[1000], 0);
    };
    check(Opcode::READ_RESPONSE_MIDDLE, Opcode::READ_RESPONSE_LAST);
    check(Opcode::READ_RESPONSE_FIRST, Opcode::READ_RESPONSE_LAST);
    check(Opcode::READ_RESPONSE_FIRST, Opcode::READ_RESPONSE_ONLY);
}

#[test]
fn a_peer_that_is_not_ready_is_given_its_time_and_not_for_ever() {
    let mut bench = Bench::new(64, 4);
    bench.write(1, 8);
    bench.sent();
    let ten_ms = Syndrome(0x20 | 20);
    for _ in 0..3 {
        bench.answer(Opcode::ACKNOWLEDGE, 0, ten_ms, &[]);
        assert_eq!(bench.sent(), []);
        bench.now += Duration::from_micros(10_239);
        assert_eq!(bench.sent(), []);
        bench.now += Duration::from_micros(1);
        bench.requester.expire(bench.now);
        assert_eq!(bench.sent(), [(Opcode::WRITE_ONLY, 0, true)]);
    }
    bench.answer(Opcode::ACKNOWLEDGE, 0, ten_ms, &[]);
    assert_eq!(bench.requester.ended(), Some(Ended::Lost { tries: 4 }));
}

#[test]
fn a_sequence_error_acknowledges_what_came_before_and_repeats_the_rest() {
    let mut bench = Bench::new(64, 4);
    bench.write(1, 8);
    bench.write(2, 3 * MTU as u32);
    bench.sent();
    bench.answer(Opcode::ACKNOWLEDGE, 2, Syndrome::SEQUENCE_ERROR, &[]);
    assert_eq!(bench.completed(), [(1, Ok(0))]);
    assert_eq!(bench.sent(), [(Opcode::WRITE_MIDDLE, 2, false), (Opcode::WRITE_LAST, 3, true)]);
    bench.answer(Opcode::ACKNOWLEDGE, 0, Syndrome::SEQUENCE_ERROR, &[]);
    assert_eq!(bench.sent(), [], "an old one says nothing new");
    bench.answer(Opcode::ACKNOWLEDGE, 3, Syndrome::ACK, &[]);
    assert_eq!(bench.completed(), [(2, Ok(0))]);
    assert_eq!(bench.requester.deadline(), None);
}

#[test]
fn windows_hold_back_what_the_peer_could_not_take() {
    let mut bench = Bench::new(64, 2);
    (0..5).for_each(|id| bench.read(id, 8));
    assert_eq!(bench.sent().len(), 2, "no more READs than the peer answers at a time");
    bench.answer(Opcode::READ_RESPONSE_ONLY, 0, Syndrome::ACK, &[0; 8]);
    assert_eq!(bench.sent().len(), 1);

    let mut bench = Bench::new(4, 2);
    bench.write(1, 10 * MTU as u32);
    let sent = bench.sent();
    assert_eq!(sent.len(), 4, "no more packets than the window");
    assert!(sent[3].2, "and the last of them asks for an answer");
    bench.answer(Opcode::ACKNOWLEDGE, 1, Syndrome::ACK, &[]);
    assert_eq!(bench.sent().len(), 2);
}

#[test]
fn a_write_waits_for_the_reads_before_it() {
    let mut bench = Bench::new(64, 4);
    bench.read(1, 8);
    bench.write(2, 8);
    assert_eq!(bench.sent(), [(Opcode::READ_REQUEST, 0, true)]);
    bench.answer(Opcode::READ_RESPONSE_ONLY, 0, Syndrome::ACK, &[0; 8]);
    assert_eq!(bench.sent(), [(Opcode::WRITE_ONLY, 1, true)]);
}

#[test]
fn answers_for_what_was_never_sent_are_ignored() {
    let mut bench = Bench::new(64, 4);
    bench.read(1, 8);
    bench.sent();
    bench.write(2, 8);
    for (opcode, psn) in [(Opcode::ACKNOWLEDGE, 1), (Opcode::READ_RESPONSE_ONLY, 1), (Opcode::READ_RESPONSE_ONLY, 9)] {
        bench.answer(opcode, psn, Syndrome::ACK, &[5; 8][..if opcode == Opcode::ACKNOWLEDGE { 0 } else { 8 }]);
    }
    bench.answer(Opcode::READ_RESPONSE_ONLY, 0, Syndrome::ACK, &[5; 9]);
    bench.answer(Opcode::READ_RESPONSE_FIRST, 0, Syndrome::ACK, &[5; 8]);
    assert_eq!((bench.completed(), bench.landing[0]), (vec![], 0));
    assert_eq!(bench.requester.counters().ignored, 5);
}

#[test]
fn the_refused_operation_is_told_from_those_around_it() {
    let check = |syndrome, why| {
        let mut bench = Bench::new(64, 8);
        (0..3).for_each(|id| bench.write(id, 8));
        bench.sent();
        bench.answer(Opcode::ACKNOWLEDGE, 1, syndrome, &[]);
        assert_eq!(bench.completed(), [(0, Ok(0)), (1, Err(why)), (2, Err(AccessError::Flushed))]);
        assert_eq!(bench.requester.ended(), Some(Ended::Refused));
        assert_eq!(bench.sent(), []);
    };
    check(Syndrome::ACCESS_ERROR, AccessError::Refused);
    check(Syndrome::INVALID_REQUEST, AccessError::Malformed);
    check(Syndrome::OPERATIONAL_ERROR, AccessError::Unreachable);
}
