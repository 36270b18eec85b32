//! The monitor's own process parts over the real path: a link to a backdoor's control plane, RoCEv2 packets on the
//! loopback device, the machine's clock. The target is memory whose counters a thread advances until it stops.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::backdoor::{FenceToken, QueuePair, RegionEntry, Reply, Request, Stats};
use control::reinstate::{self, Assignment, Report};
use control::{Channel, VERSION};
use monitor::clock::{Clock, Monotonic};
use monitor::config;
use monitor::door::LinkDoor;
use monitor::evacuate::Standby;
use monitor::fleet::Fleet;
use monitor::journal::{Event, Journal, Line, replay};
use monitor::metrics::{Metrics, TargetMetrics};
use monitor::partner::Partner;
use monitor::repair::Ward;
use monitor::watch::{Standing, Tools, Watch};
use nix::sched::{CloneFlags, unshare};
use rdma::QpAttributes;
use rdma::responder::{Memory, Refusal};
use rdma::soft::{Hub, Options, Server, ServerHandle};
use remote_memory::{RemoteKey, Rights};
use sensorbox::layout::RECORD_WORDS;
use sensorbox::{Class, Description, Name, Producer};

/// The key of the box.
const KEY: u32 = 77;

/// Records of the box: as many as the agent makes.
const CAPACITY: usize = 255;

/// A bound for waiting that only a broken build reaches.
const GENEROUS: Duration = Duration::from_secs(60);

#[path = "live/daemon.rs"]
mod daemon;
#[path = "live/unknown.rs"]
mod unknown;

type Words = Arc<Vec<AtomicU64>>;

struct Boxes(Words);

impl Memory for Boxes {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let inside = addr.checked_add(len).is_some_and(|end| end <= (self.0.len() * 8) as u64);
        if key.raw() == KEY && inside && Rights::READ.covers(rights) { Ok(()) } else { Err(Refusal::Access) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        for (at, byte) in into.iter_mut().enumerate() {
            let place = addr as usize + at;
            *byte = self.0[place / 8].load(Ordering::Relaxed).to_le_bytes()[place % 8];
        }
        Ok(())
    }
}

fn new_box(cpus: u32) -> Words {
    let words: Vec<_> = (0..(CAPACITY + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
    let producer = Producer::create(&words, [3; 16]).unwrap();
    for cpu in 0..cpus {
        for (first, name) in [(1, "tick"), (65, "switches"), (129, "interrupts")] {
            let name = Name::new(name).unwrap();
            let period_ns = 10_000_000_000;
            let description =
                Description { name, class: Class::Progress, cpu: Some(cpu), limit: 1, period_ns, floor: false };
            producer.new_sensor_at(first + cpu, &description).unwrap().set_sensor_value(1);
        }
    }
    Arc::new(words)
}

/// Advances every counter each millisecond until told to stop; returns when it last did.
fn ticking(words: Words, hang: Arc<AtomicBool>) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut last_ns = 0;
        while !hang.load(Ordering::Relaxed) {
            for record in (1..=CAPACITY).filter(|record| words[record * RECORD_WORDS].load(Ordering::Relaxed) != 0) {
                words[record * RECORD_WORDS + 2].fetch_add(1, Ordering::Relaxed);
            }
            last_ns = Monotonic.now_ns();
            std::thread::sleep(Duration::from_millis(1));
        }
        last_ns
    })
}

/// A control plane that knows one region and fences by taking note.
fn control_plane(server: ServerHandle, fences: Arc<Mutex<Vec<u64>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut channel, server, fences) = (Channel::new(stream.unwrap()), server.clone(), Arc::clone(&fences));
            std::thread::spawn(move || {
                while let Ok(request) = channel.receive::<Request>() {
                    channel.send(&answer(request, &server, &fences)).unwrap();
                }
            });
        }
    });
    address
}

fn answer(request: Request, server: &ServerHandle, fences: &Mutex<Vec<u64>>) -> Reply {
    match request {
        Request::Hello(_) => Reply::Welcome { version: VERSION, target: "web".into(), incarnation: 1, fenced: false },
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
        Request::Fence { .. } => {
            fences.lock().unwrap().push(Monotonic.now_ns());
            Reply::Fenced { token: FenceToken { target: "web".into(), epoch: 1, ram_key: 5, secret: 9 }, took_us: 10 }
        }
        Request::Stats => Reply::Stats(Stats::default()),
        other => Reply::Refused { why: format!("{other:?} plays no part here") },
    }
}

