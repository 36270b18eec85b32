//! What watching costs: processor time of the sampling thread, for one box of a hundred sensors and for many boxes.
//!
//! `cost [--boxes N] [--period-ms P] [--seconds S]` in a network namespace of its own (`unshare -Urn` or root): boxes
//! are served by an rdma server on the loopback device, by another thread of this process, whose cost is printed
//! beside. For one box the same is then asked of bare system calls: what a wake-up alone costs here, and what a
//! wake-up, a datagram and its answer of the same size do. The last line is JSON.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
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
use monitor::clock::{Clock, Monotonic};
use monitor::config::{self, Config, Target};
use monitor::door::{self, LinkDoor};
use monitor::evacuate::Standby;
use monitor::fleet::Fleet;
use monitor::journal::Journal;
use monitor::metrics::{Metrics, TargetMetrics};
use monitor::partner::Partner;
use monitor::repair::Ward;
use monitor::watch::{Tools, Watch};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::time::{ClockId, clock_gettime};
use rdma::responder::{Memory, Refusal};
use rdma::soft::{Hub, Options, PORT, Server, ServerHandle};
use rdma::{PathMtu, QpAttributes};
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
    let before =
        (watched.cpu(), serving.cpu(), samples(), late(), lost(), Instant::now(), lateness(&watched.registry.text()));
    thread::sleep(Duration::from_secs(arguments.seconds));
    let seconds = before.5.elapsed().as_secs_f64();
    let share = |now: Duration, then: Duration| (now - then).as_secs_f64() / seconds * 100.0;
    let taken = samples() - before.2;
    let monitor_us = (watched.cpu() - before.0).as_secs_f64() * 1e6 / taken.max(1) as f64;
    let mut result = serde_json::json!({
        "boxes": arguments.boxes,
        "sensors": arguments.sensors,
        "period_ms": arguments.period_ms,
        "seconds": seconds,
        "monitor_cpu_percent": share(watched.cpu(), before.0),
        "server_cpu_percent": share(serving.cpu(), before.1),
        "samples_per_second": taken as f64 / seconds,
        "wanted_per_second": arguments.boxes as f64 * 1e3 / arguments.period_ms,
        "us_per_sample": monitor_us,
        "late": late() - before.3,
        "lost": lost() - before.4,
        "late_us_at_most": late_distribution(&lateness(&watched.registry.text()), &before.6),
    });
    stop.store(true, Ordering::Relaxed);
    drop((watched.thread.join(), serving.thread.join(), ticking.join()));
    if arguments.boxes == 1 {
        let answer_bytes = (arguments.sensors as usize + 1) * RECORD_WORDS * 8;
        let (sleep_us, exchange_us) = (bare(&arguments, None)?, bare(&arguments, Some(answer_bytes))?);
        result["bare_sleep_us"] = sleep_us.into();
        result["bare_exchange_us"] = exchange_us.into();
        result["ratio_to_bare_exchange"] = (monitor_us / exchange_us).into();
    }
    println!("{result}");
    Ok(())
}

/// Processor time, in us, of a thread that does nothing but wake up every period and, if there is an answer of so many
/// bytes to be had, ask for it and wait: the least that sampling by these system calls costs on this machine.
fn bare(arguments: &Arguments, answer_bytes: Option<usize>) -> anyhow::Result<f64> {
    const PORT: u16 = 4790;
    let period_ns = (arguments.period_ms * 1e6) as u64;
    let ticks = (arguments.seconds * 1_000_000_000 / period_ns).max(1);
    let server = UdpSocket::bind((SERVER, PORT))?;
    let client = UdpSocket::bind(("127.0.0.1", PORT))?;
    client.connect((SERVER, PORT))?;
    let answering = thread::spawn(move || -> std::io::Result<()> {
        let mut request = [0; 64];
        loop {
            let (len, asker) = server.recv_from(&mut request)?;
            if len == 0 {
                return Ok(());
            }
            let mut left = answer_bytes.unwrap_or(0);
            while left > 0 {
                let part = left.min(PathMtu::MAX.bytes());
                server.send_to(&[7; PathMtu::MAX.bytes()][..part], asker)?;
                left -= part;
            }
        }
    });
    let asking = thread::spawn(move || -> std::io::Result<f64> {
        prctl::set_timerslack(1)?;
        let cpu = || clock_gettime(own_clock()).map(Duration::from).unwrap_or_default();
        let (mut answer, mut due_ns) = ([0; PathMtu::MAX.bytes()], Monotonic.now_ns());
        let begin = cpu();
        for _ in 0..ticks {
            due_ns += period_ns;
            Monotonic.sleep_until(due_ns);
            if let Some(bytes) = answer_bytes {
                client.send(&[1; 44])?;
                let mut got = 0;
                while got < bytes {
                    got += client.recv(&mut answer)?;
                }
            }
        }
        let spent = cpu() - begin;
        client.send(&[])?;
        Ok(spent.as_secs_f64() * 1e6 / ticks as f64)
    });
    let spent_us = asking.join().expect("no panic")?;
    answering.join().expect("no panic")?;
    Ok(spent_us)
}

/// How many samples were late by at most so many us, over all targets.
fn lateness(metrics: &str) -> BTreeMap<u64, u64> {
    let mut buckets = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("backdoors_monitor_late_seconds_bucket{le=\"")) {
        let Some((bound, rest)) = line.split_once('"') else { continue };
        let count: u64 = rest.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
        let bound_us = bound.parse::<f64>().map_or(u64::MAX, |seconds| (seconds * 1e6).round() as u64);
        *buckets.entry(bound_us).or_default() += count; // cumulative in each target, so also in the sum
    }
    buckets
}

/// By how many us samples were late at most since `before`, for shares of them in percent.
fn late_distribution(now: &BTreeMap<u64, u64>, before: &BTreeMap<u64, u64>) -> serde_json::Value {
    let counts: Vec<_> = now.iter().map(|(bound, count)| (*bound, count - before.get(bound).unwrap_or(&0))).collect();
    let all = counts.last().map_or(0, |(_, count)| *count);
    let at_most = |percent: f64| {
        counts.iter().find(|(_, count)| *count as f64 >= all as f64 * percent / 100.0).map(|(bound_us, _)| *bound_us)
    };
    serde_json::json!({ "50": at_most(50.0), "99": at_most(99.0), "99.9": at_most(99.9), "100": at_most(100.0) })
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
    registry: Metrics,
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
        Request::Connect { pair, .. } => {
            let QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight } = pair;
            let theirs = QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight };
            let QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight } =
                server.add(theirs).unwrap();
            let pair = QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight };
            Reply::Connected { pair, window: None, further: 0 }
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
         [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 10000\nraises = \"hang\"\n",
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
        prctl::set_timerslack(1).unwrap(); // as the daemon's threads
        match <[_; 1]>::try_from(watches) {
            Ok([mut watch]) => watch.run(&stop),
            Err(watches) => Fleet::new(watches, hub, Monotonic, patience).run(&stop).unwrap(),
        }
    });
    Ok(Watched { thread, clock: clock.recv()?, metrics, registry })
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
    let tools =
        Tools { door, clock: Monotonic, journal, metrics, standby, partner: Partner::None, ward: Ward::default() };
    Watch::new(config, target, tools)
}
