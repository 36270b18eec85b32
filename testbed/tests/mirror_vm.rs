//! The table of connections in real guests, held against a walk through the same memory: at random moments of heavy
//! traffic all processors are stopped, and each connection is looked up in both. Slow.
//!
//! The table says the connection as it is, or an earlier moment of it since which nothing has left that it does not
//! cover.

mod port;
mod ram;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use control::agent::Registration;
use introspect::Kernel;
use introspect::linux::tcp::{self, State, TcpFilter, TcpSocket};
use port::BackdoorEnd;
use ram::Ram;
use rand::{Rng, SeedableRng, rngs::StdRng};
use reinstate::tables;
use remote_memory::{AccessError, LinkError, Read, Region, RemoteKey, RemoteRead, Rights};
use tcptable::layout::{NAME, RING_BYTES};
use testbed::guest::{self, ImageSpec, Service};
use testbed::vm::Vm;

const KEY: RemoteKey = RemoteKey::new(1);
const PAGE: u64 = 4096;

/// Of the file server.
const PORTS: [u16; 1] = [8080];

const STOPS: usize = 40;

/// The table's region as an adapter would read it: its own addresses, wherever its pages lie.
struct Table {
    ram: File,
    region: Registration,
}

impl RemoteRead for Table {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            let mut at = read.at.addr;
            let mut rest = &mut read.into[..];
            read.outcome = Ok(());
            while !rest.is_empty() {
                let count = rest.len().min((PAGE - at % PAGE) as usize);
                let (into, later) = rest.split_at_mut(count);
                match self.region.pages.get((at / PAGE) as usize) {
                    Some(page) => self.ram.read_exact_at(into, page * PAGE + at % PAGE).unwrap(),
                    None => read.outcome = Err(AccessError::Refused),
                }
                at += count as u64;
                rest = later;
            }
        }
        Ok(())
    }
}

struct Target {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
    table: Table,
    _backdoor: BackdoorEnd,
    _alone: MutexGuard<'static, ()>,
}

/// One virtual machine at a time: two would wait for each other's processors.
static MACHINE: Mutex<()> = Mutex::new(());

impl Target {
    fn boot(line: &str) -> Self {
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let server = port::agent_program().with_file_name("file-server");
        assert!(server.is_file(), "the file server has not been built");
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap())
            .program("target-agent", &port::agent_program())
            .program("file-server", &server)
            .service(Service {
                name: "agent".into(),
                command: "/bin/target-agent --pool-slots 64 --send-log-kib 256 --mirror-slots 128 \
                          --mirror-port 9000 --mirror-port 8080"
                    .into(),
                ready_path: Some("/run/backdoors/box.sock".into()),
            });
        let vm = port::boot("mirror", &image, 2);
        let backdoor = BackdoorEnd::of(&vm);
        let region = backdoor.registration(NAME);
        assert!(!region.writable);
        let mut ram = Ram::of(&vm);
        let kernel = ram.kernel();
        let table = Table { ram: File::open(vm.ram_path()).unwrap(), region };
        Self { vm, ram, kernel, table, _backdoor: backdoor, _alone: alone }
    }

    fn filter() -> TcpFilter {
        TcpFilter { addresses: Vec::new(), ports: PORTS.to_vec() }
    }

    fn mirrored(&mut self) -> (Vec<TcpSocket>, Vec<String>) {
        let region = Region { name: NAME.into(), base: 0, len: self.table.region.len, key: KEY, rights: Rights::READ };
        let tables = tables::survey(&mut self.table, &region, &Self::filter()).unwrap().unwrap();
        (tables.sockets, tables.damage)
    }

    fn walked(&mut self) -> Vec<TcpSocket> {
        tcp::walk(&self.kernel, &mut self.ram, KEY, &Self::filter()).unwrap().0
    }

    fn spawn(&mut self, command: &str) {
        self.vm.run(&format!("({command}) </dev/null >/dev/null 2>&1 &")).unwrap();
    }

    /// Has files served.
    fn serve(&mut self) {
        let sizes = [("/tmp/files/big", 3_000_000), ("/tmp/files/small", 700), ("/tmp/up", 300_000)];
        self.vm.run("mkdir -p /tmp/files").unwrap();
        for (file, bytes) in sizes {
            self.vm.run(&format!("head -c {bytes} /dev/urandom > {file}")).unwrap();
        }
        self.spawn("exec file-server --quiet --root /tmp/files --box-socket /run/backdoors/box.sock");
        self.vm.run("until wget -q -O /dev/null http://127.0.0.1:8080/small; do sleep 0.1; done").unwrap();
    }

    /// Downloads, uploads, connections that come and go, some over IPv6, and input that nobody reads.
    fn load(&mut self) {
        self.serve();
        for address in ["127.0.0.1", "[::1]"] {
            self.spawn(&format!("while :; do wget -q -O /dev/null http://{address}:8080/big; done"));
            self.spawn(&format!("while :; do wget -q -O /dev/null http://{address}:8080/small; done"));
            let head = r"PUT /up HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 300000\r\n\r\n";
            let host = address.trim_matches(['[', ']']);
            self.spawn(&format!("while :; do (printf '{head}'; cat /tmp/up) | nc {host} 8080; done"));
        }
        // A reader that is stopped again and again.
        self.spawn(
            "while :; do kill -STOP $(pidof file-server); sleep 0.4; kill -CONT $(pidof file-server); sleep 0.6; done",
        );
        // Bytes that wait behind an unfinished request.
        self.spawn("(printf 'GET /small HTTP/1.1\\r\\nhost: x\\r\\n'; sleep 1000) | nc 127.0.0.1 8080");
    }
}

