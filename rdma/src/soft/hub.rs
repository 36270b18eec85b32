//! One pair of sockets for many queues: what lets one thread ask a thousand peers.
//!
//! A raw socket is offered a copy of every packet of its protocol before its filter decides, so a thousand queues with
//! sockets of their own cost a thousand copies for each packet. Queues on a hub share one socket; packets are sorted by
//! queue pair as they come in, and packets of different queues go out in one system call.
//!
//! ```text
//!   queue.post ─► staged ──(hub.flush, or a full batch)──► wire ──► hub.receive ─► sorted ─► queue.poll
//! ```
//!
//! A queue that is polled without patience leaves the socket alone and takes what was sorted for it: the owner of the
//! hub calls [`Hub::flush`] and [`Hub::receive`] once for all. Polled with patience it does both itself, as a queue
//! with a socket of its own does, so a queue may leave the common round for a while and come back, also on another
//! thread.
//!
//! Invariants: a packet goes to the queue pair it names or is dropped; what is sorted and not fetched is bounded.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::socket::{Arrived, Bad, Socket, Waiter};
use super::{Options, SocketError, sys};
use crate::PathMtu;
use crate::wire::packet;

/// Packets kept for one queue that does not fetch them: more than a box of sensors has, and a slow queue's own loss.
const INBOX_PACKETS_MAX: usize = 256;

/// Buffers kept for reuse.
const SPARES_MAX: usize = 4096;

/// Sockets that many queues share.
#[derive(Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    waiter: Arc<Waiter>,
}

struct State {
    socket: Socket,
    inboxes: HashMap<u32, Vec<Letter>>,
    spares: Vec<Vec<u8>>,
    dropped: u64,
}

/// A packet for one queue, its CRC checked.
struct Letter {
    source: Ipv4Addr,
    ib: Vec<u8>,
}

impl Hub {
    /// Opens the sockets at `local`:`port`.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(local: Ipv4Addr, port: u16, options: &Options) -> Result<Self, SocketError> {
        let socket = Socket::open(SocketAddrV4::new(local, port), options)?;
        let waiter = Arc::new(socket.waiter()?);
        let state = State { socket, inboxes: HashMap::new(), spares: Vec::new(), dropped: 0 };
        Ok(Self { state: Arc::new(Mutex::new(state)), waiter })
    }

    /// Sends everything that queues have staged.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn flush(&self) -> io::Result<()> {
        self.locked().socket.flush()
    }

    /// Sorts what has arrived, without waiting; returns how many packets there were.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn receive(&self) -> io::Result<usize> {
        self.locked().sort()
    }

    /// Sleeps until a packet is there, at most `wait`.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn wait(&self, wait: Duration) -> io::Result<()> {
        self.waiter.wait(wait)
    }

    /// Packets for nobody, malformed, or more than a queue keeps.
    pub fn dropped(&self) -> u64 {
        self.locked().dropped
    }

    pub(super) fn berth(&self) -> Berth {
        Berth { hub: self.clone(), number: None, fetched: Vec::new() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("queues", &self.locked().inboxes.len()).finish_non_exhaustive()
    }
}

impl State {
    fn sort(&mut self) -> io::Result<usize> {
        let mut all = 0;
        loop {
            let arrived = self.socket.receive(sys::BATCH)?;
            for index in 0..arrived {
                self.deliver(index);
            }
            all += arrived;
            if arrived < sys::BATCH {
                return Ok(all);
            }
        }
    }

    fn deliver(&mut self, index: usize) {
        let letter = self.socket.arrived(index).ok().and_then(|packet| {
            let (_, number, _) = packet::peek(packet.ib)?;
            let inbox = self.inboxes.get_mut(&number).filter(|inbox| inbox.len() < INBOX_PACKETS_MAX)?;
            Some((packet, inbox))
        });
        match letter {
            Some((packet, inbox)) => {
                let mut ib = self.spares.pop().unwrap_or_default();
                ib.clear();
                ib.extend_from_slice(packet.ib);
                inbox.push(Letter { source: packet.source, ib });
            }
            None => self.dropped += 1,
        }
    }
}

/// One queue's place at a hub.
pub(super) struct Berth {
    hub: Hub,
    number: Option<u32>,
    fetched: Vec<Letter>,
}

impl Berth {
    pub(super) fn mtu(&self) -> PathMtu {
        self.hub.locked().socket.mtu()
    }

    pub(super) fn window_packets(&self, mtu: PathMtu) -> u32 {
        self.hub.locked().socket.window_packets(mtu)
    }

    /// Is queue pair `number` from now on; packets for an earlier number are nobody's. `false` if it is taken.
    pub(super) fn narrow(&mut self, number: u32) -> bool {
        let mut state = self.hub.locked();
        if state.inboxes.contains_key(&number) {
            return false;
        }
        if let Some(old) = self.number.replace(number) {
            state.inboxes.remove(&old);
        }
        state.inboxes.insert(number, Vec::new());
        true
    }

    /// Fetches what was sorted for this queue, first receiving if it is this queue's own turn to.
    pub(super) fn receive(&mut self, is_own_turn: bool) -> io::Result<usize> {
        let mut state = self.hub.locked();
        if is_own_turn {
            state.sort()?;
        }
        for letter in self.fetched.drain(..) {
            if state.spares.len() < SPARES_MAX {
                state.spares.push(letter.ib);
            }
        }
        if let Some(inbox) = self.number.and_then(|number| state.inboxes.get_mut(&number)) {
            std::mem::swap(inbox, &mut self.fetched);
        }
        Ok(self.fetched.len())
    }

    pub(super) fn arrived(&self, index: usize) -> Result<Arrived<'_>, Bad> {
        let letter = self.fetched.get(index).ok_or(Bad::Shape)?;
        Ok(Arrived { source: letter.source, ib: &letter.ib })
    }

    pub(super) fn stage(&self, to: SocketAddrV4, make: impl FnOnce(&mut [u8]) -> Option<usize>) -> io::Result<bool> {
        self.hub.locked().socket.stage(to, make)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.hub.flush()
    }

    pub(super) fn wait(&self, wait: Duration) -> io::Result<()> {
        self.hub.wait(wait)
    }

    pub(super) fn last_failure(&self) -> Option<String> {
        self.hub.locked().socket.last_failure().map(ToString::to_string)
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.hub.locked().inboxes.remove(&number);
        }
    }
}
