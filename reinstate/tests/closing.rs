//! Connections at their beginning and at their end lose their server: not accepted yet, half closed, closing. What each
//! side had closed stays closed, what it had not stays open, and every byte arrives once before the end of its stream.
//!
//! CLOSING is not made here: in sequence space it is LAST_ACK (both FINs on their way, ours not acknowledged).

mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use reinstate::{
    address::{Interface, StandBy},
    netlink::Netlink,
    probe::{Patience, Prober},
    resume::revive,
    tcp_repair,
};
use wire::{
    Wire, address,
    pair::{NEVER, Pair, hear, hear_end, patient, say},
    service,
};

const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;

#[test]
fn a_connection_that_was_not_accepted_keeps_what_its_client_said() {
    let wire = Wire::new();
    let listener = wire.server.run(|| TcpListener::bind(service(false)).unwrap());
    let client = wire.client.run(|| TcpStream::connect(service(false)).unwrap());
    patient(&client);
    say(&client, 3000);
    let mut pair = {
        // All of it is in the accept queue, where a dead kernel leaves it; accepting is the only way to look at it.
        let server = listener.accept().unwrap().0;
        patient(&server);
        let mut seen = vec![0; 3000];
        while server.peek(&mut seen).unwrap() < seen.len() {}
        Pair { wire, v6: false, client, server, standby: None, went_on: None }
    };
    pair.silence();
    let snapshot = pair.carry(1);
    assert_eq!((snapshot.receiving.len(), snapshot.sending.len()), (3000, 0));
    hear(&pair.server, 3000);
    say(&pair.server, 5000);
    hear(&pair.client, 5000);
}

/// The client has closed; the server has read everything, or nothing, and still answers.
fn client_has_closed(v6: bool, end_was_read: bool) {
    let mut pair = Pair::new(v6);
    say(&pair.client, 3000);
    pair.client.shutdown(Shutdown::Write).unwrap();
    pair.wait_for(CLOSE_WAIT);
    if end_was_read {
        hear(&pair.server, 3000);
        hear_end(&pair.server);
    }
    pair.silence();
    say(&pair.server, 5000);
    let snapshot = pair.carry(CLOSE_WAIT);
    assert!(snapshot.peer_closed && !snapshot.closed);
    if !end_was_read {
        hear(&pair.server, 3000);
    }
    hear_end(&pair.server);
    hear(&pair.client, 5000);
    say(&pair.server, 200_000);
    pair.server.shutdown(Shutdown::Write).unwrap();
    hear(&pair.client, 200_000);
    hear_end(&pair.client);
}

#[test]
fn a_client_that_had_closed_gets_its_answer_and_its_server_sees_the_end() {
    client_has_closed(false, false);
    client_has_closed(false, true);
}

#[test]
fn a_client_that_had_closed_gets_its_answer_over_ipv6() {
    client_has_closed(true, false);
}

/// Linux makes an IPv6 address local in the background, after it has said that it has it, and late if others change
/// the network meanwhile. What was said to it before went onto the wire: among it, once, every client's end, so that
/// these clients took all that came later for old.
#[test]
fn an_address_that_was_taken_is_local_at_once() {
    let wire = Wire::new();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for host in [101, 102] {
            let (wire, over) = (&wire, &over);
            scope.spawn(move || {
                wire.spare.run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    let mut other = standby(&mut netlink, address(false, host));
                    while !over.load(Ordering::Relaxed) {
                        other.take(&mut netlink).unwrap();
                        other.give_back(&mut netlink).unwrap();
                    }
                });
            });
        }
        let late = wire.spare.run(|| [false, true].map(|v6| taken_and_not_local(address(v6, 100))));
        over.store(true, Ordering::Relaxed);
        assert_eq!(late, [0, 0], "so often others were still asked for it");
    });
}

fn standby(netlink: &mut Netlink, moving: IpAddr) -> StandBy {
    let interface = Interface::towards(netlink, moving).unwrap();
    StandBy::prepare(moving, interface).unwrap()
}

/// How often what is said to an address that was just taken would leave this machine.
fn taken_and_not_local(moving: IpAddr) -> usize {
    let mut netlink = Netlink::open().unwrap();
    let mut standby = standby(&mut netlink, moving);
    let mut is_late = || {
        standby.take(&mut netlink).unwrap();
        // Nobody listens there: this machine itself says so at once, and nobody else says anything.
        let refused = TcpStream::connect_timeout(&(moving, 9).into(), NEVER).unwrap_err();
        standby.give_back(&mut netlink).unwrap();
        refused.kind() != ErrorKind::ConnectionRefused
    };
    (0..200).filter(|_| is_late()).count()
}

