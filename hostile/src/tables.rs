//! Tables that a target's kernel programs keep, and their answers to orders and locks, out of a target that may say
//! anything.
//!
//! An input: what is sealed anew after the damage (u8, see [`seal`]: most damage dies at a checksum otherwise), then
//! patches on a good table, place (u16) and byte.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use introspect::linux::tcp::TcpFilter;
use locktable::{Locked, Mode, Next, Sign, Taking, taking::Goal};
use proctable::layout::{
    HEAD_RECORDS, LIVE, RECORD_BYTES, head as process_head, record as process_record, table_bytes,
};
use proctable::{Keeper, Table as Processes};
use reinstate::{extract, session, tables};
use remote_memory::{AccessError, LinkError, Read, Region, RemoteKey, RemoteRead, Rights};
use tcptable::layout::{
    HEAD_BYTES, MAGIC, OPEN, RING_BYTES, SLOT_BYTES, checksum, flag, header, record, region_bytes, tail,
};

use crate::boxes::POOL;
use crate::program::Program;

/// What an input has sealed anew: the header, or head.
const SEAL_HEAD: u8 = 1;
/// The ends of connections.
const SEAL_ENDS: u8 = 2;
/// Records.
const SEAL_RECORDS: u8 = 4;

/// Connections of the good table: those of the pool of boxes.
const ENDS: [(&str, &str); 2] = [("10.0.0.2:80", "10.0.0.1:1000"), ("[fd77::2]:80", "[fd77::4]:1001")];
const FIRST_RECEIVED: u32 = u32::MAX - 20;
const FIRST_SENT: u32 = 5000;
/// Where the pool lies; the table lies at 0.
const POOL_BASE: u64 = 1 << 32;
/// Rounds in which one attempt to lock has to come to an end.
const LOOKS_MAX: usize = 100;

/// The target's memory: two regions.
struct Memory<'a> {
    table: &'a [u8],
    pool: &'a [u8],
}

impl RemoteRead for Memory<'_> {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            let (bytes, base) = if read.at.addr < POOL_BASE { (self.table, 0) } else { (self.pool, POOL_BASE) };
            let start = (read.at.addr - base) as usize;
            let found = start.checked_add(read.into.len()).and_then(|end| bytes.get(start..end));
            read.outcome = match found {
                Some(found) => {
                    read.into.copy_from_slice(found);
                    Ok(())
                }
                None => Err(AccessError::Refused),
            };
        }
        Ok(())
    }
}

fn region(name: &str, base: u64, len: usize) -> Region {
    Region { name: name.into(), base, len: len as u64, key: RemoteKey::new(1), rights: Rights::READ }
}

fn words_at(bytes: &[u8], at: usize, count: usize) -> Vec<u64> {
    bytes[at..at + 8 * count].as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

fn put(bytes: &mut [u8], at: usize, words: &[u64]) {
    for (into, word) in bytes[at..].as_chunks_mut().0.iter_mut().zip(words) {
        *into = word.to_le_bytes();
    }
}

/// Patches bytes at `places`, and says what is to be sealed.
fn patched(good: &[u8], places: &[usize], input: &[u8]) -> (Vec<u8>, u8) {
    let mut program = Program::new(input);
    let (seals, mut bytes) = (program.byte(), good.to_vec());
    while !program.is_over() {
        let (place, byte) = (usize::from(program.short()), program.byte());
        bytes[places[place % places.len()]] = byte;
    }
    (bytes, seals)
}

/// Where the head of a slot with a connection lies.
const fn head_of(slot: usize) -> usize {
    slot * SLOT_BYTES as usize + RING_BYTES as usize
}

static CONNECTIONS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let region: Vec<AtomicU64> = (0..region_bytes(2) / 8).map(|_| AtomicU64::new(0)).collect();
    tcptable::header::write(&region, &[80]).expect("a region for two connections");
    let mut bytes: Vec<u8> = region.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    for (index, (local, peer)) in ENDS.into_iter().enumerate() {
        put(&mut bytes, head_of(index + 1), &connection(index, local, peer));
    }
    seal(&mut bytes, SEAL_HEAD | SEAL_ENDS | SEAL_RECORDS);
    bytes
});

