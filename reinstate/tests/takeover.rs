//! A real connection loses its server; another machine goes on with it. Both streams must be whole, each byte once.
//!
//! The snapshot comes from the silenced server's own kernel here (`tcp_repair::capture`), where an evacuation takes it
//! out of dead memory; everything after that is what the daemon does.

mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use reinstate::{
    address::{Interface, StandBy},
    leftovers,
    netlink::Netlink,
    position::{self, Proof, Start},
    probe::{Client, Patience, Prober},
    routes::{RaisedRoutes, TABLE},
    snapshot::Snapshot,
    tcp_repair,
};
use wire::{SERVICE, Wire, address, service};

/// Nothing here should take a second; this says "never" even on a loaded machine.
const NEVER: Duration = Duration::from_secs(20);
const QUEUE_BYTES: usize = 4 << 20;
/// Bytes exchanged each way after the take-over, more than any queue here.
const AFTER: usize = 300_000;

/// Byte `at` of a stream; the two directions differ.
fn pattern(direction: u8, from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ direction).collect()
}
const DOWN: u8 = 0;
const UP: u8 = 0x5a;

struct Case {
    v6: bool,
    probe: bool,
    client_buffer: Option<usize>,
    timestamps: bool,
}

const PLAIN: Case = Case { v6: false, probe: true, client_buffer: None, timestamps: true };

struct Session {
    wire: Wire,
    case: Case,
    client: TcpStream,
    server: TcpStream,
    down: usize,
    up: usize,
    read_down: usize,
    read_up: usize,
}

