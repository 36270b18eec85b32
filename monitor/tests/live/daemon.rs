//! The daemon itself, as a program, where it is not the target that is ill: over a path that loses packets in both
//! directions, with a backdoor that is started anew, and started anew itself. A healthy target stays one in its eyes,
//! and a hang is found all the same.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};

use super::*;

/// Where the daemon serves its metrics, in a network of its own.
const METRICS: &str = "127.0.0.1:9790";

/// Samples of a healthy target.
const SAMPLES: u64 = 1500;

/// Long enough that a busy machine does not keep the target's ticks back for as long.
const DEADLINE_MS: u64 = 500;

/// A free port.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A process that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_monitor"));
        command.arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// The number behind `metric` of the target.
    fn shows(&mut self, metric: &str) -> u64 {
        assert!(self.0.try_wait().unwrap().is_none(), "the daemon has ended");
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect(METRICS) {
            let _ = write!(stream, "GET /metrics HTTP/1.1\r\n\r\n");
            let _ = stream.read_to_string(&mut text);
        }
        let wanted = format!("backdoors_monitor_{metric}{{target=\"web\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok()).unwrap_or(0)
    }

    fn wait_until(&mut self, what: &str, is_there: impl Fn(&mut Self) -> bool) {
        let begin = Instant::now();
        while !is_there(self) {
            assert!(begin.elapsed() < GENEROUS, "{what} does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The daemon of a target's backdoor, as far as a monitor sees it, with the target's memory.
struct Backdoor {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: JoinHandle<()>,
    serving: JoinHandle<Server<Boxes>>,
}

impl Backdoor {
    fn start(scene: &Scene, address: SocketAddr, incarnation: u64) -> Self {
        let at = Ipv4Addr::new(127, 0, 0, 77);
        let memory = Boxes(Arc::clone(&scene.words));
        let server = Server::bind(at, rdma::soft::PORT, memory, scene.options.clone()).unwrap();
        let (handle, stop) = (server.handle(), Arc::new(AtomicBool::new(false)));
        let serving = serve(server, &stop);
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (kept, fences, ending) = (Arc::clone(&streams), Arc::clone(&scene.fences), Arc::clone(&stop));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                kept.lock().unwrap().push(stream.try_clone().unwrap());
                let (handle, fences) = (handle.clone(), Arc::clone(&fences));
                std::thread::spawn(move || converse(stream, incarnation, &handle, &fences));
            }
        });
        Self { address, stop, streams, accepting, serving }
    }

    /// Ends all of it, as the end of its process does.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        self.accepting.join().unwrap();
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(self.serving.join().unwrap());
    }
}

fn converse(stream: TcpStream, incarnation: u64, server: &ServerHandle, fences: &Mutex<Vec<u64>>) {
    let mut channel = Channel::new(stream);
    while let Ok(request) = channel.receive::<Request>() {
        let reply = match answer(request, server, fences) {
            Reply::Welcome { version, target, fenced, .. } => Reply::Welcome { version, target, incarnation, fenced },
            other => other,
        };
        if channel.send(&reply).is_err() {
            return;
        }
    }
}

/// A target, what its monitor's daemon reads, and where that writes.
struct Scene {
    folder: Folder,
    words: Words,
    hang: Arc<AtomicBool>,
    ticker: JoinHandle<u64>,
    fences: Arc<Mutex<Vec<u64>>>,
    options: Options,
}

impl Scene {
    /// A target that is well, behind a path that loses so many of a million packets.
    fn begin(test: &str, loss_ppm: u32) -> Option<Self> {
        if !private_network(test) {
            return None;
        }
        let name = test.rsplit("::").next().unwrap();
        let folder = Folder(std::env::temp_dir().join(format!("{name}-{}", std::process::id())));
        std::fs::create_dir_all(&folder.0).unwrap();
        let (words, hang) = (new_box(2), Arc::new(AtomicBool::new(false)));
        let ticker = ticking(Arc::clone(&words), Arc::clone(&hang));
        let options = Options { loss_ppm, ..Options::default() };
        Some(Self { folder, words, hang, ticker, fences: Arc::default(), options })
    }