/// One that agrees with its box: 40 bytes were read, 10 are unread, 120 were written; the first had all acknowledged.
fn connection(index: usize, local: &str, peer: &str) -> Vec<u64> {
    let address = |text: &str| {
        let address: std::net::SocketAddr = text.parse().expect("an address");
        let octets = contbox::layout::address_bytes(&address);
        (words_at(&octets, 0, 2), u64::from(address.port()))
    };
    let ((local, local_port), (peer, peer_port)) = (address(local), address(peer));
    let halves = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let received = |offset: u32| FIRST_RECEIVED.wrapping_add(offset);
    let acked = if index == 0 { 120 } else { 90 };
    let mut words = vec![0; HEAD_BYTES as usize / 8];
    words[tail::STATE] = OPEN;
    words[tail::GENERATION] = 3;
    words[tail::LOCAL..tail::LOCAL + 2].copy_from_slice(&local);
    words[tail::PEER..tail::PEER + 2].copy_from_slice(&peer);
    words[tail::PORTS] = local_port | peer_port << 16;
    words[tail::FIRST] = halves(FIRST_RECEIVED, FIRST_SENT);
    words[tail::ACCEPTED] = 1;
    for number in [6, 7] {
        let it = &mut words[tail::RECORDS + (number as usize & 1) * record::WORDS..][..record::WORDS];
        it[record::NUMBER] = number;
        it[record::SND_UNA_NXT] = halves(FIRST_SENT + acked, FIRST_SENT + 120);
        it[record::WRITE_SEQ_RCV_NXT] = halves(FIRST_SENT + 120, received(50));
        it[record::COPIED_SEQ_RCV_WUP] = halves(received(40), received(50));
        it[record::RCV_WND_SND_WL1] = halves(60_000, received(50));
        it[record::SND_WND_MAX_WINDOW] = halves(60_000, 60_000);
        it[record::SND_CWND_MSS_CACHE] = halves(10, 1448);
        it[record::BYTES_ACKED] = u64::from(acked);
        it[record::BYTES_RECEIVED] = 50;
        it[record::TAKEN_MSS_SCALES] = u64::from(received(50)) | 1460 << 32;
        it[record::STATE_FLAGS_DEVICE] = 1 | u64::from(flag::INIT_NET | flag::SACK) << 16;
    }
    words
}

/// Makes checksums of a table of connections right again.
fn seal(bytes: &mut [u8], seals: u8) {
    if seals & SEAL_HEAD != 0 {
        let sum = checksum(MAGIC, &words_at(bytes, 0, header::CHECK));
        put(bytes, 8 * header::CHECK, &[sum]);
    }
    for slot in 1..=ENDS.len() {
        let words = words_at(bytes, head_of(slot), HEAD_BYTES as usize / 8);
        if seals & SEAL_ENDS != 0 {
            let sum = checksum(MAGIC, &words[tail::GENERATION..tail::IDENTITY_CHECK]);
            put(bytes, head_of(slot) + 8 * tail::IDENTITY_CHECK, &[sum]);
        }
        for at in [tail::RECORDS, tail::RECORDS + record::WORDS].into_iter().filter(|_| seals & SEAL_RECORDS != 0) {
            let sum = checksum(words[tail::GENERATION], &words[at..at + record::CHECK]);
            put(bytes, head_of(slot) + 8 * (at + record::CHECK), &[sum]);
        }
    }
}

