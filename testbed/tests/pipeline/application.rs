//! A tiny application as it could have stood behind a recorded connection, and its boxes.
//!
//! It digests what it reads and writes the recorded server's byte rule; its whole state is a checksum, a place in the
//! alphabet and what is left to write. Some of its sessions have been moved before: their streams began on another
//! kernel socket. The kernel's counters are the image's, so boxes are made to fit them.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use contbox::continuation::{Exporter, Words};
use contbox::layout::FRONT_BYTES;
use contbox::{ContinuationBox, Geometry, Opening, Pool, Snapshot};
use introspect::linux::tcp::TcpSocket;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::golden::{Ends, FNV_EMPTY, fnv};

const LOG_BYTES: u32 = 256;
/// Some snapshots lie in the front of a slot and some in its body.
const LWS_BYTES: u32 = 200;
/// After so many bytes the server's rule comes round.
const RULE_BYTES: u64 = 52;
/// Name of the pools.
const POOL: u64 = 77;

/// The recorded server's rule for the bytes it writes.
pub fn rule(offset: u64) -> u8 {
    b'A' + (offset % 26) as u8 + ((offset / 26) % 2) as u8 * 32
}

/// What the application keeps between two bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    digest: u64,
    phase: u8,
    left: u64,
}

impl State {
    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = self.digest.to_le_bytes().to_vec();
        bytes.push(self.phase);
        bytes.extend(self.left.to_le_bytes());
        bytes.resize(len, 0x5a);
        bytes
    }

    /// Back from a snapshot. None if it is not one that the application exported.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk()?;
        let (phase, rest) = rest.split_first()?;
        let (left, padding) = rest.split_first_chunk()?;
        let state = Self { digest: u64::from_le_bytes(*digest), phase: *phase, left: u64::from_le_bytes(*left) };
        padding.iter().all(|byte| *byte == 0x5a).then_some(state)
    }

    /// Goes on to the end of its work: the digest of all input, and all output from here on.
    pub fn finish(self, input: &[u8]) -> (u64, Vec<u8>) {
        let output = (0..self.left).map(|offset| rule(u64::from(self.phase) + offset));
        (fnv(self.digest, input), output.collect())
    }
}

/// One session as its application knows it at the moment of death. Offsets are those of the stream.
#[derive(Debug)]
pub struct Story {
    pub ends: Ends,
    pub base_read: u64,
    pub base_written: u64,
    /// Handed to the application.
    pub input: Vec<u8>,
    /// What it will have written at its end.
    pub total: u64,
    pub written: u64,
    /// Offsets (lsr, lsw) of its exports; the first is that of the box's creation.
    exports: Vec<(u64, u64)>,
    lws_len: usize,
}

impl Story {
    /// A life that ends with the counters of `socket`.
    pub fn before(socket: &TcpSocket, rng: &mut StdRng) -> Self {
        let was_moved = rng.random_bool(0.5);
        let base_read = if was_moved { rng.random_range(0..2000) } else { 0 };
        let base_written = if was_moved { RULE_BYTES * rng.random_range(0..1000) } else { 0 };
        let (copied, written) = (base_read + socket.read_offset(), base_written + socket.written_offset());
        let client = numbered_client(socket);
        let salt: u64 = rng.random();
        let byte = |offset: u64| match (offset.checked_sub(base_read), client) {
            (Some(index), Some(number)) => (index * 7) as u8 + number,
            _ => fnv(salt, &offset.to_le_bytes()) as u8,
        };
        let earlier = rng.random_range(2..6);
        let mut offsets = |end: u64, reach: u64| {
            let mut list: Vec<u64> = (0..earlier).map(|_| rng.random_range(end.saturating_sub(reach)..=end)).collect();
            list.sort_unstable();
            list
        };
        let lsr = offsets(copied, u64::from(LOG_BYTES));
        let lsw = offsets(written, 60_000);
        Self {
            ends: (socket.local, socket.peer),
            base_read,
            base_written,
            input: (0..copied).map(byte).collect(),
            total: written + still_to_write(socket, rng),
            written,
            exports: lsr.into_iter().zip(lsw).collect(),
            lws_len: rng.random_range(17..=LWS_BYTES as usize),
        }
    }

    fn copied(&self) -> u64 {
        self.input.len() as u64
    }

    fn snapshot(&self, (lsr, lsw): (u64, u64)) -> Snapshot {
        let digest = fnv(FNV_EMPTY, &self.input[..lsr as usize]);
        let state = State { digest, phase: (lsw % RULE_BYTES) as u8, left: self.total - lsw };
        Snapshot { lsr, lsw, lws: state.bytes(self.lws_len) }
    }

    fn logged(&self, lsr: u64) -> Vec<u8> {
        self.input[lsr as usize..].to_vec()
    }

    fn opening(&self) -> Opening {
        let (base_read, base_written) = (self.base_read, self.base_written);
        let snapshot = self.snapshot(self.exports[0]);
        let logged = self.logged(snapshot.lsr);
        Opening { base_read, base_written, snapshot, logged, ..Opening::fresh(1, self.ends.0, self.ends.1) }
    }