/// What was seen, by name.
type Seen = BTreeMap<&'static str, usize>;

fn is_at_most(low: u32, high: u32) -> bool {
    high.wrapping_sub(low) <= i32::MAX as u32
}

/// Bytes of both receive queues that have the same sequence numbers are the same.
fn same_input(kept: &TcpSocket, walked: &TcpSocket) -> bool {
    let skip = walked.copied_seq.wrapping_sub(kept.copied_seq) as usize;
    let rest = kept.receive_queue.get(skip..).unwrap_or_default();
    rest.iter().zip(&walked.receive_queue).all(|(one, other)| one == other)
}

/// Compares what both say of one connection; a sentence if they cannot both be right.
fn compare(kept: &TcpSocket, walked: &TcpSocket, seen: &mut Seen) -> Result<(), String> {
    let settled = |it: &TcpSocket| {
        let numbers = (it.mss_clamp, it.snd_wscale, it.rcv_wscale, it.tsoffset, it.bound_device);
        (numbers, it.timestamps, it.window_scaling, it.sack, it.timestamps_in_us, it.inet6_socket, it.in_init_net)
    };
    let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    check(settled(kept) == settled(walked), "settled once")?;
    check(kept.read_offset_certain, "read offset")?;
    if walked.receive_queue.len() > RING_BYTES as usize {
        // Reported, and never taken for whole.
        *seen.entry("beyond the ring").or_default() += 1;
        return check(!kept.receive_queue_complete, "more than a ring holds");
    }
    // Of one that its application has closed nobody will read anything, and its client's FIN may be half counted.
    check((kept.receive_queue_complete || kept.orphaned) && kept.send_queue_complete, "not whole")?;
    let clock_us = kept.tcp_mstamp_us.max(kept.tcp_wstamp_ns / 1000);
    // What has left has no later time.
    check(clock_us >= walked.tcp_wstamp_ns / 1000 || walked.lock_held, "time")?;
    // No acknowledgement and no byte has left that the table does not know of.
    check(is_at_most(walked.rcv_wup, kept.rcv_nxt), "an acknowledgement has left before")?;
    check(is_at_most(walked.snd_nxt, kept.write_seq), "a byte has left before")?;
    check(same_input(kept, walked), "input")?;
    *seen.entry("with input").or_default() += usize::from(!kept.receive_queue.is_empty());
    *seen.entry("with much input").or_default() += usize::from(kept.receive_queue.len() > 10_000);
    *seen.entry("with output").or_default() += usize::from(kept.snd_una != kept.write_seq);
    let behind = is_at_most(kept.snd_una, walked.snd_una)
        && is_at_most(kept.write_seq, walked.write_seq)
        && is_at_most(kept.copied_seq, walked.copied_seq)
        && is_at_most(kept.rcv_nxt, walked.rcv_nxt);
    check(behind, "ahead")?;
    if walked.read_offset_certain && walked.damage.is_empty() {
        let since = u64::from(walked.copied_seq.wrapping_sub(kept.copied_seq));
        // Whoever has read to the end has taken the FIN as well, which is no byte.
        let at_end = |it: &TcpSocket| it.fin_received && it.copied_seq == it.rcv_nxt;
        let fin = u64::from(at_end(walked) && !at_end(kept));
        check(kept.read_offset() + since == walked.read_offset() + fin, "read offset")?;
    }
    if walked.lock_held || !walked.damage.is_empty() {
        *seen.entry("held").or_default() += 1;
        return Ok(());
    }
    let sent = |it: &TcpSocket| (it.state, it.accepted, it.orphaned, it.snd_una, it.write_seq, it.bytes_acked);
    let input = |it: &TcpSocket| (it.rcv_nxt, it.copied_seq, it.bytes_received, it.fin_received, it.fin_queued);
    let is_same = sent(kept) == sent(walked) && input(kept) == input(walked);
    *seen.entry(if is_same { "the same" } else { "gone on since" }).or_default() += 1;
    check((kept.accepted, kept.orphaned) == (walked.accepted, walked.orphaned), "who has it")
}

