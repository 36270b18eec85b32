//! What watching costs: processor time of the sampling thread, for one box of a hundred sensors and for many boxes.
//!
//! `cost [--boxes N] [--period-ms P] [--seconds S]` in a network namespace of its own (`unshare -Urn` or root): boxes
//! are served by an rdma server on the loopback device, by another thread of this process, whose cost is printed
//! beside. The last line is JSON.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use control::backdoor::{QueuePair, RegionEntry, Reply, Request};
use control::reinstate::Assignment;
use control::{Channel, VERSION};
use monitor::clock::Monotonic;
use monitor::config::{self, Config, Target};
use monitor::door::{self, LinkDoor};
use monitor::evacuate::Standby;
use monitor::fleet::Fleet;
use monitor::journal::Journal;
use monitor::metrics::{Metrics, TargetMetrics};
use monitor::partner::Partner;
use monitor::watch::{Tools, Watch};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use rdma::QpAttributes;
use rdma::responder::{Memory, Refusal};
use rdma::soft::{Hub, Options, PORT, Server, ServerHandle};
use remote_memory::{RemoteKey, Rights};
use sensorbox::layout::RECORD_WORDS;
use sensorbox::{Class, Description, Name, Producer};

const KEY: u32 = 77;
const CAPACITY: usize = 127;
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

#[derive(Parser)]
struct Arguments {
    /// Boxes that one thread watches.
    #[arg(long, default_value_t = 1)]
    boxes: usize,
    /// Sensors of each that are watched.
    #[arg(long, default_value_t = 100)]
    sensors: u32,
    /// Time from one sample to the next.
    #[arg(long, default_value_t = 10.0)]
    period_ms: f64,
    /// How long is measured.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

struct Boxes(Arc<Vec<AtomicU64>>);

impl Memory for Boxes {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let inside = addr.checked_add(len).is_some_and(|end| end <= (self.0.len() * 8) as u64);
        if key.raw() == KEY && inside && Rights::READ.covers(rights) { Ok(()) } else { Err(Refusal::Access) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        for (word, bytes) in self.0[addr as usize / 8..].iter().zip(into.chunks_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    unshare(CloneFlags::CLONE_NEWNET)?;
    anyhow::ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "no loopback");
    let words = new_box(arguments.sensors);
    let stop = Arc::new(AtomicBool::new(false));
    let serving = serve(Arc::clone(&words), &stop)?;
    let ticking = tick(words, &stop);
    let config = configured(&arguments, &serving.handle)?;
    let watched = watch(&config, &stop)?;

    let samples = || watched.metrics.iter().map(|one| one.samples.get()).sum::<u64>();
    let begin = Instant::now();
    while watched.metrics.iter().any(|one| one.samples.get() == 0) {
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "not every box was opened");
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(1));
    let late = || watched.metrics.iter().map(|one| one.late_samples.get()).sum::<u64>();
    let lost = || watched.metrics.iter().map(|one| one.lost_samples.get()).sum::<u64>();
    let before = (watched.cpu(), serving.cpu(), samples(), late(), lost(), Instant::now());
    thread::sleep(Duration::from_secs(arguments.seconds));
    let seconds = before.5.elapsed().as_secs_f64();
    let share = |now: Duration, then: Duration| (now - then).as_secs_f64() / seconds * 100.0;
    let taken = samples() - before.2;
    let result = serde_json::json!({
        "boxes": arguments.boxes,
        "sensors": arguments.sensors,
        "period_ms": arguments.period_ms,
        "seconds": seconds,
        "monitor_cpu_percent": share(watched.cpu(), before.0),
        "server_cpu_percent": share(serving.cpu(), before.1),
        "samples_per_second": taken as f64 / seconds,
        "wanted_per_second": arguments.boxes as f64 * 1e3 / arguments.period_ms,
        "us_per_sample": (watched.cpu() - before.0).as_secs_f64() * 1e6 / taken.max(1) as f64,
        "late": late() - before.3,
        "lost": lost() - before.4,
    });
    stop.store(true, Ordering::Relaxed);
    drop((watched.thread.join(), serving.thread.join(), ticking.join()));
    println!("{result}");
    Ok(())
}

/// A thread whose processor time can be asked for.
struct Worker {
    thread: thread::JoinHandle<()>,
    clock: ClockId,
    handle: ServerHandle,
}

impl Worker {
    fn cpu(&self) -> Duration {
        clock_gettime(self.clock).map(Duration::from).unwrap_or_default()
    }
}

struct Watched {
    thread: thread::JoinHandle<()>,
    clock: ClockId,
    metrics: Vec<TargetMetrics>,
}

impl Watched {
    fn cpu(&self) -> Duration {
        clock_gettime(self.clock).map(Duration::from).unwrap_or_default()
    }
}

/// The clock of the calling thread, for others: CPUCLOCK_SCHED of a thread id, as pthread_getcpuclockid makes it.
fn own_clock() -> ClockId {
    let tid = nix::unistd::gettid().as_raw();
    ClockId::from_raw((!tid << 3) | 6)
}

fn new_box(sensors: u32) -> Arc<Vec<AtomicU64>> {
    let words: Vec<_> = (0..(CAPACITY + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
    let producer = Producer::create(&words, [3; 16]).unwrap();
    for cpu in 0..sensors {
        let (name, class) = (Name::new("tick").unwrap(), Class::Progress);
        let description = Description { name, class, cpu: Some(cpu), limit: 1, period_ns: 1 << 40, floor: false };
        producer.new_sensor_at(1 + cpu, &description).unwrap().set_sensor_value(1);
    }
    Arc::new(words)
}

fn tick(words: Arc<Vec<AtomicU64>>, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            for record in (1..=CAPACITY).filter(|record| words[record * RECORD_WORDS].load(Ordering::Relaxed) != 0) {
                words[record * RECORD_WORDS + 2].fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(5));
        }
    })
}

