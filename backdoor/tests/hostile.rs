//! Peers and guests that do what they should not: the others must not notice.

#[path = "vm/daemon.rs"]
mod daemon;
mod vm;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use control::agent::{FromAgent, Registration, ToAgent};
use control::backdoor::{FenceToken, QueuePair, Reply, Request};
use control::{Channel, Hello};
use link::{Link, LinkFailure, Options};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use vm::{Folder, Vm, wait_for};

fn dial(daemon: &backdoor::daemon::Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.control()).unwrap();
    stream.set_read_timeout(Some(vm::BOUND)).unwrap();
    stream
}

fn dial_from(source: Ipv4Addr, daemon: &backdoor::daemon::Daemon) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&daemon.control().into()).unwrap();
    socket.set_read_timeout(Some(vm::BOUND)).unwrap();
    socket.into()
}

fn sentence(reply: Reply) -> String {
    match reply {
        Reply::Refused { why } => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn garbage_on_the_control_plane_ends_its_own_connection_only() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..200 {
        let mut bytes = vec![0; rng.random_range(0..64)];
        rng.fill_bytes(&mut bytes);
        let mut stream = dial(&daemon);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest); // ends, whatever it says
    }
    // A length of 16 MiB, of which more comes than any request has: cut off before it is all taken.
    let mut flood = dial(&daemon);
    flood.write_all(&(16u32 << 20).to_be_bytes()).unwrap();
    let chunk = [b'{'; 64 << 10];
    wait_for("the flood to be cut off", || flood.write_all(&chunk).is_err());
    link.ping().unwrap();
}

#[test]
fn a_conversation_out_of_order_gets_sentences() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let reply = Channel::new(dial(&daemon)).ask(&Request::Stats).unwrap();
    assert!(sentence(reply).contains("hello"));
    let other = Hello { version: control::VERSION + 1, name: "x".into() };
    let mut foreign = Channel::new(dial(&daemon));
    let reply = foreign.ask(&Request::Hello(other)).unwrap();
    let told = matches!(reply, Reply::Welcome { version, .. } if version == control::VERSION);
    assert!(told, "a peer of another version is told ours: {reply:?}");
    assert!(foreign.ask::<_, Reply>(&Request::Stats).is_err(), "and gets nothing more");

    let mut channel = Channel::new(dial(&daemon));
    let welcome: Reply = channel.ask(&Request::Hello(Hello::new("x".repeat(10_000)))).unwrap();
    assert!(matches!(welcome, Reply::Welcome { .. }));
    let token = FenceToken { target: "web1".into(), epoch: 0, ram_key: 0, secret: 0 };
    let then = control::backdoor::Afterwards::Resume;
    assert!(sentence(channel.ask(&Request::Regions { token: Some(token.clone()) }).unwrap()).contains("token"));
    assert!(sentence(channel.ask(&Request::Release { token, then }).unwrap()).contains("token"));
    let good = QueuePair {
        number: 77,
        first_psn: 1,
        address: daemon::loopback(),
        port: 4791,
        path_mtu: 1024,
        reads_in_flight: 16,
    };
    for bad in [
        QueuePair { number: 0, ..good },
        QueuePair { number: u32::MAX, ..good },
        QueuePair { first_psn: u32::MAX, ..good },
        QueuePair { port: 0, ..good },
        QueuePair { address: [224, 0, 0, 1].into(), ..good },
        QueuePair { address: [255, 255, 255, 255].into(), ..good },
        QueuePair { path_mtu: 0, ..good },
    ] {
        let reply: Reply = channel.ask(&Request::Connect { pair: bad, keep: vec![] }).unwrap();
        assert!(!sentence(reply).is_empty(), "{bad:?}");
    }
    for _ in 0..100 {
        let reply: Reply = channel.ask(&Request::Connect { pair: good, keep: vec![] }).unwrap();
        assert!(matches!(reply, Reply::Connected { .. }));
    }
    match channel.ask(&Request::Stats).unwrap() {
        Reply::Stats(stats) => assert_eq!(stats.queue_pairs, 1, "one for each connection"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_peer_cannot_take_all_seats_and_only_named_ones_may_speak() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let config = daemon::config(&folder, &vm);
    let daemon = daemon::start(&config);
    // These and the link come from 127.0.0.1, as all do that choose no address.
    let held: Vec<TcpStream> = (0..40).map(|_| dial(&daemon)).collect();
    let crowded = Link::connect(daemon.control(), daemon::loopback(), Options::new("crowd"));
    assert!(matches!(crowded, Err(LinkFailure::Refused { .. } | LinkFailure::PathLost { .. })), "{crowded:?}");
    let mut channel = Channel::new(dial_from(daemon::loopback(), &daemon));
    let welcome: Reply = channel.ask(&Request::Hello(Hello::new("another"))).unwrap();
    assert!(matches!(welcome, Reply::Welcome { .. }), "{welcome:?}");
    drop(held);
    wait_for("a free seat", || Link::connect(daemon.control(), daemon::loopback(), Options::new("t")).is_ok());

    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let mut config = daemon::config(&folder, &vm);
    config.peers = vec!["192.0.2.1".parse().unwrap()];
    let closed = daemon::start(&config);
    let refused = Link::connect(closed.control(), daemon::loopback(), Options::new("stranger"));
    assert!(matches!(refused, Err(LinkFailure::Refused { .. } | LinkFailure::PathLost { .. })), "{refused:?}");
}

/// Plays the chardev of QEMU's virtio-serial port, so that the test can be the guest.
struct Guest {
    stream: UnixStream,
}

impl Guest {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(vm::BOUND)).unwrap();
        Self { stream }
    }

    fn say(&self, message: &FromAgent) -> ToAgent {
        Channel::new(&self.stream).ask(message).unwrap()
    }
}

