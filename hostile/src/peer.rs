//! Packets from the network: parsers, both halves of a connection, overheard TCP.
//!
//! One step of a conversation is a byte that says what comes, then its operands:
//!
//! ```text
//!   0x00-0x7f   a packet that makes sense: opcode (the byte), sequence number (i8 from the expected one),
//!               length (u16), address (u16), key (u8), flags (u8)
//!   0x80-0xdf   the same, with one bit turned: place (u16)
//!   0xe0-0xff   raw bytes: length (u8), bytes
//! ```

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::time::Duration;

use rdma::QpAttributes;
use rdma::requester::{Limits, Requester};
use rdma::responder::{Memory, Refusal, Responder};
use rdma::wire::{Opcode, Psn, aeth, atomic, bth, icrc, immediate, ipv4, packet as wire, reth, udp};
use reinstate::packet::Heard;
use remote_memory::{RemoteAddr, RemoteKey, Request, Rights, Work};

use crate::program::Program;

const US: u32 = 18;
const PEER: u32 = 17;
const FIRST_PSN: u32 = 100;
const MTU: u16 = 256;
const RAM_BYTES: u64 = 1 << 12;
const BASE: u64 = 0x1000;
const KEY: RemoteKey = RemoteKey::new(0x1350);
/// Steps of one conversation: as many as reach every state.
const STEPS_MAX: usize = 64;
/// Landing bytes that no READ was asked for.
const GUARD: u8 = 0xa5;

/// Every parser of one packet. What parses is written again and must be the same.
pub(crate) fn packet(input: &[u8]) -> bool {
    if let Ok((header, _)) = bth::split(input)
        && header.version() == 0
    {
        let repr = header.repr();
        assert_eq!(bth::split(&repr.bytes()).map(|(again, _)| again.repr()), Ok(repr), "a header changes on its way");
    }
    if let Ok((reth, _)) = reth::split(input) {
        assert_eq!(reth.bytes()[..], input[..reth.bytes().len()]);
    }
    if let Ok((aeth, _)) = aeth::split(input) {
        assert_eq!(aeth.bytes()[..], input[..aeth.bytes().len()]);
    }
    if let Ok((atomic, _)) = atomic::split(input) {
        assert_eq!(atomic.bytes()[..], input[..atomic.bytes().len()]);
    }
    let _ = (atomic::split_ack(input), immediate::split(input), wire::peek(input));
    let whole = wire::split(input);
    if let Ok(whole) = &whole {
        assert!(whole.body.len() <= input.len());
    }
    let ip = ipv4::split(input);
    if let Ok((ip, header, datagram)) = &ip {
        assert!(usize::from(ip.total_length) == ipv4::LEN + datagram.len());
        if let Ok((_, udp_header, payload)) = udp::split(datagram) {
            icrc::over_ipv4(header, udp_header, payload);
        }
    }
    whole.is_ok() || ip.is_ok()
}

/// A TCP segment that `reinstate` overhears.
pub(crate) fn tcp_segment(input: &[u8]) -> bool {
    let heard = Heard::parse(input);
    if let Some(heard) = &heard {
        assert_eq!(heard.source.is_ipv4(), heard.destination.is_ipv4());
    }
    heard.is_some()
}

fn attributes(number: u32) -> QpAttributes {
    let address = Ipv4Addr::LOCALHOST;
    QpAttributes { number, first_psn: FIRST_PSN, address, port: 4791, path_mtu: MTU, reads_in_flight: 4 }
}

