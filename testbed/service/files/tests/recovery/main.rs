//! Live HTTP sessions move from a file server that was stopped anywhere to another one, with the real TCP of this
//! kernel on both sides, several times; no client sees a wrong, missing or repeated byte.
//!
//! Needs CAP_NET_ADMIN: root, or `unshare -Urn`.

mod client;
mod repair;

use client::Client;
use contbox::reader::{BoxHead, BoxImage, parse_pool, read_box};
use contbox::service::{BoxService, Handover};
use contbox::shared::Pool;
use contbox::{Geometry, Opening};
use file_server::synthetic;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ADDRESS: &str = "127.0.0.1:8080";
const PATIENCE: Duration = Duration::from_secs(30);

/// What one client does with its connection, over and over until the moves are over; the number counts the rounds.
type Job = Box<dyn FnMut(&mut Client, u64) + Send>;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("file-server-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A machine: a file server, and the box service with the pool that a spare would read.
struct Machine {
    server: Child,
    service: BoxService,
    pool: Arc<Pool>,
}

impl Machine {
    fn start(scratch: &Path, number: u32) -> Self {
        let (fd, pool) = Pool::memfd(Geometry::standard(128), u64::from(number)).unwrap();
        let socket = scratch.join(format!("box-{number}.sock"));
        let service = BoxService::start(&socket, Arc::clone(&pool), fd).unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_file-server"))
            .args(["--listen", ADDRESS, "--root"])
            .arg(scratch.join("root"))
            .arg("--box-socket")
            .arg(&socket)
            .env("BACKDOORS_LOG", "warn")
            .spawn()
            .unwrap();
        let machine = Self { server, service, pool };
        eventually("the file server listens and has boxes", || {
            !machine.service.apps().is_empty() && TcpStream::connect(ADDRESS).is_ok()
        });
        machine
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.server.id() as i32)
    }

    /// Stops the server wherever it is.
    fn stop(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
        waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
    }

    /// Its sockets to the given peers.
    fn sockets(&self, peers: &[SocketAddr]) -> Vec<OwnedFd> {
        let pid = self.server.id();
        let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let numbers = numbers.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let sockets = numbers.filter_map(|number| repair::borrow_descriptor(pid, number).ok());
        sockets.filter(|fd| peer_of(fd).is_some_and(|peer| peers.contains(&peer))).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn peer_of(fd: &OwnedFd) -> Option<SocketAddr> {
    TcpStream::from(fd.try_clone().ok()?).peer_addr().ok()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A session out of the dead machine: box and kernel state put together.
fn continuation(image: &[u8], from: &repair::Connection) -> Handover {
    let geometry = parse_pool(image, image.len() as u64).unwrap().geometry;
    let heads =
        (0..geometry.slots).filter_map(|slot| BoxHead::parse(slot, &image[geometry.front(slot).start as usize..]).ok());
    let head = heads.into_iter().find(|head| (head.local, head.peer) == (from.local, from.peer));
    let head = head.unwrap_or_else(|| panic!("no box for {}", from.peer));
    let copied = head.base_read + from.bytes_received - from.receive_queue.len() as u64;
    let acked = head.base_written + from.bytes_acked;
    let session = read_box(image, &geometry, head.slot, copied).unwrap();
    let discard = session.discard(acked + from.send_queue.len() as u64).unwrap();
    let BoxImage { local, peer, snapshot, logged, .. } = session;
    let opening = Opening { owner: 0, local, peer, base_read: copied, base_written: acked, snapshot, logged };
    Handover { opening, discard, socket: repair::rebuild_when_free(from, PATIENCE), channels: Vec::new() }
}

/// Fences `dead`, moves the sessions of `clients` that still live to a new machine, and lets them go on.
fn take_over(dead: Machine, scratch: &Path, number: u32, clients: &[TcpStream]) -> Machine {
    dead.stop();
    let peers: Vec<SocketAddr> = clients.iter().filter_map(|client| client.local_addr().ok()).collect();
    let sockets = dead.sockets(&peers);
    clients.iter().for_each(|client| repair::deafen(client).unwrap());
    sockets.iter().for_each(|socket| repair::deafen(socket).unwrap());
    assert_eq!(sockets.len(), clients.len(), "every client has a connection to move");
    let connections: Vec<_> = sockets.into_iter().map(|socket| repair::extract(socket).unwrap()).collect();
    // What is in the boxes at this instant is all that is left; the live service would free them after the kill.
    let image = dead.pool.image();
    drop(dead);
    let large_buffers = repair::LargeBuffers::set().unwrap();
    let handovers: Vec<Handover> = connections.iter().map(|it| continuation(&image, it)).collect();
    drop(large_buffers);
    clients.iter().for_each(|client| repair::undeafen(client).unwrap());
    let spare = Machine::start(scratch, number);
    handovers.iter().for_each(|handover| repair::release(&handover.socket).unwrap());
    for outcome in spare.service.resume(handovers, PATIENCE) {
        outcome.map_err(|declined| declined.why).unwrap();
    }
    spare
}

/// Runs `clients` while their server moves again and again.
fn check(name: &str, seed: u64, moves: u32, jobs: Vec<Job>) -> Scratch {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN: run as root or in `unshare -Urn`");
    repair::raise_loopback().unwrap();
    let scratch = Scratch::new(name);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut machine = Machine::start(&scratch.0, 0);
    let over = Arc::new(AtomicBool::new(false));
    let (sockets, running): (Vec<TcpStream>, Vec<_>) = jobs
        .into_iter()
        .map(|mut job| {
            let mut client = Client::connect(ADDRESS.parse().unwrap()).unwrap();
            let (socket, over) = (client.socket(), Arc::clone(&over));
            let work = move || {
                for round in 0.. {
                    job(&mut client, round);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            };
            (socket, std::thread::spawn(work))
        })
        .unzip();
    for number in 1..=moves {
        std::thread::sleep(Duration::from_micros(rng.random_range(20_000..1_200_000)));
        machine = take_over(machine, &scratch.0, number, &sockets);
    }
    over.store(true, Ordering::Relaxed);
    running.into_iter().for_each(|job| job.join().unwrap());
    drop(machine);
    scratch
}

const NO_REST: Duration = Duration::ZERO;
const MOMENT: Duration = Duration::from_millis(2);

#[test]
fn downloads_survive_several_moves() {
    let mut jobs: Vec<Job> = Vec::new();
    for seed in 0..6 {
        jobs.push(Box::new(move |client, _| client.download(seed, 10_000_000, "", MOMENT)));
        jobs.push(Box::new(move |client, _| client.download(100 + seed, 700_000, "?rate=500000", NO_REST)));
    }
    check("downloads", 1, 4, jobs);
}

#[test]
fn uploads_survive_several_moves() {
    const BYTES: u64 = 1_000_000;
    let job = |seed: u64| {
        move |client: &mut Client, round: u64| {
            client.upload(&format!("{seed}/{round}"), seed, BYTES, seed.is_multiple_of(2), 5 * MOMENT);
            client.download(seed, 1000, "", NO_REST);
        }
    };
    let scratch = check("uploads", 2, 4, (0..6).map(|seed| Box::new(job(seed)) as Job).collect());
    for seed in 0..6 {
        for stored in std::fs::read_dir(scratch.0.join(format!("root/{seed}"))).unwrap() {
            let stored = std::fs::read(stored.unwrap().path()).unwrap();
            assert_eq!(stored.len() as u64, BYTES);
            synthetic::verify(seed, 0, &stored).unwrap();
        }
    }
}

#[test]
fn pipelined_requests_survive_several_moves() {
    let job = |seed: u64| {
        move |client: &mut Client, round: u64| {
            let lengths = [10, 70_000, 0, 1, 3000 + round];
            let requests: String = lengths
                .iter()
                .map(|length| format!("GET /synthetic/{seed}/{length} HTTP/1.1\r\nHost: t\r\n\r\n"))
                .chain(["HEAD /synthetic/1/5 HTTP/1.1\r\nHost: t\r\n\r\n".into()])
                .collect();
            client.send(requests.as_bytes());
            for length in lengths {
                let head = client.head();
                assert_eq!((head.status, head.length), (200, length));
                client.verify(seed, 0, length, NO_REST);
            }
            assert_eq!(client.head().length, 5);
            std::thread::sleep(MOMENT);
        }
    };
    check("pipelined", 3, 4, (0..6).map(|seed| Box::new(job(seed)) as Job).collect());
}

#[test]
fn a_response_that_its_server_has_finished_survives_a_move() {
    let job = |seed: u64| {
        move |client: &mut Client, round: u64| {
            // Fits the send queue, so the server is done with it long before the client is.
            assert_eq!(round, 0, "the client was still reading when its server moved");
            client.last_download(seed, 2_000_000, 20 * MOMENT);
        }
    };
    check("finished", 4, 1, (0..3).map(|seed| Box::new(job(seed)) as Job).collect());
}
