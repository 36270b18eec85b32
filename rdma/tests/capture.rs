//! Somebody else's eyes: packets of a real run over a veth pair, captured between the two ends, are dissected by
//! scapy, which computes every invariant CRC again from the bytes that were on the wire.

mod ground;

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ground::{ALL, BASE, Ram, ip, pattern};
use nix::sched::{CloneFlags, unshare};
use rdma::PathMtu;
use rdma::soft::{Options, PORT, Server, SoftQueue};
use remote_memory::{AccessError, Blocking, Epoch, Fenced, RemoteAddr, RemoteRead, RemoteWrite, Warrant};
use socket2::{Domain, Protocol, Socket, Type};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PATIENCE: Duration = Duration::from_secs(20);
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Every protocol, in network byte order.
const ETH_P_ALL: i32 = 0x0003_u16.to_be() as i32;

/// Reads frames as hex lines; prints one line per frame: direction, opcode, whether the CRC on the wire is right.
const DISSECT: &str = r#"
import sys
from scapy.all import Ether, IP, UDP
from scapy.contrib.roce import BTH
for line in sys.stdin:
    raw = bytes.fromhex(line.strip())
    frame = Ether(raw)
    frame = Ether(raw[:14 + frame[IP].len])
    wire = raw[14:][:frame[IP].len][-4:]
    assert frame.haslayer(BTH), line
    bth = frame[BTH]
    computed = bth.compute_icrc(b'')
    print(frame[IP].src, '%02x' % bth.opcode, int(computed == wire), frame[UDP].chksum, frame[IP].id)
"#;

fn options() -> Options {
    Options { tries: 12, path_mtu: PathMtu::at_most(1024), ..Options::default() }
}

/// Everything of RoCEv2 that a packet socket of this namespace sees until `body` is done, as Ethernet frames.
fn captured(body: impl FnOnce()) -> Vec<Vec<u8>> {
    let sniffer = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ETH_P_ALL))).unwrap();
    sniffer.set_recv_buffer_size(4 << 20).unwrap();
    sniffer.set_nonblocking(true).unwrap();
    body();
    let mut frames = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok(len) = nix::unistd::read(&sniffer, &mut buffer) {
        let frame = &buffer[..len];
        let to_roce = frame.get(36..38).is_some_and(|port| port == PORT.to_be_bytes());
        if frame.get(12..14) == Some(&ETHERTYPE_IPV4) && to_roce {
            frames.push(frame.to_vec());
        }
    }
    frames
}

/// Reads, writes and atomics of one and of several packets, and a refusal.
fn every_kind_of_packet(memory: &mut Blocking<SoftQueue>) {
    let at = |offset: u64| RemoteAddr::new(ALL, BASE + offset);
    for len in [0_usize, 1, 2, 3, 64, 1024, 5000] {
        let mut bytes = vec![0; len];
        memory.read_one(at(7), &mut bytes).unwrap().unwrap();
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == pattern(7 + i)));
    }
    let fenced = Fenced::attested(Epoch::new(1), ALL);
    for len in [1, 6, 3000] {
        memory.write(Warrant::Fenced(&fenced), at(9000), &vec![0x5a; len]).unwrap();
    }
    memory.fetch_add(Warrant::Fenced(&fenced), at(16), 1).unwrap();
    memory.compare_swap(Warrant::Fenced(&fenced), at(16), 1, 2).unwrap();
    let refused = memory.read_one(at(1 << 40), &mut [0; 8]).unwrap();
    assert_eq!(refused, Err(AccessError::Refused));
}

fn dissect(frames: &[Vec<u8>]) -> Vec<String> {
    let mut scapy = Command::new("/usr/bin/python3");
    let mut scapy = scapy.args(["-c", DISSECT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = scapy.stdin.take().unwrap();
    let lines: String =
        frames.iter().map(|frame| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect();
    let writer = thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = scapy.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "scapy (python3-scapy) dissects every packet");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn scapy_agrees_with_every_packet_in_both_directions() {
    if ground::ran_in_a_namespace("scapy_agrees_with_every_packet_in_both_directions") {
        return;
    }
    let stop = AtomicBool::new(false);
    let (tell_home, home) = mpsc::channel();
    let (tell_joined, joined) = mpsc::channel();
    let (tell_handle, handle) = mpsc::channel();
    let ram = Arc::new(Ram::patterned(1 << 16));
    let frames = thread::scope(|scope| {
        let (stop, ram) = (&stop, &ram);
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell_home.send(nix::unistd::gettid()).unwrap();
            joined.recv().unwrap();
            ip(&["link", "set", "far", "up"]);
            ip(&["addr", "add", "10.9.0.1/24", "dev", "far"]);
            let mut server = Server::bind(SERVER, PORT, Arc::clone(ram), options()).unwrap();
            tell_handle.send(server.handle()).unwrap();
            server.run(stop).unwrap();
        });
        let there = format!("/proc/{}/task/{}/ns/net", std::process::id(), home.recv().unwrap());
        ip(&["link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &there]);
        ip(&["link", "set", "near", "up"]);
        ip(&["addr", "add", "10.9.0.2/24", "dev", "near"]);
        tell_joined.send(()).unwrap();
        let handle = handle.recv().unwrap();
        let frames = std::panic::catch_unwind(|| {
            captured(|| {
                let (mut queue, ours) = SoftQueue::open(CLIENT, PORT, options()).unwrap();
                queue.connect(handle.add(ours).unwrap()).unwrap();
                queue.set_dialer(Box::new(move |ours| Ok(handle.add(ours)?.into())));
                every_kind_of_packet(&mut Blocking::new(queue, PATIENCE));
            })
        });
        stop.store(true, Ordering::Relaxed);
        frames
    });
    let frames = frames.expect("the run over the veth pair succeeds");
    let lines = dissect(&frames);
    assert_eq!(lines.len(), frames.len());
    let mut seen = std::collections::BTreeSet::new();
    for line in &lines {
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!(fields[2..], ["1", "0", "0"], "CRC right, UDP checksum 0, IP id 0: {line}");
        seen.insert((fields[0].to_owned(), fields[1].to_owned()));
    }
    let from = |address: Ipv4Addr| -> Vec<&str> {
        seen.iter().filter(|(source, _)| *source == address.to_string()).map(|(_, opcode)| opcode.as_str()).collect()
    };
    assert_eq!(from(CLIENT), ["06", "07", "08", "0a", "0c", "13", "14"]);
    assert_eq!(from(SERVER), ["0d", "0e", "0f", "10", "11", "12"]);
}