/// The next packet for queue pair `US`, around sequence number `expected`; moves that on as a peer would.
fn next_packet(program: &mut Program<'_>, expected: &mut Psn) -> Vec<u8> {
    let kind = program.byte();
    if kind >= 0xe0 {
        let len = program.byte();
        return program.bytes(usize::from(len)).to_vec();
    }
    let opcode = Opcode(kind & 0x1f);
    let skew = i32::from(program.byte().cast_signed());
    let psn = Psn::new(expected.raw().wrapping_add_signed(skew) & 0xff_ffff);
    let (len, place, key, flags) = (program.short(), program.short(), program.byte(), program.byte());
    let len = u32::from(len) % 1100;
    let addr = (BASE - 16).wrapping_add(u64::from(place) % (RAM_BYTES + 64));
    let key = RemoteKey::new(KEY.raw() + u32::from(key & 3 == 3));
    let reth = reth::Repr { addr, key, len }.bytes();
    let atomic = atomic::Repr { addr, key, swap_or_add: 1, compare: 2 }.bytes();
    let aeth = aeth::Repr { syndrome: aeth::Syndrome(flags), msn: u32::from(place) }.bytes();
    let in_packet = (len as usize).min(usize::from(MTU));
    let (extension, payload): (&[&[u8]], usize) = match opcode {
        Opcode::READ_REQUEST => (&[&reth], 0),
        Opcode::WRITE_FIRST | Opcode::WRITE_ONLY => (&[&reth], in_packet),
        Opcode::COMPARE_SWAP | Opcode::FETCH_ADD => (&[&atomic], 0),
        Opcode::ACKNOWLEDGE => (&[&aeth], 0),
        Opcode::ATOMIC_ACKNOWLEDGE => (&[&aeth, &[7; 8]], 0),
        Opcode::READ_RESPONSE_FIRST | Opcode::READ_RESPONSE_LAST | Opcode::READ_RESPONSE_ONLY => (&[&aeth], in_packet),
        _ => (&[], in_packet),
    };
    let header = bth::Repr { ack_request: flags & 1 == 1, ..bth::Repr::new(opcode, US, psn) };
    let mut out = [0x77; wire::LEN_MAX];
    let (_, end) = wire::begin(&mut out, header, extension, payload);
    let mut bytes = out[..end].to_vec();
    if kind >= 0x80 {
        let bit = usize::from(program.short()) % (8 * end);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    let packets = if opcode == Opcode::READ_REQUEST { len.div_ceil(u32::from(MTU)).max(1) } else { 1 };
    *expected = psn.plus(packets);
    bytes
}

/// Memory that fails the run if the responder goes where it did not ask first.
struct Witness {
    bytes: RefCell<Vec<u8>>,
    granted: RefCell<Vec<(u64, u64, Rights)>>,
    atomics: Cell<u64>,
}

impl Witness {
    fn place(&self, addr: u64, len: usize, rights: Rights) -> usize {
        let asked =
            self.granted.borrow().iter().any(|(start, all, granted)| {
                *start <= addr && addr + len as u64 <= start + all && granted.covers(rights)
            });
        assert!(asked, "{rights:?} of {len} bytes at {addr:#x} without asking");
        (addr - BASE) as usize
    }

    fn word(&self, key: RemoteKey, addr: u64) -> Result<usize, Refusal> {
        assert_eq!(addr % 8, 0, "an atomic on a misaligned word");
        let inside = key == KEY && (BASE..=BASE + RAM_BYTES - 8).contains(&addr);
        self.atomics.set(self.atomics.get() + u64::from(inside));
        if inside { Ok((addr - BASE) as usize) } else { Err(Refusal::Access) }
    }

    fn update(&self, at: usize, change: impl FnOnce(u64) -> u64) -> u64 {
        let mut bytes = self.bytes.borrow_mut();
        let place: &mut [u8; 8] = (&mut bytes[at..at + 8]).try_into().expect("eight bytes");
        let original = u64::from_ne_bytes(*place);
        *place = change(original).to_ne_bytes();
        original
    }
}

impl Memory for Witness {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        assert!(len > 0, "an empty access is nobody's business");
        let end = addr.checked_add(len).ok_or(Refusal::Access)?;
        if key != KEY || addr < BASE || end > BASE + RAM_BYTES {
            return Err(Refusal::Access);
        }
        self.granted.borrow_mut().push((addr, len, rights));
        Ok(())
    }

    fn read(&self, _: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let at = self.place(addr, into.len(), Rights::READ);
        into.copy_from_slice(&self.bytes.borrow()[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, _: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let at = self.place(addr, bytes.len(), Rights::WRITE);
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn compare_swap(&self, key: RemoteKey, addr: u64, expect: u64, swap: u64) -> Result<u64, Refusal> {
        let at = self.word(key, addr)?;
        Ok(self.update(at, |word| if word == expect { swap } else { word }))
    }

    fn fetch_add(&self, key: RemoteKey, addr: u64, add: u64) -> Result<u64, Refusal> {
        let at = self.word(key, addr)?;
        Ok(self.update(at, |word| word.wrapping_add(add)))
    }
}

/// A conversation with the serving half: it asks before it touches, executes an atomic once, and answers sensibly.
pub(crate) fn responder(input: &[u8]) -> bool {
    let witness = Witness {
        bytes: RefCell::new(vec![0; RAM_BYTES as usize]),
        granted: RefCell::default(),
        atomics: Cell::new(0),
    };
    let mut responder = Responder::new(&attributes(US), &attributes(PEER));
    let (mut program, mut expected) = (Program::new(input), Psn::new(FIRST_PSN));
    let mut out = [0; wire::LEN_MAX];
    for _ in 0..STEPS_MAX {
        if program.is_over() {
            break;
        }
        let was_broken = responder.is_broken();
        let done = |responder: &Responder| (responder.counters().writes, responder.counters().atomics);
        let before = done(&responder);
        responder.receive(&witness, &next_packet(&mut program, &mut expected));
        assert!(!was_broken || done(&responder) == before, "a broken connection still executes");
        for _ in 0..program.byte() % 8 {
            if let Some(len) = responder.transmit(&witness, &mut out) {
                let answer = wire::split(&out[..len]).expect("our own packets parse");
                assert!(answer.header.opcode.is_response() && answer.header.dest_qp == PEER);
            }
        }
    }
    let counters = responder.counters();
    assert_eq!(counters.atomics, witness.atomics.get(), "an atomic was executed more than once");
    counters.reads + counters.writes + counters.atomics > 0
}

/// A conversation with the asking half: it fills what was asked for, finishes what was posted once, and always has a
/// deadline while anything is outstanding.
pub(crate) fn requester(input: &[u8]) -> bool {
    const OPERATIONS: u32 = 6;
    let limits =
        Limits { depth: 64, landing_bytes: 8192, window_packets: 16, timeout: Duration::from_millis(2), tries: 9 };
    let mut requester = Requester::new(&attributes(US), &attributes(PEER), limits);
    let mut landing = vec![GUARD; limits.landing_bytes];
    let (mut program, mut expected) = (Program::new(input), Psn::new(FIRST_PSN));
    let shape = program.short();
    for id in 0..OPERATIONS {
        let (at, landing) = (RemoteAddr::new(KEY, BASE), 1000 + id * 1000);
        let work = match (shape >> (2 * id)) & 3 {
            0 | 1 => Work::Read { at, len: 600, landing },
            2 => Work::Write { at, len: 600, landing },
            _ => Work::FetchAdd { at, add: 1 },
        };
        requester.post(Request { id: id.into(), work }).expect("room for a few operations");
    }
    let reads = (0..OPERATIONS).filter(|id| (shape >> (2 * id)) & 3 < 2).collect::<Vec<_>>();
    let mut finished = [false; OPERATIONS as usize];
    let (mut now, mut out) = (Duration::ZERO, [0; wire::LEN_MAX]);
    for _ in 0..STEPS_MAX {
        if program.is_over() {
            break;
        }
        let mut packets = 0;
        while requester.transmit(now, &landing, &mut out).is_some() {
            packets += 1;
            assert!(packets <= 1000, "sending does not end");
        }
        if requester.ended().is_none() && requester.outstanding() > 0 {
            assert!(requester.deadline().is_some(), "operations outstanding and nothing to wait for");
        }
        now += Duration::from_micros(u64::from(program.short()) % 5000);
        requester.receive(now, &next_packet(&mut program, &mut expected), &mut landing);
        requester.expire(now);
        while let Some(completion) = requester.completion() {
            let place = &mut finished[completion.id as usize];
            assert!(!std::mem::replace(place, true), "operation {} finishes twice", completion.id);
        }
    }
    for (place, byte) in landing.iter().enumerate() {
        let asked = reads.iter().any(|id| (1000 + *id as usize * 1000..1600 + *id as usize * 1000).contains(&place));
        assert!(asked || *byte == GUARD, "landing byte {place} changed");
    }
    finished.contains(&true)
}
