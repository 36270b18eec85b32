//! Handshakes that a server had not finished when it fell silent: what its client answers when it is asked, and that
//! it gets a connection either way.

mod wire;

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use reinstate::{
    address::{Interface, StandBy},
    netlink::Netlink,
    position::{self, Proof, Refused},
    probe::{Patience, Prober, Verdict},
    resume::revive,
    snapshot::Snapshot,
    tcp_repair,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use wire::{
    SERVICE, Wire, address,
    pair::{NEVER, Pair, hear, patient, say},
    service,
};

/// An initial sequence number of the silent server's.
const SERVER_ISN: u32 = 0xffff_fff0;
const ETH_P_ALL: u16 = 0x0003;
/// `TCP_SYN_SENT`.
const SYN_SENT: u8 = 2;

/// A wire whose server has fallen silent; the client knows its link address, or no SYN would leave.
fn silent_server(v6: bool) -> Wire {
    let wire = Wire::new();
    let _listener = wire.server.run(|| TcpListener::bind(service(v6)).unwrap());
    wire.client.run(|| TcpStream::connect(service(v6)).unwrap());
    wire.silence_server();
    wire
}

/// A client whose SYN got no answer, and the number of that SYN.
fn calling(wire: &Wire, v6: bool) -> (Socket, SocketAddr, u32) {
    wire.client.run(|| {
        let mut ear =
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ETH_P_ALL.to_be())))).unwrap();
        ear.set_read_timeout(Some(NEVER)).unwrap();
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let client = Socket::new(domain, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        assert!(client.connect(&service(v6).into()).is_err(), "nobody can have answered");
        let from = client.local_addr().unwrap().as_socket().unwrap();
        let mut packet = [0; 128];
        loop {
            let len = ear.read(&mut packet).unwrap();
            let tcp = &packet[if v6 { 40 } else { 20 }..len.max(40)];
            if tcp.get(..2) == Some(&from.port().to_be_bytes()) {
                return (client, from, u32::from_be_bytes(tcp[4..8].try_into().unwrap()));
            }
        }
    })
}

/// The connection as a request sock describes it.
fn request(v6: bool, peer: SocketAddr, isn: u32) -> Snapshot {
    let (snd_una, rcv_nxt) = (SERVER_ISN.wrapping_add(1), isn.wrapping_add(1));
    Snapshot {
        local: service(v6),
        peer,
        snd_una,
        snd_nxt: snd_una,
        sending: vec![],
        unread: 0,
        rcv_nxt,
        receiving: vec![],
        rcv_wup: rcv_nxt,
        rcv_wnd: 64_240,
        snd_wl1: isn,
        snd_wnd: 536,
        max_window: 536,
        scales: Some((7, 7)),
        sack: true,
        timestamp: Some(77),
        mss_clamp: 1460,
        closed: false,
        peer_closed: false,
    }
}

struct Spare {
    netlink: Netlink,
    standby: StandBy,
    prober: Prober,
}

fn ask(wire: &Wire, snapshot: &Snapshot, most: Duration) -> (Spare, Verdict) {
    wire.spare.run(|| {
        let moving = snapshot.local.ip();
        let mut netlink = Netlink::open().unwrap();
        let interface = Interface::towards(&mut netlink, moving).unwrap();
        let mut prober = Prober::open(&[(moving, &interface)]).unwrap();
        let standby = StandBy::prepare(moving, interface).unwrap();
        standby.announce().unwrap();
        let patience = Patience { most, ..Patience::default() };
        let again = || standby.announce().unwrap();
        let verdict = prober.ask(&[snapshot], Instant::now(), patience, again).unwrap()[0];
        (Spare { netlink, standby, prober }, verdict)
    })
}

/// The connection of `snapshot` goes on here, its client silent; the answer to its SYN is said again so often.
fn go_on(spare: &mut Spare, snapshot: &Snapshot, answers: u32) -> TcpStream {
    let start = position::assumed(snapshot);
    let rebuilt = tcp_repair::rebuild(snapshot, start, snapshot.timestamp_after(Duration::ZERO)).unwrap();
    spare.standby.take(&mut spare.netlink).unwrap();
    let server = TcpStream::from(revive(&spare.prober, snapshot, start, rebuilt).unwrap());
    for _ in 0..answers {
        spare.prober.answer_syn(snapshot, 0, Duration::ZERO).unwrap();
    }
    server.set_nonblocking(false).unwrap();
    SockRef::from(&server).set_linger(None).unwrap();
    server
}