fn serve(words: Arc<Vec<AtomicU64>>, stop: &Arc<AtomicBool>) -> anyhow::Result<Worker> {
    let spin = Duration::ZERO;
    let mut server = Server::bind(SERVER, PORT, Boxes(words), Options { spin, ..Options::default() })?;
    let (handle, stop) = (server.handle(), Arc::clone(stop));
    let (say, clock) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        say.send(own_clock()).unwrap();
        server.run(&stop).unwrap();
    });
    Ok(Worker { thread, clock: clock.recv()?, handle })
}

/// A control plane for any number of targets: the port tells which.
fn control_plane(name: String, server: ServerHandle) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(move || {
            let mut channel = Channel::new(listener.accept().unwrap().0);
            while let Ok(request) = channel.receive::<Request>() {
                channel.send(&answer(request, &name, &server)).unwrap();
            }
        })
        .unwrap();
    address
}

fn answer(request: Request, name: &str, server: &ServerHandle) -> Reply {
    match request {
        Request::Hello(_) => Reply::Welcome { version: VERSION, target: name.into(), incarnation: 1, fenced: false },
        Request::Connect(pair) => {
            let QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight } = pair;
            let theirs = QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight };
            let QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight } =
                server.add(theirs).unwrap();
            Reply::Connected(QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight })
        }
        Request::Regions { .. } => {
            let len = ((CAPACITY + 1) * RECORD_WORDS * 8) as u64;
            let rights = Rights::READ.bits();
            let sb = RegionEntry { name: "sb".into(), key: KEY, base: 0, len, rights, extents: Vec::new() };
            Reply::Regions { epoch: 0, regions: vec![sb] }
        }
        other => Reply::Refused { why: format!("{other:?} plays no part here") },
    }
}

fn configured(arguments: &Arguments, server: &ServerHandle) -> anyhow::Result<Config> {
    let mut text = format!(
        "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = \"/dev/null\"\n\
         [sampling]\nperiod_ms = {}\npath_deadline_ms = 2000\n\
         [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 60000\nraises = \"hang\"\n",
        arguments.period_ms
    );
    for number in 0..arguments.boxes {
        let name = format!("box-{number}");
        let backdoor = control_plane(name.clone(), server.clone());
        text += &format!("[[target]]\nname = \"{name}\"\nbackdoor = \"{backdoor}\"\non_hang = \"report\"\n");
    }
    Ok(config::parse(Path::new("cost.toml"), &text)?)
}

fn watch(config: &Config, stop: &Arc<AtomicBool>) -> anyhow::Result<Watched> {
    let hub = Hub::open(config.local, PORT, &Options::default())?;
    let (journal, _) = Journal::open(&config.journal)?;
    let registry = Metrics::default();
    let metrics: Vec<_> = config.targets.iter().map(|target| registry.of(&target.name)).collect();
    let watches = config.targets.iter().zip(&metrics);
    let watches: Vec<_> =
        watches.map(|(target, metrics)| one(config, target, metrics.clone(), journal.clone(), &hub)).collect();
    let (stop, patience) = (Arc::clone(stop), door::read_patience(config));
    let (say, clock) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        say.send(own_clock()).unwrap();
        match <[_; 1]>::try_from(watches) {
            Ok([mut watch]) => watch.run(&stop),
            Err(watches) => Fleet::new(watches, hub, Monotonic, patience).run(&stop).unwrap(),
        }
    });
    Ok(Watched { thread, clock: clock.recv()?, metrics })
}

fn one(
    config: &Config,
    target: &Target,
    metrics: TargetMetrics,
    journal: Journal,
    hub: &Hub,
) -> Watch<LinkDoor, Monotonic> {
    let door = LinkDoor::new(config, target);
    let door = if config.targets.len() > 1 { door.at(hub) } else { door };
    let assignment = Assignment { target: target.name.clone(), backdoor: target.backdoor, services: Vec::new() };
    let standby = Arc::new(Standby::new("m", assignment, &[], Duration::from_secs(1)));
    let tools = Tools { door, clock: Monotonic, journal, metrics, standby, partner: Partner::None };
    Watch::new(config, target, tools)
}
