//! One connection between a client and a server that will fall silent, and its move to the spare.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
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
    tcp_repair,
};

use super::{SERVICE, Wire, address, service};

pub const NEVER: Duration = Duration::from_secs(20);
const QUEUE_BYTES: usize = 4 << 20;

pub struct Pair {
    pub wire: Wire,
    pub v6: bool,
    pub client: TcpStream,
    pub server: TcpStream,
    pub standby: Option<StandBy>,
    /// Where the server on the spare went on, and when the order for it came.
    pub went_on: Option<(Start, Instant)>,
}

pub fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(NEVER)).unwrap();
    stream.set_write_timeout(Some(NEVER)).unwrap();
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

pub fn say(mut stream: &TcpStream, len: usize) {
    stream.write_all(&pattern(len)).unwrap();
}

pub fn hear(mut stream: &TcpStream, len: usize) {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes == pattern(len));
}

pub fn hear_end(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the stream ends here");
}

impl Pair {
    pub fn new(v6: bool) -> Self {
        let wire = Wire::new();
        let listener = wire.server.run(|| TcpListener::bind(service(v6)).unwrap());
        let client = wire.client.run(|| TcpStream::connect(service(v6)).unwrap());
        let server = listener.accept().unwrap().0;
        patient(&client);
        patient(&server);
        Self { wire, v6, client, server, standby: None, went_on: None }
    }

    pub fn wait_for(&self, state: u8) {
        let begin = Instant::now();
        while tcp_repair::state(self.server.as_fd()).unwrap() != state {
            assert!(begin.elapsed() < NEVER, "the server never got to state {state}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn silence(&self) {
        self.wire.silence_server();
    }

    /// The server in `state` becomes one on the spare.
    pub fn carry(&mut self, state: u8) -> Snapshot {
        self.carry_with(state, |_| {})
    }

    /// The same; `before` its socket speaks something happens to the wire.
    pub fn carry_with(&mut self, state: u8, before: impl Fn(&Wire) + Sync) -> Snapshot {
        assert_eq!(tcp_repair::state(self.server.as_fd()).unwrap(), state);
        let snapshot = tcp_repair::capture(&self.server, QUEUE_BYTES).unwrap();
        let moving = address(self.v6, SERVICE);
        let (server, standby, went_on) = self.wire.spare.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let interface = Interface::towards(&mut netlink, moving).unwrap();
            let mut prober = Prober::open(&[(moving, &interface)]).unwrap();
            let mut standby = StandBy::prepare(moving, interface).unwrap();
            let order = Instant::now();
            let patience = Patience { most: NEVER, ..Patience::default() };
            standby.announce().unwrap();
            let again = || standby.announce().unwrap();
            let start = prober.ask(&[&snapshot], order, patience, again).unwrap()[0].unwrap();
            let rebuilt = tcp_repair::rebuild(&snapshot, start, snapshot.timestamp_after(order.elapsed())).unwrap();
            standby.take(&mut netlink).unwrap();
            before(&self.wire);
            (revive(&prober, &snapshot, start, rebuilt).unwrap(), standby, (start, order))
        });
        self.server = TcpStream::from(server);
        self.server.set_nonblocking(false).unwrap();
        socket2::SockRef::from(&self.server).set_linger(None).unwrap();
        patient(&self.server);
        self.standby = Some(standby);
        self.went_on = Some(went_on);
        snapshot
    }
}