#[test]
fn a_socket_that_does_not_hear_its_clients_end_is_given_up_and_its_client_reset() {
    let mut pair = Pair::new(true);
    say(&pair.client, 3000);
    pair.client.shutdown(Shutdown::Write).unwrap();
    pair.wait_for(CLOSE_WAIT);
    pair.silence();
    let snapshot = tcp_repair::capture(&pair.server, 1 << 20).unwrap();
    let moving = address(true, 100);
    let why = pair.wire.spare.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let interface = Interface::towards(&mut netlink, moving).unwrap();
        let mut prober = Prober::open(&[(moving, &interface)]).unwrap();
        let standby = standby(&mut netlink, moving);
        standby.announce().unwrap();
        let patience = Patience { most: NEVER, ..Patience::default() };
        let start = prober.ask(&[&snapshot], Instant::now(), patience, || standby.announce().unwrap()).unwrap()[0];
        let rebuilt = tcp_repair::rebuild(&snapshot, start.unwrap(), snapshot.timestamp).unwrap();
        // The address is not taken: what is said to it leaves this machine.
        revive(&prober, &snapshot, start.unwrap(), rebuilt).unwrap_err()
    });
    assert!(why.contains("does not hear that the client has closed"), "{why}");
    assert_eq!(pair.client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_fin_that_never_arrived_is_said_again_by_the_client() {
    let mut pair = Pair::new(false);
    pair.silence();
    say(&pair.client, 3000);
    pair.client.shutdown(Shutdown::Write).unwrap();
    let snapshot = pair.carry(1);
    assert!(!snapshot.peer_closed);
    hear(&pair.server, 3000);
    hear_end(&pair.server);
}

#[test]
fn a_server_that_had_closed_still_hears_its_client() {
    for client_has_it in [false, true] {
        let mut pair = Pair::new(false);
        if !client_has_it {
            pair.silence();
        }
        say(&pair.server, 5000);
        pair.server.shutdown(Shutdown::Write).unwrap();
        if client_has_it {
            hear(&pair.client, 5000);
            hear_end(&pair.client);
            pair.wait_for(FIN_WAIT2);
            pair.silence();
        }
        let snapshot = pair.carry(if client_has_it { FIN_WAIT2 } else { FIN_WAIT1 });
        assert!(snapshot.closed && !snapshot.peer_closed);
        if !client_has_it {
            hear(&pair.client, 5000);
            hear_end(&pair.client);
        }
        say(&pair.client, 200_000);
        pair.client.shutdown(Shutdown::Write).unwrap();
        hear(&pair.server, 200_000);
        hear_end(&pair.server);
    }
}

#[test]
fn when_both_had_closed_the_last_bytes_and_the_end_arrive() {
    let mut pair = Pair::new(false);
    say(&pair.client, 3000);
    pair.client.shutdown(Shutdown::Write).unwrap();
    pair.wait_for(CLOSE_WAIT);
    hear(&pair.server, 3000);
    hear_end(&pair.server);
    pair.silence();
    say(&pair.server, 5000);
    pair.server.shutdown(Shutdown::Write).unwrap();
    let snapshot = pair.carry(LAST_ACK);
    assert!(snapshot.closed && snapshot.peer_closed);
    // Nobody waits for it: the kernel alone brings it to its end.
    tcp_repair::leave_to_kernel(pair.server.try_clone().unwrap().into());
    drop(std::mem::replace(&mut pair.server, pair.client.try_clone().unwrap()));
    hear(&pair.client, 5000);
    hear_end(&pair.client);
    assert!(pair.client.take_error().unwrap().is_none());
}

#[test]
fn a_spare_that_dies_before_the_application_has_a_session_resets_its_client() {
    let mut pair = Pair::new(false);
    pair.silence();
    say(&pair.server, 5000);
    pair.carry(1);
    socket2::SockRef::from(&pair.server).set_linger(Some(Duration::ZERO)).unwrap();
    // What the kernel does for a process that is killed.
    let gone = std::mem::replace(&mut pair.server, pair.client.try_clone().unwrap());
    drop(gone);
    let mut rest = Vec::new();
    let error = (&pair.client).read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_session_that_its_application_did_not_take_in_time_is_dead_for_it_too() {
    let mut pair = Pair::new(false);
    pair.silence();
    pair.carry(1);
    let with_application = pair.server.try_clone().unwrap();
    tcp_repair::reset(&pair.server.into()).unwrap();
    let error = (&pair.client).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!((&with_application).write(&[0]).is_err());
}