fn holds_against_the_walk(line: &str) {
    let mut target = Target::boot(line);
    target.load();
    let mut random = StdRng::seed_from_u64(22);
    let mut seen = Seen::new();
    let mut trouble = Vec::new();
    for stop in 0..STOPS {
        thread::sleep(Duration::from_micros(random.random_range(50_000..400_000)));
        target.vm.qmp().stop().unwrap();
        let walked = target.walked();
        let (kept, damage) = target.mirrored();
        target.vm.qmp().cont().unwrap();
        trouble.extend(damage);
        let kept: HashMap<(SocketAddr, SocketAddr), TcpSocket> =
            kept.into_iter().map(|socket| ((socket.local, socket.peer), socket)).collect();
        for socket in &walked {
            *seen.entry("walked").or_default() += 1;
            match kept.get(&(socket.local, socket.peer)) {
                // A handshake is in the table from its end on.
                None if socket.state == State::SynReceived => *seen.entry("handshakes").or_default() += 1,
                None => trouble.push(format!("stop {stop}: not kept: {socket:?}")),
                Some(kept) => {
                    if let Err(what) = compare(kept, socket, &mut seen) {
                        trouble.push(format!("stop {stop}: {what}:\n kept {kept:?}\n walked {socket:?}"));
                    }
                }
            }
        }
        // Between its last state and its removal a socket is in one of both only.
        let ends: Vec<_> = walked.iter().map(|socket| (socket.local, socket.peer)).collect();
        for socket in kept.values().filter(|socket| !ends.contains(&(socket.local, socket.peer))) {
            *seen.entry("kept only").or_default() += 1;
            if matches!(socket.state, State::Established | State::CloseWait) {
                trouble.push(format!("stop {stop}: nowhere but in the table: {socket:?}"));
            }
        }
    }
    println!("{line}: {seen:?}");
    let shown: Vec<_> = trouble.iter().take(5).map(|it| it.chars().take(6000).collect::<String>()).collect();
    assert!(trouble.is_empty(), "{} of {seen:?}:\n{}", trouble.len(), shown.join("\n"));
    for (what, least) in [
        ("walked", 5 * STOPS),
        ("the same", STOPS / 2),
        ("gone on since", 3),
        ("with input", STOPS / 2),
        ("with much input", 3),
    ] {
        assert!(seen.get(what).copied().unwrap_or_default() >= least, "too few {what}: {seen:?}");
    }
}

#[test]
fn what_is_kept_is_what_a_walk_finds() {
    holds_against_the_walk("6.1");
}
