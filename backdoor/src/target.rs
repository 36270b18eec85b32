//! One target: its machine, the guard of its memory, and the orders that change both together.
//!
//! ```text
//!   control ──► fence, release, regions ┐
//!   agent port ──► register             ├─► Target ──► machine (QMP)   one lock, taken first
//!   watch (below) ──► attach, events    ┘         └──► guard + bytes   the other, never held over a QMP command
//! ```
//!
//! [`Target::watch`] looks after the machine: finds it, finds it again when QEMU was started anew, keeps a fenced one
//! stopped, and forgets the boxes of one that was reset.
//!
//! `lock` stops a machine for the time of a lease.
//!
//! Invariants: a token is given out only after the machine was seen to stand still; keys are dead before a machine is
//! let go; a fence outlives QEMU: a machine that appears under a standing fence is stopped before its memory is served;
//! with a file to remember it (see `record`), a fence outlives this daemon too.

mod lock;
mod record;
mod watch;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control::agent::Registration;
use control::backdoor::{Afterwards, FenceState, FenceToken, LEASE_MS_MAX, RegionEntry};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::fence::{self, FenceError, Stopped};
use crate::guard::{Guard, RegisterError};
use crate::guest_ram::find::Process;
use crate::memory::GuardedMemory;
use crate::qmp::{Qmp, QmpError};
use record::Record;
pub use record::RecordError;

/// Where a target's machine is found.
#[derive(Clone, Debug)]
pub struct Places {
    /// QEMU's monitor socket.
    pub qmp: PathBuf,
    /// The file that holds the memory, if it is not to be searched.
    pub ram: Option<PathBuf>,
    /// A file with QEMU's process number, if the socket does not tell it.
    pub pid_file: Option<PathBuf>,
    /// The file that remembers a standing fence, if any does.
    pub record: Option<PathBuf>,
}

