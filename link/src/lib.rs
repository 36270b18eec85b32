//! One end of a backdoor: the control connection and the queue pair that belongs to it, as one thing that works or
//! says why not.
//!
//! ```text
//!   Link::connect ──► control (TCP 4790)   hello, connect, regions, fence, release, stats
//!                └──► memory  (UDP 4791)   READ, WRITE, CMP_SWAP, FETCH_ADD, by our own packets or an adapter's
//! ```
//!
//! Used by the monitor, by spares and by the testbed. It decides nothing: whether a target is ill is the monitor's
//! business, and a link tells it only what it needs for that, namely whether the *path* is well ([`Link::ping`]) and
//! whose fault a failure is ([`LinkFailure`]).
//!
//! Invariants: every call ends within its patience; a lost connection is made anew by the next call, never in the
//! background; a request whose answer was lost is not repeated silently (asking [`Link::fence`] again is safe: the
//! same link gets the same fence); an answer from a backdoor that was started anew is never mixed with keys of before.

mod bare;
mod carrier;
mod conversation;
mod failure;
pub mod lock;
mod pair;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control::backdoor::{
    Afterwards, FenceState, FenceToken, LockHolder, LockToken, RegionEntry, Reply, Request, Stats,
};
use remote_memory::{AccessError, RemoteAddr, RemoteKey, RemoteRead, Rights};

pub use carrier::{Carried, Carrier};
use conversation::Conversation;
pub use conversation::Welcome;
pub use failure::{Half, LinkFailure};
pub use pair::Memory;

/// How a link behaves; [`Options::new`] fits a LAN.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who this is, for the logs of the backdoor: `monitor@host`.
    pub name: String,
    /// How long a control request may take. A fence waits for the hypervisor, so not too tight.
    pub control_patience: Duration,
    /// How long a batch of memory operations may go without an answer.
    pub memory_patience: Duration,
    /// Bytes of one round of reads: the size of the landing buffer.
    pub landing_bytes: usize,
    /// Local UDP port of the queue pair. Any number of links share it; real NICs know no other than 4791.
    pub port: u16,
    /// How long a wait for an answer polls before it sleeps: a sleeping process wakes some 50 us late, a spinning one
    /// costs processor time. What suits the carrier, if absent.
    pub spin: Option<Duration>,
    /// Sockets that many links share, at the link's local address and port; its own ones if absent.
    pub hub: Option<rdma::soft::Hub>,
    /// Operations that may be on the way at the same time; what is kept for them is allocated beforehand.
    pub depth: usize,
    /// What carries them.
    pub carrier: Carrier,
}

impl Options {
    /// The usual values for a peer called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            control_patience: Duration::from_secs(5),
            memory_patience: Duration::from_secs(1),
            landing_bytes: 4 << 20,
            port: rdma::soft::PORT,
            spin: None,
            hub: None,
            depth: rdma::soft::Options::default().depth,
            carrier: Carrier::default(),
        }
    }
}

/// Both halves of a link answered: the path is well, whatever the target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Round trip of a control message.
    pub control: Duration,
    /// Round trip of an 8-byte READ of the target's memory.
    pub memory: Duration,
}

/// A working connection to the backdoor of one target.
pub struct Link {
    conversation: Arc<Mutex<Conversation>>,
    memory: Memory,
    paired: pair::PairedOn,
    /// Where a ping reads: the first bytes of the target's memory, or of what it has registered.
    probe: Option<RemoteAddr>,
    /// Names this link's fence, so that a fence whose answer was lost can be asked for again.
    claim: u64,
    fence_took: Option<Duration>,
    /// What is known of a target without a hypervisor, if it is one, since the last look at its regions.
    bare: Option<bare::Bare>,
}

