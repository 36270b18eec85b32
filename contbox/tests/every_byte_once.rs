//! A session that is moved again and again, stopped at arbitrary steps inside recv, send and export, produces
//! exactly the output of one that never was.
//!
//! The kernel is a model with the three counters that a spare finds (copied, written, acknowledged); the application is
//! a small machine whose output depends on all input so far; box, log and reader are the real ones. A failure prints
//! its seed.

use contbox::reader::{BoxImage, read_box};
use contbox::shared::{Pool, Slot};
use contbox::{ContinuationBox, Geometry, Opening, Snapshot};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const GEOMETRY: Geometry = Geometry::with(1, 64, 256);
const INPUT_BYTES: u64 = 4000;

/// The stop: every step of the run asks whether it still happens.
struct Power {
    steps_left: u64,
}

struct Stopped;

impl Power {
    fn step(&mut self) -> Result<(), Stopped> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(Stopped)?;
        Ok(())
    }
}

/// One kernel's end of the connection, in stream offsets.
#[derive(Default)]
struct Kernel {
    /// Input given to the application.
    copied: u64,
    /// Everything the client has received or the send queue holds.
    output: Vec<u8>,
}

impl Kernel {
    /// recv: copies first, counts afterwards, and may stop between two pieces.
    fn receive(&mut self, slot: &Slot, input: &[u8], room: u64, power: &mut Power) -> Result<usize, Stopped> {
        let end = (self.copied + room).min(input.len() as u64);
        let mut received = 0;
        while self.copied < end {
            let piece = &input[self.copied as usize..(self.copied + 7).min(end) as usize];
            for (index, byte) in piece.iter().enumerate() {
                slot.log_fill(self.copied + index as u64, &[*byte]);
                power.step()?;
            }
            self.copied += piece.len() as u64;
            received += piece.len();
            power.step()?;
        }
        Ok(received)
    }

    /// send: the queue grows piece by piece, the caller hears of it at the end.
    fn send(&mut self, bytes: &[u8], power: &mut Power) -> Result<(), Stopped> {
        for piece in bytes.chunks(5) {
            power.step()?;
            self.output.extend_from_slice(piece);
        }
        power.step()
    }
}

/// The application: a running sum, which it says aloud as often as the input tells it to.
#[derive(Clone, Default)]
struct App {
    sum: u64,
}

impl App {
    fn digest(&mut self, byte: u8) -> Vec<u8> {
        self.sum = (self.sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        self.sum.to_le_bytes().iter().copied().cycle().take(usize::from(byte % 23)).collect()
    }

    fn lws(&self) -> [u8; 8] {
        self.sum.to_le_bytes()
    }

    fn from_lws(lws: &[u8]) -> Self {
        Self { sum: lws.try_into().map_or(0, u64::from_le_bytes) }
    }
}

fn uninterrupted(input: &[u8]) -> Vec<u8> {
    let mut app = App::default();
    input.iter().flat_map(|byte| app.digest(*byte)).collect()
}

/// Runs the session on one machine from `image` until the input ends or the power does.
fn run(
    pool: &std::sync::Arc<Pool>,
    kernel: &mut Kernel,
    session: Session,
    input: &[u8],
    rng: &mut StdRng,
    power: &mut Power,
) -> Result<(), Stopped> {
    let Session { mut boxed, snapshot, mut discard } = session;
    let slot = pool.slot(0).unwrap();
    let mut app = App::from_lws(&snapshot.lws);
    let (mut digested, mut written) = (snapshot.lsr, snapshot.lsw);
    while digested < input.len() as u64 {
        if digested == boxed.received() {
            let room = rng.random_range(1..=boxed.log_room());
            let received = kernel.receive(&slot, input, room, power)?;
            boxed.note_received(received);
        }
        let mut byte = [0];
        slot.log_copy(digested, &mut byte);
        let output = app.digest(byte[0]);
        digested += 1;
        let swallowed = discard.min(output.len() as u64) as usize;
        discard -= swallowed as u64;
        kernel.send(&output[swallowed..], power)?;
        written += output.len() as u64;
        if boxed.log_room() == 0 || rng.random_ratio(1, 40) {
            power.step()?;
            boxed.export_state(&app.lws(), digested, written).unwrap();
            power.step()?;
        }
    }
    Ok(())
}

struct Session {
    boxed: ContinuationBox,
    snapshot: Snapshot,
    discard: u64,
}

/// What reinstate does: the box of the dead machine, with the dead kernel's counters, becomes a box here.
fn move_session(dead: &Pool, kernel: &Kernel) -> (std::sync::Arc<Pool>, Session) {
    let image: BoxImage = read_box(&dead.image(), &GEOMETRY, 0, kernel.copied).unwrap();
    let discard = image.discard(kernel.output.len() as u64).unwrap();
    let (_fd, pool) = Pool::memfd(GEOMETRY, 2).unwrap();
    let (local, peer) = (image.local, image.peer);
    let (base_read, base_written) = (kernel.copied, kernel.output.len() as u64);
    let BoxImage { snapshot, logged, .. } = image;
    let opening = Opening { owner: 1, local, peer, base_read, base_written, snapshot, logged };
    let slot = pool.slot(0).unwrap();
    ContinuationBox::create(slot.clone(), &opening).unwrap();
    let (boxed, snapshot) = ContinuationBox::import_state(slot, kernel.copied).unwrap();
    (pool, Session { boxed, snapshot, discard })
}

/// Moves a session whenever its machine has made `lives()` steps, and checks the client's bytes.
fn check(seed: u64, mut lives: impl FnMut(&mut StdRng) -> u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let input: Vec<u8> = (0..INPUT_BYTES).map(|_| rng.random()).collect();
    let (_fd, mut pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    let opening = Opening::fresh(1, "10.77.0.100:8080".parse().unwrap(), "10.77.0.4:1".parse().unwrap());
    let boxed = ContinuationBox::create(pool.slot(0).unwrap(), &opening).unwrap();
    let mut session = Session { boxed, snapshot: Snapshot::default(), discard: 0 };
    let mut kernel = Kernel::default();
    loop {
        let mut power = Power { steps_left: lives(&mut rng) };
        if run(&pool, &mut kernel, session, &input, &mut rng, &mut power).is_ok() {
            break;
        }
        (pool, session) = move_session(&pool, &kernel);
    }
    assert!(kernel.output == uninterrupted(&input), "seed {seed}: the client's bytes differ");
}

#[test]
fn a_session_moved_at_random_steps_yields_every_byte_once() {
    for seed in 0..200 {
        check(seed, |rng| rng.random_range(500..6000));
    }
}

#[test]
fn a_session_moved_once_at_every_single_step_yields_every_byte_once() {
    for steps in 0..3000 {
        let mut lives = [steps].into_iter();
        check(7, |_| lives.next().unwrap_or(u64::MAX));
    }
}