/// A table of connections and their boxes: whatever it says, a session that can go on has all its input and no more.
pub(crate) fn connections(input: &[u8]) -> bool {
    static PLACES: LazyLock<Vec<usize>> = LazyLock::new(|| {
        let heads = (1..=ENDS.len()).flat_map(|slot| head_of(slot)..head_of(slot) + HEAD_BYTES as usize);
        (0..8 * header::WORDS).chain(heads).collect()
    });
    let (mut bytes, seals) = patched(&CONNECTIONS, &PLACES, input);
    seal(&mut bytes, seals);
    let (table, pool) = (region("tcp", 0, bytes.len()), region("boxes", POOL_BASE, POOL.len()));
    let mut memory = Memory { table: &bytes, pool: &POOL };
    let found = tables::survey(&mut memory, &table, &TcpFilter::default()).expect("a path that does not fail");
    let Ok(mut found) = found else { return false };
    let mut ends = HashSet::new();
    for socket in &found.sockets {
        assert!(ends.insert((socket.local, socket.peer)), "two sockets for {}", socket.peer);
        assert!(socket.receive_queue.len() <= RING_BYTES as usize);
        if session::rebuildable(socket).is_ok() && !socket.orphaned {
            let waiting = socket.rcv_nxt.wrapping_sub(socket.copied_seq) as usize;
            assert!(waiting.abs_diff(socket.receive_queue.len()) <= 1, "input is missing or doubled");
        }
    }
    assert!(ends.len() <= ENDS.len(), "connections out of nowhere");
    let paired = extract::pair_tables(&mut memory, Some(&pool), &mut found, Duration::ZERO);
    let paired = paired.expect("a path that does not fail");
    let numbers: Vec<usize> = paired.sessions.iter().map(|session| session.number).collect();
    let queued = found.read_queued(&mut memory, Some(&pool), &numbers).expect("a path that does not fail");
    for (session, bytes) in paired.sessions.iter().zip(queued) {
        let mut snapshot = session.snapshot.clone();
        assert_eq!(session.image.snapshot.lsr + session.image.logged.len() as u64, session.copied);
        // The pool keeps no output: what waits to be sent is nowhere.
        let kept = bytes.is_some_and(|bytes| snapshot.give(bytes).is_ok());
        assert!(!kept || snapshot.queued() == 0, "output out of nowhere");
    }
    !numbers.is_empty()
}

const PROCESSES: usize = 64;

static PROCESS_TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words: Vec<AtomicU64> = (0..table_bytes(PROCESSES) / 8).map(|_| AtomicU64::new(0)).collect();
    let keeper = Keeper::open(&words, 7, 1 << 16).expect("memory for a table");
    keeper.went_round(1);
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    for (index, pid) in [1u64, 2, 300, 301, 302].into_iter().enumerate() {
        let mut it = [0; RECORD_BYTES / 8];
        it[process_record::LIFE] = u64::from(LIVE) << 56 | 1 << 32 | pid;
        it[process_record::FAMILY] = pid / 2;
        it[process_record::START_NS] = 1000 * pid;
        it[process_record::COMM] = u64::from_le_bytes(*b"process\0");
        it[process_record::MEMORY] = 100 | u64::from(b'S') << 56;
        put(&mut bytes, (HEAD_RECORDS + 3 * index) * RECORD_BYTES, &it);
    }
    seal_processes(&mut bytes, SEAL_HEAD | SEAL_RECORDS);
    bytes
});

fn seal_processes(bytes: &mut [u8], seals: u8) {
    if seals & SEAL_HEAD != 0 {
        let sum = proctable::layout::checksum(&words_at(bytes, 0, process_head::CHECK));
        put(bytes, 8 * process_head::CHECK, &[sum]);
    }
    for index in (0..PROCESSES).filter(|_| seals & SEAL_RECORDS != 0) {
        let at = (HEAD_RECORDS + index) * RECORD_BYTES;
        let it = words_at(bytes, at, RECORD_BYTES / 8);
        let (life, about) = (it[process_record::LIFE] & 0x00ff_ffff_ffff_ffff, it[process_record::ABOUT]);
        let comm = [it[process_record::COMM], it[process_record::COMM + 1]];
        let [family, start, cgroup] =
            [process_record::FAMILY, process_record::START_NS, process_record::CGROUP].map(|word| it[word]);
        let low = about & u64::from(u32::MAX);
        let sum = proctable::layout::checksum(&[life, family, start, cgroup, comm[0], comm[1], low]);
        put(bytes, at + 8 * process_record::ABOUT, &[low | sum >> 32 << 32]);
    }
}