    fn config(&self, backdoor: SocketAddr) -> PathBuf {
        let file = self.folder.0.join("monitor.toml");
        let text = format!(
            "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = {:?}\nmetrics = \"{METRICS}\"\n\
             [sampling]\nperiod_ms = 2\npath_deadline_ms = 500\n\
             [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = {DEADLINE_MS}\nraises = \"hang\"\n\
             [[target]]\nname = \"web\"\nbackdoor = \"{backdoor}\"\non_hang = \"evacuate\"\n\
             spare = [{{ name = \"a\", control = \"{}\" }}]\n\
             service = [{{ address = \"10.77.0.100\", ports = [8080] }}]\n",
            self.folder.0.join("journal"),
            spare()
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn assert_healthy(&self, daemon: &mut Daemon) {
        assert_eq!(daemon.shows("verdicts_total"), 0, "a healthy target was called hung");
        assert_eq!(self.fences.lock().unwrap().len(), 0, "a healthy target was fenced");
    }

    /// The target hangs, and is dealt with; returns the journal.
    fn end(self, mut daemon: Daemon, backdoor: Backdoor) -> String {
        self.hang.store(true, Ordering::Relaxed);
        let stopped_ns = self.ticker.join().unwrap();
        daemon.wait_until("the evacuation", |daemon| daemon.shows("evacuations_total") == 1);
        drop(daemon);
        backdoor.end();
        let fences = self.fences.lock().unwrap().clone();
        assert_eq!(fences.len(), 1);
        assert!(fences[0] >= stopped_ns + DEADLINE_MS * 1_000_000, "the deadline was not waited for");
        println!("last tick to fence {:.1} ms of {DEADLINE_MS}", (fences[0] - stopped_ns) as f64 / 1e6);
        std::fs::read_to_string(self.folder.0.join("journal")).unwrap()
    }
}

/// A healthy target behind a path that loses `loss_ppm` of a million packets, then one that hangs.
fn check(test: &str, loss_ppm: u32) {
    let Some(scene) = Scene::begin(test, loss_ppm) else { return };
    let backdoor = Backdoor::start(&scene, ANY, 1);
    let mut daemon = Daemon::start(&scene.config(backdoor.address));
    daemon.wait_until("enough samples", |daemon| daemon.shows("samples_total") >= SAMPLES);
    let repetitions = daemon.shows("repetitions_total");
    println!("{repetitions} repetitions, {} lost samples", daemon.shows("lost_samples_total"));
    assert!(repetitions > SAMPLES * u64::from(loss_ppm) / 1_000_000, "{repetitions} repetitions: nothing was lost");
    assert_eq!(daemon.shows("path_lost"), 0);
    scene.assert_healthy(&mut daemon);
    if loss_ppm >= 50_000 {
        daemon.wait_until("the word for the path", |daemon| daemon.shows("path_lossy") == 1);
    }
    let journal = scene.end(daemon, backdoor);
    assert!(!journal.contains("\"stage\":\"path_lost\""), "{journal}");
}

#[test]
fn a_path_that_loses_one_packet_in_a_hundred_never_makes_a_healthy_target_look_hung() {
    check("daemon::a_path_that_loses_one_packet_in_a_hundred_never_makes_a_healthy_target_look_hung", 10_000);
}

#[test]
fn a_path_that_loses_one_packet_in_twenty_is_called_lossy_and_a_hang_behind_it_is_found() {
    check("daemon::a_path_that_loses_one_packet_in_twenty_is_called_lossy_and_a_hang_behind_it_is_found", 50_000);
}

#[test]
fn a_backdoor_and_a_monitor_that_are_started_anew_are_no_reason_to_fence() {
    let test = "daemon::a_backdoor_and_a_monitor_that_are_started_anew_are_no_reason_to_fence";
    let Some(scene) = Scene::begin(test, 0) else { return };
    let mut backdoor = Backdoor::start(&scene, ANY, 1);
    let config = scene.config(backdoor.address);
    let mut daemon = Daemon::start(&config);
    daemon.wait_until("the first samples", |daemon| daemon.shows("samples_total") >= 200);
    for incarnation in 2..5 {
        let (address, seen) = (backdoor.address, daemon.shows("samples_total"));
        backdoor.end();
        backdoor = Backdoor::start(&scene, address, incarnation);
        daemon.wait_until("more samples", |daemon| daemon.shows("samples_total") >= seen + 200);
        scene.assert_healthy(&mut daemon);
        drop(daemon); // killed
        daemon = Daemon::start(&config);
        daemon.wait_until("samples of its next life", |daemon| daemon.shows("samples_total") >= 200);
        scene.assert_healthy(&mut daemon);
    }
    scene.end(daemon, backdoor);
}
