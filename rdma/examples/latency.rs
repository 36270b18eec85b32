//! What our RoCEv2 costs over a bare UDP echo: `cargo run --release -p rdma --example latency`.
//!
//! Two network namespaces joined by a veth pair; one thread serves, this one asks. Both carriers use the same waiting
//! (spin, then block), so that the ratio is the price of the protocol and of the raw socket, not of the scheduler.
//! Needs root, or `unshare -Urn` around it.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rdma::responder::{Memory, Refusal};
use rdma::soft::{Options, PORT, Server, ServerHandle, SoftQueue};
use remote_memory::{Blocking, Read, RemoteAddr, RemoteKey, RemoteRead, Rights};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const ECHO_PORT: u16 = 9000;
const ROUNDS: usize = 20_000;
const WARM_UP: usize = 1000;
/// Large enough for single packets of 4 KiB.
const INTERFACE_MTU: &str = "4200";
const RAM_BYTES: u64 = 64 << 20;
const KEY: RemoteKey = RemoteKey::new(1);
const SPIN: Duration = Duration::from_millis(2);

/// Readable zeroes.
struct Zeroes(Vec<u8>);

impl Memory for Zeroes {
    fn check(&self, _: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let inside = addr.checked_add(len).is_some_and(|end| end <= RAM_BYTES);
        if inside && Rights::READ.covers(rights) { Ok(()) } else { Err(Refusal::Access) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        into.copy_from_slice(&self.0[addr as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, _: RemoteKey, _: u64, _: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::Access)
    }

    fn compare_swap(&self, _: RemoteKey, _: u64, _: u64, _: u64) -> Result<u64, Refusal> {
        Err(Refusal::Access)
    }

    fn fetch_add(&self, _: RemoteKey, _: u64, _: u64) -> Result<u64, Refusal> {
        Err(Refusal::Access)
    }
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("ip(8)")?;
    ensure!(status.success(), "ip {arguments}");
    Ok(())
}

fn server_options() -> Options {
    Options { spin: SPIN, ..Options::default() }
}

/// Runs `body` in this thread, joined by a veth pair to a second namespace where the server and the echo run.
fn between_namespaces(body: impl FnOnce(&ServerHandle) -> Result<()>) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace: run as root or in `unshare -Urn`")?;
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
    let (tell, told) = mpsc::channel();
    let (tell_handle, told_handle) = mpsc::channel();
    thread::scope(|scope| {
        let (stop, ready) = (&stop, &ready);
        let peer = scope.spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            tell.send(nix::unistd::gettid())?;
            ready.wait(); // the veth end is here now
            ip("link set far up")?;
            ip(&format!("addr add {SERVER}/24 dev far"))?;
            let echo = UdpSocket::bind((SERVER, ECHO_PORT))?;
            echo.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut server = Server::bind(SERVER, PORT, Zeroes(vec![0; RAM_BYTES as usize]), server_options())?;
            tell_handle.send(server.handle())?;
            ready.wait();
            thread::scope(|scope| {
                scope.spawn(|| echo_until(&echo, stop));
                server.run(stop)
            })?;
            Ok(())
        });
        let near = (|| -> Result<()> {
            let tid = told.recv()?;
            let home = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
            ip(&format!("link add near mtu {INTERFACE_MTU} type veth peer name far mtu {INTERFACE_MTU} netns {home}"))?;
            ip("link set near up")?;
            ip(&format!("addr add {CLIENT}/24 dev near"))?;
            ready.wait();
            ready.wait();
            body(&told_handle.recv()?)
        })();
        stop.store(true, Ordering::Relaxed);
        near?;
        peer.join().expect("the server thread does not panic")
    })
}

/// Answers datagrams of 8 bytes or more: the first two say how long the answer is to be.
fn echo_until(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
        answer(socket, &buffer, from);
        // Now spin as the server does, until the asker falls silent.
        socket.set_nonblocking(true).ok();
        let mut last = Instant::now();
        while last.elapsed() < SPIN {
            match socket.recv_from(&mut buffer) {
                Ok((_, from)) => {
                    answer(socket, &buffer, from);
                    last = Instant::now();
                }
                Err(_) => thread::yield_now(),
            }
        }
        socket.set_nonblocking(false).ok();
    }
}