#[test]
fn an_agent_that_breaks_off_and_comes_back_is_understood() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.join("agent")).unwrap();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    let guest = Guest::accept(&listener);
    let hello = FromAgent::Hello(Hello::new("agent"));
    assert!(matches!(guest.say(&hello), ToAgent::Welcome { .. }));
    let sb = Registration { name: "sb".into(), len: 5000, pages: vec![0x100, 0x80], writable: false };
    assert!(matches!(guest.say(&FromAgent::Register(sb.clone())), ToAgent::Registered { .. }));
    let first = link.region("sb").unwrap();
    assert_eq!((first.len, first.rights, first.base), (5000, 1, 0));

    // The guest dies inside a message; the one that boots after it begins with its own greeting.
    let torso = serde_json::to_vec(&FromAgent::Register(sb.clone())).unwrap();
    (&guest.stream).write_all(&(torso.len() as u32).to_be_bytes()).unwrap();
    (&guest.stream).write_all(&torso[..torso.len() / 2]).unwrap();
    (&guest.stream).write_all(b"\0\0garbage\xff\xff{{").unwrap();
    assert!(matches!(guest.say(&hello), ToAgent::Welcome { .. }));
    let outside = Registration { pages: vec![0x100, 64 << 8], ..sb.clone() };
    assert!(matches!(guest.say(&FromAgent::Register(outside)), ToAgent::Refused { .. }));
    assert!(matches!(guest.say(&FromAgent::Register(sb)), ToAgent::Registered { .. }));
    assert_eq!(link.region("sb").unwrap(), first, "an unchanged region keeps its key");

    drop(guest); // QEMU was started anew: the port is looked for again
    let guest = Guest::accept(&listener);
    assert!(matches!(guest.say(&hello), ToAgent::Welcome { .. }));
}

#[test]
fn metrics_are_served_and_bad_requests_do_not_stop_them() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let ask = |request: &[u8]| {
        let mut stream = TcpStream::connect(daemon.metrics().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(request);
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        reply
    };
    assert!(ask(b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    ask(&[b'x'; 9000]);
    let mut link = daemon::connect(&daemon);
    link.fence("count me").unwrap();
    let reply = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    for line in [
        "backdoor_fences_total{target=\"web1\"} 1",
        "backdoor_fenced{target=\"web1\"} 1.0",
        "backdoor_memory_served{target=\"web1\"} 1.0",
        "backdoor_queue_pairs{target=\"web1\"} 1.0",
        "# EOF",
    ] {
        assert!(reply.contains(line), "{line} is missing in\n{reply}");
    }
}