impl Link {
    /// Opens the control connection to `backdoor` and a queue pair from the address `local`.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn connect(backdoor: SocketAddr, local: Ipv4Addr, options: Options) -> Result<Self, LinkFailure> {
        let conversation = Conversation::open(backdoor, &options.name, options.control_patience)?;
        let conversation = Arc::new(Mutex::new(conversation));
        let (memory, paired) = pair::open(&conversation, local, &options)?;
        let mut link =
            Self { conversation, memory, paired, probe: None, claim: rand::random(), fence_took: None, bare: None };
        link.regions(None)?;
        Ok(link)
    }

    /// What the backdoor said when the conversation was (last) opened.
    pub fn welcome(&self) -> Welcome {
        locked(&self.conversation).welcome().clone()
    }

    /// The regions this link may reach; with the token of a standing fence, `ram` comes with the writable key.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn regions(&mut self, token: Option<&FenceToken>) -> Result<Vec<RegionEntry>, LinkFailure> {
        if let (Some(token), Some(_)) = (token, &self.bare) {
            return self.regions_by_lock(token);
        }
        match self.ask(&Request::Regions { token: token.cloned() })? {
            Reply::Regions { regions, .. } => {
                self.bare = bare::Bare::of(&regions);
                // A target without a hypervisor has no `ram`, but what its agent registered.
                let ram = regions.iter().find(|region| region.name == "ram");
                let readable = |region: &&RegionEntry| Rights::from_bits(region.rights).covers(Rights::READ);
                self.probe = ram.or_else(|| regions.iter().find(readable)).map(|region| {
                    let start = region.extents.first().map_or(region.base, |extent| extent.start);
                    RemoteAddr::new(RemoteKey::new(region.key), start)
                });
                Ok(regions)
            }
            other => Err(self.nonsense(&other)),
        }
    }

    /// The region called `name`, as it is now.
    ///
    /// # Errors
    /// [`LinkFailure::NoRegion`] if there is none; else see [`LinkFailure`].
    pub fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
        let found = self.regions(None)?.into_iter().find(|region| region.name == name);
        found.ok_or_else(|| LinkFailure::NoRegion(name.to_owned()))
    }

    /// Stops the target. Returns when its processors stand still and its links are down.
    ///
    /// If the answer is lost, ask again on the same link: the fence that stands is the one that is answered.
    ///
    /// # Errors
    /// [`LinkFailure::Refused`] if somebody else has fenced it or the hypervisor did not obey; else see
    /// [`LinkFailure`].
    pub fn fence(&mut self, reason: &str) -> Result<FenceToken, LinkFailure> {
        self.fence_as(reason, self.claim)
    }

    /// [`Link::fence`] under a claim of the caller's, which whoever knows it can ask again over another link: how the
    /// successor of a process that died learns the token of its fence.
    ///
    /// # Errors
    /// As [`Link::fence`].
    pub fn fence_as(&mut self, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure> {
        if let Some(place) = self.place() {
            return self.fence_by_lock(place, claim);
        }
        match self.ask(&Request::Fence { reason: reason.to_owned(), claim: Some(claim) })? {
            Reply::Fenced { token, took_us } => {
                self.fence_took = Some(Duration::from_micros(took_us));
                Ok(token)
            }
            other => Err(self.nonsense(&other)),
        }
    }

    /// Stops the target's processors until [`Link::unlock`], for `lease_ms` at most; asked again, the lease begins
    /// anew.
    /// A [`Link::fence_as`] under the same claim makes a fence of it.
    ///
    /// # Errors
    /// As [`Link::fence`].
    pub fn lock(&mut self, reason: &str, claim: u64, lease_ms: u32) -> Result<LockToken, LinkFailure> {
        if let Some(place) = self.place() {
            return self.look_by_lock(place, claim, lease_ms);
        }
        match self.ask(&Request::Lock { reason: reason.to_owned(), claim, lease_ms })? {
            Reply::Locked { token, .. } => Ok(token),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Ends a lock: the target runs on.
    ///
    /// # Errors
    /// [`LinkFailure::Refused`] if its lease has ended: what was written after that was refused; else see
    /// [`LinkFailure`].
    pub fn unlock(&mut self, token: &LockToken) -> Result<(), LinkFailure> {
        if let Some(place) = self.place() {
            return self.release_by_lock(place, token.inner());
        }
        match self.ask(&Request::Unlock { token: token.clone() })? {
            Reply::Unlocked => Ok(()),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Who holds the target locked, if anybody does.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn lock_holder(&mut self) -> Result<Option<LockHolder>, LinkFailure> {
        if let Some(place) = self.place() {
            return self.holder_by_lock(place);
        }
        match self.ask(&Request::LockHolder)? {
            Reply::LockHolder { holder } => Ok(holder),
            other => Err(self.nonsense(&other)),
        }
    }

    /// How long the hypervisor took for the last fence of this link.
    pub fn fence_took(&self) -> Option<Duration> {
        self.fence_took
    }

    /// Resets a fenced target behind its fence, see [`Request::Reset`]; asked again, it is not reset again.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn reset(&mut self, token: &FenceToken) -> Result<(), LinkFailure> {
        match self.ask(&Request::Reset { token: token.clone() })? {
            Reply::Reset => Ok(()),
            other => Err(self.nonsense(&other)),
        }
    }

    /// How the fence of `token` stands.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn fence_state(&mut self, token: &FenceToken) -> Result<FenceState, LinkFailure> {
        if let Some(place) = self.place() {
            return self.state_by_lock(place, token);
        }
        match self.ask(&Request::Standing { token: token.clone() })? {
            Reply::Standing { state } => Ok(state),
            other => Err(self.nonsense(&other)),
        }
    }

    /// Ends a fence. Its keys are dead when this returns, and also if it fails half-way; then ask again.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn release(&mut self, token: &FenceToken, then: Afterwards) -> Result<(), LinkFailure> {
        if let Some(place) = self.place() {
            return self.release_as(place, token, then);
        }
        match self.ask(&Request::Release { token: token.clone(), then })? {
            Reply::Released => {
                self.claim = rand::random();
                Ok(())
            }
            other => Err(self.nonsense(&other)),
        }
    }

    /// The backdoor's counters.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    pub fn stats(&mut self) -> Result<Stats, LinkFailure> {
        match self.ask(&Request::Stats)? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(self.nonsense(&other)),
        }
    }

    /// The target's memory.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// See [`RemoteRead::gap_bytes`].
    pub fn gap_bytes(&self) -> u64 {
        self.memory.gap_bytes()
    }

    /// How often requests to the memory had to be sent again so far: the path lost a packet, or an end was busy.
    pub fn repetitions(&self) -> u64 {
        self.memory.queue().repetitions()
    }

    /// Asks both halves for a sign of life: the way to tell a lost path from a dead target. A target that is dead or
    /// fenced answers as a healthy one does, because its backdoor does.
    ///
    /// # Errors
    /// [`LinkFailure::PathLost`] names the half that is silent; else see [`LinkFailure`].
    pub fn ping(&mut self) -> Result<Pulse, LinkFailure> {
        let begin = Instant::now();
        self.stats()?;
        let control = begin.elapsed();
        match self.probe_memory() {
            // The key died with an epoch: not the path's fault, so look it up and try once more.
            Err(LinkFailure::Access(AccessError::Refused)) => {
                self.regions(None)?;
                Ok(Pulse { control, memory: self.probe_memory()? })
            }
            memory => Ok(Pulse { control, memory: memory? }),
        }
    }

    fn probe_memory(&mut self) -> Result<Duration, LinkFailure> {
        let probe = self.probe.ok_or_else(|| LinkFailure::NoRegion("ram".to_owned()))?;
        let begin = Instant::now();
        let outcome = self.memory.read_one(probe, &mut [0; 8]);
        outcome.map_err(|error| LinkFailure::of_memory(locked(&self.conversation).backdoor(), error))??;
        Ok(begin.elapsed())
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, LinkFailure> {
        let reply = locked(&self.conversation).ask(request);
        pair::follow(&mut self.memory, &self.paired, &self.conversation);
        reply
    }

    fn nonsense(&mut self, reply: &Reply) -> LinkFailure {
        locked(&self.conversation).nonsense(reply)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("welcome", &self.welcome()).finish_non_exhaustive()
    }
}

/// The conversation; a panic elsewhere leaves nothing in it half-done that the next request would not notice.
fn locked(conversation: &Mutex<Conversation>) -> MutexGuard<'_, Conversation> {
    conversation.lock().unwrap_or_else(PoisonError::into_inner)
}
