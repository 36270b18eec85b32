//! The monitor's own process parts over the real path: a link to a backdoor's control plane, RoCEv2 packets on the
//! loopback device, the machine's clock. The target is memory whose counters a thread advances until it stops.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, exit};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::backdoor::{FenceToken, QueuePair, RegionEntry, Reply, Request};
use control::reinstate::{self, Assignment, Report};
use control::{Channel, VERSION};
use monitor::clock::{Clock, Monotonic};
use monitor::config;
use monitor::door::LinkDoor;
use monitor::evacuate::Standby;
use monitor::journal::{Event, Journal, replay};
use monitor::metrics::Metrics;
use monitor::watch::{Standing, Tools, Watch};
use nix::sched::{CloneFlags, unshare};
use rdma::QpAttributes;
use rdma::responder::{Memory, Refusal};
use rdma::soft::{Options, Server, ServerHandle};
use remote_memory::{RemoteKey, Rights};
use sensorbox::layout::RECORD_WORDS;
use sensorbox::{Class, Description, Name, Producer};

/// The key of the box.
const KEY: u32 = 77;

/// Records of the box: as many as the agent makes.
const CAPACITY: usize = 255;

/// A bound for waiting that only a broken build reaches.
const GENEROUS: Duration = Duration::from_secs(60);

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

    fn write(&self, _: RemoteKey, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::Access)
    }

    fn compare_swap(&self, _: RemoteKey, _: u64, _: u64, _: u64) -> Result<u64, Refusal> {
        Err(Refusal::Access)
    }

    fn fetch_add(&self, _: RemoteKey, _: u64, _: u64) -> Result<u64, Refusal> {
        Err(Refusal::Access)
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
        Request::Fence { .. } => {
            fences.lock().unwrap().push(Monotonic.now_ns());
            Reply::Fenced { token: FenceToken { target: "web".into(), epoch: 1, ram_key: 5, secret: 9 }, took_us: 10 }
        }
        other => Reply::Refused { why: format!("{other:?} plays no part here") },
    }
}

fn spare() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut channel = Channel::new(listener.accept().unwrap().0);
        while let Ok(request) = channel.receive::<reinstate::Request>() {
            let reply = match request {
                reinstate::Request::Hello(_) => reinstate::Reply::Welcome { version: VERSION },
                reinstate::Request::Prepare(_) => reinstate::Reply::Ready { kernel: "6.1".into() },
                reinstate::Request::Evacuate(_) => reinstate::Reply::Evacuated(Report::default()),
            };
            channel.send(&reply).unwrap();
        }
    });
    address
}

/// Marks the process that was started inside a user namespace.
const INSIDE: &str = "MONITOR_TEST_INSIDE_NAMESPACE";

/// Gives this thread, and those it starts, a network of its own with the loopback up. Without the right to, runs the
/// test called `test` again inside an unprivileged user namespace and ends this process as that one ended.
fn private_network(test: &str) {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip(8) runs");
            assert!(up.success(), "no loopback");
        }
        Err(error) if std::env::var_os(INSIDE).is_some() => panic!("no network namespace even as root of one: {error}"),
        Err(_) => {
            let mut again = Command::new("unshare");
            again.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
            let status =
                again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status().expect("unshare(1) runs");
            exit(i32::from(!status.success()));
        }
    }
}

#[test]
fn a_hang_is_seen_over_the_wire_and_evacuated() {
    private_network("a_hang_is_seen_over_the_wire_and_evacuated");
    let words = new_box(2);
    let hang = Arc::new(AtomicBool::new(false));
    let ticker = ticking(Arc::clone(&words), Arc::clone(&hang));
    let stop = Arc::new(AtomicBool::new(false));
    let at = Ipv4Addr::new(127, 0, 0, 77);
    let mut server = Server::bind(at, rdma::soft::PORT, Boxes(words), Options::default()).unwrap();
    let fences = Arc::default();
    let backdoor = control_plane(server.handle(), Arc::clone(&fences));
    let serving = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || server.run(&stop).unwrap()
    });

    let text = format!(
        "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = \"unused\"\n\
         [sampling]\nperiod_ms = 5\n\
         [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 200\nraises = \"hang\"\n\
         [[target]]\nname = \"web\"\nbackdoor = \"{backdoor}\"\non_hang = \"evacuate\"\n\
         spare = [{{ name = \"a\", control = \"{}\" }}]\n\
         service = [{{ address = \"10.77.0.100\", ports = [8080] }}]\n",
        spare()
    );
    let config = config::parse(Path::new("test.toml"), &text).unwrap();
    let target = &config.targets[0];
    let file = std::env::temp_dir().join(format!("monitor-live-{}.jsonl", std::process::id()));
    let (journal, writer) = Journal::open(&file).unwrap();
    let metrics = Metrics::default().of("web");
    let assignment = Assignment { target: "web".into(), backdoor: target.backdoor, services: target.services.clone() };
    let standby = Arc::new(Standby::new("m", assignment, &target.spares, target.evacuation_patience));
    standby.prepare();
    let door = LinkDoor::new(&config, target);
    let tools = Tools { door, clock: Monotonic, journal, metrics: metrics.clone(), standby };
    let mut watch = Watch::new(&config, target, tools);

    let begin = Instant::now();
    while metrics.samples.get() < 100 {
        watch.step();
        assert!(begin.elapsed() < GENEROUS, "no samples");
    }
    assert_eq!(*watch.standing(), Standing::Watching);
    hang.store(true, Ordering::Relaxed);
    let last_tick_ns = ticker.join().unwrap();
    let begin = Instant::now();
    while *watch.standing() == Standing::Watching {
        watch.step();
        assert!(begin.elapsed() < GENEROUS, "no verdict");
    }
    assert_eq!(*watch.standing(), Standing::Evacuated);
    drop(watch);
    writer.join().unwrap();
    stop.store(true, Ordering::Relaxed);
    serving.join().unwrap();

    let lines = replay::lines(std::io::BufReader::new(std::fs::File::open(&file).unwrap())).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(replay::replay(&lines).iter().all(replay::Redrawn::agrees));
    let when = |is: fn(&Event) -> bool| lines.iter().find(|line| is(&line.event)).unwrap().mono_ns;
    let last_sign = when(|event| matches!(event, Event::LastSign { .. }));
    let verdict = when(|event| matches!(event, Event::Verdict { .. }));
    let fenced = fences.lock().unwrap()[0];
    let ordered = when(|event| matches!(event, Event::Ordered { .. }));
    assert!(last_sign <= last_tick_ns, "the last sign is a lower bound");
    assert!(verdict - last_tick_ns >= 200_000_000, "the deadline was not waited for");
    assert!(verdict <= fenced && fenced <= ordered, "verdict, fence, order");
    println!(
        "last tick to verdict {:.3} ms, to fence {:.3} ms, to order {:.3} ms",
        (verdict - last_tick_ns) as f64 / 1e6,
        (fenced - last_tick_ns) as f64 / 1e6,
        (ordered - last_tick_ns) as f64 / 1e6
    );
}