/// A table of processes: each process once, by its id, and no more than there are records.
pub(crate) fn process_table(input: &[u8]) -> bool {
    static PLACES: LazyLock<Vec<usize>> = LazyLock::new(|| {
        let records = HEAD_RECORDS * RECORD_BYTES..(HEAD_RECORDS + 16) * RECORD_BYTES;
        (0..8 * (process_head::ROUND_NS + 1)).chain(records).collect()
    });
    let (mut bytes, seals) = patched(&PROCESS_TABLE, &PLACES, input);
    seal_processes(&mut bytes, seals);
    let Ok(mut table) = Processes::parse(&bytes) else { return false };
    let check = |table: &Processes| {
        assert!(table.processes.is_sorted_by_key(|process| process.pid));
        assert!(table.processes.windows(2).all(|two| two[0].pid != two[1].pid), "one process twice");
        assert!(table.processes.iter().all(|process| process.pid != 0 && process.comm.len() <= 3 * 16));
        assert!(table.processes.len() + table.torn.len() <= PROCESSES, "processes out of nowhere");
    };
    check(&table);
    // Read again, they may be anything else.
    let record = |at: usize| bytes[at..].first_chunk().copied().unwrap_or([0; RECORD_BYTES]);
    let again: Vec<_> = table.torn.iter().map(|index| record(Processes::offset(*index ^ 3) as usize)).collect();
    table.mend(&again);
    check(&table);
    !table.processes.is_empty()
}

static ANSWERS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let zeroed = |bytes: usize| (0..bytes / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (orders, answers) = (zeroed(killtable::layout::ORDERS_BYTES), zeroed(killtable::layout::ANSWERS_BYTES));
    killtable::Ledger::open(&orders, &answers, 7, &[0, 1000], 42).expect("memory for orders and answers");
    let lock = zeroed(locktable::layout::BYTES);
    Sign::put(&lock, 7, &[0, 1], &[], 42).expect("memory for answers").guards(1, 0, 1);
    answers.iter().chain(&lock).flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
});

/// Answers to orders and to locks: they are taken apart or refused, and who wants a lock gets to an end with them.
pub(crate) fn answers(input: &[u8]) -> bool {
    static PLACES: LazyLock<Vec<usize>> = LazyLock::new(|| (0..ANSWERS.len()).collect());
    let (bytes, word) = patched(&ANSWERS, &PLACES, input);
    let (kills, lock) = bytes.split_at(killtable::layout::ANSWERS_BYTES);
    let kills = killtable::Answers::parse(kills);
    if let Ok(answers) = &kills {
        assert!(answers.spared_uids.len() <= killtable::layout::SPARED_MAX);
        let slots = killtable::layout::BROAD_SLOTS + killtable::layout::PID_SLOTS;
        let _ = (0..=slots).map(|slot| u64::from(answers.ended_by(answers.armed, slot))).sum::<u64>();
    }
    let Ok(locked) = Locked::parse(lock) else { return kills.is_ok() };
    for goal in [Goal::Take(Mode::Fence, 1000), Goal::Hold, Goal::Release] {
        let patience = Duration::from_millis(20);
        let mut taking = Taking::begin(5, goal, Duration::ZERO, patience).expect("a good wish");
        let mut next = taking.looked(Duration::ZERO, word.into(), &locked);
        let mut looks = 0;
        // Whatever the target says, time goes by.
        while !matches!(next, Next::Reached(_) | Next::Failed(_)) {
            looks += 1;
            assert!(looks < LOOKS_MAX, "an attempt without an end: {next:?}");
            let now = Duration::from_millis(looks as u64);
            next = match next {
                Next::Swap { expect, .. } => taking.swapped(now, expect ^ u64::from(word & 1)),
                _ => taking.looked(now, word.into(), &locked),
            };
        }
    }
    true
}
