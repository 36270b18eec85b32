//! Both ends on one adapter, the asking one and the answering one: whether the adapter of a machine does what is needed
//! of it, and whether we ask it properly.
//!
//! `verbs_selftest ADDRESS [DEVICE]` says `ok` and a name for each check and ends with status 0, or says what is wrong.
//! The testbed runs it in a guest with rxe; on a machine with an adapter it can be run as it is.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdma::Dialed;
use rdma::verbs::{Call, Choice, Options, VerbsQueue, VerbsServer};
use remote_memory::{
    AccessError, Blocking, Epoch, Fenced, LinkError, Queue, Read, RemoteAddr, RemoteKey, RemoteRead, RemoteWrite,
    Rights, Warrant, WriteError,
};

const WORDS: usize = 1 << 17;

/// Longer than any repetition of an adapter.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the peer of a real conversation does: one queue pair for each call, and away with those that nobody keeps.
struct Control {
    server: Arc<VerbsServer>,
    /// Our end for each of theirs.
    pairs: HashMap<u32, u32>,
}

impl Control {
    fn connect(&mut self, call: &Call) -> Result<Dialed, LinkError> {
        let server = Arc::clone(&self.server);
        self.pairs.retain(|theirs, ours| call.keep.contains(theirs) || !server.remove(*ours));
        let ours = self.server.accept(&call.ours)?;
        self.pairs.insert(call.ours.number, ours.number);
        Ok(Dialed { further: 3, ..Dialed::from(ours) })
    }
}

struct Bench {
    server: Arc<VerbsServer>,
    memory: Blocking<VerbsQueue>,
    control: Arc<Mutex<Control>>,
    /// Calls that somebody waited for.
    waited: Arc<AtomicUsize>,
    words: &'static [AtomicU64],
    /// The words, with all rights and to be read only.
    all: RemoteAddr,
    read_only: RemoteAddr,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let local: Ipv4Addr = arguments.next().context("which address?")?.parse().context("an IPv4 address")?;
    let choice = Choice { device: arguments.next(), ..Choice::at(local) };
    let server = Arc::new(VerbsServer::open(&choice, Options::default())?);
    println!("adapter {:?}, {:?}", server.adapter().chosen(), server.adapter().limits());
    let words: &'static [AtomicU64] = (0..WORDS).map(|word| AtomicU64::new(pattern(word))).collect::<Vec<_>>().leak();
    let registered = [server.register(words, Rights::ALL)?, server.register(words, Rights::READ)?];
    let [all, read_only] = [0, 1]
        .map(|index: usize| RemoteAddr::new(RemoteKey::new(registered[index].remote_key()), registered[index].base()));
    let control = Arc::new(Mutex::new(Control { server: Arc::clone(&server), pairs: HashMap::new() }));
    let waited = Arc::new(AtomicUsize::new(0));
    let memory = connect(&choice, &control, &waited)?;
    let mut bench = Bench { server, memory, control, waited, words, all, read_only };

    check("reads of every size", || reads_of_every_size(&mut bench))?;
    check("a thousand reads at once", || many_reads(&mut bench))?;
    check("writes and atomics", || writes_and_atomics(&mut bench))?;
    check("refusals are survived by a standby", || refusals(&mut bench))?;
    check("a peer that is gone is lost, and found again", || lost_and_found(&mut bench))?;
    check("times", || times(&mut bench))?;
    drop(bench.memory);
    bench.control.lock().unwrap().pairs.clear();
    Ok(())
}

fn check(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    body().with_context(|| name.to_owned())?;
    println!("ok {name} ({:?})", begin.elapsed());
    Ok(())
}

fn connect(choice: &Choice, control: &Arc<Mutex<Control>>, waited: &Arc<AtomicUsize>) -> Result<Blocking<VerbsQueue>> {
    let options = Options { landing_bytes: 2 << 20, ..Options::default() };
    let (mut queue, ours) = VerbsQueue::open(choice.clone(), options)?;
    let first = Call { ours, keep: vec![], is_standby: false };
    queue.connect(control.lock().unwrap().connect(&first)?)?;
    let (control, waited) = (Arc::clone(control), Arc::clone(waited));
    queue.set_dialer(Box::new(move |call| {
        if !call.is_standby {
            waited.fetch_add(1, Ordering::Relaxed);
        }
        control.lock().unwrap().connect(&call)
    }));
    Ok(Blocking::new(queue, PATIENCE))
}

