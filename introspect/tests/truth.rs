//! Walks of recorded machines against what those machines said of themselves just before they were stopped: /proc for
//! tasks and connections, and the rule by which their server made its bytes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use introspect::linux::tcp::{State, TcpSocket};
use support::{MACHINES, load, path, sockets, tasks};

fn section(machine: &str, begin: &str, end: &str) -> Vec<String> {
    let text = fs::read_to_string(path(machine, "truth.txt")).unwrap();
    let lines = text.lines().skip_while(|line| *line != begin).skip(1);
    lines.take_while(|line| *line != end).map(str::to_string).collect()
}

#[test]
fn tasks_are_those_of_proc() {
    for machine in MACHINES {
        // tgid, pid, parent, uid, comm
        let truth: BTreeMap<u32, (u32, u32, u32, String)> = section(machine, "BEGIN-PS", "END-PS")
            .iter()
            .map(|line| {
                let mut fields = line.splitn(5, ' ');
                let mut number = || fields.next().unwrap().parse::<u32>().unwrap();
                let (tgid, pid, parent, uid) = (number(), number(), number(), number());
                (pid, (tgid, parent, uid, fields.next().unwrap_or("").to_string()))
            })
            .collect();
        let (kernel, mut image) = load(machine);
        let (tasks, damage) = tasks(&kernel, &mut image);
        assert_eq!(damage, []);
        assert!(tasks.len() > 50, "{} tasks in {machine}", tasks.len());
        for task in &tasks {
            let (tgid, parent, uid, comm) = &truth[&task.pid];
            assert_eq!((task.tgid, task.parent, task.uid), (*tgid, *parent, Some(*uid)), "{task:?}");
            // A worker's name in /proc has its current queue behind it.
            assert!(comm.starts_with(task.comm.as_str()), "{comm} and {task:?}");
        }
        let found: BTreeSet<u32> = tasks.iter().map(|task| task.pid).collect();
        // What printed the list ended between printing and the stop.
        // A process with a user and two threads of its own was made for this.
        let of_user: Vec<_> = tasks.iter().filter(|task| task.uid == Some(1234)).collect();
        assert!(of_user.len() == 2 && of_user[0].tgid == of_user[1].tgid && of_user[0].pid != of_user[1].pid);
        let gone: Vec<_> = truth.iter().filter(|(pid, _)| !found.contains(pid)).map(|(_, task)| &task.3).collect();
        assert!(gone.iter().all(|comm| ["awk", "cat"].contains(&comm.as_str())), "{gone:?}");
    }
}

/// Local and remote end, state number, bytes in the send and in the receive queue, each with a FIN counted.
type Line = (SocketAddr, SocketAddr, u8, u32, u32);

fn parse_line(line: &str) -> Line {
    let fields: Vec<_> = line.split_whitespace().collect();
    let queues: Vec<_> = fields[4].split(':').map(|queue| u32::from_str_radix(queue, 16).unwrap()).collect();
    (end(fields[1]), end(fields[2]), u8::from_str_radix(fields[3], 16).unwrap(), queues[0], queues[1])
}

/// `0F02000A:1B5B`: each 32-bit word of the address in the byte order of the machine.
fn end(text: &str) -> SocketAddr {
    let (address, port) = text.split_once(':').unwrap();
    let words = address.as_bytes().chunks(8).map(|word| std::str::from_utf8(word).unwrap());
    let bytes: Vec<u8> = words.flat_map(|word| u32::from_str_radix(word, 16).unwrap().to_le_bytes()).collect();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::V4(Ipv4Addr::from(four)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).unwrap())).to_canonical(),
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).unwrap())
}

fn state_number(state: State) -> u8 {
    match state {
        State::SynReceived => 3,
        State::Established => 1,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Closing => 11,
    }
}

#[test]
fn connections_are_those_of_proc_queue_lengths_included() {
    const LISTEN: u8 = 10;
    for machine in MACHINES {
        let truth: BTreeSet<Line> = section(machine, "BEGIN-TCP", "END-TCP")
            .iter()
            .filter(|line| !line.contains("local_address"))
            .map(|line| parse_line(line))
            .filter(|line| line.2 != LISTEN)
            .collect();
        let (kernel, mut image) = load(machine);
        let (sockets, damage) = sockets(&kernel, &mut image);
        assert_eq!(damage, []);
        let found: BTreeSet<Line> = sockets
            .iter()
            .filter(|socket| socket.in_init_net)
            .map(|socket| {
                let queued = socket.write_seq.wrapping_sub(socket.snd_una);
                let waiting = socket.rcv_nxt.wrapping_sub(socket.copied_seq);
                // A FIN that was read counts in neither: the kernel prints what is left.
                (socket.local, socket.peer, state_number(socket.state), queued, waiting)
            })
            .collect();
        assert_eq!(found, truth, "{machine}");
        for socket in &sockets {
            assert!(socket.usable() && socket.damage.is_empty(), "{socket:?}");
            assert_eq!(socket.accepted, socket.local.port() != 7002, "{socket:?}");
        }
        let elsewhere: Vec<_> = sockets.iter().filter(|socket| !socket.in_init_net).collect();
        assert!(elsewhere.len() == 2 && elsewhere.iter().any(|socket| socket.receive_queue == b"elsewhere"));
    }
}

