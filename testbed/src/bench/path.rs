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
use remote_memory::{Blocking, Read, RemoteAddr, RemoteKey, RemoteRead, Rights};

use super::measured;
use crate::topology::{HYPERVISOR, MONITOR, Topology, rdma_v4};

const ROUNDS: usize = 10_000;
const ECHO_PORT: u16 = 9000;
const KEY: RemoteKey = RemoteKey::new(1);
const MEMORY_BYTES: u64 = 16 << 20;
const SPIN: Duration = Duration::from_millis(2);
/// BTH, RETH and ICRC: what a READ request is long.
const REQUEST_BYTES: usize = 32;
/// BTH, AETH and ICRC around the data of a READ response.
const RESPONSE_BYTES: usize = 20;
/// READs in the batch that measures throughput, of a page each.
const BATCH: usize = 2_000;

pub(super) fn measure() -> Result<()> {
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
        let result = topology.monitor.run(|| ask(&handle, &stop, &ready));
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn options() -> Options {
    Options { spin: SPIN, ..Options::default() }
}

/// The monitor's side.
fn ask(handle: &ServerHandle, stop: &AtomicBool, ready: &Barrier) -> Result<()> {
    let lengths = [64, 1024, 4096];
    let echoes = lengths.map(echoed);
    stop.store(true, Ordering::Relaxed);
    ready.wait();
    ready.wait();
    let (mut queue, ours) = SoftQueue::open(rdma_v4(MONITOR), PORT, options()).context("the asking end")?;
    queue.connect(handle.add(ours).map_err(|error| anyhow!("{error}"))?).context("connecting")?;
    let mut memory = Blocking::new(queue, Duration::from_secs(5));
    println!("\npath                        UDP echo p50      p99     READ p50      p99   ratio");
    for (len, echo) in lengths.into_iter().zip(echoes) {
        let (echo, mut bytes) = (echo?, vec![0; len]);
        let read = measured(ROUNDS, || Ok(memory.read_one(RemoteAddr::new(KEY, 0), &mut bytes)??))?;
        let ratio = read.0.as_secs_f64() / echo.0.as_secs_f64();
        println!(
            "  {len:>5} bytes              {:>9.2?} {:>9.2?}    {:>9.2?} {:>9.2?}   {ratio:.2}",
            echo.0, echo.1, read.0, read.1
        );
    }
    batch(&mut memory)
}

fn batch(memory: &mut Blocking<SoftQueue>) -> Result<()> {
    let mut buffer = vec![0; BATCH * 4096];
    let pages = buffer.chunks_mut(4096).enumerate();
    let mut reads: Vec<Read<'_>> =
        pages.map(|(page, bytes)| Read::new(RemoteAddr::new(KEY, page as u64 * 4096), bytes)).collect();
    let began = Instant::now();
    memory.read(&mut reads)?;
    let took = began.elapsed();
    anyhow::ensure!(reads.iter().all(|read| read.outcome.is_ok()), "a read was refused");
    let mega = (BATCH * 4096) as f64 / took.as_secs_f64() / 1e6;
    println!("  {BATCH} pages in one batch   {took:.1?}, {mega:.0} MB/s");
    Ok(())
}

fn echoed(len: usize) -> Result<(Duration, Duration)> {
    let socket = UdpSocket::bind((rdma_v4(MONITOR), 0))?;
    socket.connect((rdma_v4(HYPERVISOR), ECHO_PORT))?;
    socket.set_nonblocking(true)?;
    let mut request = [0; REQUEST_BYTES];
    request[..2].copy_from_slice(&((len + RESPONSE_BYTES) as u16).to_be_bytes());
    let mut answer = vec![0; len + RESPONSE_BYTES];
    measured(ROUNDS, || {
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
