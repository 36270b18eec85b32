//! A switch loses what a spare asks its clients' machine for, a link address, and sessions do not wait for it.
//!
//! The kernel's own repetition of a lost question, after a second, is put off for an hour here, so that none of these
//! tests can pass by it.

mod wire;

use std::{
    net::{IpAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use reinstate::{
    address::Interface,
    neighbours::Neighbours,
    netlink::{Message, Netlink},
};
use wire::{CLIENT, SERVICE, Wire, address, pair::NEVER};

const AN_HOUR_MS: &str = "3600000";

/// A wire on which a lost question stays lost.
fn wire() -> Wire {
    let wire = Wire::new();
    for family in ["ipv4", "ipv6"] {
        wire.spare.sysctl(&format!("{family}/neigh/eth0/retrans_time_ms"), AN_HOUR_MS);
    }
    wire
}

fn neighbours() -> Neighbours {
    let interface = Interface::towards(&mut Netlink::open().unwrap(), address(false, SERVICE)).unwrap();
    Neighbours::open(vec![interface]).unwrap()
}

/// A socket of the client's machine, and what the spare says to it.
fn said(wire: &Wire, v6: bool) -> UdpSocket {
    let client = address(v6, CLIENT);
    let ear = wire.client.run(|| UdpSocket::bind((client, 0)).unwrap());
    ear.set_read_timeout(Some(NEVER)).unwrap();
    let to = ear.local_addr().unwrap();
    wire.spare.run(|| {
        let mouth = UdpSocket::bind((address(v6, wire::SPARE), 0)).unwrap();
        mouth.send_to(b"bytes", to).unwrap();
    });
    ear
}

fn hear(ear: &UdpSocket) {
    let to = ear.local_addr();
    assert_eq!(ear.recv(&mut [0; 9]).unwrap_or_else(|error| panic!("nothing came through to {to:?}: {error}")), 5);
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < NEVER, "{what} was waited for in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_question_that_was_lost_is_repeated_and_its_answer_is_the_kernels() {
    for v6 in [false, true] {
        let (wire, client) = (wire(), address(v6, CLIENT));
        wire.lose_questions_to_client(true);
        let ear = said(&wire, v6);
        let mut neighbours = wire.spare.run(neighbours);
        assert_eq!(neighbours.unanswered().unwrap(), [client]);
        assert_eq!(neighbours.ask_again().unwrap(), 1, "this one is lost, too");
        assert_eq!(neighbours.unanswered().unwrap(), [client]);
        wire.lose_questions_to_client(false);
        assert_eq!(neighbours.ask_again().unwrap(), 1, "{v6}");
        hear(&ear);
        assert_eq!((neighbours.unanswered().unwrap(), neighbours.ask_again().unwrap()), (vec![], 0));
    }
}

#[test]
fn a_client_seen_while_the_target_was_healthy_needs_no_question_at_the_take_over() {
    for v6 in [false, true] {
        let (wire, client) = (wire(), address(v6, CLIENT));
        let mut neighbours = wire.spare.run(neighbours);
        let ours = address(v6, wire::SPARE);
        assert_eq!(neighbours.warm([client, client, ours]).unwrap(), 1, "nobody asks for himself");
        wait_for("the answer", || neighbours.unanswered().unwrap().is_empty());
        wire.lose_questions_to_client(true);
        hear(&said(&wire, v6));
        assert_eq!(neighbours.warm([client]).unwrap(), 1, "what is known is confirmed");
        assert_eq!(neighbours.unanswered().unwrap(), [] as [IpAddr; 0]);
    }
}

#[test]
fn of_a_client_behind_a_router_it_is_the_router_that_is_asked_for() {
    let wire = wire();
    wire.lose_questions_to_client(true);
    let mut neighbours = wire.spare.run(|| {
        // The client's machine is the router to 10.99.0.0/24.
        let mut fixed = vec![libc::AF_INET as u8, 24, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, 0, 1, 0, 0, 0, 0];
        fixed[6] = libc::RT_SCOPE_UNIVERSE;
        let route = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE, &fixed)
            .with(libc::RTA_DST, &[10, 99, 0, 0])
            .with(libc::RTA_GATEWAY, &[10, 77, 0, CLIENT]);
        Netlink::open().unwrap().request(route).unwrap();
        neighbours()
    });
    let clients = [5, 6, 7].map(|host| IpAddr::from([10, 99, 0, host]));
    assert_eq!(neighbours.warm(clients).unwrap(), 1);
    assert_eq!(neighbours.unanswered().unwrap(), [address(false, CLIENT)]);
    assert_eq!(neighbours.warm([IpAddr::from([192, 0, 2, 1])]).unwrap(), 0, "nobody knows a way there");
}