/// A spare that serves one monitor after the other, each until it hangs up.
fn spare() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut channel = Channel::new(stream.unwrap());
            while let Ok(request) = channel.receive::<reinstate::Request>() {
                let reply = match request {
                    reinstate::Request::Hello(_) => reinstate::Reply::Welcome { version: VERSION },
                    reinstate::Request::Prepare(_) => reinstate::Reply::Ready { kernel: "6.1".into() },
                    reinstate::Request::Evacuate(_) => reinstate::Reply::Evacuated(Report::default()),
                    reinstate::Request::Withdraw(_) => reinstate::Reply::Withdrawn,
                    reinstate::Request::GiveBack(_) => reinstate::Reply::GivenBack { aborted: 0 },
                    reinstate::Request::Sessions { .. } => reinstate::Reply::Draining { recovered: 0, others: 0 },
                };
                if channel.send(&reply).is_err() {
                    break;
                }
            }
        }
    });
    address
}

/// Marks the process that was started inside a user namespace.
const INSIDE: &str = "MONITOR_TEST_INSIDE_NAMESPACE";

/// Gives this thread, and those it starts, a network of its own with the loopback up. Without the right to, runs the
/// test called `test` again inside an unprivileged user namespace and says `false`: it has been run.
fn private_network(test: &str) -> bool {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip(8) runs");
            assert!(up.success(), "no loopback");
            true
        }
        Err(error) if std::env::var_os(INSIDE).is_some() => panic!("no network namespace even as root of one: {error}"),
        Err(_) => {
            let mut again = Command::new("unshare");
            again.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
            let status =
                again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status().expect("unshare(1) runs");
            assert!(status.success(), "{test} failed inside an unprivileged namespace");
            false
        }
    }
}

/// A journal's file, gone when the test is.
struct JournalFile(PathBuf);

impl Drop for JournalFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A monitor and a target on one loopback device.
struct Live {
    hang: Arc<AtomicBool>,
    ticker: JoinHandle<u64>,
    stop: Arc<AtomicBool>,
    serving: JoinHandle<Server<Boxes>>,
    fences: Arc<Mutex<Vec<u64>>>,
    watch: Watch<LinkDoor, Monotonic>,
    metrics: TargetMetrics,
    file: JournalFile,
    writer: JoinHandle<()>,
}

fn serve(mut server: Server<Boxes>, stop: &Arc<AtomicBool>) -> JoinHandle<Server<Boxes>> {
    stop.store(false, Ordering::Relaxed);
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        server.run(&stop).unwrap();
        server
    })
}

impl Live {
    fn begin(test: &str) -> Option<Self> {
        if !private_network(test) {
            return None;
        }
        let words = new_box(2);
        let hang = Arc::new(AtomicBool::new(false));
        let ticker = ticking(Arc::clone(&words), Arc::clone(&hang));
        let stop = Arc::new(AtomicBool::new(false));
        let at = Ipv4Addr::new(127, 0, 0, 77);
        let server = Server::bind(at, rdma::soft::PORT, Boxes(words), Options::default()).unwrap();
        let fences = Arc::default();
        let backdoor = control_plane(server.handle(), Arc::clone(&fences));
        let serving = serve(server, &stop);
        let text = format!(
            "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = \"unused\"\n\
             [sampling]\nperiod_ms = 5\npath_deadline_ms = 300\n\
             [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 200\nraises = \"hang\"\n\
             [[target]]\nname = \"web\"\nbackdoor = \"{backdoor}\"\non_hang = \"evacuate\"\n\
             spare = [{{ name = \"a\", control = \"{}\" }}]\n\
             service = [{{ address = \"10.77.0.100\", ports = [8080] }}]\n",
            spare()
        );
        let config = config::parse(Path::new("test.toml"), &text).unwrap();
        let target = &config.targets[0];
        let file = std::env::temp_dir().join(format!("{test}-{}.jsonl", std::process::id()));
        let (journal, writer) = Journal::open(&file).unwrap();
        let metrics = Metrics::default().of("web");
        let (backdoor, services) = (target.backdoor, target.services.clone());
        let assignment = Assignment { target: "web".into(), backdoor, services };
        let standby = Arc::new(Standby::new("m", assignment, &target.spares, target.evacuation_patience));
        standby.prepare();
        let door = LinkDoor::new(&config, target);
        let partner = Partner::None;
        let tools = Tools {
            door,
            clock: Monotonic,
            journal,
            metrics: metrics.clone(),
            standby,
            partner,
            ward: Ward::default(),
        };
        let watch = Watch::new(&config, target, tools);
        Some(Self { hang, ticker, stop, serving, fences, watch, metrics, file: JournalFile(file), writer })
    }

