//! Real sockets: a server and queues on 127/8 of a private network namespace.

mod ground;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ground::{ALL, BASE, READ_ONLY, Ram, pattern};
use rdma::PathMtu;
use rdma::soft::{Options, PORT, Server, ServerHandle, SoftQueue};
use remote_memory::{
    AccessError, Blocking, Epoch, Fenced, HookWord, LinkError, Queue, Read, RemoteAddr, RemoteRead, RemoteWrite,
    Request, Warrant, Work, WriteError,
};

const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const PATIENCE: Duration = Duration::from_secs(20);
const RAM_BYTES: usize = 3 << 20;

/// Patient enough for a machine that is busy with other tests.
fn options() -> Options {
    Options { tries: 12, ..Options::default() }
}

/// Runs `body` beside a server that is stopped afterwards, however `body` ends.
fn beside_server(ram: &Arc<Ram>, options: Options, body: impl FnOnce(&ServerHandle)) {
    struct StopOnDrop<'a>(&'a AtomicBool);
    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let mut server = Server::bind(SERVER, PORT, Arc::clone(ram), options).unwrap();
    let handle = server.handle();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let stop = &stop;
        scope.spawn(move || server.run(stop).unwrap());
        body(&handle);
    });
}

fn connected(handle: &ServerHandle, options: Options) -> SoftQueue {
    let (mut queue, ours) = SoftQueue::open(CLIENT, PORT, options).unwrap();
    queue.connect(handle.add(ours).unwrap()).unwrap();
    let handle = handle.clone();
    queue.set_dialer(Box::new(move |ours| Ok(handle.add(ours)?.into())));
    queue
}

fn at(offset: usize) -> RemoteAddr {
    RemoteAddr::new(ALL, BASE + offset as u64)
}

fn fenced() -> Fenced {
    Fenced::attested(Epoch::new(1), ALL)
}

#[test]
fn reads_writes_and_atomics_reach_the_memory_at_every_path_mtu() {
    if ground::ran_in_a_namespace("reads_writes_and_atomics_reach_the_memory_at_every_path_mtu") {
        return;
    }
    for mtu in [256, 512, 1024, 2048, 4096] {
        let ram = Arc::new(Ram::patterned(RAM_BYTES));
        let options = Options { path_mtu: PathMtu::at_most(mtu), ..options() };
        beside_server(&ram, options.clone(), |handle| {
            let mut memory = Blocking::new(connected(handle, options), PATIENCE);
            for (offset, len) in [(0, 0), (0, 1), (5, 64), (4090, 4096), (1, 100_003), (0, 2 << 20)] {
                let mut bytes = vec![0; len];
                memory.read_one(at(offset), &mut bytes).unwrap().unwrap();
                assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == pattern(offset + i)), "{mtu} {offset} {len}");
            }
            let fenced = fenced();
            for (offset, len) in [(3, 1), (8192, 5000), (70_001, 1 << 20)] {
                let bytes: Vec<u8> = (0..len).map(|i| pattern(i + 99)).collect();
                memory.write(Warrant::Fenced(&fenced), at(offset), &bytes).unwrap();
                assert_eq!(ram.snapshot()[offset..offset + len], bytes);
            }
            memory.write(Warrant::Fenced(&fenced), at(64), &7_u64.to_ne_bytes()).unwrap();
            assert_eq!(memory.compare_swap(Warrant::Fenced(&fenced), at(64), 7, 40).unwrap(), 7);
            assert_eq!(memory.compare_swap(Warrant::Fenced(&fenced), at(64), 7, 41).unwrap(), 40);
            assert_eq!(memory.fetch_add(Warrant::Fenced(&fenced), at(64), 2).unwrap(), 40);
            assert_eq!(ram.snapshot()[64..72], 42_u64.to_ne_bytes());
            assert_eq!(ram.atomics(), 3);
        });
    }
}

#[test]
fn ten_thousand_small_reads_are_answered_in_one_batch() {
    if ground::ran_in_a_namespace("ten_thousand_small_reads_are_answered_in_one_batch") {
        return;
    }
    let ram = Arc::new(Ram::patterned(RAM_BYTES));
    beside_server(&ram, options(), |handle| {
        let mut served = 0;
        for (merges, expected) in [(false, 10_000..20_000), (true, 1..200)] {
            let memory = Blocking::new(connected(handle, options()), PATIENCE);
            let mut memory = if merges { memory } else { memory.without_merging() };
            let mut buffers = vec![[0; 64]; 10_000];
            let mut batch: Vec<Read<'_>> = buffers
                .iter_mut()
                .enumerate()
                .map(|(i, buffer)| Read::new(at(i * 64), buffer.as_mut_slice()))
                .collect();
            memory.read(&mut batch).unwrap();
            assert!(batch.iter().all(|read| read.outcome.is_ok()));
            for (i, buffer) in buffers.iter().enumerate() {
                assert!(buffer.iter().enumerate().all(|(j, byte)| *byte == pattern(i * 64 + j)), "piece {i}");
            }
            let now = handle.stats().work.reads;
            assert!(expected.contains(&(now - served)), "{} operations", now - served);
            served = now;
        }
    });
}