fn pattern(word: usize) -> u64 {
    (word as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn byte(at: usize) -> u8 {
    pattern(at / 8).to_le_bytes()[at % 8]
}

fn reads_of_every_size(bench: &mut Bench) -> Result<()> {
    for len in [0, 1, 7, 8, 64, 1023, 1024, 1025, 4096, 4097, 65_536, 1 << 20] {
        for offset in [0, 3] {
            let len = len.min(WORDS * 8 - offset);
            let mut bytes = vec![0; len];
            let at = bench.read_only.checked_add(offset as u64).context("inside")?;
            bench.memory.read_one(at, &mut bytes)??;
            let wrong = bytes.iter().enumerate().find(|(index, found)| **found != byte(offset + index));
            ensure!(wrong.is_none(), "{len} bytes from {offset}: {wrong:?}");
        }
    }
    Ok(())
}

fn many_reads(bench: &mut Bench) -> Result<()> {
    const COUNT: usize = 1000;
    // Apart from one another by more than is read along.
    let mut room = vec![0; COUNT * 8];
    let place = |index: usize| index * 131 * 8 % (WORDS * 8);
    for _ in 0..10 {
        let into = room.chunks_exact_mut(8).enumerate();
        let mut batch: Vec<_> = into
            .map(|(index, into)| Read::new(bench.read_only.checked_add(place(index) as u64).expect("inside"), into))
            .collect();
        bench.memory.read(&mut batch)?;
        for (index, read) in batch.iter().enumerate() {
            read.outcome?;
            ensure!(*read.into == pattern(place(index) / 8).to_le_bytes(), "read {index}");
        }
    }
    Ok(())
}

fn writes_and_atomics(bench: &mut Bench) -> Result<()> {
    let fenced = Fenced::attested(Epoch::new(1), bench.all.key);
    let warrant = Warrant::Fenced(&fenced);
    for len in [1, 64, 65, 5000, 1 << 20] {
        let bytes: Vec<u8> = (0..len).map(|at| byte(at) ^ 0x5a).collect();
        bench.memory.write(warrant, bench.all, &bytes)?;
        let mut found = vec![0; len];
        bench.memory.read_one(bench.read_only, &mut found)??;
        ensure!(found == bytes, "{len} bytes written and read");
    }
    bench.words[7].store(40, Ordering::SeqCst);
    let word = bench.all.checked_add(7 * 8).context("inside")?;
    ensure!(bench.memory.fetch_add(warrant, word, 2)? == 40, "what an addition returns");
    ensure!(bench.words[7].load(Ordering::SeqCst) == 42, "what an addition leaves");
    ensure!(bench.memory.compare_swap(warrant, word, 41, 1)? == 42, "what a swap that fails returns");
    ensure!(bench.words[7].load(Ordering::SeqCst) == 42, "what a swap that fails leaves");
    ensure!(bench.memory.compare_swap(warrant, word, 42, u64::MAX - 1)? == 42, "what a swap returns");
    ensure!(bench.words[7].load(Ordering::SeqCst) == u64::MAX - 1, "what a swap leaves");
    for (index, word) in bench.words.iter().enumerate() {
        word.store(pattern(index), Ordering::SeqCst);
    }
    Ok(())
}

fn refusals(bench: &mut Bench) -> Result<()> {
    let outside = bench.read_only.checked_add(WORDS as u64 * 8).context("an address")?;
    let unknown = RemoteAddr::new(RemoteKey::new(bench.all.key.raw() ^ 0x55), bench.all.addr);
    for (wrong, what) in [(outside, "beyond the end"), (unknown, "an unknown key")] {
        standbys_are_there(bench)?;
        let calls = bench.waited.load(Ordering::Relaxed);
        let (mut good, mut bad) = ([0; 8], [0; 8]);
        let mut batch = [Read::new(wrong, &mut bad), Read::new(bench.read_only, &mut good)];
        let begin = Instant::now();
        bench.memory.read(&mut batch)?;
        let took = begin.elapsed();
        ensure!(batch[0].outcome == Err(AccessError::Refused), "{what}: {:?}", batch[0].outcome);
        ensure!(batch[1].outcome.is_ok(), "{what}: the read beside it: {:?}", batch[1].outcome);
        ensure!(good == pattern(0).to_le_bytes(), "{what}: the bytes beside it");
        ensure!(bench.waited.load(Ordering::Relaxed) == calls, "{what}: a standby took over, and nobody dialled");
        println!("   {what}: refused and gone on in {took:?}");
    }
    let fenced = Fenced::attested(Epoch::new(1), bench.read_only.key);
    let warrant = Warrant::Fenced(&fenced);
    let refused = bench.memory.write(warrant, bench.read_only, &[1]);
    ensure!(matches!(refused, Err(WriteError::Access(_))), "a write to what is to be read only: {refused:?}");
    ensure!(bench.words[0].load(Ordering::SeqCst) == pattern(0), "it was written all the same");
    bench.memory.read_one(bench.read_only, &mut [0; 8])??;
    Ok(())
}

fn standbys_are_there(bench: &Bench) -> Result<()> {
    let begin = Instant::now();
    while bench.memory.queue().standbys() < Options::default().standbys {
        ensure!(begin.elapsed() < PATIENCE, "{} standbys", bench.memory.queue().standbys());
        bench.memory.queue().tend();
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn lost_and_found(bench: &mut Bench) -> Result<()> {
    standbys_are_there(bench)?;
    for (_, ours) in bench.control.lock().unwrap().pairs.drain() {
        bench.server.remove(ours);
    }
    ensure!(bench.server.is_empty(), "all are gone");
    let begin = Instant::now();
    let lost = bench.memory.read_one(bench.read_only, &mut [0; 8]);
    let took = begin.elapsed();
    ensure!(matches!(lost, Err(LinkError::Lost { .. })), "{lost:?}");
    ensure!(took < Duration::from_secs(2), "known after {took:?} only");
    while bench.memory.read_one(bench.read_only, &mut [0; 8]).is_err() {
        ensure!(begin.elapsed() < PATIENCE, "not found again");
    }
    println!("   lost after {took:?}, found again after {:?}", begin.elapsed());
    Ok(())
}

fn times(bench: &mut Bench) -> Result<()> {
    const ROUNDS: u32 = 300;
    for len in [8, 64, 4096, 65_536] {
        let mut room = vec![0; len];
        let begin = Instant::now();
        for _ in 0..ROUNDS {
            bench.memory.read_one(bench.read_only, &mut room)??;
        }
        println!("   {len} bytes: {:?} each", begin.elapsed() / ROUNDS);
    }
    if bench.memory.queue().is_broken() {
        bail!("the queue is broken");
    }
    Ok(())
}
