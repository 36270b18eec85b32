//! What a spare leaves behind that was killed, and that it is gone when the next one starts.

mod folder;
mod wire;

use std::{
    io::{ErrorKind, Read},
    net::TcpListener,
};

use folder::Folder;
use reinstate::{
    address::Interface,
    held::HeldFile,
    leftovers::{Connection, connections},
    netlink::Netlink,
    routes::TABLE,
};
use wire::{
    SERVICE, address,
    pair::{NEVER, Pair, hear, hear_end, say},
};

#[test]
fn a_killed_spare_s_address_and_sessions_are_gone_after_cleaning() {
    for v6 in [false, true] {
        let folder = Folder::new(&format!("held-{v6}"));
        let held = HeldFile::beside(&folder.0.join("box.sock"));
        let moving = address(v6, SERVICE);

        let mut pair = Pair::new(v6);
        pair.silence();
        pair.wire.spare.run(|| {
            let interface = Interface::towards(&mut Netlink::open().unwrap(), moving).unwrap();
            held.note(moving, &interface).unwrap();
        });
        pair.carry(1);
        // Killed: nothing is undone, and the application goes on with its socket.
        std::mem::forget(pair.standby.take());
        say(&pair.server, 1000);
        hear(&pair.client, 1000);
        // Another line of the file was being written.
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(folder.0.join("box.held")).unwrap();
        file.write_all(b"10.77.0.1").unwrap();

        let is_here = || pair.wire.spare.run(|| TcpListener::bind((moving, 0)).is_ok());
        assert!(is_here());
        let cleaned = pair.wire.spare.run(|| held.clean(TABLE).unwrap());
        assert_eq!(cleaned, [moving]);
        assert!(!is_here());
        assert_eq!((&pair.client).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(!folder.0.join("box.held").exists());
        assert!(pair.wire.spare.run(|| held.clean(TABLE).unwrap()).is_empty(), "once");
    }
}

#[test]
fn an_address_goes_without_a_word_once_no_connection_uses_it_and_not_before() {
    for v6 in [false, true] {
        let folder = Folder::new(&format!("unused-{v6}"));
        let held = HeldFile::beside(&folder.0.join("box.sock"));
        let moving = address(v6, SERVICE);

        let mut pair = Pair::new(v6);
        pair.silence();
        pair.carry(1);
        let mut standby = [pair.standby.take().unwrap()];
        pair.wire.spare.run(|| held.note(moving, standby[0].interface()).unwrap());
        let is_here = |pair: &Pair| pair.wire.spare.run(|| TcpListener::bind((moving, 0)).is_ok());
        let mut give_back = |pair: &Pair| {
            pair.wire.spare.run(|| held.give_back_unused(&mut standby, &mut Netlink::open().unwrap()).unwrap())
        };
        assert!(!give_back(&pair) && is_here(&pair) && folder.0.join("box.held").exists());
        // The connection did not notice.
        say(&pair.server, 1000);
        hear(&pair.client, 1000);
        say(&pair.client, 1000);
        hear(&pair.server, 1000);

        pair.client.shutdown(std::net::Shutdown::Both).unwrap();
        hear_end(&pair.server);
        pair.server.shutdown(std::net::Shutdown::Both).unwrap();
        let begin = std::time::Instant::now();
        let left = |pair: &Pair| pair.wire.spare.run(|| connections(moving).unwrap());
        while !left(&pair).is_empty() {
            assert!(begin.elapsed() < NEVER, "{:?}", left(&pair));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(give_back(&pair) && !is_here(&pair) && !folder.0.join("box.held").exists());
        assert!(give_back(&pair), "nothing is here, and nothing is in the way");
    }
}

#[test]
fn a_client_that_acknowledges_nothing_is_mute_and_an_idle_one_is_not() {
    for v6 in [false, true] {
        let pair = Pair::new(v6);
        let connections = || pair.wire.server.run(|| connections(address(v6, SERVICE)).unwrap());
        say(&pair.server, 5000);
        hear(&pair.client, 5000);
        assert!(connections().iter().all(|connection| !connection.is_mute()));
        pair.silence();
        say(&pair.server, 5000);
        let begin = std::time::Instant::now();
        while !connections().iter().any(Connection::is_mute) {
            assert!(begin.elapsed() < NEVER, "{:?}", connections());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(connections()[0].unacknowledged, 5000);
        assert_eq!(connections()[0].peer, pair.client.local_addr().unwrap());
    }
}