impl Session {
    fn begin(case: Case) -> Self {
        let wire = Wire::new();
        if !case.timestamps {
            wire.server.sysctl("ipv4/tcp_timestamps", "0");
        }
        let listener = wire.server.run(|| TcpListener::bind(service(case.v6)).unwrap());
        let client = wire.client.run(|| connect(&case));
        let server = listener.accept().unwrap().0;
        socket2::SockRef::from(&server).set_send_buffer_size(QUEUE_BYTES).unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(NEVER)).unwrap();
            stream.set_write_timeout(Some(NEVER)).unwrap();
        }
        let mut session = Self { wire, case, client, server, down: 0, up: 0, read_down: 0, read_up: 0 };
        session.write_down(5000);
        session.read_down(5000);
        session.write_up(3000);
        session.read_up(3000);
        session
    }

    fn write_down(&mut self, len: usize) {
        self.server.write_all(&pattern(DOWN, self.down, len)).unwrap();
        self.down += len;
    }

    fn write_up(&mut self, len: usize) {
        self.client.write_all(&pattern(UP, self.up, len)).unwrap();
        self.up += len;
    }

    fn read_down(&mut self, len: usize) {
        let mut bytes = vec![0; len];
        self.client.read_exact(&mut bytes).unwrap();
        assert!(bytes == pattern(DOWN, self.read_down, len), "the client read something else at {}", self.read_down);
        self.read_down += len;
    }

    fn read_up(&mut self, len: usize) {
        let mut bytes = vec![0; len];
        self.server.read_exact(&mut bytes).unwrap();
        assert!(bytes == pattern(UP, self.read_up, len), "the server read something else at {}", self.read_up);
        self.read_up += len;
    }

    /// Both directions at the same time, each byte checked.
    fn exchange(&mut self, len: usize) {
        let (down, up) = (self.down, self.up);
        assert_eq!((down, up), (self.read_down, self.read_up));
        let check = |mut stream: &TcpStream, direction, from| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes == pattern(direction, from, len), "something else was read after {from}");
        };
        let (mut client, mut server) = (&self.client, &self.server);
        thread::scope(|scope| {
            scope.spawn(|| server.write_all(&pattern(DOWN, down, len)).unwrap());
            scope.spawn(|| client.write_all(&pattern(UP, up, len)).unwrap());
            scope.spawn(|| check(&self.server, UP, up));
            check(&self.client, DOWN, down);
        });
        self.down += len;
        self.up += len;
        self.read_down += len;
        self.read_up += len;
    }

    fn wait_until_acknowledged(&self) {
        use std::os::fd::AsFd;
        let begin = Instant::now();
        while tcp_repair::unacknowledged(self.server.as_fd()).unwrap().0 > 0 {
            assert!(begin.elapsed() < NEVER, "the client never acknowledged");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn snapshot(&self) -> Snapshot {
        tcp_repair::capture(&self.server, QUEUE_BYTES).unwrap()
    }

    /// What the server's kernel would say if the acknowledgement of the last `len` bytes had not reached it.
    fn forget_acknowledgement(&self, snapshot: Snapshot, len: usize) -> Snapshot {
        assert_eq!(snapshot.sending.len(), 0, "the client has acknowledged everything");
        Snapshot {
            snd_una: snapshot.snd_una.wrapping_sub(len as u32),
            snd_nxt: snapshot.snd_nxt.wrapping_sub(len.min(1000) as u32),
            sending: pattern(DOWN, self.down - len, len),
            ..snapshot
        }
    }

    /// Takes over and proves that both streams go on. Returns the start that was chosen.
    fn take_over(mut self, snapshot: &Snapshot) -> Start {
        let (case, spare) = (&self.case, &self.wire.spare);
        let (mut netlink, mut standby, mut prober, mut routes) = spare.run(|| prepare(case.v6));
        // The application is there already, and listens as servers do.
        let listener = spare.run(|| TcpListener::bind("[::]:8080").unwrap());
        let order = Instant::now();
        let (start, server) = spare.run(|| {
            standby.announce().unwrap();
            let start = if case.probe {
                let again = || standby.announce().unwrap();
                let patience = Patience { most: NEVER, ..Patience::default() };
                prober.ask(&[snapshot], order, patience, again).unwrap()[0].unwrap()
            } else {
                position::assumed(snapshot)
            };
            let probed = order.elapsed();
            let rebuilt = tcp_repair::rebuild(snapshot, start, snapshot.timestamp_after(order.elapsed())).unwrap();
            let built = order.elapsed();
            standby.take(&mut netlink).unwrap();
            let taken = order.elapsed();
            let server = rebuilt.go_live(snapshot, start).unwrap();
            println!("probed {probed:?}, built {built:?}, taken {taken:?}, live {:?}", order.elapsed());
            routes.retire(&mut netlink).unwrap();
            (start, server)
        });
        self.server = TcpStream::from(server);
        self.server.set_nonblocking(false).unwrap();
        self.server.set_read_timeout(Some(NEVER)).unwrap();
        self.server.set_write_timeout(Some(NEVER)).unwrap();
        let missing = self.down - self.read_down;
        self.read_down(missing);
        println!("client has everything after {:?}", order.elapsed());
        let unread = self.up - self.read_up;
        self.read_up(unread);
        println!("server has everything after {:?}", order.elapsed());
        self.exchange(AFTER);
        println!("{} kB more each way after {:?}", AFTER / 1000, order.elapsed());
        let newcomer = self.wire.client.run(|| connect(&self.case));
        assert_eq!(listener.accept().unwrap().1, newcomer.local_addr().map(mapped).unwrap());
        self.wire.spare.run(|| {
            routes.remove(&mut netlink);
            // The session and the newcomer; a connection that ended may still linger.
            assert!(leftovers::abort(standby.address()).unwrap() >= 2);
            standby.give_back(&mut netlink).unwrap();
        });
        let (mut client, mut server) = (&self.client, &self.server);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        start
    }
}

/// As a dual-stack listener sees a client.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn connect(case: &Case) -> TcpStream {
    let domain = if case.v6 { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    if let Some(bytes) = case.client_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket.connect(&service(case.v6).into()).unwrap();
    socket.into()
}

fn prepare(v6: bool) -> (Netlink, StandBy, Prober, RaisedRoutes) {
    let mut netlink = Netlink::open().unwrap();
    let moving = address(v6, SERVICE);
    let interface = Interface::towards(&mut netlink, moving).unwrap();
    let routes = RaisedRoutes::install(&mut netlink, moving, TABLE).unwrap();
    let prober = Prober::open(&[(moving, &interface)]).unwrap();
    let standby = StandBy::prepare(moving, interface).unwrap();
    (netlink, standby, prober, routes)
}

fn client_lacks(case: Case, flight: usize) {
    let mut session = Session::begin(case);
    session.wire.silence_server();
    session.write_down(flight);
    let snapshot = session.snapshot();
    assert_eq!(snapshot.sending.len(), flight);
    let start = session.take_over(&snapshot);
    assert_eq!(start.seq, snapshot.snd_una);
}

fn client_has(case: Case, flight: usize) {
    let probe = case.probe;
    let mut session = Session::begin(case);
    session.write_down(flight);
    session.read_down(flight);
    session.wait_until_acknowledged();
    session.wire.silence_server();
    let snapshot = session.forget_acknowledgement(session.snapshot(), flight);
    let start = session.take_over(&snapshot);
    let expected = if probe { (snapshot.write_seq(), Proof::Client) } else { (snapshot.snd_una, Proof::Kernel) };
    assert_eq!((start.seq, start.proof), expected);
}

#[test]
fn an_idle_connection_goes_on() {
    let session = Session::begin(PLAIN);
    session.wait_until_acknowledged();
    session.wire.silence_server();
    let snapshot = session.snapshot();
    assert_eq!(session.take_over(&snapshot).proof, Proof::Client);
}

#[test]
fn bytes_in_flight_that_the_client_lacks_arrive() {
    for flight in [1, 5_000, 30_000, 100_000] {
        client_lacks(PLAIN, flight);
    }
}

#[test]
fn bytes_in_flight_that_the_client_has_are_not_repeated() {
    for flight in [1, 5_000, 30_000, 100_000] {
        client_has(PLAIN, flight);
    }
}

#[test]
fn without_an_answer_the_raised_window_covers_both_cases() {
    for flight in [5_000, 30_000, 100_000] {
        client_lacks(Case { probe: false, ..PLAIN }, flight);
        client_has(Case { probe: false, ..PLAIN }, flight);
    }
}

#[test]
fn unread_and_unheard_input_reaches_the_new_server() {
    let mut session = Session::begin(PLAIN);
    session.write_up(20_000);
    let begin = Instant::now();
    let mut seen = vec![0; 20_000];
    while session.server.peek(&mut seen).unwrap() < seen.len() {
        assert!(begin.elapsed() < NEVER);
    }
    session.wire.silence_server();
    session.write_up(10_000);
    let snapshot = session.snapshot();
    assert_eq!(snapshot.receiving.len(), 20_000);
    session.take_over(&snapshot);
}

/// As a kernel without memory for input leaves it: the promise taken back, the send window updated beyond it.
#[test]
fn a_receive_window_that_was_taken_back_opens_again() {
    let mut session = Session::begin(PLAIN);
    session.wait_until_acknowledged();
    session.wire.silence_server();
    session.write_up(30_000);
    let snapshot = session.snapshot();
    let torn = Snapshot { rcv_wnd: 0, snd_wl1: snapshot.rcv_nxt.wrapping_add(9_000), ..snapshot };
    assert_eq!(session.take_over(&torn).proof, Proof::Client);
}

#[test]
fn a_client_with_a_closed_window_gets_the_rest_when_it_reads() {
    let mut session = Session::begin(Case { client_buffer: Some(4096), ..PLAIN });
    session.write_down(200_000);
    thread::sleep(Duration::from_millis(50));
    session.wire.silence_server();
    let snapshot = session.snapshot();
    assert!(snapshot.sending.len() > 100_000, "most of it waits in the server");
    session.take_over(&snapshot);
}

#[test]
fn connections_without_timestamps_go_on() {
    client_lacks(Case { timestamps: false, ..PLAIN }, 30_000);
    client_has(Case { timestamps: false, ..PLAIN }, 30_000);
}

#[test]
fn ipv6_connections_go_on() {
    client_lacks(Case { v6: true, ..PLAIN }, 100_000);
    client_has(Case { v6: true, ..PLAIN }, 30_000);
    client_has(Case { v6: true, probe: false, ..PLAIN }, 30_000);
}

#[test]
fn a_lost_session_is_reset_once_the_address_is_here_and_not_before() {
    let mut session = Session::begin(PLAIN);
    session.wait_until_acknowledged();
    session.wire.silence_server();
    let snapshot = session.snapshot();
    let error = session.wire.spare.run(|| {
        let (mut netlink, mut standby, mut prober, mut routes) = prepare(false);
        standby.announce().unwrap();
        let order = Instant::now();
        let patience = Patience { most: NEVER, ..Patience::default() };
        // The client's answers arrive here, and nothing comes back to it: it is still connected.
        for _ in 0..3 {
            let verdict = prober.ask(&[&snapshot], order, patience, || ()).unwrap()[0].unwrap();
            assert_eq!(verdict.proof, Proof::Client);
        }
        session.client.set_nonblocking(true).unwrap();
        let before = session.client.read(&mut [0]).unwrap_err();
        assert_eq!(before.kind(), ErrorKind::WouldBlock);
        session.client.set_nonblocking(false).unwrap();
        standby.take(&mut netlink).unwrap();
        prober.poke(&snapshot, order.elapsed()).unwrap();
        let error = session.client.read(&mut [0]).unwrap_err();
        routes.remove(&mut netlink);
        error
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A lost announcement made sessions mute for good: the client went on sending to the dead machine, the switch flooded
/// that to everybody, and what the spare overheard looked like answers.
#[test]
fn an_announcement_that_was_lost_is_made_good_before_sessions_are_built() {
    let session = Session::begin(PLAIN);
    session.wait_until_acknowledged();
    session.wire.silence_server();
    let snapshot = session.snapshot();
    session.wire.spare.run(|| {
        let (mut netlink, standby, mut prober, mut routes) = prepare(false);
        let mut ask = |patience, again: &dyn Fn()| {
            prober.ask(&[&snapshot], Instant::now(), patience, again).unwrap()[0].unwrap().proof
        };
        let short = Duration::from_millis(100);
        assert_eq!(ask(Patience { most: short, after_answer: short }, &|| ()), Proof::Kernel);
        let long = Patience { most: Duration::from_secs(4), after_answer: short };
        assert_eq!(ask(long, &|| standby.announce().unwrap()), Proof::Client);
        routes.remove(&mut netlink);
    });
}

/// Nobody announces the address here, so that nobody answers.
#[test]
fn a_client_whose_answer_could_only_confirm_what_is_known_is_not_waited_for() {
    let session = Session::begin(PLAIN);
    session.wait_until_acknowledged();
    session.wire.silence_server();
    let snapshot = session.snapshot();
    session.wire.spare.run(|| {
        let (_netlink, _standby, mut prober, _routes) = prepare(false);
        let patience = Patience { most: NEVER, after_answer: NEVER };
        let (who, mut told) = ([Client { snapshot: &snapshot, is_certain: true }], Vec::new());
        let again = || panic!("nobody is asked twice");
        let verdicts =
            prober.ask_telling(&who, Instant::now(), patience, again, |at, verdict| told.push((at, verdict)));
        assert_eq!(told, [(0, Ok(position::assumed(&snapshot)))]);
        assert_eq!(verdicts.unwrap(), [Ok(position::assumed(&snapshot))]);
    });
}

fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    Duration::from(time)
}

#[test]
fn many_sessions_move_together() {
    const SESSIONS: usize = 200;
    let wire = Wire::new();
    let listener = wire.server.run(|| TcpListener::bind(service(false)).unwrap());
    let mut pairs: Vec<_> =
        (0..SESSIONS).map(|_| (wire.client.run(|| connect(&PLAIN)), listener.accept().unwrap().0)).collect();
    wire.silence_server();
    for (index, (_, server)) in pairs.iter_mut().enumerate() {
        server.write_all(&pattern(DOWN, index, 1000)).unwrap();
    }
    let snapshots: Vec<_> = pairs.iter().map(|(_, server)| tcp_repair::capture(server, QUEUE_BYTES).unwrap()).collect();
    let (_live, _standby) = wire.spare.run(|| {
        let (mut netlink, mut standby, mut prober, mut routes) = prepare(false);
        let order = Instant::now();
        standby.announce().unwrap();
        let asked: Vec<_> = snapshots.iter().collect();
        let patience = Patience { most: NEVER, after_answer: NEVER };
        let starts: Vec<_> =
            prober.ask(&asked, order, patience, || ()).unwrap().into_iter().map(Result::unwrap).collect();
        let probed = order.elapsed();
        let (mut rebuilt, busy) = (Vec::new(), processor_time());
        for (snapshot, start) in snapshots.iter().zip(&starts) {
            let timestamp = snapshot.timestamp_after(order.elapsed());
            rebuilt.push(tcp_repair::rebuild(snapshot, *start, timestamp).unwrap());
        }
        let built = order.elapsed();
        let each = (processor_time() - busy) / SESSIONS as u32;
        standby.take(&mut netlink).unwrap();
        let sessions = rebuilt.into_iter().zip(snapshots.iter().zip(&starts));
        let live: Vec<_> =
            sessions.map(|(socket, (snapshot, start))| socket.go_live(snapshot, *start).unwrap()).collect();
        println!(
            "{SESSIONS} sessions: probed {probed:?}, built {built:?} ({each:?} of processor each), live {:?}",
            order.elapsed()
        );
        routes.remove(&mut netlink);
        assert!(starts.iter().all(|start| start.proof == Proof::Client));
        (live, standby)
    });
    for (index, (client, _)) in pairs.iter_mut().enumerate() {
        client.set_read_timeout(Some(NEVER)).unwrap();
        let mut bytes = vec![0; 1000];
        client.read_exact(&mut bytes).unwrap();
        assert!(bytes == pattern(DOWN, index, 1000));
    }
}
