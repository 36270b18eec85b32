//! The answering end on an adapter: registered memory, and the queue pairs that reach it.
//!
//! After [`VerbsServer::accept`] the adapter answers by itself. What is left to do here is to take queue pairs away
//! when nobody wants them any more, and to notice when the adapter is gone: then the whole value is dropped, and
//! another one opened when there is an adapter again.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use remote_memory::Rights;

use super::adapter::{Adapter, Event};
use super::domain::{Completions, Domain, Registered};
use super::pair::{End, Pair};
use super::{Choice, Options, VerbsError};
use crate::{PathMtu, QpAttributes, random};

/// Queue pairs at the same time: many monitors and spares with their standbys, and a bound for a peer that only ever
/// connects.
pub const PAIRS_MAX: usize = 256;

/// Serves memory by an adapter.
#[derive(Debug)]
pub struct VerbsServer {
    adapter: Arc<Adapter>,
    domain: Arc<Domain>,
    /// Of queue pairs that ask for nothing, so that nothing ever completes.
    completions: Arc<Completions>,
    options: Options,
    pairs: Mutex<HashMap<u32, Pair>>,
}

impl VerbsServer {
    /// Opens the adapter that `choice` means.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn open(choice: &Choice, options: Options) -> Result<Self, VerbsError> {
        let adapter = Adapter::open(choice)?;
        let domain = Domain::new(&adapter)?;
        let completions = Completions::new(&adapter, 1)?;
        Ok(Self { adapter, domain, completions, options, pairs: Mutex::default() })
    }

    /// The adapter.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Registers `memory` for peers with `rights`, until the value that is returned is dropped.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn register(&self, memory: &'static [AtomicU64], rights: Rights) -> Result<Registered, VerbsError> {
        Registered::shared(&self.domain, memory, rights)
    }

    /// A queue pair for `remote`; returns our end of it, whose `path_mtu` is the smaller of both. It answers at once.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn accept(&self, remote: &QpAttributes) -> Result<QpAttributes, VerbsError> {
        let mut pairs = self.pairs();
        if pairs.len() >= PAIRS_MAX {
            return Err(VerbsError::Full { max: PAIRS_MAX });
        }
        let pair = Pair::new(&self.domain, &self.completions, End::Answering, 1, 0)?;
        let mut ours = pair.attributes(random::psn());
        ours.path_mtu = PathMtu::at_most(ours.path_mtu.min(remote.path_mtu)).raw();
        pair.join(&ours, remote, &self.options)?;
        pairs.insert(ours.number, pair);
        Ok(ours)
    }

    /// Removes our queue pair `number`; false if there is none.
    pub fn remove(&self, number: u32) -> bool {
        self.pairs().remove(&number).is_some()
    }

    /// Queue pairs alive.
    pub fn len(&self) -> usize {
        self.pairs().len()
    }

    /// Whether there is no queue pair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for something to happen to the adapter, `wait` at most. [`Event::Gone`] is also said of one that is only
    /// being removed, and again with each call.
    pub fn watch(&self, wait: Duration) -> Option<Event> {
        let fds = &mut [PollFd::new(self.adapter.event_fd(), PollFlags::POLLIN)];
        let _ = ppoll(fds, Some(TimeSpec::from_duration(wait)), None);
        let event = self.adapter.event();
        if self.adapter.is_gone() { Some(Event::Gone) } else { event }
    }

    fn pairs(&self) -> MutexGuard<'_, HashMap<u32, Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
