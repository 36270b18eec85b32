//! The daemon as a monitor meets it: what it says when something stands in the way, and that it never takes a thing.

mod folder;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use control::{
    Channel, Hello, VERSION,
    backdoor::FenceToken,
    reinstate::{Assignment, Evacuation, GiveBack, Reply, Request, Service, Share},
};
use folder::Folder;
use reinstate::{config::Config, daemon::Daemon};

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start(folder: &Folder) -> (Daemon, Channel<TcpStream>, SocketAddr) {
    let (control, metrics) = (free_port(), free_port());
    let text = format!(
        "name = \"test\"\nlisten = \"127.0.0.1\"\ncontrol_port = {control}\nmetrics_port = {metrics}\n\
         box_socket = \"{}\"\n",
        folder.0.join("box.sock").display()
    );
    let file = folder.0.join("reinstate.toml");
    std::fs::write(&file, text).unwrap();
    let daemon = Daemon::start(&Config::read(&file).unwrap()).unwrap();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, control)).unwrap();
    (daemon, Channel::new(stream), SocketAddr::from((Ipv4Addr::LOCALHOST, metrics)))
}

fn assignment() -> Assignment {
    Assignment {
        target: "web1".into(),
        backdoor: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
        services: vec![Service { address: Ipv4Addr::new(192, 0, 2, 100).into(), ports: vec![8080] }],
    }
}

fn evacuation(target: &str) -> Evacuation {
    let token = FenceToken { target: target.into(), epoch: 1, ram_key: 2, secret: 3 };
    Evacuation { token, silent_ms: 10, assignment: assignment(), share: None, absent: Vec::new() }
}

fn metrics(at: SocketAddr) -> String {
    use io::{Read, Write};
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn nothing_is_heard_before_hello_and_no_other_version() {
    let folder = Folder::new("hello");
    let (_daemon, mut channel, _) = start(&folder);
    let reply: Reply = channel.ask(&Request::Prepare(assignment())).unwrap();
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    let reply: Reply = channel.ask(&Request::Hello(Hello::new("monitor"))).unwrap();
    assert_eq!(reply, Reply::Welcome { version: VERSION });
    let stranger = Hello { version: VERSION + 1, name: "monitor".into() };
    let reply: Reply = channel.ask(&Request::Hello(stranger)).unwrap();
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    assert!(channel.receive::<Reply>().is_err(), "the conversation has ended");
}

#[test]
fn without_a_backdoor_the_spare_is_not_ready_and_refuses_orders() {
    let folder = Folder::new("refuse");
    let (_daemon, mut channel, at) = start(&folder);
    let _: Reply = channel.ask(&Request::Hello(Hello::new("monitor"))).unwrap();
    let reply: Reply = channel.ask(&Request::Prepare(assignment())).unwrap();
    let Reply::NotReady { why } = reply else { panic!("{reply:?}") };
    assert!(why.contains("backdoor"), "{why}");
    let reply: Reply = channel.ask(&Request::Evacuate(evacuation("web1"))).unwrap();
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    let reply: Reply = channel.ask(&Request::Evacuate(evacuation("another"))).unwrap();
    let Reply::Refused { why } = reply else { panic!("{reply:?}") };
    assert!(why.contains("the token is for another"), "{why}");
    let text = metrics(at);
    assert!(text.contains("reinstate_orders_refused_total 2"), "{text}");
    assert!(text.contains("reinstate_evacuations_total 0"), "{text}");
}

#[test]
fn a_part_that_cannot_be_is_refused_and_nothing_can_be_given_back_by_who_has_nothing() {
    let folder = Folder::new("part");
    let (_daemon, mut channel, _) = start(&folder);
    let _: Reply = channel.ask(&Request::Hello(Hello::new("monitor"))).unwrap();
    let order = Evacuation { share: Some(Share { index: 2, of: 2 }), ..evacuation("web1") };
    let Reply::Refused { why } = channel.ask(&Request::Evacuate(order)).unwrap() else { panic!("not refused") };
    assert!(why.contains("no part 2 of 2"), "{why}");
    let order = GiveBack { target: "web1".into(), drain_ms: 60_000, wait_ms: None };
    let reply: Reply = channel.ask(&Request::GiveBack(order)).unwrap();
    assert_eq!(reply, Reply::GivenBack { aborted: 0 });
}

#[test]
fn an_order_that_was_taken_back_is_not_carried_out_when_it_arrives_after_all() {
    let folder = Folder::new("withdrawn");
    let (_daemon, mut channel, _) = start(&folder);
    let _: Reply = channel.ask(&Request::Hello(Hello::new("monitor"))).unwrap();
    for _ in 0..2 {
        assert_eq!(channel.ask::<_, Reply>(&Request::Withdraw(evacuation("web1"))).unwrap(), Reply::Withdrawn);
    }
    let Reply::Refused { why } = channel.ask(&Request::Evacuate(evacuation("web1"))).unwrap() else { panic!("taken") };
    assert_eq!(why, "this order was taken back");
    // Another part, and another fence, are other orders.
    let other = Evacuation { share: Some(Share { index: 0, of: 2 }), ..evacuation("web1") };
    let Reply::Refused { why } = channel.ask(&Request::Evacuate(other)).unwrap() else { panic!("taken") };
    assert!(why.contains("backdoor"), "{why}");
}

#[test]
fn a_spare_that_starts_again_reads_what_was_held_and_does_not_choke_on_garbage() {
    let folder = Folder::new("garbage");
    std::fs::write(folder.0.join("box.held"), "half a li").unwrap();
    let (_daemon, mut channel, _) = start(&folder);
    let reply: Reply = channel.ask(&Request::Hello(Hello::new("monitor"))).unwrap();
    assert_eq!(reply, Reply::Welcome { version: VERSION });
}
