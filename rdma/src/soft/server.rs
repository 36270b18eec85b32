//! Many responders on one socket.
//!
//! One thread receives a batch, hands each packet to its queue pair, and then lets the queue pairs that have answers
//! take turns on the wire, a few packets each: a READ of megabytes delays a neighbour's 64 bytes by microseconds.
//! The table of queue pairs is locked for one batch at a time, so that control threads add and remove meanwhile.
//!
//! Checked before a queue pair sees a packet, each failure a silent drop (Linux rxe_recv.c does the same): IP and UDP
//! headers, invariant CRC, queue pair known, sender's address that of the peer.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use remote_memory::LinkError;

use super::socket::{Bad, Socket};
use super::{Options, SocketError, sys};
use crate::responder::{Counters, Memory, Responder, Resumption};
use crate::wire::packet;
use crate::{PathMtu, QpAttributes, random};

/// Queue pairs at the same time: many monitors and spares, and a bound for a peer that only ever connects.
const QUEUE_PAIRS_MAX: usize = 1024;

/// Packets one queue pair may send before it is the next one's turn.
const TURN_PACKETS: usize = 8;

/// Packets sent before the socket is looked at again.
const ROUND_PACKETS: usize = 256;

/// The longest sleep: how soon `stop` is noticed.
const NAP: Duration = Duration::from_millis(50);

/// Serves one [`Memory`] to any number of queue pairs.
pub struct Server<M> {
    socket: Socket,
    memory: M,
    options: Options,
    shared: Arc<Shared>,
    /// Numbers of the queue pairs with answers, in the order of their turns.
    turns: VecDeque<u32>,
}

/// Adds and removes queue pairs of a running [`Server`], from any thread.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

/// What a server has done since it was bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// The work of all queue pairs, those removed included.
    pub work: Counters,
    /// Packets dropped before any queue pair saw them: malformed, wrong CRC, unknown queue pair or wrong peer.
    pub dropped: u64,
    /// Of those, packets whose invariant CRC was wrong.
    pub bad_icrc: u64,
    /// Packets that the kernel would not send.
    pub unsent: u64,
    /// Queue pairs alive.
    pub queue_pairs: u64,
}

/// What does not change: our end of every queue pair.
struct Local {
    address: SocketAddrV4,
    mtu: PathMtu,
    reads_in_flight: u16,
    resumption: Resumption,
}

struct Shared {
    local: Local,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    queue_pairs: HashMap<u32, QueuePair>,
    /// Of queue pairs that were removed, and of the socket.
    past: Stats,
}

struct QueuePair {
    responder: Responder,
    peer: SocketAddrV4,
    /// Whether its number is among the turns.
    queued: bool,
}

