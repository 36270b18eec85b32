//! A front end and its worker, two processes of a guest that is stopped at random moments, go on from their boxes and
//! what the kernel had between them, both read out of the guest's RAM: the client gets every answer once. Slow.
//!
//! Their TCP end is played ([`relay`]); boxes, pipes, sockets and both kinds of memory are real. After each stop the
//! guest runs on, as if nobody had looked.
//!
//! The programs must have been built (`make test` does).

mod port;
mod ram;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use contbox::Geometry;
use contbox::channel::{ChannelEnd, Descriptors, EndImage, Plan, Wire, read_end};
use contbox::reader::parse_pool;
use contbox::shared::Pool;
use control::agent::Registration;
use introspect::Kernel;
use introspect::linux::channel::{self, Descriptor};
use introspect::linux::task;
use port::BackdoorEnd;
use ram::Ram;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relay::{Answer, Front, Outside, Worker, digest_after, outside};
use remote_memory::RemoteKey;
use testbed::guest::{self, ImageSpec, Service};
use testbed::vm::Vm;

const KEY: RemoteKey = RemoteKey::new(1);
const PAGE: u64 = 4096;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// Stops of each session, unless the variable says another number.
const STOPS: u64 = 25;
const STOPS_VARIABLE: &str = "BACKDOORS_RELAY_STOPS";

/// Answers that the client gets after each stop.
const MORE: u64 = 30;

struct Guest {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
    pool: Registration,
    geometry: Geometry,
}