/// The rule by which the recorded machines' server made byte `offset` of every stream.
fn pattern(offset: u64) -> u8 {
    b'A' + (offset % 26) as u8 + ((offset / 26) % 2) as u8 * 32
}

fn is_server(socket: &TcpSocket) -> bool {
    [7000, 7001, 7003, 7004].contains(&socket.local.port())
}

#[test]
fn every_queued_byte_is_the_one_the_server_wrote_at_that_offset() {
    for machine in MACHINES {
        let (kernel, mut image) = load(machine);
        let (sockets, _) = sockets(&kernel, &mut image);
        let mut bytes = 0;
        for socket in sockets.iter().filter(|socket| is_server(socket)) {
            let queued: usize = socket.send_queue.iter().map(|segment| segment.bytes.len()).sum();
            let start = socket.written_offset() - queued as u64;
            let stream = socket.send_queue.iter().flat_map(|segment| &segment.bytes);
            for (offset, byte) in (start..).zip(stream) {
                assert_eq!(*byte, pattern(offset), "offset {offset} of {socket:?}");
            }
            bytes += queued;
        }
        assert!(bytes > 500_000, "{bytes} bytes in {machine}");
        for socket in
            sockets.iter().filter(|socket| !is_server(socket) && socket.local.port() > 10_000 && socket.in_init_net)
        {
            let start = socket.read_offset();
            for (index, byte) in socket.receive_queue.iter().enumerate() {
                assert_eq!(*byte, pattern(start + index as u64), "received byte {index} of {}", socket.local);
            }
        }
    }
}

#[test]
fn received_bytes_begin_where_the_application_stopped_reading() {
    for machine in MACHINES {
        let (kernel, mut image) = load(machine);
        let (sockets, _) = sockets(&kernel, &mut image);
        let of_port = |port| sockets.iter().filter(move |socket| socket.local.port() == port);
        for socket in of_port(7000).filter(|socket| socket.peer.ip() == IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2))) {
            let (text, fin) = (&socket.receive_queue, socket.state == State::CloseWait);
            assert_eq!(socket.fin_received, fin);
            let expected: Vec<u8> = match fin {
                true => b"half closed".to_vec(),
                false => (0..text.len() / 8).flat_map(|line| format!("{line:07}\n").into_bytes()).collect(),
            };
            assert_eq!((text, socket.read_offset()), (&expected, 0));
        }
        for socket in of_port(7001).filter(|socket| socket.peer.ip() == IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2))) {
            assert_eq!((socket.read_offset(), socket.receive_queue.len()), (7, 4993));
            // Client n sent bytes 7 k + n for k from 0.
            let client = socket.receive_queue[0].wrapping_sub(49);
            for (index, byte) in socket.receive_queue.iter().enumerate() {
                assert_eq!(*byte, (((index + 7) * 7) as u8).wrapping_add(client), "byte {index}, client {client}");
            }
        }
        assert_eq!(of_port(7002).count(), 3);
        of_port(7002).for_each(|socket| assert!(socket.receive_queue.starts_with(b"unaccepted ")));
    }
}

#[test]
fn offsets_of_connections_that_are_closing_count_bytes_only() {
    for machine in MACHINES {
        let (kernel, mut image) = load(machine);
        let (sockets, _) = sockets(&kernel, &mut image);
        let offsets: BTreeSet<(u8, u64, u64)> = sockets
            .iter()
            .filter(|socket| socket.fin_queued)
            .map(|socket| (state_number(socket.state), socket.read_offset(), socket.written_offset()))
            .collect();
        // FIN_WAIT1 (nothing read), FIN_WAIT2 (FIN acknowledged), LAST_ACK (3 bytes and the peer's FIN read).
        assert_eq!(offsets, BTreeSet::from([(4, 0, 21_000), (5, 0, 300_000), (9, 3, 21_000)]), "{machine}");
    }
}
