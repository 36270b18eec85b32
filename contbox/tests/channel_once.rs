//! Two processes at one channel that are stopped together at arbitrary steps, inside sends, receives and exports, and
//! go on elsewhere again and again, produce exactly the output of two that never were; and what anybody has seen of
//! output that is not deterministic never changes.
//!
//! The kernel is a model with two queues of frames; the applications are small machines whose output depends on all
//! input so far; boxes, logs, frames and plans are the real ones. A failure prints its seed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use contbox::Geometry;
use contbox::channel::frame::FRAME_HEAD_BYTES;
use contbox::channel::record::ARRIVING;
use contbox::channel::{ChannelEnd, EndError, EndImage, File, Interval, Plan, Wire, read_end};
use contbox::continuation::Words;
use contbox::shared::{Pool, Slot};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const GEOMETRY: Geometry = Geometry::with(2, 4096, 12 << 10);
const NAME: u64 = 0x5ead_0001;
const REPLIES: u64 = 60;
/// Requests on their way at once.
const DEPTH: u64 = 4;
/// A session takes some thousands.
const ACTS_MAX: usize = 200_000;
/// Output that a process holds back before it exports: five messages more fit into a snapshot.
const HELD_MAX: usize = 2000;

/// The machine: both queues, and the steps until it stops.
struct Machine {
    queues: [RefCell<VecDeque<Vec<u8>>>; 2],
    steps_left: Cell<u64>,
    /// The queue whose first frame has been copied and still is in it.
    consuming: Cell<Option<usize>>,
}

impl Machine {
    fn new(steps_left: u64) -> Rc<Self> {
        let steps_left = Cell::new(steps_left);
        Rc::new(Self { queues: Default::default(), steps_left, consuming: Cell::new(None) })
    }

    fn step(&self) -> io::Result<()> {
        let left = self.steps_left.get().checked_sub(1).ok_or_else(stopped)?;
        self.steps_left.set(left);
        Ok(())
    }
}

/// No error that a wire has otherwise.
fn stopped() -> io::Error {
    io::Error::from(io::ErrorKind::HostUnreachable)
}

fn is_stop(error: &EndError) -> bool {
    matches!(error, EndError::Io(why) if why.kind() == io::ErrorKind::HostUnreachable)
}

/// The wire of side 0 or 1.
struct Model {
    machine: Rc<Machine>,
    side: usize,
}

impl Wire for Model {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.machine.step()?;
        self.machine.queues[self.side].borrow_mut().push_back(frame.to_vec());
        self.machine.step()
    }

    fn receive(&mut self, slot: &Slot, at: u64) -> io::Result<usize> {
        let from = self.side ^ 1;
        let mut queue = self.machine.queues[from].borrow_mut();
        let Some(frame) = queue.front() else { return Err(io::Error::from(io::ErrorKind::WouldBlock)) };
        let (head, payload) = frame.split_at(FRAME_HEAD_BYTES);
        for (index, word) in head.chunks(8).enumerate() {
            slot.store(ARRIVING as usize / 8 + index, u64::from_le_bytes(word.try_into().unwrap()));
            self.machine.step()?;
        }
        for (index, piece) in payload.chunks(97).enumerate() {
            slot.log_fill(at + 97 * index as u64, piece);
            self.machine.step()?;
        }
        self.machine.consuming.set(Some(from));
        self.machine.step()?;
        self.machine.consuming.set(None);
        let count = frame.len();
        queue.pop_front();
        self.machine.step()?;
        Ok(count)
    }

    fn files(&self) -> [File; 2] {
        [File::default(); 2]
    }
}

fn mix(sum: u64, more: u64) -> u64 {
    (sum ^ more).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// An application: messages in, each with its length before it, and after each one out.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct App {
    sum: u64,
    messages: u64,
    head: u32,
    head_bytes: u32,
    left: u32,
}

impl App {
    /// Whether the byte was the last of a message.
    fn digest(&mut self, byte: u8) -> bool {
        if self.head_bytes < 4 {
            self.head |= u32::from(byte) << (8 * self.head_bytes);
            self.head_bytes += 1;
            self.left = self.head;
            return false;
        }
        (self.sum, self.left) = (mix(self.sum, byte.into()), self.left - 1);
        if self.left == 0 {
            (self.head, self.head_bytes) = (0, 0);
            self.messages += 1;
        }
        self.left == 0
    }

    /// Bytes until the next thing is complete, a length or a message.
    fn due(&self) -> usize {
        if self.head_bytes < 4 { 4 - self.head_bytes as usize } else { self.left as usize }
    }

    /// A message that follows from `sum`: mostly short, sometimes longer than a frame.
    fn message(sum: u64) -> Vec<u8> {
        let length = if sum.is_multiple_of(7) { sum % 6000 } else { sum % 90 } + 1;
        let body = (0..length).map(|at| mix(sum, at) as u8);
        (length as u32).to_le_bytes().into_iter().chain(body).collect()
    }

