//! What our RoCEv2 costs over bare UDP: `cargo run --release -p rdma --example latency`.
//!
//! Two network namespaces joined by a veth pair; one thread serves, this one asks. All carriers wait the same way
//! (spin, then block) and batch the same way, so that the ratio is the price of the protocol and of the raw socket, not
//! of the scheduler. Each line: ours, the limit of the same path, their ratio. Ours and limit take turns, and each line
//! has the best of its rounds: what the machine's other work takes away is not the path's.
//! Needs root, or `unshare -Urn` around it.

mod flood;
mod ground;

use std::net::UdpSocket;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use ground::{CLIENT, ECHO_PORT, RAM_BYTES, SERVER, SPIN, between_namespaces};
use rdma::soft::{Options, PORT, ServerHandle, SoftQueue};
use remote_memory::{Blocking, Read, RemoteAddr, RemoteKey, RemoteRead};

const ROUNDS: usize = 20_000;
const WARM_UP: usize = 1000;
/// Rounds of each batch, ours and the limit by turns.
const BATCH_ROUNDS: usize = 9;
const BATCH_READS: usize = 10_000;
const KEY: RemoteKey = RemoteKey::new(1);
/// BTH, RETH and ICRC: what a READ request is long.
const REQUEST_BYTES: usize = 32;
/// BTH, AETH and ICRC around the data of a READ response.
const RESPONSE_BYTES: usize = 20;
/// How often a monitor looks, and what it reads each time.
const TICK: Duration = Duration::from_millis(5);
const TICKS: usize = 400;
const TICK_READS: usize = 10;

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
    let mut request = [0; REQUEST_BYTES];
    request[..2].copy_from_slice(&((len + RESPONSE_BYTES) as u16).to_be_bytes());
    let mut answer = vec![0; len + RESPONSE_BYTES];
    measure(|| {
        socket.send(&request)?;
        while socket.recv(&mut answer).is_err() {
            thread::yield_now();
        }
        Ok(())
    })
}

fn connected(handle: &ServerHandle, spin: Duration) -> Result<Blocking<SoftQueue>> {
    let (mut queue, ours) = SoftQueue::open(CLIENT, PORT, Options { spin, ..Options::default() })?;
    queue.connect(handle.add(ours)?)?;
    Ok(Blocking::new(queue, Duration::from_secs(5)))
}

fn latency(handle: &ServerHandle, len: usize) -> Result<()> {
    let (echo_p50, echo_p99) = echo_times(len)?;
    let mut memory = connected(handle, SPIN)?;
    let mut bytes = vec![0; len];
    let (read_p50, read_p99) = measure(|| {
        memory.read_one(RemoteAddr::new(KEY, 0), &mut bytes)??;
        Ok(())
    })?;
    let ratio = read_p50.as_secs_f64() / echo_p50.as_secs_f64();
    println!(
        "one READ of {len:4} B                 {read_p50:9.2?}   limit {echo_p50:9.2?}   ratio {ratio:4.2}   \
         (p99 {read_p99:.1?} and {echo_p99:.1?}; limit: UDP echo)"
    );
    Ok(())
}

/// What is read in a batch, and with how many datagrams the path could carry it at best.
struct Shape {
    name: &'static str,
    len: usize,
    /// Distance of the reads.
    stride: u64,
    merges: bool,
    datagrams: usize,
    datagram_len: usize,
}

fn batch(handle: &ServerHandle, shape: &Shape) -> Result<()> {
    let memory = connected(handle, SPIN)?;
    let mut memory = if shape.merges { memory } else { memory.without_merging() };
    let mut buffer = vec![0; BATCH_READS * shape.len];
    let (mut ours, mut limit) = (Duration::MAX, Duration::MAX);
    for _ in 0..BATCH_ROUNDS {
        let place = |index: usize| RemoteAddr::new(KEY, index as u64 * shape.stride % (RAM_BYTES - 4096));
        let chunks = buffer.chunks_mut(shape.len).enumerate();
        let mut reads: Vec<Read<'_>> = chunks.map(|(index, chunk)| Read::new(place(index), chunk)).collect();
        let began = Instant::now();
        memory.read(&mut reads)?;
        ours = ours.min(began.elapsed());
        ensure!(reads.iter().all(|read| read.outcome.is_ok()), "a read was refused");
        limit = limit.min(flood::once(shape.datagrams, REQUEST_BYTES, shape.datagram_len + RESPONSE_BYTES)?);
    }
    let counters = memory.queue().counters();
    let sent = counters.sent / BATCH_ROUNDS as u64;
    let each = ours / BATCH_READS as u32;
    let ratio = ours.as_secs_f64() / limit.as_secs_f64();
    println!(
        "{BATCH_READS} READs, {:<21} {ours:9.2?}   limit {limit:9.2?}   ratio {ratio:4.2}   \
         ({each:.2?} each, {sent} requests, {} repeated rounds; limit: {} datagrams of {} B)",
        shape.name, counters.go_backs, shape.datagrams, shape.datagram_len,
    );
    Ok(())
}

fn batches(handle: &ServerHandle) -> Result<()> {
    let n = BATCH_READS;
    let small = Shape { name: "", len: 64, stride: 64, merges: true, datagrams: n, datagram_len: 64 };
    batch(handle, &Shape { name: "64 B, one by one", merges: false, ..small })?;
    batch(handle, &Shape { name: "64 B, scattered", stride: 6_700_417, ..small })?;
    batch(handle, &Shape { name: "64 B of each 2.5 KiB", stride: 2560, ..small })?;
    batch(handle, &Shape { name: "64 B of each 256 B", stride: 256, ..small })?;
    batch(handle, &Shape { name: "64 B, adjacent", datagrams: n * 64 / 4096, datagram_len: 4096, ..small })?;
    batch(handle, &Shape { name: "4 KiB, adjacent", len: 4096, stride: 4096, datagram_len: 4096, ..small })
}

/// Time this thread has had on a processor.
fn on_cpu() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// A monitor's work: a few reads of one box now and then, with the spinning that is the default.
fn ticks(handle: &ServerHandle) -> Result<()> {
    let mut memory = connected(handle, Options::default().spin)?;
    let mut buffer = [0; TICK_READS * 64];
    let mut times = Vec::with_capacity(TICKS);
    let before = on_cpu()?;
    for _ in 0..TICKS {
        thread::sleep(TICK);
        let chunks = buffer.chunks_mut(64).enumerate();
        let mut reads: Vec<Read<'_>> =
            chunks.map(|(index, chunk)| Read::new(RemoteAddr::new(KEY, index as u64 * 128), chunk)).collect();
        let began = Instant::now();
        memory.read(&mut reads)?;
        times.push(began.elapsed());
    }
    let spent = (on_cpu()? - before) / TICKS as u32;
    times.sort_unstable();
    let share = spent.as_secs_f64() / TICK.as_secs_f64() * 100.0;
    println!(
        "{TICK_READS} READs of 64 B every {TICK:?}       {:9.2?}   of the processor {spent:.2?} per tick, {share:.2} %",
        times[TICKS / 2]
    );
    Ok(())
}

fn main() -> Result<()> {
    between_namespaces(|handle| {
        // With any argument, only the batches: for a profiler.
        if std::env::args().len() == 1 {
            latency(handle, 64)?;
            latency(handle, 1024)?;
            latency(handle, 4096)?;
            ticks(handle)?;
        }
        batches(handle)
    })
}
