//! What a READ costs over a UDP echo of the same length, between the hypervisor and the monitor of a real topology.
//!
//! Both wait the same way (spin, then block), so that the ratio is the price of the protocol and not of the scheduler.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rdma::{
    responder::{Memory, Refusal},
    soft::{Options, PORT, Server, ServerHandle, SoftQueue},
};
use remote_memory::{Blocking, RemoteAddr, RemoteKey, RemoteRead, Rights};

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
};
use crate::topology::{HYPERVISOR, MONITOR, Topology, rdma_v4};

/// Bytes read at once: a record of a Sensor Box, a page.
const LENGTHS: [usize; 2] = [64, 4096];
const RATIO_MAX: f64 = 1.5;
const BARE: &str = "a UDP echo of the same lengths, with the same polling";
const ECHO_PORT: u16 = 9000;
const KEY: RemoteKey = RemoteKey::new(1);
const MEMORY_BYTES: u64 = 16 << 20;
const SPIN: Duration = Duration::from_millis(2);
/// BTH, RETH and ICRC: what a READ request is long.
const REQUEST_BYTES: usize = 32;
/// BTH, AETH and ICRC around the data of a READ response.
const RESPONSE_BYTES: usize = 20;
pub(super) fn measure(effort: &Effort) -> Result<Vec<Line>> {
    let topology = Topology::build()?;
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
    let mut server = Server::bind(rdma_v4(HYPERVISOR), PORT, Zeroes, options()).context("the serving end")?;
    let handle = server.handle();
    let echo = UdpSocket::bind((rdma_v4(HYPERVISOR), ECHO_PORT)).context("the echo")?;
    echo.set_read_timeout(Some(Duration::from_millis(20)))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            echo_until(&echo, &stop);
            // Afterwards, not beside it: two spinning servers would share one processor.
            ready.wait();
            stop.store(false, Ordering::Relaxed);
            ready.wait();
            server.run(&stop)
        });
        let result = topology.monitor.run(|| ask(effort.reads, &handle, &stop, &ready));
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn options() -> Options {
    Options { spin: SPIN, ..Options::default() }
}

/// The monitor's side.
fn ask(rounds: usize, handle: &ServerHandle, stop: &AtomicBool, ready: &Barrier) -> Result<Vec<Line>> {
    let echoes = LENGTHS.map(|len| echoed(rounds, len));
    stop.store(true, Ordering::Relaxed);
    ready.wait();
    ready.wait();
    let (mut queue, ours) = SoftQueue::open(rdma_v4(MONITOR), PORT, options()).context("the asking end")?;
    queue.connect(handle.add(ours).map_err(|error| anyhow!("{error}"))?).context("connecting")?;
    let mut memory = Blocking::new(queue, Duration::from_secs(5));
    let mut lines = Vec::new();
    for (len, echo) in LENGTHS.into_iter().zip(echoes) {
        let (echo, mut bytes) = (echo?, vec![0; len]);
        let read = measured(rounds, || Ok(memory.read_one(RemoteAddr::new(KEY, 0), &mut bytes)??))?;
        let line = Line::new(Group::Read, format!("READ of {len} B"), Unit::Micros, &read, echo.median, BARE);
        lines.push(line.goal(Goal::RatioAtMost(RATIO_MAX)));
    }
    Ok(lines)
}

/// Microseconds of `rounds` calls, after a tenth as many to warm up.
fn measured(rounds: usize, mut once: impl FnMut() -> Result<()>) -> Result<Sample> {
    for _ in 0..rounds / 10 {
        once()?;
    }
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        once()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Sample::of(times))
}

fn echoed(rounds: usize, len: usize) -> Result<Sample> {
    let socket = UdpSocket::bind((rdma_v4(MONITOR), 0))?;
    socket.connect((rdma_v4(HYPERVISOR), ECHO_PORT))?;
    socket.set_nonblocking(true)?;
    let mut request = [0; REQUEST_BYTES];
    request[..2].copy_from_slice(&((len + RESPONSE_BYTES) as u16).to_be_bytes());
    let mut answer = vec![0; len + RESPONSE_BYTES];
    measured(rounds, || {
        socket.send(&request)?;
        while socket.recv(&mut answer).is_err() {
            thread::yield_now();
        }
        Ok(())
    })
}

/// Answers datagrams whose first two bytes say how long the answer is to be.
fn echo_until(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    let answer = |buffer: &[u8], to: SocketAddr| {
        let len = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
        let _ = socket.send_to(&buffer[..len], to);
    };
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
        answer(&buffer, from);
        let _ = socket.set_nonblocking(true);
        let mut last = Instant::now();
        while last.elapsed() < SPIN {
            match socket.recv_from(&mut buffer) {
                Ok((_, from)) => {
                    answer(&buffer, from);
                    last = Instant::now();
                }
                Err(_) => thread::yield_now(),
            }
        }
        let _ = socket.set_nonblocking(false);
    }
}

/// Readable zeroes.
struct Zeroes;

impl Memory for Zeroes {
    fn check(&self, _: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let inside = addr.checked_add(len).is_some_and(|end| end <= MEMORY_BYTES);
        if inside && Rights::READ.covers(rights) { Ok(()) } else { Err(Refusal::Access) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        into.fill(0);
        Ok(())
    }
}