fn answer(socket: &UdpSocket, request: &[u8], to: std::net::SocketAddr) {
    let len = usize::from(u16::from_be_bytes([request[0], request[1]]));
    socket.send_to(&request[..len], to).ok();
}

/// Median and 99th percentile of `ROUNDS` calls of `once`.
fn measure(mut once: impl FnMut() -> Result<()>) -> Result<(Duration, Duration)> {
    for _ in 0..WARM_UP {
        once()?;
    }
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        once()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok((times[ROUNDS / 2], times[ROUNDS * 99 / 100]))
}

fn echo_times(len: usize) -> Result<(Duration, Duration)> {
    let socket = UdpSocket::bind((CLIENT, 0))?;
    socket.connect((SERVER, ECHO_PORT))?;
    socket.set_nonblocking(true)?;
    // The request is as long as a READ request, the answer as long as its answer.
    let mut request = [0; 32];
    request[..2].copy_from_slice(&((len + 20) as u16).to_be_bytes());
    let mut answer = vec![0; len + 20];
    measure(|| {
        socket.send(&request)?;
        while socket.recv(&mut answer).is_err() {
            thread::yield_now();
        }
        Ok(())
    })
}

fn connected(handle: &ServerHandle) -> Result<Blocking<SoftQueue>> {
    let (mut queue, ours) = SoftQueue::open(CLIENT, PORT, Options { spin: SPIN, ..Options::default() })?;
    queue.connect(handle.add(ours)?)?;
    Ok(Blocking::new(queue, Duration::from_secs(5)))
}

fn latency(handle: &ServerHandle, len: usize) -> Result<()> {
    let (echo_p50, echo_p99) = echo_times(len)?;
    let mut memory = connected(handle)?;
    let mut bytes = vec![0; len];
    let (read_p50, read_p99) = measure(|| {
        memory.read_one(RemoteAddr::new(KEY, 0), &mut bytes)??;
        Ok(())
    })?;
    let ratio = read_p50.as_secs_f64() / echo_p50.as_secs_f64();
    println!(
        "{len:5} B   echo p50 {echo_p50:8.2?} p99 {echo_p99:8.2?}   READ p50 {read_p50:8.2?} p99 {read_p99:8.2?}   \
         ratio {ratio:.2}"
    );
    Ok(())
}

fn throughput(handle: &ServerHandle, count: usize, len: usize) -> Result<()> {
    let mut memory = connected(handle)?;
    let mut buffer = vec![0; count * len];
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let mut batch: Vec<Read<'_>> = buffer
            .chunks_mut(len)
            .enumerate()
            .map(|(i, chunk)| Read::new(RemoteAddr::new(KEY, (i * len) as u64), chunk))
            .collect();
        let began = Instant::now();
        memory.read(&mut batch)?;
        best = best.min(began.elapsed());
        ensure!(batch.iter().all(|read| read.outcome.is_ok()), "a read was refused");
    }
    let seconds = best.as_secs_f64();
    let (ops, mega) = (count as f64 / seconds, (count * len) as f64 / seconds / 1e6);
    println!("{count} READs of {len} B in one batch: {best:.2?}, {ops:.0} per second, {mega:.0} MB/s");
    println!("      {:?}", memory.queue().counters());
    Ok(())
}

fn main() -> Result<()> {
    between_namespaces(|handle| {
        // With any argument, only the throughput: for a profiler.
        if std::env::args().len() == 1 {
            latency(handle, 64)?;
            latency(handle, 1024)?;
            latency(handle, 4096)?;
        }
        throughput(handle, 10_000, 64)?;
        throughput(handle, 10_000, 4096)?;
        throughput(handle, 16, 1 << 20)
    })
}
