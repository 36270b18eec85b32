//! Mechanism: how whoever serves a target's memory receives monitors and spares. On a hypervisor that is `backdoor`, on
//! bare metal the agent; both are spoken to in the same way.
//!
//! ```text
//!   listener ──► is the address permitted, is there a seat? ──► a thread: hello, then request and reply … ──► end
//! ```
//! One thread for each connection, of which there are few and a limit. Peers may be hostile: who is slow, long-winded
//! or incomprehensible is cut off and harms nobody else; who asks for what he may not gets a sentence. What a peer was
//! given ends with its connection, because its [`Guest`] is dropped then.
//!
//! Deliberately absent: what is answered, which is the daemons' own; and authentication of peers, until the control
//! plane speaks TLS: permitted are addresses, no more.

mod conversation;
mod pairs;
mod stream;

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use control::Channel;
use control::backdoor::Reply;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use conversation::{Guest, Speaker};
pub use pairs::Pairs;
use stream::Patient;

/// Connections of one peer: a monitor and a spare on one machine have one each, with room for those that are dying.
const CONNECTIONS_PER_PEER: usize = 16;

/// Connections in all.
const CONNECTIONS_MAX: usize = 64;

/// How soon a request to stop, or the end of what is served, is noticed.
const NOTICE: Duration = Duration::from_millis(200);

/// Who may speak, and how many at a time.
#[derive(Clone, Debug)]
pub struct Reception {
    peers: Arc<[IpAddr]>,
    stop: Arc<AtomicBool>,
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Reception {
    /// Receives `peers`, all if it is empty, until `stop` is set.
    pub fn new(peers: &[IpAddr], stop: Arc<AtomicBool>) -> Self {
        Self { peers: peers.into(), stop, connections: Arc::default() }
    }

    /// Accepts connections until told to stop; each gets what `guest` makes for it.
    pub fn serve<G: Guest>(&self, listener: &TcpListener, guest: impl Fn() -> G + Clone + Send + 'static) {
        if let Err(error) = listener.set_nonblocking(true) {
            tracing::error!(%error, "control plane");
            return;
        }
        let timeout = PollTimeout::try_from(NOTICE).unwrap_or(PollTimeout::ZERO);
        while !self.is_stopping() {
            let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
            match listener.accept() {
                Ok((stream, from)) => self.admit(stream, from.ip().to_canonical(), guest.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "a control connection was not accepted");
                    thread::sleep(NOTICE); // out of descriptors, most likely
                }
            }
        }
    }

    fn admit<G: Guest>(&self, stream: TcpStream, from: IpAddr, guest: impl FnOnce() -> G + Send + 'static) {
        if let Err(why) = self.seat(from) {
            tracing::warn!(%from, why, "control connection turned away");
            turn_away(stream, why);
            return;
        }
        let seat = Seat { reception: self.clone(), from };
        let named = thread::Builder::new().name(format!("control {from}"));
        let spawned = named.spawn(move || match Patient::new(stream) {
            Ok(stream) => conversation::hold(&seat.reception, stream, from, guest()),
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

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One of the connections that may exist; counted out when it is dropped.
struct Seat {
    reception: Reception,
    from: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self.reception.connections();
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
