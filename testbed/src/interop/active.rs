//! The end that asks: carries out cells, one connection each, and checks what comes of every operation.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use control::Channel;
use rdma::{
    PathMtu, QpAttributes,
    soft::{self, SoftQueue},
    verbs::{self, Choice, VerbsQueue},
};
use remote_memory::{Completion, Queue, RemoteKey, Request};
use serde::{Deserialize, Serialize};

use super::{
    Carrier, PORT,
    conversation::{Answer, Ask},
    plan::{Cell, Model, Step},
};

/// Where the active end is and whom it asks.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// What carries this end's packets.
    pub carrier: Carrier,
    /// The address they come from.
    pub local: Ipv4Addr,
    /// Where the passive end talks.
    pub peer: Ipv4Addr,
    /// Operations under way at the same time.
    pub depth: usize,
    /// An adapter's wait for an answer before it repeats; our own finds out by itself.
    pub timeout: Duration,
}

/// What came of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// Whether everything was as it has to be.
    pub pass: bool,
    /// What was not.
    pub why: Option<String>,
    /// Operations that ended, as they have to.
    pub done: u32,
    /// From the first to the last.
    pub seconds: f64,
    /// How often our own requester began again; an adapter does not say.
    pub go_backs: Option<u64>,
}

/// Bytes of the landing buffer, where messages are short.
const LANDING_BYTES: usize = 1 << 20;

/// Without the end of an operation for so long, the cell has failed. An adapter that reads 8 MiB over a path that loses
/// every twentieth packet asks a hundred times for all that is left: a minute and more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// For the passive end to be there, in tries with a pause between them.
const CONNECT_TRIES: u32 = 100;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// For the passive end to fill its memory and sum it up.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// Repetitions of our own requester: a peer that is emulated may be away for seconds.
const TRIES: u32 = 14;

/// Carries out `cell`; whatever goes wrong is part of its outcome.
pub fn carry_out(ends: &Ends, cell: &Cell) -> Outcome {
    let mut outcome = Outcome { cell: *cell, pass: false, why: None, done: 0, seconds: 0.0, go_backs: None };
    match attempt(ends, cell, &mut outcome) {
        Ok(()) => outcome.pass = true,
        Err(error) => outcome.why = Some(format!("{error:#}")),
    }
    outcome
}

fn attempt(ends: &Ends, cell: &Cell, outcome: &mut Outcome) -> Result<()> {
    let mut channel = Channel::new(reach(ends.peer)?);
    let (base, key) = match ask(&mut channel, &Ask::Fill { seed: cell.seed, len: cell.region_bytes() as u64 })? {
        Answer::Filled { base, key } => (base, RemoteKey::new(key)),
        other => bail!("the passive end said {other:?}"),
    };
    let mut model = Model::new(cell, base, key);
    let mut queue = connected(ends, cell, &mut channel)?;
    let begun = Instant::now();
    let worked = work(queue.queue(), cell, ends.depth, &mut model, &mut outcome.done);
    outcome.seconds = (begun.elapsed().as_secs_f64() * 1e4).round() / 1e4;
    outcome.go_backs = queue.go_backs();
    worked?;
    let (offset, len, sum) = model.changed();
    match ask(&mut channel, &Ask::Sum { offset, len })? {
        Answer::Sum(found) if found == sum => Ok(()),
        Answer::Sum(_) => bail!("the memory does not hold what it has to, somewhere in {len} bytes at {offset}"),
        other => bail!("the passive end said {other:?}"),
    }
}