#[test]
fn a_refused_access_breaks_its_own_connection_only_and_a_dialer_mends_it() {
    if ground::ran_in_a_namespace("a_refused_access_breaks_its_own_connection_only_and_a_dialer_mends_it") {
        return;
    }
    let ram = Arc::new(Ram::patterned(RAM_BYTES));
    beside_server(&ram, options(), |handle| {
        let mut neighbour = Blocking::new(connected(handle, options()), PATIENCE);
        let mut memory = Blocking::new(connected(handle, options()), PATIENCE);
        let mut buffers = [[0; 16]; 5];
        let mut batch: Vec<Read<'_>> = buffers.iter_mut().map(|buffer| Read::new(at(32), buffer)).collect();
        batch[2].at = at(RAM_BYTES);
        memory.read(&mut batch).unwrap();
        let outcomes: Vec<_> = batch.iter().map(|read| read.outcome).collect();
        assert_eq!(outcomes, [Ok(()), Ok(()), Err(AccessError::Refused), Ok(()), Ok(())]);
        let hook = HookWord::registered(RemoteAddr::new(READ_ONLY, BASE), 8);
        let write = memory.write(Warrant::Hook(&hook), hook.at(), &[1]);
        assert_eq!(write, Err(WriteError::Access(AccessError::Refused)));
        assert!(memory.queue().is_broken());
        neighbour.read_one(at(0), &mut [0; 16]).unwrap().unwrap();
        assert!(!neighbour.queue().is_broken());
        assert_eq!(ram.snapshot(), Ram::patterned(RAM_BYTES).snapshot());
        assert_eq!(handle.stats().work.refused, 2);
    });
}

#[test]
fn a_silent_peer_counts_as_lost_after_bounded_tries() {
    if ground::ran_in_a_namespace("a_silent_peer_counts_as_lost_after_bounded_tries") {
        return;
    }
    let ram = Arc::new(Ram::patterned(4096));
    beside_server(&ram, options(), |handle| {
        let mut queue = connected(handle, Options { tries: 4, ..options() });
        let number = {
            let remote = handle.add(queue.attributes()).unwrap();
            queue.connect(remote).unwrap();
            remote.number
        };
        assert!(handle.remove(number));
        let work = Work::Read { at: at(0), len: 8, landing: 0 };
        assert_eq!(queue.post(&[Request { id: 1, work }]).unwrap(), 1);
        let blank = remote_memory::Completion { id: 0, outcome: Ok(0) };
        assert_eq!(queue.poll(&mut [blank], PATIENCE), Err(LinkError::Lost { tries: 4 }));
        assert!(queue.is_broken());
        queue.reconnect().unwrap();
        let mut memory = Blocking::new(queue, PATIENCE);
        memory.read_one(at(0), &mut [0; 8]).unwrap().unwrap();
        assert!(handle.stats().dropped > 0);
    });
}

#[test]
fn a_peer_without_a_route_is_a_local_failure_with_its_reason() {
    if ground::ran_in_a_namespace("a_peer_without_a_route_is_a_local_failure_with_its_reason") {
        return;
    }
    let (mut queue, ours) = SoftQueue::open(CLIENT, PORT, Options { tries: 2, ..options() }).unwrap();
    queue.connect(rdma::QpAttributes { number: 77, address: Ipv4Addr::new(192, 0, 2, 9), ..ours }).unwrap();
    let mut memory = Blocking::new(queue, PATIENCE);
    let error = memory.read_one(at(0), &mut [0; 8]).unwrap_err();
    assert!(matches!(&error, LinkError::Local(why) if why.contains("192.0.2.9")), "{error}");
}

#[test]
fn packets_from_another_address_or_with_a_wrong_crc_change_nothing() {
    if ground::ran_in_a_namespace("packets_from_another_address_or_with_a_wrong_crc_change_nothing") {
        return;
    }
    let ram = Arc::new(Ram::patterned(4096));
    beside_server(&ram, options(), |handle| {
        let queue = connected(handle, options());
        let stranger = std::net::UdpSocket::bind("127.0.0.3:0").unwrap();
        let before = handle.stats();
        for len in 0..64 {
            stranger.send_to(&vec![0x0a; len], (SERVER, PORT)).unwrap();
        }
        let mut memory = Blocking::new(queue, PATIENCE);
        memory.read_one(at(0), &mut [0; 8]).unwrap().unwrap();
        while handle.stats().dropped < before.dropped + 64 {
            thread::yield_now();
        }
        assert!(handle.stats().bad_icrc > 0);
        assert_eq!(ram.snapshot(), Ram::patterned(4096).snapshot());
    });
}