    fn words(&self) -> Vec<u8> {
        let [head, head_bytes, left] = [self.head, self.head_bytes, self.left].map(u64::from);
        [self.sum, self.messages, head, head_bytes, left].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn from_words(bytes: &[u8]) -> Self {
        let mut words = bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let mut next = || words.next().unwrap_or_default();
        let (sum, messages) = (next(), next());
        Self { sum, messages, head: next() as u32, head_bytes: next() as u32, left: next() as u32 }
    }
}

/// What anybody has seen: the bytes of both directions and those outside, which must never change.
#[derive(Default)]
struct Seen {
    directions: [Vec<u8>; 2],
    outside: Vec<u8>,
}

impl Seen {
    fn note(&mut self, direction: usize, at: u64, byte: u8) {
        let known = &mut self.directions[direction];
        assert!(at <= known.len() as u64, "a gap before {at}");
        match known.get(at as usize) {
            Some(before) => assert_eq!(*before, byte, "byte {at} of direction {direction} has changed"),
            None => known.push(byte),
        }
    }
}

/// A process: side 0 asks and tells the outside, side 1 answers.
struct Process {
    side: usize,
    app: App,
    end: ChannelEnd<Model>,
    /// Side 0: outside bytes of the snapshot's future that the outside has already.
    swallow: usize,
    interval: Interval,
    /// Output held back.
    held: usize,
}

struct Run<'a> {
    rng: &'a mut StdRng,
    seen: &'a mut Seen,
    /// Whether side 1 has non-deterministic intervals.
    is_random: bool,
}

impl Process {
    /// One thing that the process does; false if it has to wait.
    fn act(&mut self, run: &mut Run<'_>) -> Result<bool, EndError> {
        if run.rng.random_ratio(1, 12) || self.held > HELD_MAX {
            self.export()?;
        }
        if self.side == 0 && self.app.messages == 0 && self.end.position() == (0, 0) {
            for number in 0..DEPTH {
                self.end.write(&App::message(mix(number, 1)))?;
            }
        }
        // Where intervals change, at the ends of messages, all that was read must have been digested.
        let most = if run.is_random && self.side == 1 { self.app.due() } else { 700 };
        let mut bytes = vec![0; run.rng.random_range(1..=most)];
        let from = self.end.position().0;
        let count = match self.end.read(&mut bytes) {
            Err(EndError::Io(why)) if why.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(EndError::LogFull { .. }) => {
                self.export()?;
                return Ok(true);
            }
            count => count?,
        };
        for (at, byte) in (from..).zip(&bytes[..count]) {
            run.seen.note(self.side ^ 1, at, *byte);
            if self.app.digest(*byte) {
                self.answer(run)?;
                self.change_interval(run)?;
            }
        }
        Ok(true)
    }

    fn answer(&mut self, run: &mut Run<'_>) -> Result<(), EndError> {
        if self.side == 0 {
            for byte in self.app.sum.to_le_bytes() {
                match self.swallow.checked_sub(1) {
                    Some(left) => self.swallow = left,
                    None => run.seen.outside.push(byte),
                }
            }
            return self.end.write(&App::message(mix(self.app.sum, 2)));
        }
        if self.interval == Interval::Deterministic {
            return self.end.write(&App::message(mix(self.app.sum, 3) % 3000));
        }
        // Short, so that what is held back fits into a snapshot.
        let chance: u64 = run.rng.random_range(0..1 << 20);
        let message = App::message(7 * chance + 1);
        self.held += message.len();
        self.end.write(&message)
    }

    /// Side 1 answers three messages as they demand and three by chance, in turn.
    fn change_interval(&mut self, run: &mut Run<'_>) -> Result<(), EndError> {
        let by_chance = run.is_random && self.side == 1 && self.app.messages / 3 % 2 == 1;
        let next = if by_chance { Interval::Nondeterministic } else { Interval::Deterministic };
        if next != self.interval {
            self.export_before(next)?;
            self.interval = next;
        }
        Ok(())
    }

    fn export(&mut self) -> Result<(), EndError> {
        self.export_before(self.interval)
    }

    fn export_before(&mut self, next: Interval) -> Result<(), EndError> {
        self.end.wire().machine.step().map_err(EndError::Io)?;
        self.end.publish(&self.words(), next)?;
        self.held = 0;
        self.end.wire().machine.step().map_err(EndError::Io)?;
        self.end.flush()
    }

    fn words(&self) -> Vec<u8> {
        self.app.words()
    }
}

/// What a stop leaves of the first frame of a queue whose read had not ended: all of it, or something else.
fn chunks(machine: &Machine, rng: &mut StdRng) -> [Vec<Vec<u8>>; 2] {
    let mut queues = [0, 1].map(|at| machine.queues[at].borrow().iter().cloned().collect::<Vec<_>>());
    if let Some(at) = machine.consuming.get() {
        match rng.random_range(0..3) {
            0 => {}
            1 => drop(queues[at].remove(0)),
            _ => queues[at][0] = vec![0x5a; 33],
        }
    }
    queues
}