pub(super) fn reach(peer: Ipv4Addr) -> Result<TcpStream> {
    let mut tries = 1;
    let stream = loop {
        match TcpStream::connect((peer, PORT)) {
            Ok(stream) => break stream,
            Err(_) if tries < CONNECT_TRIES => thread::sleep(CONNECT_PAUSE),
            Err(error) => return Err(error).with_context(|| format!("talking to {peer}")),
        }
        tries += 1;
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    Ok(stream)
}

/// Room for two of the cell's messages at least.
fn landing_bytes(cell: &Cell) -> usize {
    LANDING_BYTES.max(2 * part(cell))
}

/// The part of the landing buffer that an operation has.
fn part(cell: &Cell) -> usize {
    (cell.size as usize).next_multiple_of(64).max(64)
}

pub(super) fn ask(channel: &mut Channel<TcpStream>, what: &Ask) -> Result<Answer> {
    match channel.ask(what).context("talking to the passive end")? {
        Answer::Failed(why) => Err(anyhow!("the passive end failed: {why}")),
        answer => Ok(answer),
    }
}

/// A queue of either carrier.
enum Asking {
    Soft(Box<SoftQueue>),
    Verbs(Box<VerbsQueue>),
}

impl Asking {
    fn queue(&mut self) -> &mut dyn Queue {
        match self {
            Self::Soft(queue) => &mut **queue,
            Self::Verbs(queue) => &mut **queue,
        }
    }

    fn go_backs(&self) -> Option<u64> {
        match self {
            Self::Soft(queue) => Some(queue.counters().go_backs),
            Self::Verbs(_) => None,
        }
    }
}

/// A queue of the carrier, joined to a queue pair of the passive end with the path MTU of the cell.
fn connected(ends: &Ends, cell: &Cell, channel: &mut Channel<TcpStream>) -> Result<Asking> {
    let mut join = |ours: QpAttributes| -> Result<QpAttributes> {
        ensure!(ours.path_mtu >= cell.mtu, "this end has a path MTU of {} and no more", ours.path_mtu);
        match ask(channel, &Ask::Connect(QpAttributes { path_mtu: cell.mtu, ..ours }.into()))? {
            Answer::Connected(theirs) if theirs.path_mtu == cell.mtu => Ok(theirs.into()),
            Answer::Connected(theirs) => bail!("the passive end has a path MTU of {} and no more", theirs.path_mtu),
            other => bail!("the passive end said {other:?}"),
        }
    };
    match ends.carrier {
        Carrier::Soft => {
            let path_mtu = PathMtu::at_most(cell.mtu);
            let landing_bytes = landing_bytes(cell);
            let options = soft::Options { path_mtu, landing_bytes, tries: TRIES, ..soft::Options::default() };
            let (mut queue, ours) = SoftQueue::open(ends.local, soft::PORT, options)?;
            queue.connect(join(ours)?)?;
            Ok(Asking::Soft(Box::new(queue)))
        }
        Carrier::Verbs => {
            let options = verbs::Options {
                landing_bytes: landing_bytes(cell),
                depth: ends.depth,
                timeout: ends.timeout,
                standbys: 0,
                ..verbs::Options::default()
            };
            let (mut queue, ours) = VerbsQueue::open(Choice::at(ends.local), options)?;
            queue.connect(join(ours)?)?;
            Ok(Asking::Verbs(Box::new(queue)))
        }
    }
}

/// Keeps as many operations under way as fit the landing buffer, each with a part of it.
fn work(queue: &mut dyn Queue, cell: &Cell, depth: usize, model: &mut Model, done: &mut u32) -> Result<()> {
    let part = part(cell);
    let parts = (landing_bytes(cell) / part).min(depth).min(queue.depth());
    let mut free: Vec<usize> = (0..parts).collect();
    let mut under_way: HashMap<u64, (usize, Step)> = HashMap::new();
    let mut made = 0;
    let mut completions = [Completion { id: 0, outcome: Ok(0) }; 64];
    let mut last_end = Instant::now();
    let mut requests = Vec::new();
    while *done < cell.count {
        while made < cell.count
            && let Some(index) = free.pop()
        {
            let at = index * part;
            let step = model.step(cell, &mut queue.landing_mut()[at..at + part], at as u32);
            let id = u64::from(made);
            requests.push(Request { id, work: step.work });
            under_way.insert(id, (index, step));
            made += 1;
        }
        let posted = queue.post(&requests).with_context(|| format!("posting after {done} operations"))?;
        // The others have to wait for READs ahead of them.
        requests.drain(..posted);
        let ended = queue.poll(&mut completions, Duration::from_secs(1));
        let ended = ended.with_context(|| format!("the connection ended after {done} operations"))?;
        for completion in &completions[..ended] {
            let (index, step) = under_way.remove(&completion.id).context("an operation ended that was not made")?;
            check(completion, &step, queue.landing(), index * part)?;
            free.push(index);
            *done += 1;
            last_end = Instant::now();
        }
        ensure!(last_end.elapsed() < PATIENCE, "nothing for {PATIENCE:?} after {done} operations");
    }
    Ok(())
}

fn check(completion: &Completion, step: &Step, landing: &[u8], at: usize) -> Result<()> {
    let id = completion.id;
    let value = completion.outcome.with_context(|| format!("operation {id}, {:?}", step.work))?;
    ensure!(value == step.original, "operation {id} found {value:#x} and not {:#x}", step.original);
    let found = &landing[at..at + step.expected.len()];
    if let Some(place) = found.iter().zip(&step.expected).position(|(found, expected)| found != expected) {
        let wrong = found.iter().zip(&step.expected).filter(|(found, expected)| found != expected).count();
        bail!("operation {id}, {:?}: {wrong} bytes are wrong, the first at {place}", step.work);
    }
    Ok(())
}