impl Guest {
    fn boot(line: &str) -> Self {
        let relay = Path::new(env!("CARGO_BIN_EXE_testbed")).with_file_name("relay");
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap()).program("relay", &relay);
        let image = image.program("target-agent", &port::agent_program()).service(Service {
            name: "agent".into(),
            command: "/bin/target-agent --pool-slots 256".into(),
            ready_path: Some("/run/backdoors/box.sock".into()),
        });
        let vm = port::boot("relay", &image, 2);
        let pool = BackdoorEnd::of(&vm).registration("cb");
        let mut ram = Ram::of(&vm);
        let kernel = ram.kernel();
        let geometry = parse_pool(&region(&ram, &pool), pool.len).unwrap().geometry;
        Self { vm, ram, kernel, pool, geometry }
    }

    /// Both ends of the one session there is; the front end first.
    fn ends(&self) -> Option<[EndImage; 2]> {
        let pool = region(&self.ram, &self.pool);
        let slots = 0..self.geometry.slots;
        let mut ends: Vec<_> = slots.filter_map(|slot| read_end(&pool, &self.geometry, slot).ok()).collect();
        ends.sort_by_key(|end| end.identity.side);
        let ends: [EndImage; 2] = ends.try_into().ok()?;
        (ends[0].identity.name == ends[1].identity.name).then_some(ends)
    }

    /// What the client has.
    fn told(&self, front: &EndImage) -> (u64, Vec<Answer>) {
        let (pool, slot) = (region(&self.ram, &self.pool), Front::<Descriptors>::outside_of(&front.words));
        let cut = |at: u64, length: u32| &pool[at as usize..at as usize + length as usize];
        let log = self.geometry.place(slot, self.geometry.log_offset());
        let front = self.geometry.front(slot);
        outside::told(cut(front.start, (front.end - front.start) as u32), cut(log, self.geometry.log_bytes))
    }

    /// Waits until the session is there and has got on by some answers.
    fn until_answers(&self, more: u64) {
        let deadline = Instant::now() + BOUND;
        let told = || self.ends().map(|ends| self.told(&ends[0]).0);
        let mut from = None;
        loop {
            let now = told();
            from = from.or(now);
            if now.zip(from).is_some_and(|(now, from)| now >= from + more) {
                return;
            }
            assert!(Instant::now() < deadline, "{more} answers more than {from:?}: {now:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the kernel has for the input of each end; a pipe seen from its other end is the same.
    fn waiting(&mut self, ends: &[EndImage; 2]) -> [Vec<Vec<u8>>; 2] {
        let of = |end: &EndImage, fd: u32| Descriptor { pid: end.identity.pid, fd };
        let inputs = [0, 1].map(|side| of(&ends[side], ends[side].identity.input.fd));
        let outputs = [1, 0].map(|side| of(&ends[side], ends[side].identity.output.fd));
        let (tasks, _) = task::walk(&self.kernel, &mut self.ram, KEY).unwrap();
        let wanted = [inputs, outputs].concat();
        let (found, damage) = channel::walk(&self.kernel, &mut self.ram, KEY, &tasks, &wanted).unwrap();
        assert!(damage.len() <= 4, "{damage:?}");
        let found: Vec<_> = found.into_iter().map(|one| one.expect("an end of the channel")).collect();
        for side in 0..2 {
            assert_eq!(found[side].inode, ends[side].identity.input.inode, "another file than the box says");
            let by_output = &found[2 + side];
            assert!(by_output.inode != found[side].inode || by_output.chunks == found[side].chunks);
        }
        [0, 1].map(|side| found[side].chunks.clone())
    }
}

fn region(ram: &Ram, region: &Registration) -> Vec<u8> {
    let mut bytes = vec![0; region.len as usize];
    for (page, into) in region.pages.iter().zip(bytes.chunks_mut(PAGE as usize)) {
        ram.0.read_exact_at(into, page * PAGE).unwrap();
    }
    bytes
}

/// How often the rules were needed.
#[derive(Debug, Default)]
struct Needed {
    stops: u64,
    behind: u64,
    ahead: u64,
    held: u64,
    in_kernel: u64,
}

/// Both processes go on here, until the client has `answers`; returns what it has then.
fn go_on(
    ends: &[EndImage; 2],
    plans: &[Plan; 2],
    (is_socket, stamps, told): (bool, Option<u64>, u64),
    answers: u64,
) -> Vec<Answer> {
    let (_fd, pool) = Pool::memfd(Geometry::standard(3), 1).unwrap();
    let mut wires = if is_socket { Descriptors::sockets().unwrap() } else { Descriptors::pipes().unwrap() };
    for side in 0..2 {
        let (_, frames) = plans[side].split(pool.geometry().log_bytes, ends[side].identity.input());
        frames.iter().for_each(|frame| wires[side ^ 1].send(frame).unwrap());
    }
    let [here, there] = wires;
    let end = |side: usize, wire| {
        let discard = plans[side ^ 1].discard_from_writer;
        ChannelEnd::resume(pool.slot(side as u32).unwrap(), 1, wire, &ends[side], &plans[side], discard).unwrap()
    };
    let client = Outside::after(pool.slot(2).unwrap(), told);
    let mut front = Front::new(end(0, here), &ends[0].words, client);
    let mut worker = Worker::new(end(1, there), &ends[1].words, stamps).unwrap();
    // It ends in an error if it was writing when the front end left.
    let worker = thread::spawn(move || drop(worker.serve()));
    front.serve(answers).unwrap();
    let told = Outside::at(pool.slot(2).unwrap()).told().1;
    drop(front);
    worker.join().unwrap();
    told
}

fn take_over(guest: &mut Guest, is_socket: bool, stamps: Option<u64>, needed: &mut Needed) {
    let ends = guest.ends().expect("both ends have whole boxes");
    let (told, before) = guest.told(&ends[0]);
    let chunks = guest.waiting(&ends);
    let plan = |reader: usize| Plan::of(&ends[reader], &ends[reader ^ 1], &chunks[reader]);
    let plans = [plan(0), plan(1)].map(|plan| plan.unwrap_or_else(|loss| panic!("{loss}: {ends:?} {chunks:?}")));
    let after = go_on(&ends, &plans, (is_socket, stamps, told), told + MORE);
    // What the client had, and what it got then, are the answers to its requests, one after the other.
    let after = &after[after.len() - MORE as usize..];
    let all: Vec<Answer> = before.iter().chain(after).copied().collect();
    let first = told + MORE - all.len() as u64;
    let mut sum = digest_after(first);
    for (number, answer) in (first..).zip(&all) {
        sum = relay::digest(sum, &relay::body(number));
        assert_eq!((answer.number, answer.sum), (number, sum), "of {told} answers before the stop");
        assert_eq!(answer.stamp == 0, stamps.is_none());
    }
    needed.stops += 1;
    needed.behind += plans.iter().filter(|plan| !plan.give_reader.is_empty()).count() as u64;
    needed.ahead += plans.iter().filter(|plan| plan.discard_from_writer > 0).count() as u64;
    needed.held += ends.iter().filter(|end| !end.pending.is_empty()).count() as u64;
    needed.in_kernel += chunks.iter().filter(|chunks| !chunks.is_empty()).count() as u64;
}

fn check(guest: &mut Guest, is_socket: bool, with_stamps: bool, needed: &mut Needed) {
    let kind = if is_socket { "socket" } else { "pipes" };
    let stamps = if with_stamps { "--stamps" } else { "" };
    guest.vm.run_within(&format!("relay --kind {kind} {stamps} >/tmp/relay.log 2>&1 &"), BOUND).unwrap();
    let stops = std::env::var(STOPS_VARIABLE).map_or(STOPS, |text| text.parse().expect("a number of stops"));
    for seed in 0..stops {
        let mut random = StdRng::seed_from_u64(seed << 2 | u64::from(is_socket) << 1 | u64::from(with_stamps));
        guest.until_answers(random.random_range(1..6));
        thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        guest.vm.qmp().stop().unwrap();
        take_over(guest, is_socket, with_stamps.then_some(seed << 32 | 1), needed);
        guest.vm.qmp().cont().unwrap();
    }
    guest.vm.run_within("killall relay", BOUND).unwrap();
    let deadline = Instant::now() + BOUND;
    while guest.ends().is_some() {
        assert!(Instant::now() < deadline, "the agent does not take the boxes back");
        thread::sleep(Duration::from_millis(20));
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn a_session_of_two_processes_goes_on_with_every_byte_once() {
    for line in guest::Kernel::lines().unwrap() {
        let (mut guest, mut needed) = (Guest::boot(&line), Needed::default());
        for (is_socket, with_stamps) in [(false, false), (true, false), (false, true), (true, true)] {
            check(&mut guest, is_socket, with_stamps, &mut needed);
        }
        println!("Linux {line}: {needed:?}");
        assert!(needed.behind > 0 && needed.in_kernel > 0, "{needed:?}: nothing was ever between the processes");
    }
}
