//! How fast READs of an adapter are: one at a time, as a look at a sensor is, or many with one doorbell, as a walk is.
//!
//! Nothing is checked here but that READs succeed; what they bring is the cells' matter.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use control::Channel;
use rdma::verbs::{Choice, Options, VerbsQueue};
use remote_memory::{Blocking, Completion, Queue, RemoteAddr, RemoteKey, RemoteRead, Request, Work};
use serde::{Deserialize, Serialize};

use super::{
    active::{ask, reach},
    conversation::{Answer, Ask},
};

/// READs that are handed to the adapter together, and completions taken at a time.
pub const BATCH: usize = 32;

/// For one READ, on a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
#[group(skip)] // the subcommand that has these has a group of that name
pub struct Pace {
    /// Bytes of each READ.
    #[arg(long)]
    pub len: u32,
    /// READs under way at the same time; 1 measures each, more measure all of them together.
    #[arg(long)]
    pub depth: usize,
    /// READs in all.
    #[arg(long)]
    pub count: u32,
    /// How long a wait looks for completions before it sleeps, in microseconds; the daemons' own if not given.
    #[arg(long)]
    pub spin_us: Option<u64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paced {
    /// Path MTU of the connection.
    pub mtu: usize,
    /// The middle one of single READs.
    pub typical_us: Option<f64>,
    /// READs in a second, from the first post to the last completion.
    pub reads_per_s: f64,
}

/// Measures `pace` from the adapter at `local`; the passive end talks at `peer`.
///
/// # Errors
/// When the adapter or the passive end is not there, or a READ fails.
pub fn measure(local: Ipv4Addr, peer: Ipv4Addr, pace: Pace) -> Result<Paced> {
    let mut channel = Channel::new(reach(peer)?);
    let (base, key) = match ask(&mut channel, &Ask::Fill { seed: 1, len: u64::from(pace.len) })? {
        Answer::Filled { base, key } => (base, RemoteKey::new(key)),
        other => bail!("the passive end said {other:?}"),
    };
    let defaults = Options::default();
    let spin = pace.spin_us.map_or(defaults.spin, Duration::from_micros);
    let (mut queue, ours) = VerbsQueue::open(Choice::at(local), Options { spin, standbys: 0, ..defaults })?;
    match ask(&mut channel, &Ask::Connect(ours.into()))? {
        Answer::Connected(theirs) => queue.connect(rdma::QpAttributes::from(theirs))?,
        other => bail!("the passive end said {other:?}"),
    }
    let (mtu, at) = (queue.packet_bytes(), RemoteAddr::new(key, base));
    if pace.depth == 1 { single(queue, at, pace, mtu) } else { together(queue, at, pace, mtu) }
}

/// One after the other, each timed, the data copied to where the caller wants them: a look of the daemons.
fn single(queue: VerbsQueue, at: RemoteAddr, pace: Pace, mtu: usize) -> Result<Paced> {
    let (mut memory, mut bytes) = (Blocking::new(queue, PATIENCE), vec![0; pace.len as usize]);
    let mut once = || memory.read_one(at, &mut bytes).context("a READ")?.context("a READ was refused");
    once()?;
    let (mut times_us, begun) = (Vec::new(), Instant::now());
    for _ in 0..pace.count {
        let begun = Instant::now();
        once()?;
        times_us.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let reads_per_s = f64::from(pace.count) / begun.elapsed().as_secs_f64();
    times_us.sort_by(f64::total_cmp);
    Ok(Paced { mtu, typical_us: times_us.get(times_us.len() / 2).copied(), reads_per_s })
}

/// `depth` of them outstanding, posted anew whenever a batch has room.
fn together(mut queue: VerbsQueue, at: RemoteAddr, pace: Pace, mtu: usize) -> Result<Paced> {
    let work = Work::Read { at, len: pace.len, landing: 0 };
    let requests = [Request { id: 0, work }; BATCH];
    let mut completions = [Completion { id: 0, outcome: Ok(0) }; BATCH];
    let (mut posted, mut done) = (0, 0);
    let begun = Instant::now();
    while done < pace.count {
        while posted < pace.count && (posted - done) as usize + BATCH <= pace.depth {
            let batch = BATCH.min((pace.count - posted) as usize);
            let taken = queue.post(&requests[..batch]).context("posting READs")?;
            ensure!(taken == batch, "{taken} of {batch} READs were taken");
            posted += batch as u32;
        }
        let ended = queue.poll(&mut completions, PATIENCE).context("waiting for READs")?;
        ensure!(ended > 0, "nothing for {PATIENCE:?} after {done} READs");
        for completion in &completions[..ended] {
            completion.outcome.context("a READ was refused")?;
        }
        done += ended as u32;
    }
    Ok(Paced { mtu, typical_us: None, reads_per_s: f64::from(pace.count) / begun.elapsed().as_secs_f64() })
}