/// Both processes go on elsewhere.
fn take_over(
    pool: &Pool,
    machine: &Machine,
    rng: &mut StdRng,
    outside: usize,
) -> (Arc<Pool>, Rc<Machine>, [Process; 2]) {
    let image = pool.image();
    let ends: [EndImage; 2] = [0, 1].map(|side| read_end(&image, &GEOMETRY, side).unwrap());
    let chunks = chunks(machine, rng);
    let plan = |reader: usize| Plan::of(&ends[reader], &ends[reader ^ 1], &chunks[reader ^ 1]).unwrap();
    let plans = [plan(0), plan(1)];
    let next = Machine::new(u64::MAX);
    let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    let processes = [0, 1].map(|side| {
        let (_, frames) = plans[side].split(GEOMETRY.log_bytes, ends[side].identity.input());
        next.queues[side ^ 1].borrow_mut().extend(frames);
        let wire = Model { machine: Rc::clone(&next), side };
        let slot = pool.slot(side as u32).unwrap();
        let discard = plans[side ^ 1].discard_from_writer;
        let end = ChannelEnd::resume(slot, 1, wire, &ends[side], &plans[side], discard).unwrap();
        let interval =
            if ends[side].is_nondeterministic { Interval::Nondeterministic } else { Interval::Deterministic };
        let app = App::from_words(&ends[side].words);
        let told = app.messages as usize * 8;
        Process { side, app, end, swallow: outside.saturating_sub(told), interval, held: 0 }
    });
    (pool, next, processes)
}

/// Runs a session whose machines stop after `lives()` steps, and returns what the outside got.
fn session(seed: u64, is_random: bool, mut lives: impl FnMut(&mut StdRng) -> u64) -> (Seen, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (_fd, mut pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    let mut machine = Machine::new(u64::MAX);
    let mut processes = [0, 1].map(|side| {
        let wire = Model { machine: Rc::clone(&machine), side };
        let slot = pool.slot(side as u32).unwrap();
        let app = App::default();
        let end = ChannelEnd::open(slot, 1, wire, NAME, side as u32, &app.words()).unwrap();
        Process { side, app, end, swallow: 0, interval: Interval::Deterministic, held: 0 }
    });
    let (mut seen, mut stops, mut acts) = (Seen::default(), 0, 0);
    machine.steps_left.set(lives(&mut rng));
    while processes[0].app.messages < REPLIES {
        acts += 1;
        assert!(acts < ACTS_MAX, "seed {seed}: no progress, {:?} and {:?}", processes[0].app, processes[1].app);
        let side = rng.random_range(0..2);
        let acted = processes[side].act(&mut Run { rng: &mut rng, seen: &mut seen, is_random });
        match acted {
            Ok(true) => {}
            // Held back, or nothing to do: an application that waits exports.
            Ok(false) => {
                let exported = processes[side].export();
                assert!(exported.as_ref().err().is_none_or(is_stop), "seed {seed}: {exported:?}");
                if exported.is_err() {
                    stops += 1;
                    (pool, machine, processes) = take_over(&pool, &machine, &mut rng, seen.outside.len());
                    machine.steps_left.set(lives(&mut rng));
                }
            }
            Err(why) if is_stop(&why) => {
                stops += 1;
                (pool, machine, processes) = take_over(&pool, &machine, &mut rng, seen.outside.len());
                machine.steps_left.set(lives(&mut rng));
            }
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    (seen, stops)
}

/// The same without a kernel, boxes or stops.
fn uninterrupted() -> Vec<u8> {
    let (mut asking, mut answering, mut outside) = (App::default(), App::default(), Vec::new());
    let mut requests: VecDeque<u8> = (0..DEPTH).flat_map(|number| App::message(mix(number, 1))).collect();
    while asking.messages < REPLIES {
        if !answering.digest(requests.pop_front().unwrap()) {
            continue;
        }
        for byte in App::message(mix(answering.sum, 3) % 3000) {
            if asking.digest(byte) {
                outside.extend(asking.sum.to_le_bytes());
                requests.extend(App::message(mix(asking.sum, 2)));
            }
        }
    }
    outside
}

#[test]
fn two_processes_stopped_at_random_steps_yield_every_byte_once() {
    let expected = uninterrupted();
    let mut stops = 0;
    for seed in 0..150 {
        let (seen, stopped) = session(seed, false, |rng| rng.random_range(100..1500));
        assert!(seen.outside.starts_with(&expected), "seed {seed}: the outside got something else");
        stops += stopped;
    }
    assert!(stops > 300, "only {stops} stops");
}

#[test]
fn two_processes_stopped_once_at_every_single_step_yield_every_byte_once() {
    let expected = uninterrupted();
    for steps in 0..1500 {
        let mut lives = [steps].into_iter();
        let (seen, _) = session(11, false, |_| lives.next().unwrap_or(u64::MAX));
        assert!(seen.outside.starts_with(&expected), "stop at step {steps}: the outside got something else");
    }
}

#[test]
fn what_anybody_has_seen_of_nondeterministic_output_never_changes() {
    let mut stops = 0;
    for seed in 0..150 {
        let (seen, stopped) = session(seed, true, |rng| rng.random_range(100..1500));
        assert!(seen.outside.len() as u64 >= REPLIES * 8, "seed {seed}");
        stops += stopped;
    }
    assert!(stops > 300, "only {stops} stops");
}
