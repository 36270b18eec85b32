//! A path that loses packets in both directions: sampling goes on, and nothing is taken for a lost peer.

mod ground;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ground::{ALL, BASE, Ram, pattern};
use rdma::soft::{Options, PORT, Server, SoftQueue};
use remote_memory::{Blocking, Read, RemoteAddr, RemoteRead};

const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const RAM_BYTES: usize = 1 << 20;
const SAMPLES: usize = 2000;
const READS: usize = 10;
/// Apart by more than a packet holds, so that each is a packet of its own.
const STRIDE: usize = 10_000;

/// Samples of ten READs over a path that loses `ppm` of a million packets. Prints how long samples took.
fn check(ppm: u32) {
    let ram = Arc::new(Ram::patterned(RAM_BYTES));
    let options = Options { loss_ppm: ppm, ..Options::default() };
    let mut server = Server::bind(SERVER, PORT, Arc::clone(&ram), options).unwrap();
    let (handle, stop) = (server.handle(), AtomicBool::new(false));
    let (mut queue, ours) = SoftQueue::open(CLIENT, PORT, Options::default()).unwrap();
    queue.connect(handle.add(ours).unwrap()).unwrap();
    let mut memory = Blocking::new(queue, Duration::from_secs(20));
    let outcome = thread::scope(|scope| {
        scope.spawn(|| server.run(&stop).unwrap());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sample(&mut memory)));
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let mut times = outcome.unwrap();
    times.sort_unstable();
    let counters = memory.queue().counters();
    println!(
        "{} % lost: p50 {:.1?}, p99 {:.1?}, longest {:.1?}; {counters:?}",
        f64::from(ppm) / 1e4,
        times[SAMPLES / 2],
        times[SAMPLES * 99 / 100],
        times[SAMPLES - 1]
    );
    assert!(counters.go_backs > 0, "nothing was lost");
    assert_eq!(handle.stats().work.refused, 0);
}

fn sample(memory: &mut Blocking<SoftQueue>) -> Vec<Duration> {
    let mut times = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let mut buffers = [[0; 64]; READS];
        let place = |index: usize| RemoteAddr::new(ALL, BASE + (index * STRIDE) as u64);
        let mut batch: Vec<Read<'_>> =
            buffers.iter_mut().enumerate().map(|(index, buffer)| Read::new(place(index), buffer)).collect();
        let began = Instant::now();
        memory.read(&mut batch).expect("a path that loses packets is no lost path");
        times.push(began.elapsed());
        assert!(batch.iter().all(|read| read.outcome.is_ok()));
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().enumerate().all(|(j, byte)| *byte == pattern(index * STRIDE + j)));
        }
    }
    times
}

#[test]
fn sampling_goes_on_when_one_packet_in_a_hundred_is_lost() {
    if !ground::ran_in_a_namespace("sampling_goes_on_when_one_packet_in_a_hundred_is_lost") {
        check(10_000);
    }
}

#[test]
fn sampling_goes_on_when_one_packet_in_twenty_is_lost() {
    if !ground::ran_in_a_namespace("sampling_goes_on_when_one_packet_in_twenty_is_lost") {
        check(50_000);
    }
}
