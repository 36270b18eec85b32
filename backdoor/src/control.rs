//! The control plane: monitors and spares ask, over TCP, one request and one reply at a time.
//!
//! Who is received, and how, is the business of [`reception`]; here is what is answered. A queue pair belongs to the
//! connection that asked for it and ends with it. What protects the target until the control plane speaks TLS is that
//! keys and tokens cannot be guessed.

mod peer;

use std::net::{IpAddr, TcpListener};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use control::backdoor::{LockHolder, Stats};
use rdma::soft::ServerHandle;
use reception::Reception;

use crate::target::Target;
use peer::Peer;

/// What the control plane commands.
#[derive(Clone)]
pub struct Plane {
    target: Arc<Target>,
    pairs: ServerHandle,
    reception: Reception,
    /// Name and reason of who locked the target last, as it gave them.
    last_lock: Arc<Mutex<(String, String)>>,
}

impl Plane {
    /// A control plane for `target`, whose queue pairs live in `pairs`. `peers` may speak, all if it is empty.
    pub fn new(target: Arc<Target>, pairs: ServerHandle, peers: &[IpAddr], stop: Arc<AtomicBool>) -> Self {
        Self { target, pairs, reception: Reception::new(peers, stop), last_lock: Arc::default() }
    }

    /// Remembers who has locked the target.
    fn note_lock(&self, peer: &str, reason: &str) {
        let mut last = self.last_lock.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (peer.to_owned(), reason.to_owned());
    }

    /// Who holds the target locked, if anybody does; a holder of before this process began is nameless.
    fn lock_holder(&self) -> Option<LockHolder> {
        let left = self.target.lock_left()?;
        let (peer, reason) = self.last_lock.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(LockHolder { peer, reason, left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX) })
    }

    /// Accepts connections until told to stop.
    pub fn serve(&self, listener: &TcpListener) {
        let plane = self.clone();
        self.reception.serve(listener, move || Peer::new(&plane));
    }

    /// Counters since start.
    pub fn stats(&self) -> Stats {
        let rdma = self.pairs.stats();
        Stats {
            reads: rdma.work.reads,
            read_bytes: rdma.work.read_bytes,
            writes: rdma.work.writes,
            atomics: rdma.work.atomics,
            refused: rdma.work.refused,
            dropped: rdma.dropped + rdma.work.dropped,
            queue_pairs: rdma.queue_pairs,
            fences: self.target.fences(),
            resets: self.target.resets(),
        }
    }

    /// The target that is commanded.
    pub fn target(&self) -> &Target {
        &self.target
    }
}
