//! What a queue has of one adapter: a domain, the registered landing buffer, and connections, one in use and some that
//! stand by.
//!
//! Standbys are made by a short-lived thread, because a peer's control plane may be frozen while its memory still
//! answers: nobody who reads that memory may have to wait for the other. A standby needs the control plane once, when
//! it is made, and never after.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use remote_memory::{LinkError, Window};

use super::adapter::Adapter;
use super::domain::{Completions, Domain, Registered};
use super::landing::Landing;
use super::pair::{End, Pair};
use super::{Choice, Options, VerbsError};
use crate::{Dialed, PathMtu, QpAttributes, random};

/// Completions that a queue has room for beyond those of its operations: of connections that are being retired.
const COMPLETIONS_SPARE: u32 = 16;

/// What is asked of the peer for a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Our end.
    pub ours: QpAttributes,
    /// Numbers of our other ends that are in use: the peer's ends of all others may go.
    pub keep: Vec<u32>,
    /// Whether it will stand by, beside those that are in use.
    pub is_standby: bool,
}

/// Carries our attributes to the peer and returns the peer's.
pub type Dialer = Box<dyn FnMut(Call) -> Result<Dialed, LinkError> + Send>;

/// Numbers of the queue pairs that are joined to the peer.
type Live = Arc<Mutex<Vec<u32>>>;

/// See the module.
pub(super) struct Engine {
    pub adapter: Arc<Adapter>,
    domain: Arc<Domain>,
    pub completions: Arc<Completions>,
    pub registered: Registered,
    options: Options,
    live: Live,
    standbys: Mutex<Vec<Joined>>,
    /// A thread is making standbys.
    is_filling: AtomicBool,
}

/// A connection.
pub(super) struct Joined {
    pub pair: Pair,
    pub ours: QpAttributes,
    pub mtu: PathMtu,
    pub window: Option<Window>,
    /// Connections that the peer keeps for us beside this one.
    pub further: usize,
    live: Live,
}

impl Drop for Joined {
    fn drop(&mut self) {
        let number = self.ours.number;
        locked(&self.live).retain(|live| *live != number);
    }
}

impl Engine {
    /// Opens the adapter that `choice` means and registers `landing` with it.
    pub fn open(choice: &Choice, landing: &Arc<Landing>, options: &Options) -> Result<Arc<Self>, VerbsError> {
        let adapter = Adapter::open(choice)?;
        let domain = Domain::new(&adapter)?;
        let depth = u32::try_from(options.depth).unwrap_or(u32::MAX).saturating_add(COMPLETIONS_SPARE);
        let completions = Completions::new(&adapter, depth.min(adapter.limits().completions))?;
        let registered = Registered::landing(&domain, landing)?;
        Ok(Arc::new(Self {
            adapter,
            domain,
            completions,
            registered,
            options: options.clone(),
            live: Live::default(),
            standbys: Mutex::default(),
            is_filling: AtomicBool::new(false),
        }))
    }

    /// A queue pair that is not joined to anything, and what the peer has to know of it.
    pub fn pair(&self) -> Result<(Pair, QpAttributes), VerbsError> {
        let depth = u32::try_from(self.options.depth).unwrap_or(u32::MAX);
        let pair = Pair::new(&self.domain, &self.completions, End::Asking, depth, self.options.inline_bytes)?;
        let ours = pair.attributes(random::psn());
        Ok((pair, ours))
    }

    /// Joins `pair`, which the peer knows as `ours`.
    pub fn join(&self, pair: Pair, ours: QpAttributes, dialed: &Dialed) -> Result<Joined, VerbsError> {
        pair.join(&ours, &dialed.remote, &self.options)?;
        locked(&self.live).push(ours.number);
        let mtu = PathMtu::at_most(ours.path_mtu.min(dialed.remote.path_mtu));
        let (window, further, live) = (dialed.window, dialed.further, Arc::clone(&self.live));
        Ok(Joined { pair, ours, mtu, window, further, live })
    }

    /// A new connection by way of the peer's control plane.
    pub fn dial(&self, dialer: &Mutex<Dialer>, is_standby: bool) -> Result<Joined, LinkError> {
        let (pair, ours) = self.pair()?;
        // One call at a time, so that each names the connections that there are.
        let mut dialer = locked(dialer);
        let keep = locked(&self.live).clone();
        let dialed = dialer(Call { ours, keep, is_standby })?;
        Ok(self.join(pair, ours, &dialed)?)
    }

    /// A connection that stood by.
    pub fn take_standby(&self) -> Option<Joined> {
        locked(&self.standbys).pop()
    }

    /// Gives all standbys up: the peer has.
    pub fn drop_standbys(&self) {
        drop(mem::take(&mut *locked(&self.standbys)));
    }

    /// How many stand by.
    pub fn standbys(&self) -> usize {
        locked(&self.standbys).len()
    }

    /// Has standbys made until there are as many as are wanted and the peer keeps, `further`. Returns at once.
    pub fn fill(self: &Arc<Self>, dialer: &Arc<Mutex<Dialer>>, further: usize) {
        let wanted = self.options.standbys.min(further);
        if self.standbys() >= wanted || self.is_filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (engine, dialer) = (Arc::clone(self), Arc::clone(dialer));
        let body = move || {
            while engine.standbys() < wanted {
                match engine.dial(&dialer, true) {
                    Ok(joined) => locked(&engine.standbys).push(joined),
                    Err(_) => break, // whoever dials has said why; the next occasion tries again
                }
            }
            engine.is_filling.store(false, Ordering::Release);
        };
        if thread::Builder::new().name("standbys".into()).spawn(body).is_err() {
            self.is_filling.store(false, Ordering::Release);
        }
    }
}

/// Nothing panics with one of these locks, and what they guard is whole between any two statements.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
