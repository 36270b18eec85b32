//! The control plane: monitors and spares ask, over TCP, one request and one reply at a time.
//!
//! One thread for each connection, of which there are few and a limit. Peers may be hostile: who is slow, long-winded
//! or incomprehensible is cut off and harms nobody else; who asks for what he may not gets a sentence. A queue pair
//! belongs to the connection that asked for it and ends with it.
//!
//! Deliberately absent: authentication of peers (`peers` in the configuration names addresses, no more), until the
//! control plane speaks TLS. What protects the target until then is that keys and tokens cannot be guessed.

mod peer;
mod stream;

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use control::Channel;
use control::backdoor::{LockHolder, Reply, Stats};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdma::soft::ServerHandle;

use crate::target::Target;
use stream::Patient;

/// Connections of one peer: a monitor and a spare on one machine have one each, with room for those that are dying.
const CONNECTIONS_PER_PEER: usize = 16;

/// Connections in all.
const CONNECTIONS_MAX: usize = 64;

/// How soon a request to stop, or a new machine, is noticed.
const NOTICE: Duration = Duration::from_millis(200);

/// What the control plane commands.
#[derive(Clone)]
pub struct Plane {
    target: Arc<Target>,
    pairs: ServerHandle,
    peers: Arc<[IpAddr]>,
    stop: Arc<AtomicBool>,
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
    /// Name and reason of who locked the target last, as it gave them.
    last_lock: Arc<Mutex<(String, String)>>,
}

impl Plane {
    /// A control plane for `target`, whose queue pairs live in `pairs`. `peers` may speak, all if it is empty.
    pub fn new(target: Arc<Target>, pairs: ServerHandle, peers: &[IpAddr], stop: Arc<AtomicBool>) -> Self {
        Self { target, pairs, peers: peers.into(), stop, connections: Arc::default(), last_lock: Arc::default() }
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
        if let Err(error) = listener.set_nonblocking(true) {
            tracing::error!(%error, "control plane");
            return;
        }
        let timeout = PollTimeout::try_from(NOTICE).unwrap_or(PollTimeout::ZERO);
        while !self.is_stopping() {
            let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
            match listener.accept() {
                Ok((stream, from)) => self.admit(stream, from.ip().to_canonical()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "a control connection was not accepted");
                    thread::sleep(NOTICE); // out of descriptors, most likely
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, from: IpAddr) {
        if let Err(why) = self.seat(from) {
            tracing::warn!(%from, why, "control connection turned away");
            turn_away(stream, why);
            return;
        }
        let seat = Seat { plane: self.clone(), from };
        let named = thread::Builder::new().name(format!("control {from}"));
        let spawned = named.spawn(move || match Patient::new(stream) {
            Ok(stream) => peer::converse(&seat.plane, stream, from),
            Err(error) => tracing::warn!(%from, %error, "control connection"),
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for a control connection");
        }
    }

    /// Counts a connection in, or says why not.
    fn seat(&self, from: IpAddr) -> Result<(), &'static str> {
        if !self.peers.is_empty() && !self.peers.contains(&from) {
            return Err("this backdoor does not speak to this address");
        }
        let mut connections = self.connections();
        let all: usize = connections.values().sum();
        let own = connections.get(&from).copied().unwrap_or(0);
        if own >= CONNECTIONS_PER_PEER || all >= CONNECTIONS_MAX {
            return Err("too many control connections");
        }
        connections.insert(from, own + 1);
        Ok(())
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One of the connections that may exist; counted out when it is dropped.
struct Seat {
    plane: Plane,
    from: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self.plane.connections();
        if let Some(count) = connections.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.from);
            }
        }
    }
}

/// A sentence, if the socket takes it at once.
fn turn_away(stream: TcpStream, why: &str) {
    if stream.set_nonblocking(true).is_ok() {
        let _ = Channel::new(stream).send(&Reply::Refused { why: why.to_owned() });
    }
}