    /// The two newest exports: the one before the last, and the last.
    pub fn newest(&self) -> [Snapshot; 2] {
        let count = self.exports.len();
        [self.snapshot(self.exports[count - 2]), self.snapshot(self.exports[count - 1])]
    }
}

/// What the application has not written yet: nothing once it has shut its direction down, and something where only the
/// client has.
fn still_to_write(socket: &TcpSocket, rng: &mut StdRng) -> u64 {
    match (socket.fin_queued, socket.fin_received) {
        (true, _) => 0,
        (false, true) => rng.random_range(1..5000),
        (false, false) => rng.random_range(0..5000),
    }
}

/// The recorded peers of port 7001 sent bytes 7 k + n; which n this one has, as its unread bytes show.
fn numbered_client(socket: &TcpSocket) -> Option<u8> {
    let outside = socket.peer.ip() == IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
    let first = socket.receive_queue.first().filter(|_| outside && socket.local.port() == 7001)?;
    Some(first.wrapping_sub((socket.read_offset() * 7) as u8))
}

fn geometry(stories: usize) -> Geometry {
    Geometry::with(stories as u32 + 3, LWS_BYTES, LOG_BYTES)
}

/// A pool whose boxes the library wrote, all exports finished, in slots of any order.
pub fn finished_pool(stories: &[Story], rng: &mut StdRng) -> Vec<u8> {
    let geometry = geometry(stories.len());
    let (_fd, pool) = Pool::memfd(geometry, POOL).unwrap();
    let mut slots: Vec<u32> = (0..geometry.slots).collect();
    slots.shuffle(rng);
    let mut open = Vec::new(); // a box that ends closes its session
    for (story, slot) in stories.iter().zip(slots) {
        let mut made = ContinuationBox::create(pool.slot(slot).unwrap(), &story.opening()).unwrap();
        for at in &story.exports[1..] {
            let Snapshot { lsr, lsw, lws } = story.snapshot(*at);
            made.export_state(&lws, lsr, lsw).unwrap();
        }
        open.push(made);
    }
    pool.image()
}

/// A slot whose memory takes no more stores once the budget is spent: the machine has stopped.
#[derive(Clone)]
struct Cut {
    words: Rc<RefCell<Vec<u64>>>,
    budget: Rc<Cell<usize>>,
}

impl Words for Cut {
    fn load(&self, index: usize) -> u64 {
        self.words.borrow()[index]
    }

    fn store(&self, index: usize, value: u64) {
        if let Some(left) = self.budget.get().checked_sub(1) {
            self.budget.set(left);
            self.words.borrow_mut()[index] = value;
        }
    }

    fn order(&self) {}
}

/// A slot with the story's box, stopped `stores` stores into its last export; and whether the export was through.
fn stopped_slot(story: &Story, geometry: &Geometry, stores: usize) -> (Vec<u8>, bool) {
    let words = vec![0x5555_aaaa_5555_aaaa; geometry.slot_bytes as usize / 8];
    let cut = Cut { words: Rc::new(RefCell::new(words)), budget: Rc::new(Cell::new(usize::MAX)) };
    let mut exporter = Exporter::create(cut.clone(), *geometry, &story.opening()).unwrap();
    let (last, before) = story.exports.split_last().unwrap();
    for (index, at) in before[1..].iter().chain([last]).enumerate() {
        let Snapshot { lsr, lsw, lws } = story.snapshot(*at);
        if index + 2 == story.exports.len() {
            cut.budget.set(stores);
        }
        exporter.export_state(&lws, lsr, lsw).unwrap();
    }
    let is_through = cut.budget.get() > 0;
    let mut bytes: Vec<u8> = cut.words.borrow().iter().flat_map(|word| word.to_le_bytes()).collect();
    for offset in story.copied().saturating_sub(u64::from(geometry.log_bytes))..story.copied() {
        let place = geometry.log_offset() + (offset % u64::from(geometry.log_bytes)) as u32;
        bytes[place as usize] = story.input[offset as usize];
    }
    (bytes, is_through)
}

/// A pool of boxes of which number i was stopped `stores(i)` stores into its last export, and whether each was through
/// with it.
pub fn stopped_pool(stories: &[Story], stores: impl Fn(usize) -> usize) -> (Vec<u8>, Vec<bool>) {
    let geometry = geometry(stories.len());
    let mut bytes = Pool::memfd(geometry, POOL).unwrap().1.image();
    let mut through = Vec::new();
    for (index, story) in stories.iter().enumerate() {
        let (slot, is_through) = stopped_slot(story, &geometry, stores(index));
        let (front, body) = slot.split_at(FRONT_BYTES as usize);
        for (place, part) in [(geometry.front(index as u32), front), (geometry.body(index as u32), body)] {
            bytes[place.start as usize..place.end as usize].copy_from_slice(part);
        }
        through.push(is_through);
    }
    (bytes, through)
}