    fn step_until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_done(self) {
            self.watch.step();
            assert!(begin.elapsed() < GENEROUS, "{what} does not come");
        }
    }

    /// Ends everything; returns the journal, the times of the fences and of the last tick.
    fn end(self) -> (Vec<Line>, Vec<u64>, u64) {
        self.hang.store(true, Ordering::Relaxed);
        let last_tick_ns = self.ticker.join().unwrap();
        drop(self.watch);
        self.writer.join().unwrap();
        self.stop.store(true, Ordering::Relaxed);
        drop(self.serving.join().unwrap());
        let lines = replay::lines(std::io::BufReader::new(std::fs::File::open(&self.file.0).unwrap())).unwrap();
        let fences = self.fences.lock().unwrap().clone();
        (lines, fences, last_tick_ns)
    }
}

#[test]
fn a_hang_is_seen_over_the_wire_and_evacuated() {
    let Some(mut live) = Live::begin("a_hang_is_seen_over_the_wire_and_evacuated") else { return };
    live.step_until("a hundred samples", |live| live.metrics.samples.get() >= 100);
    assert_eq!(*live.watch.standing(), Standing::Watching);
    live.hang.store(true, Ordering::Relaxed);
    live.step_until("the verdict", |live| *live.watch.standing() != Standing::Watching);
    assert!(matches!(live.watch.standing(), Standing::Evacuated { .. }));
    let (lines, fences, last_tick_ns) = live.end();
    assert!(replay::replay(&lines).iter().all(replay::Redrawn::agrees));
    let when = |is: fn(&Event) -> bool| lines.iter().find(|line| is(&line.event)).unwrap().mono_ns;
    let last_sign = when(|event| matches!(event, Event::LastSign { .. }));
    let verdict = when(|event| matches!(event, Event::Verdict { .. }));
    let ordered = when(|event| matches!(event, Event::Ordered { .. }));
    assert!(last_sign <= last_tick_ns, "the last sign is a lower bound");
    assert!(verdict - last_tick_ns >= 200_000_000, "the deadline was not waited for");
    assert!(verdict <= fences[0] && fences[0] <= ordered, "verdict, fence, order");
    let after = |at_ns: u64| (at_ns - last_tick_ns) as f64 / 1e6;
    let (verdict, fence, order) = (after(verdict), after(fences[0]), after(ordered));
    println!("last tick to verdict {verdict:.3} ms, to fence {fence:.3} ms, to order {order:.3} ms");
}

#[test]
fn a_server_of_memory_that_falls_silent_is_a_lost_path_and_no_hang() {
    let Some(mut live) = Live::begin("a_server_of_memory_that_falls_silent_is_a_lost_path_and_no_hang") else { return };
    live.step_until("a hundred samples", |live| live.metrics.samples.get() >= 100);
    live.stop.store(true, Ordering::Relaxed);
    let server = live.serving.join().unwrap();
    // Nobody serves, and the control plane still answers.
    live.serving = std::thread::spawn(move || server);
    live.step_until("the lost path", |live| live.metrics.path_lost.get() == 1);
    let server = live.serving.join().unwrap();
    live.serving = serve(server, &live.stop);
    live.step_until("the path", |live| live.metrics.path_lost.get() == 0);
    let seen = live.metrics.samples.get();
    live.step_until("a hundred more samples", |live| live.metrics.samples.get() >= seen + 100);
    assert_eq!(*live.watch.standing(), Standing::Watching);
    let (lines, fences, _) = live.end();
    assert!(fences.is_empty(), "{fences:?}");
    let has = |is: fn(&Event) -> bool| lines.iter().any(|line| is(&line.event));
    assert!(
        has(|event| matches!(event, Event::PathLost { .. })) && has(|event| matches!(event, Event::PathBack { .. }))
    );
    assert!(!has(|event| matches!(event, Event::Verdict { .. })));
}

/// Many targets behind one server, watched by one thread; each of them has a box of its own.
struct Crowd {
    hangs: Vec<Arc<AtomicBool>>,
    metrics: Vec<TargetMetrics>,
    fences: Vec<Arc<Mutex<Vec<u64>>>>,
}