/// Why an order was not carried out: a sentence for the one who gave it.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Somebody else's fence stands.
    #[error("the target is fenced already, in epoch {epoch}, by somebody else")]
    FencedAlready {
        /// Since when.
        epoch: u64,
    },
    /// The machine's memory and state are to be reset, and QEMU did not obey.
    #[error("the keys of the fence are dead, but the machine was not reset; order it again: {0}")]
    NotReset(#[source] QmpError),
    /// Nobody may stand still for so long, or for no time at all.
    #[error("a lease of {lease_ms} ms: it has 1 to {LEASE_MS_MAX} ms")]
    BadLease {
        /// What was asked for.
        lease_ms: u32,
    },
    /// The lease has ended, or there never was such a lock.
    #[error("the token is not that of a standing lock; if it was, its lease has ended and the target runs")]
    NoSuchLock,
    /// The key is dead, and the machine does not run yet.
    #[error("the key of the lock is dead, but the machine was not let go; it is tried again: {0}")]
    NotUnlocked(#[source] QmpError),
    /// The token is not that of the standing fence.
    #[error("the token is not that of a standing fence")]
    NoSuchFence,
    /// QEMU cannot be reached, and its process lives.
    #[error("the hypervisor cannot be reached now: {0}")]
    NoHypervisor(String),
    /// No machine has been found yet, or it was shut down.
    #[error("there is no machine behind this backdoor now")]
    NoMachine,
    /// The machine could not be stopped.
    #[error("the target is not fenced: {0}")]
    NotFenced(#[source] FenceError),
    /// The keys are dead, but the machine could not be let go.
    #[error("the keys of the fence are dead, but the machine was not let go; release it again: {0}")]
    NotReleased(#[source] QmpError),
}

/// The hypervisor's side of a target.
#[derive(Debug, Default)]
struct Machine {
    qmp: Option<Qmp>,
    /// Its network cards when it was found, so that a fence need not ask first.
    cards: Vec<String>,
    /// Why there is no connection, for people.
    trouble: String,
    process: Option<Process>,
    /// Device and inode of its memory's file.
    identity: (u64, u64),
    /// What the standing fence did to it.
    stopped: Option<Stopped>,
    /// Whether it was reset under the standing fence, and runs behind it.
    is_reset: bool,
    /// When the standing lock ends by itself, or its machine is let go once more.
    lease_until: Option<Instant>,
    /// When QEMU was seen to be gone.
    gone_since: Option<Instant>,
    shut_down: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Target {
    name: String,
    places: Places,
    memory: Arc<GuardedMemory>,
    machine: Mutex<Machine>,
    /// Wakes the watch: a lease has begun.
    wake: EventFd,
    incarnation: AtomicU64,
    fences: AtomicU64,
    resets: AtomicU64,
    fence_took_us: AtomicU64,
}

impl Target {
    /// A target whose machine has not been found yet.
    ///
    /// # Errors
    /// [`RecordError`] if it cannot be told whether a fence stands.
    pub fn new(name: &str, places: Places) -> Result<Self, RecordError> {
        let mut guard = Guard::new(name);
        let mut machine = Machine { trouble: "not looked for yet".to_owned(), ..Machine::default() };
        if let Some(record) = Record::load(places.record.as_deref(), name)? {
            tracing::warn!(target = name, epoch = record.token.epoch, "a fence of before stands on");
            machine.process = record.process;
            machine.identity = record.identity;
            machine.stopped = Some(record.stopped);
            machine.is_reset = record.is_reset;
            machine.lease_until = record.lease_ms.map(|ms| Instant::now() + Duration::from_millis(ms.into()));
            guard.restore(record.token, record.claim, record.lease_ms.is_some());
        }
        Ok(Self {
            name: name.to_owned(),
            places,
            memory: Arc::new(GuardedMemory::new(guard)),
            machine: Mutex::new(machine),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("a descriptor is left"),
            incarnation: AtomicU64::new(rand::random()),
            fences: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            fence_took_us: AtomicU64::new(0),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory, for the server.
    pub fn memory(&self) -> Arc<GuardedMemory> {
        Arc::clone(&self.memory)
    }

    /// Changes when the keys of before are dead because a machine was found.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Fences so far.
    pub fn fences(&self) -> u64 {
        self.fences.load(Ordering::Relaxed)
    }

    /// Resets of the machine so far.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// How long the last fence took.
    pub fn fence_took(&self) -> Duration {
        Duration::from_micros(self.fence_took_us.load(Ordering::Relaxed))
    }

    /// Whether a fence stands.
    pub fn is_fenced(&self) -> bool {
        self.memory.look().guard.is_fenced()
    }

    /// Whether a lock stands.
    pub fn is_locked(&self) -> bool {
        self.memory.look().guard.is_locked()
    }

    /// Whether there is memory to serve.
    pub fn has_memory(&self) -> bool {
        self.memory.look().mapping.is_some()
    }

    /// Whether QEMU can be told to stop.
    pub fn has_hypervisor(&self) -> bool {
        self.machine().qmp.is_some()
    }

    /// The epoch and the regions; with the token of the standing fence, its key for `ram`.
    ///
    /// # Errors
    /// [`TargetError::NoSuchFence`].
    pub fn regions(&self, token: Option<&FenceToken>) -> Result<(u64, Vec<RegionEntry>), TargetError> {
        let state = self.memory.look();
        let regions = state.guard.regions(token).map_err(|_| TargetError::NoSuchFence)?;
        Ok((state.guard.epoch().raw(), regions))
    }

    /// Registers a region for the agent; true if it is new or has changed.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub fn register(&self, wanted: &Registration) -> Result<bool, RegisterError> {
        self.memory.change().guard.register(wanted, &mut rand::rng())
    }

    /// The agent opens a conversation.
    pub fn agent_greets(&self) {
        self.memory.change().guard.agent_greets();
    }

    /// The agent has registered what it stands by.
    pub fn agent_settles(&self) {
        self.memory.change().guard.agent_settles();
    }

    /// Stops the machine and begins an epoch; asked again under the same `claim`, returns the standing fence.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn fence(&self, claim: Option<u64>) -> Result<(FenceToken, Duration), TargetError> {
        let begin = Instant::now();
        let mut machine = self.machine();
        {
            let state = self.memory.look();
            // A fence behind which a new life runs is not one to act under.
            if let Some(token) = state.guard.claimed(claim).filter(|_| !machine.is_reset) {
                return Ok((token, self.fence_took()));
            }
            let is_locked_by_others = state.guard.is_locked() && state.guard.locked_by(claim).is_none();
            if state.guard.is_fenced() || is_locked_by_others {
                return Err(TargetError::FencedAlready { epoch: state.guard.epoch().raw() });
            }
            if state.mapping.is_none() {
                return Err(TargetError::NoMachine);
            }
        }
        let stopped = machine.stop()?;
        // Under a lock, or after one whose machine was not let go, it was stopped before.
        machine.stopped.get_or_insert(stopped);
        machine.lease_until = None;
        let token = {
            let guard = &mut self.memory.change().guard;
            guard.harden(claim).unwrap_or_else(|| guard.fence(claim, &mut rand::rng()))
        };
        machine.record(&token, claim, None).keep(self.places.record.as_deref());
        let took = begin.elapsed();
        self.fences.fetch_add(1, Ordering::Relaxed);
        self.fence_took_us.store(took.as_micros() as u64, Ordering::Relaxed);
        Ok((token, took))
    }

    /// Resets the machine behind its fence: its keys are dead, it boots and runs, its links are down. One that was
    /// reset under this fence already is left alone.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn reset(&self, token: &FenceToken) -> Result<(), TargetError> {
        let mut machine = self.machine();
        if !self.memory.look().guard.is_standing(token) {
            return Err(TargetError::NoSuchFence);
        }
        if machine.is_reset {
            return Ok(());
        }
        {
            let mut state = self.memory.change();
            state.guard.begin_release(token, &mut rand::rng()).map_err(|_| TargetError::NoSuchFence)?;
            state.guard.machine_reset();
        }
        // Before QEMU obeys: what it says of it meanwhile must not be taken for somebody else's doing.
        machine.is_reset = true;
        if let Err(error) = machine.restart() {
            machine.is_reset = false;
            return Err(error);
        }
        machine.record(token, None, None).keep(self.places.record.as_deref());
        Ok(())
    }

    /// How the fence of `token` stands.
    pub fn fence_state(&self, token: &FenceToken) -> FenceState {
        let machine = self.machine();
        match (self.memory.look().guard.is_standing(token), machine.is_reset) {
            (false, _) => FenceState::Ended,
            (true, false) => FenceState::Stands,
            (true, true) => FenceState::Reset,
        }
    }

    /// Ends the keys of a fence, then lets the machine go.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn release(&self, token: &FenceToken, then: Afterwards) -> Result<(), TargetError> {
        let mut machine = self.machine();
        {
            let mut state = self.memory.change();
            state.guard.begin_release(token, &mut rand::rng()).map_err(|_| TargetError::NoSuchFence)?;
            // What runs behind the fence keeps its boxes, under new keys.
            if then != Afterwards::Resume {
                state.guard.machine_reset();
            }
        }
        machine.let_go(then)?;
        self.memory.change().guard.finish_release();
        record::forget(self.places.record.as_deref());
        Ok(())
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    fn is_gone(&self) -> bool {
        self.process.is_none_or(|process| process.is_gone())
    }

    /// What is to be remembered of it as it stands under `token`.
    fn record(&self, token: &FenceToken, claim: Option<u64>, lease_ms: Option<u32>) -> Record {
        Record {
            token: token.clone(),
            claim,
            stopped: self.stopped.clone().unwrap_or_else(Stopped::gone),
            process: self.process,
            identity: self.identity,
            is_reset: self.is_reset,
            lease_ms,
        }
    }

    /// Stops the machine. One whose process is gone stands still already, and its memory is still in our hands.
    fn stop(&mut self) -> Result<Stopped, TargetError> {
        let Some(qmp) = &mut self.qmp else {
            return if self.is_gone() { Ok(Stopped::gone()) } else { Err(self.no_hypervisor()) };
        };
        match fence::stop(qmp, &self.cards) {
            Err(FenceError::Qmp(error)) if error.is_fatal() => {
                self.lose_hypervisor(&error);
                if self.is_gone() { Ok(Stopped::gone()) } else { Err(TargetError::NotFenced(error.into())) }
            }
            outcome => outcome.map_err(TargetError::NotFenced),
        }
    }

    fn restart(&mut self) -> Result<(), TargetError> {
        let Some(qmp) = &mut self.qmp else { return Err(self.no_hypervisor()) };
        let outcome = fence::reset(qmp);
        if let Err(error) = &outcome
            && error.is_fatal()
        {
            self.lose_hypervisor(error);
        }
        outcome.map_err(TargetError::NotReset)
    }

    fn let_go(&mut self, then: Afterwards) -> Result<(), TargetError> {
        let stopped = self.stopped.clone().unwrap_or_else(Stopped::gone);
        if let Some(qmp) = &mut self.qmp {
            let outcome = fence::release(qmp, &stopped, then);
            if let Err(error) = &outcome
                && error.is_fatal()
            {
                self.lose_hypervisor(error);
            }
            outcome.map_err(TargetError::NotReleased)?;
        } else if !self.is_gone() {
            return Err(self.no_hypervisor());
        }
        self.shut_down |= then == Afterwards::PowerOff;
        (self.stopped, self.is_reset) = (None, false);
        Ok(())
    }

    fn no_hypervisor(&self) -> TargetError {
        TargetError::NoHypervisor(self.trouble.clone())
    }

    fn lose_hypervisor(&mut self, why: &QmpError) {
        tracing::warn!(%why, "the connection to the hypervisor is lost");
        self.trouble = why.to_string();
        self.qmp = None;
    }
}