impl Shared {
    /// The table is consistent between any two calls on it, so a thread that panicked with the lock does not matter.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Memory> Server<M> {
    /// Opens the sockets at `address`:`port`.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(address: Ipv4Addr, port: u16, memory: M, options: Options) -> Result<Self, SocketError> {
        let address = SocketAddrV4::new(address, port);
        let socket = Socket::open(address, &options)?;
        let local = Local {
            address,
            mtu: socket.mtu(),
            reads_in_flight: options.reads_in_flight,
            resumption: options.resumption,
        };
        let shared = Arc::new(Shared { local, table: Mutex::default() });
        Ok(Self { socket, memory, options, shared, turns: VecDeque::with_capacity(QUEUE_PAIRS_MAX) })
    }

    /// The memory that is served.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { shared: Arc::clone(&self.shared) }
    }

    /// Serves until `stop` is set; notices within a tenth of a second.
    ///
    /// # Errors
    /// [`LinkError::Local`] if the socket fails.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<(), LinkError> {
        let mut last_packet = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let worked = self.step().map_err(|error| LinkError::Local(error.to_string()))?;
            if worked {
                last_packet = Instant::now();
            } else if last_packet.elapsed() < self.options.spin {
                std::thread::yield_now(); // gives way to a peer on the same processor
            } else {
                self.socket.wait(NAP).map_err(|error| LinkError::Local(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// One batch in, one round of answers out. Returns whether there was anything to do.
    fn step(&mut self) -> std::io::Result<bool> {
        let arrived = self.socket.receive(sys::BATCH)?;
        if arrived == 0 && self.turns.is_empty() {
            return Ok(false);
        }
        let shared = Arc::clone(&self.shared);
        let mut table = shared.table();
        for index in 0..arrived {
            self.deliver(&mut table, index);
        }
        self.answer(&mut table)?;
        table.past.unsent = self.socket.send_failures();
        Ok(true)
    }

    fn deliver(&mut self, table: &mut Table, index: usize) {
        let packet = match self.socket.arrived(index) {
            Ok(packet) => packet,
            Err(bad) => {
                table.past.dropped += 1;
                table.past.bad_icrc += u64::from(bad == Bad::Icrc);
                return;
            }
        };
        let number = packet::peek(packet.ib).map(|(_, number, _)| number);
        let target = number.and_then(|number| table.queue_pairs.get_mut(&number).map(|pair| (number, pair)));
        let Some((number, pair)) = target.filter(|(_, pair)| packet.source == *pair.peer.ip()) else {
            table.past.dropped += 1;
            return;
        };
        pair.responder.receive(&self.memory, packet.ib);
        if pair.responder.has_output() && !pair.queued {
            pair.queued = true;
            self.turns.push_back(number);
        }
    }

    fn answer(&mut self, table: &mut Table) -> std::io::Result<()> {
        let mut budget = ROUND_PACKETS;
        while budget > 0
            && let Some(number) = self.turns.pop_front()
        {
            let Some(pair) = table.queue_pairs.get_mut(&number) else { continue };
            for _ in 0..TURN_PACKETS {
                let (responder, memory) = (&mut pair.responder, &self.memory);
                if !self.socket.stage(pair.peer, |out| responder.transmit(memory, out))? {
                    break;
                }
                budget = budget.saturating_sub(1);
            }
            pair.queued = pair.responder.has_output();
            if pair.queued {
                self.turns.push_back(number);
            }
        }
        self.socket.flush()
    }
}

impl ServerHandle {
    /// Adds a queue pair for `remote`; returns our end of it, whose `path_mtu` is the smaller of both.
    ///
    /// # Errors
    /// [`LinkError::Misused`] if `remote` makes no sense or there are too many queue pairs.
    pub fn add(&self, remote: QpAttributes) -> Result<QpAttributes, LinkError> {
        remote.check()?;
        let local = &self.shared.local;
        let mut table = self.shared.table();
        if table.queue_pairs.len() >= QUEUE_PAIRS_MAX {
            return Err(LinkError::Misused("the server has as many queue pairs as it may have"));
        }
        let mut number = random::queue_pair();
        while table.queue_pairs.contains_key(&number) {
            number = random::queue_pair();
        }
        let ours = QpAttributes {
            number,
            first_psn: random::psn(),
            address: *local.address.ip(),
            port: local.address.port(),
            path_mtu: PathMtu::at_most(local.mtu.raw().min(remote.path_mtu)).raw(),
            reads_in_flight: local.reads_in_flight,
        };
        let responder = Responder::new(&ours, &remote).resuming(local.resumption);
        let peer = SocketAddrV4::new(remote.address, remote.port);
        table.queue_pairs.insert(number, QueuePair { responder, peer, queued: false });
        Ok(ours)
    }

    /// Removes our queue pair `number`; false if there is none.
    pub fn remove(&self, number: u32) -> bool {
        let mut table = self.shared.table();
        let Some(pair) = table.queue_pairs.remove(&number) else { return false };
        table.past.work.absorb(pair.responder.counters());
        true
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        let table = self.shared.table();
        let mut stats = table.past;
        for pair in table.queue_pairs.values() {
            stats.work.absorb(pair.responder.counters());
        }
        stats.queue_pairs = table.queue_pairs.len() as u64;
        stats
    }
}