#[test]
fn many_targets_on_one_thread_are_sampled_and_one_that_hangs_is_healed_beside_the_others() {
    const COUNT: usize = 12;
    let test = "many_targets_on_one_thread_are_sampled_and_one_that_hangs_is_healed_beside_the_others";
    if !private_network(test) {
        return;
    }
    let mut crowd = Crowd { hangs: Vec::new(), metrics: Vec::new(), fences: Vec::new() };
    let stop = Arc::new(AtomicBool::new(false));
    let (mut servers, mut tickers) = (Vec::new(), Vec::new());
    let mut text = "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = \"/dev/null\"\n\
                    [sampling]\nperiod_ms = 5\npath_deadline_ms = 400\n\
                    [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 300\nraises = \"hang\"\n"
        .to_owned();
    for number in 0..COUNT {
        let words = new_box(2);
        let hang = Arc::new(AtomicBool::new(false));
        tickers.push(ticking(Arc::clone(&words), Arc::clone(&hang)));
        let at = Ipv4Addr::new(127, 0, 1, number as u8 + 1);
        let server = Server::bind(at, rdma::soft::PORT, Boxes(words), Options::default()).unwrap();
        let fences = Arc::default();
        let backdoor = control_plane(server.handle(), Arc::clone(&fences));
        servers.push(serve(server, &stop));
        text += &format!(
            "[[target]]\nname = \"web{number}\"\nbackdoor = \"{backdoor}\"\non_hang = \"evacuate\"\n\
             spare = [{{ name = \"a\", control = \"{}\" }}]\n\
             service = [{{ address = \"10.77.0.100\", ports = [8080] }}]\n",
            spare()
        );
        crowd.hangs.push(hang);
        crowd.fences.push(fences);
    }
    let config = config::parse(Path::new("test.toml"), &text).unwrap();
    let hub = Hub::open(config.local, rdma::soft::PORT, &Options::default()).unwrap();
    let (journal, _) = Journal::open(&config.journal).unwrap();
    let registry = Metrics::default();
    let mut watches = Vec::new();
    for target in &config.targets {
        let metrics = registry.of(&target.name);
        crowd.metrics.push(metrics.clone());
        let (backdoor, services) = (target.backdoor, target.services.clone());
        // The control plane of these tests calls every target "web".
        let assignment = Assignment { target: "web".into(), backdoor, services };
        let standby = Arc::new(Standby::new("m", assignment, &target.spares, target.evacuation_patience));
        let named = config::Target { name: "web".into(), ..target.clone() };
        let door = LinkDoor::new(&config, &named).at(&hub);
        let (journal, partner) = (journal.clone(), Partner::None);
        watches.push(Watch::new(
            &config,
            target,
            Tools { door, clock: Monotonic, journal, metrics, standby, partner, ward: Ward::default() },
        ));
    }
    let watching = Arc::clone(&stop);
    let patience = monitor::door::read_patience(&config);
    let fleet = std::thread::spawn(move || Fleet::new(watches, hub, Monotonic, patience).run(&watching).unwrap());
    let until = |what: &str, is_done: &dyn Fn(&Crowd) -> bool| {
        let begin = Instant::now();
        while !is_done(&crowd) {
            assert!(begin.elapsed() < GENEROUS, "{what} does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until("a hundred samples of each", &|crowd| crowd.metrics.iter().all(|one| one.samples.get() >= 100));
    crowd.hangs[3].store(true, Ordering::Relaxed);
    until("the evacuation", &|crowd| crowd.metrics[3].evacuations.get() == 1);
    let seen: Vec<_> = crowd.metrics.iter().map(|one| one.samples.get()).collect();
    until("a hundred more samples of the others", &|crowd| {
        (0..COUNT).filter(|one| *one != 3).all(|one| crowd.metrics[one].samples.get() >= seen[one] + 100)
    });
    for (number, fences) in crowd.fences.iter().enumerate() {
        assert_eq!(fences.lock().unwrap().len(), usize::from(number == 3), "fences of {number}");
    }
    stop.store(true, Ordering::Relaxed);
    fleet.join().unwrap();
    crowd.hangs.iter().for_each(|hang| hang.store(true, Ordering::Relaxed));
    for ticker in tickers {
        ticker.join().unwrap();
    }
    servers.into_iter().for_each(|server| drop(server.join().unwrap()));
}
