//! The agent in the place of a backdoor, on a machine of its own: regions are registered with its RDMA adapter,
//! and whoever wants to reach them is told the keys over TCP.
//!
//! ```text
//!   monitor ──► control (TCP 4790)   hello, connect, regions, stats                       ── guest
//!           ──► adapter (UDP 4791)   READ, WRITE, atomics: no process of this machine takes part
//! ```
//! One *life* is the time from an adapter's appearance to its end. Queue pairs and registrations belong to a life, and
//! so does its number, the incarnation, which peers are told: after the adapter has come back, or the agent was started
//! anew, nobody takes keys of before for keys of now. Between lives nothing listens, so that to a monitor this machine
//! is unreachable and not mistaken for one that refuses.
//!
//! What it does not do: fence, lock or reset this machine. It is one of its processes, and no process can do that to a
//! machine that no longer runs it; for that there are words in registered memory that the kernel obeys.
//!
//! Invariants: the end of a life closes everything that was opened of the adapter, however many peers there are; so
//! does the end of the process, because the kernel does. A peer's queue pairs end with its conversation.

mod guest;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use control::backdoor::RegionEntry;
use rdma::verbs::{CLASS, Choice, Event, Options, Registered, VerbsServer, choose};
use reception::Reception;
use tracing::{debug, info, warn};

use crate::random_number;
use crate::registration::Region;
use guest::Peer;

/// Between two attempts to open an adapter that is not there.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// How soon the end of the agent, or of the adapter, is noticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Where and to whom memory is served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this machine, as monitors know it.
    pub target: String,
    /// The adapter.
    pub choice: Choice,
    /// TCP port of the control plane, at the same address.
    pub control_port: u16,
    /// Addresses that may speak; all if empty.
    pub peers: Vec<IpAddr>,
}

/// What is known of the adapter from outside, for metrics.
#[derive(Debug, Default)]
pub struct Board {
    lives: AtomicU64,
    now: Mutex<Weak<Life>>,
}

impl Board {
    /// How often an adapter was opened.
    pub fn lives(&self) -> u64 {
        self.lives.load(Ordering::Relaxed)
    }

    /// Queue pairs alive; `None` while there is no adapter.
    pub fn queue_pairs(&self) -> Option<usize> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        now.map(|life| life.server.len())
    }

    fn begin(&self, life: &Arc<Life>) {
        self.lives.fetch_add(1, Ordering::Relaxed);
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(life);
    }
}

/// What was opened of an adapter. Whoever else has it for a moment only does so inside a request.
#[derive(Debug)]
struct Life {
    server: VerbsServer,
    incarnation: u64,
    target: String,
    regions: Vec<RegionEntry>,
    _registered: Vec<Registered>,
}

impl Life {
    fn open(settings: &Settings, regions: &[Region], incarnation: u64) -> Result<Arc<Self>> {
        let server = VerbsServer::open(&settings.choice, Options::default())?;
        let (mut entries, mut registered) = (Vec::new(), Vec::new());
        for region in regions {
            let one = server
                .register(region.mapping().words(), region.rights())
                .with_context(|| format!("the region {}", region.name()))?;
            entries.push(RegionEntry {
                name: region.name().to_owned(),
                key: one.remote_key(),
                base: one.base(),
                len: region.mapping().len_bytes() as u64,
                rights: region.rights().bits(),
                extents: Vec::new(),
            });
            registered.push(one);
        }
        let target = settings.target.clone();
        Ok(Arc::new(Self { server, incarnation, target, regions: entries, _registered: registered }))
    }
}

/// Serves `regions` whenever there is an adapter, until the sender of `stop` is gone.
pub fn keep(settings: &Settings, regions: &[Region], board: &Board, stop: &Receiver<()>) {
    let mut said = String::new();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(RETRY_AFTER) {
        let Err(why) = live(settings, regions, board, stop, &mut said) else { continue };
        let why = format!("{why:#}");
        // The same trouble five times a second is said once.
        if said != why {
            warn!("memory is not served: {why}; will keep trying");
            said = why;
        }
    }
}

/// One life, until the adapter or the agent ends.
fn live(settings: &Settings, regions: &[Region], board: &Board, stop: &Receiver<()>, said: &mut String) -> Result<()> {
    let life = Life::open(settings, regions, random_number()?)?;
    let at = SocketAddr::new(IpAddr::V4(settings.choice.local), settings.control_port);
    let listener = TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))?;
    board.begin(&life);
    let chosen = life.server.adapter().chosen().clone();
    info!(device = %chosen.device, port = chosen.port, address = %chosen.local, regions = regions.len(), "serving");
    said.clear();

    let ended = Arc::new(AtomicBool::new(false));
    let reception = Reception::new(&settings.peers, Arc::clone(&ended));
    let guests = Arc::downgrade(&life);
    let accepting = thread::Builder::new().name("control".into());
    let accepting = accepting.spawn(move || reception.serve(&listener, move || Peer::new(&guests)))?;
    while matches!(stop.try_recv(), Err(TryRecvError::Empty)) {
        match life.server.watch(NOTICE) {
            Some(Event::Gone) => {
                warn!(device = %chosen.device, "the adapter is gone; its queue pairs and registrations are given up");
                break;
            }
            Some(Event::Addresses) if !choose(Path::new(CLASS), &settings.choice).is_ok_and(|now| now == chosen) => {
                warn!(device = %chosen.device, address = %chosen.local, "the adapter speaks from another address now");
                break;
            }
            Some(Event::Port { up }) => info!(device = %chosen.device, up, "the adapter's port"),
            Some(Event::QueuePair { number, kind }) => debug!(number, kind, "a queue pair was ended by its peer"),
            Some(Event::Addresses | Event::Other(_)) | None => {}
        }
    }
    ended.store(true, Ordering::Relaxed);
    // Peers hold no part of it, so the adapter is let go of here and now.
    drop(life);
    if accepting.join().is_err() {
        warn!("the control plane's thread panicked");
    }
    Ok(())
}
