//! What it costs to reinstate sessions: real connections between network namespaces, their server cut off, rebuilt on a
//! third one. `cargo run --release -p reinstate --example scale -- [SESSIONS [KIB...]]`, as root.
//!
//! One line of JSON for each state size. Half of a session's state waits to be sent, half was received and not read.
//! All times are microseconds for one session; `one` is the median of sessions treated one after the other, `batch` is
//! the time of all of them by their number. Extraction is not in it: the connections' values come from this kernel.

#[path = "../tests/wire/mod.rs"]
mod wire;

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use reinstate::{
    address::{Interface, StandBy},
    netlink::Netlink,
    position::Start,
    probe::{Patience, Prober},
    resume::revive,
    snapshot::Snapshot,
    tcp_repair::{self, Rebuilt},
};
use wire::{SERVICE, Wire, address, service};

/// Read of each queue.
const QUEUE_BYTES: usize = 1 << 20;

/// What is left when the server has fallen silent.
struct Dead {
    wire: Wire,
    /// Kept open: whoever closes says so.
    clients: Vec<TcpStream>,
    snapshots: Vec<Snapshot>,
}

fn die(sessions: usize, state_bytes: usize) -> Dead {
    let wire = Wire::new();
    let listener = wire.server.run(|| TcpListener::bind(service(false)).unwrap());
    let pairs = (0..sessions).map(|_| {
        let mut client = wire.client.run(|| TcpStream::connect(service(false)).unwrap());
        let server = listener.accept().unwrap().0;
        client.write_all(&vec![1; state_bytes / 2]).unwrap();
        (client, server)
    });
    let (clients, mut servers): (Vec<_>, Vec<_>) = pairs.unzip();
    // The last bytes are to have arrived.
    thread::sleep(Duration::from_millis(200));
    wire.silence_server();
    servers.iter_mut().for_each(|server| server.write_all(&vec![2; state_bytes / 2]).unwrap());
    let snapshots = servers.iter().map(|server| tcp_repair::capture(server, QUEUE_BYTES).unwrap()).collect();
    Dead { wire, clients, snapshots }
}

fn micros(duration: Duration, by: usize) -> f64 {
    duration.as_secs_f64() * 1e6 / by as f64
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    micros(times[times.len() / 2], 1)
}

/// Times of the parts: for each session where that is known, else for all of them.
struct Times {
    probe: Duration,
    rebuild: Vec<Duration>,
    revive: Vec<Duration>,
}

fn reinstate(dead: &Dead) -> Times {
    dead.wire.spare.run(|| {
        let moving = address(false, SERVICE);
        let mut netlink = Netlink::open().unwrap();
        let interface = Interface::towards(&mut netlink, moving).unwrap();
        let mut prober = Prober::open(&[(moving, &interface)]).unwrap();
        let mut standby = StandBy::prepare(moving, interface).unwrap();
        let order = Instant::now();
        standby.announce().unwrap();
        let all: Vec<&Snapshot> = dead.snapshots.iter().collect();
        let patience = Patience { most: Duration::from_secs(5), ..Patience::default() };
        let verdicts = prober.ask(&all, order, patience, || standby.announce().unwrap()).unwrap();
        let probe = order.elapsed();
        let starts: Vec<Start> = verdicts.into_iter().map(Result::unwrap).collect();
        let built = dead.snapshots.iter().zip(&starts).map(|(snapshot, start)| {
            let begin = Instant::now();
            let timestamp = snapshot.timestamp_after(order.elapsed());
            (tcp_repair::rebuild(snapshot, *start, timestamp).unwrap(), begin.elapsed())
        });
        let (built, rebuild): (Vec<Rebuilt>, Vec<Duration>) = built.unzip();
        standby.take(&mut netlink).unwrap();
        let lived = built.into_iter().zip(dead.snapshots.iter().zip(&starts)).map(|(socket, (snapshot, start))| {
            let begin = Instant::now();
            (revive(&prober, snapshot, *start, socket).unwrap(), begin.elapsed())
        });
        let (live, revive): (Vec<OwnedFd>, Vec<Duration>) = lived.unzip();
        assert_eq!(live.len(), dead.clients.len());
        Times { probe, rebuild, revive }
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|it| it.parse::<usize>().expect("a number"));
    let sessions = arguments.next().unwrap_or(1000);
    let sizes: Vec<usize> = arguments.collect();
    let sizes = if sizes.is_empty() { vec![1, 5, 10] } else { sizes };
    service::raise_descriptor_limit().unwrap();
    for kib in sizes {
        let Times { probe, rebuild, revive } = reinstate(&die(sessions, kib << 10));
        let sum = |times: &[Duration]| micros(times.iter().sum(), sessions);
        let (rebuild_batch, revive_batch) = (sum(&rebuild), sum(&revive));
        println!(
            "{{\"sessions\":{sessions},\"kib\":{kib},\"probe_batch_us\":{:.1},\"rebuild_batch_us\":{rebuild_batch:.1},\
             \"rebuild_one_us\":{:.1},\"revive_batch_us\":{revive_batch:.1},\"revive_one_us\":{:.1},\
             \"batch_us\":{:.1}}}",
            micros(probe, sessions),
            median(rebuild),
            median(revive),
            micros(probe, sessions) + rebuild_batch + revive_batch,
        );
    }
}