/// A client in SYN_SENT says nothing to the probe, and is connected by the answer to its SYN.
fn is_connected_here(v6: bool, answers: u32) {
    let wire = silent_server(v6);
    let (client, peer, isn) = calling(&wire, v6);
    let snapshot = request(v6, peer, isn);
    let (mut spare, verdict) = ask(&wire, &snapshot, Duration::from_millis(100));
    assert_eq!(verdict, Ok(position::assumed(&snapshot)), "nobody vouches for it");
    let server = wire.spare.run(|| {
        // Not the listener takes it.
        let _listener = TcpListener::bind("[::]:8080").unwrap();
        go_on(&mut spare, &snapshot, answers)
    });
    client.set_nonblocking(false).unwrap();
    let client = TcpStream::from(client);
    both_ways(&client, &server);
    wire.spare.run(|| spare.standby.give_back(&mut spare.netlink).unwrap());
}

fn both_ways(client: &TcpStream, server: &TcpStream) {
    patient(client);
    patient(server);
    say(client, 3000);
    hear(server, 3000);
    say(server, 3000);
    hear(client, 3000);
}

#[test]
fn a_client_that_never_got_the_answer_to_its_syn_is_connected_by_the_spare() {
    for (v6, answers) in [(false, 1), (true, 1), (false, 4)] {
        is_connected_here(v6, answers);
    }
}

/// What makes the answer to its SYN necessary: without it such a client waits in vain, whatever the socket says.
#[test]
fn a_socket_alone_does_not_connect_a_client_that_never_got_the_answer() {
    let wire = silent_server(false);
    let (client, peer, isn) = calling(&wire, false);
    let snapshot = request(false, peer, isn);
    let (mut spare, _) = ask(&wire, &snapshot, Duration::from_millis(10));
    let server = wire.spare.run(|| go_on(&mut spare, &snapshot, 0));
    // It says its SYN again after a second.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(tcp_repair::state(client.as_fd()).unwrap(), SYN_SENT);
    wire.spare.run(|| spare.prober.answer_syn(&snapshot, 0, Duration::from_millis(2500)).unwrap());
    client.set_nonblocking(false).unwrap();
    both_ways(&TcpStream::from(client), &server);
}

/// Its answer to the probe was lost, and its request; it believes in the connection.
#[test]
fn a_silent_client_that_got_the_answer_is_connected_too() {
    for v6 in [false, true] {
        let pair = Pair::new(v6);
        pair.silence();
        let known = tcp_repair::capture(&pair.server, 1 << 20).unwrap();
        let unheard = Snapshot { snd_wnd: 536, max_window: 536, snd_wl1: known.rcv_nxt.wrapping_sub(1), ..known };
        say(&pair.client, 2000);
        let (mut spare, _) = ask(&pair.wire, &unheard, Duration::ZERO);
        let server = pair.wire.spare.run(|| go_on(&mut spare, &unheard, 2));
        hear(&server, 2000);
        both_ways(&pair.client, &server);
    }
}

/// Another connection from the same port: the one of the request is no more.
#[test]
fn a_client_that_has_begun_another_connection_since_says_so() {
    let wire = silent_server(false);
    let (_client, peer, isn) = calling(&wire, false);
    let (_, verdict) = ask(&wire, &request(false, peer, isn.wrapping_sub(1000)), NEVER / 4);
    assert_eq!(verdict, Err(Refused::Reset));
}

/// The client has the answer: its acknowledgement, and the request it sent with it, reached nobody.
#[test]
fn a_client_that_got_the_answer_is_connected_and_its_request_arrives() {
    for v6 in [false, true] {
        let mut pair = Pair::new(v6);
        pair.silence();
        say(&pair.client, 2000);
        let snapshot = pair.carry(1);
        assert_eq!((snapshot.receiving.len(), snapshot.sending.len()), (0, 0));
        hear(&pair.server, 2000);
        both_ways(&pair.client, &pair.server);
    }
}

#[test]
fn a_client_that_got_the_answer_vouches_for_the_connection_of_a_request() {
    let pair = Pair::new(false);
    pair.silence();
    let known = tcp_repair::capture(&pair.server, 1 << 20).unwrap();
    let window = Snapshot { snd_wnd: 536, max_window: 536, snd_wl1: known.rcv_nxt.wrapping_sub(1), ..known };
    let (_, verdict) = ask(&pair.wire, &window, NEVER);
    let start = verdict.unwrap();
    assert_eq!((start.seq, start.proof), (window.snd_una, Proof::Client));
    assert!(start.window > 536, "the answer tells the client's window");
    assert_eq!(window.local.ip(), address(false, SERVICE));
}
