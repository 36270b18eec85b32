//! The serving half, for target-agent and reinstate alike: threads and blocking sockets, no runtime.
//!
//! One thread accepts, one per application listens; orders are sent by whoever has them, many at once, and answers
//! wake the waiting caller. Everything else is [`Leases`].

use super::channel::{Channel, ChannelError};
use super::handover::{Declined, Handover, Laid, Order, Ordered};
use super::lease::{Leases, RECLAIM_AFTER};
use super::message::{FromApp, Held, PROTOCOL, ToApp};
use super::usage::{Refusals, Usage};
use crate::shared::Pool;
use crate::testament::Testament;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long an application may leave its messages unread before it is given up.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// An application that talks to the service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct App {
    /// Its number, as in its boxes.
    pub owner: u32,
    /// Its name.
    pub name: String,
    /// The TCP ports it serves.
    pub ports: Vec<u16>,
}

/// A running box service. Stops when dropped; boxes and mappings of applications live on.
#[derive(Debug)]
pub struct BoxService {
    shared: Arc<Shared>,
    path: PathBuf,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    answered: Condvar,
    pool_fd: OwnedFd,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) leases: Leases,
    refusals: Refusals,
    pub(super) apps: BTreeMap<u32, Connected>,
    /// Orders sent and not answered, with the application they went to.
    pub(super) open_orders: BTreeMap<u64, u32>,
    /// Answers nobody has fetched yet.
    answers: BTreeMap<u64, Result<(), String>>,
    pub(super) last_order: u64,
    stopping: bool,
}

#[derive(Debug)]
pub(super) struct Connected {
    pub(super) app: App,
    heir: bool,
    pub(super) channels: bool,
    pub(super) roles: Vec<u32>,
    channel: Arc<Channel>,
}

impl BoxService {
    /// Serves `pool`, whose descriptor is `pool_fd`, at the Unix socket `path` (made anew, mode 0666 less umask).
    ///
    /// # Errors
    /// If the socket cannot be made there.
    pub fn start(path: &Path, pool: Arc<Pool>, pool_fd: OwnedFd) -> io::Result<Self> {
        remove_stale_socket(path)?;
        let listener = UnixListener::bind(path)?;
        let state = State {
            leases: Leases::of(pool),
            refusals: Refusals::default(),
            apps: BTreeMap::new(),
            open_orders: BTreeMap::new(),
            answers: BTreeMap::new(),
            last_order: 0,
            stopping: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), answered: Condvar::new(), pool_fd });
        spawn("box-accept", &shared, move |shared| accept(&shared, &listener))?;
        spawn("box-reclaim", &shared, |shared| reclaim(&shared))?;
        Ok(Self { shared, path: path.to_owned() })
    }

    /// The applications that are there.
    pub fn apps(&self) -> Vec<App> {
        self.shared.lock().apps.values().map(|connected| connected.app.clone()).collect()
    }

    /// Free, leased and orphaned slots, in this order.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.shared.lock().leases.counts()
    }

    /// How full the pool is, and of whose boxes.
    pub fn usage(&self) -> Usage {
        let state = self.shared.lock();
        let name_of = |owner| state.apps.get(&owner).map(|connected| connected.app.name.clone());
        Usage::of(&state.leases, &state.refusals, name_of)
    }

    /// The pool.
    pub fn pool(&self) -> Arc<Pool> {
        Arc::clone(self.shared.lock().leases.pool())
    }

    /// Hands sessions over, all orders before any answer, and returns the outcomes in the order of the handovers.
    ///
    /// An application that does not answer within `patience` counts as declining.
    pub fn resume(&self, handovers: Vec<Handover>, patience: Duration) -> Vec<Result<(), Declined>> {
        let ordered = self.order(handovers);
        self.outcomes(ordered, patience)
    }

    /// Hands sessions over without waiting for answers: [`Self::outcomes`] does, for many such calls at once.
    pub fn order(&self, handovers: Vec<Handover>) -> Vec<Ordered> {
        let log_bytes = self.pool().geometry().log_bytes;
        let laid: Vec<Laid> = handovers.into_iter().map(|handover| Laid::of(handover, log_bytes)).collect();
        let placed: Vec<Ordered> = {
            let mut state = self.shared.lock();
            laid.into_iter().map(|laid| state.place(laid)).collect()
        };
        self.send_orders(&placed);
        placed
    }

    /// What became of sessions handed over, in their order. Calls at the same time wait for each other's answers, too.
    ///
    /// An application that does not answer within `patience` counts as declining.
    pub fn outcomes(&self, ordered: Vec<Ordered>, patience: Duration) -> Vec<Result<(), Declined>> {
        let mut state = self.shared.all_answered(Instant::now() + patience);
        let answered = |Ordered { socket, placing }: Ordered| {
            let orders = match placing {
                Ok(orders) => orders,
                Err(why) => return Err(Declined { why, socket }),
            };
            // All are fetched, also behind one that says no.
            let numbers = orders.iter().filter_map(Order::number);
            let answers: Vec<_> = numbers.map(|number| state.take_answer(number)).collect();
            answers.into_iter().collect::<Result<(), _>>().map_err(|why| {
                orders.into_iter().for_each(Order::sever);
                Declined { why, socket }
            })
        };
        ordered.into_iter().map(answered).collect()
    }

    /// Whether any application here wants to be told testaments.
    pub fn has_heirs(&self) -> bool {
        self.shared.lock().apps.values().any(|connected| connected.heir)
    }

    /// Tells those applications that serve the port and want to know what all boxes of a dead machine said. To be done
    /// before its sessions are handed over, which then find an application that knows it.
    pub fn bequeath(&self, testament: &Testament) {
        let message = ToApp::Testament(testament.clone());
        let port = testament.local.port();
        let heirs: Vec<Arc<Channel>> = {
            let state = self.shared.lock();
            let heirs = state.apps.values().filter(|connected| connected.heir && connected.app.ports.contains(&port));
            heirs.map(|connected| Arc::clone(&connected.channel)).collect()
        };
        for channel in heirs {
            if let Err(why) = channel.send(&message) {
                tracing::warn!(port, %why, "a testament did not reach its heir");
            }
        }
    }

    fn send_orders(&self, placed: &[Ordered]) {
        let mut by_app: BTreeMap<u32, Vec<(&ToApp, BorrowedFd<'_>)>> = BTreeMap::new();
        for Ordered { socket, placing } in placed {
            for order in placing.iter().flatten() {
                by_app.entry(order.owner).or_default().push((&order.message, order.fd(socket)));
            }
        }
        for (owner, orders) in by_app {
            let channel = self.shared.lock().apps.get(&owner).map(|connected| Arc::clone(&connected.channel));
            let messages = orders.iter().map(|(order, fd)| (*order, Some(*fd)));
            if let Some(Err(why)) = channel.map(|channel| channel.send_all(messages)) {
                tracing::warn!(owner, %why, "orders to an application failed");
                self.shared.lock().fail_orders(owner);
            }
        }
    }
}

impl Drop for BoxService {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.apps.values().for_each(|connected| connected.channel.shut());
        drop(state);
        self.shared.answered.notify_all();
        // Wakes the accepting thread, which then sees that it should stop.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the box service panics with the state half-changed")
    }

    /// Waits until no order is without an answer, or for `deadline`.
    fn all_answered(&self, deadline: Instant) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.open_orders.is_empty() || left.is_zero() {
                return state;
            }
            let waited = self.answered.wait_timeout(state, left);
            state = waited.expect("no thread of the box service panics with the state half-changed").0;
        }
    }
}

impl State {
    /// Grants what can be had of `wanted` boxes; a pool that has none left is noted.
    fn grant(&mut self, owner: u32, name: &str, wanted: u32) -> Vec<u32> {
        let granted = self.leases.grant(owner, wanted);
        if self.refusals.note(name, wanted, granted.len()) {
            tracing::warn!(%name, "the pool of boxes is full: further connections go on unprotected");
        }
        granted
    }

    /// The answer to an order; one that has none is not waited for any more.
    fn take_answer(&mut self, order: u64) -> Result<(), String> {
        if let Some(answer) = self.answers.remove(&order) {
            return answer;
        }
        self.open_orders.remove(&order);
        Err("the application did not answer in time".into())
    }

    fn note_answer(&mut self, owner: u32, order: u64, answer: Result<(), String>) {
        if self.open_orders.get(&order) == Some(&owner) {
            self.open_orders.remove(&order);
            self.answers.insert(order, answer);
        }
    }

    fn fail_orders(&mut self, owner: u32) {
        let lost: Vec<u64> = self.open_orders.iter().filter(|(_, of)| **of == owner).map(|(id, _)| *id).collect();
        for order in lost {
            self.note_answer(owner, order, Err("the application has gone".into()));
        }
    }
}

fn spawn(name: &str, shared: &Arc<Shared>, work: impl FnOnce(Arc<Shared>) + Send + 'static) -> io::Result<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name(name.into()).spawn(move || work(shared)).map(drop)
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    for stream in listener.incoming() {
        if shared.lock().stopping {
            return;
        }
        let served = stream.and_then(|stream| {
            spawn("box-app", shared, move |shared| {
                if let Err(why) = serve(&shared, stream) {
                    tracing::info!(%why, "an application left the box service");
                }
            })
        });
        if let Err(why) = served {
            // Out of descriptors or threads: applications keep trying, and go unprotected meanwhile.
            tracing::warn!(%why, "the box service cannot take an application");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn reclaim(shared: &Shared) {
    let deadline = Instant::now() + RECLAIM_AFTER;
    let mut state = shared.lock();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if state.stopping {
            return;
        }
        if left.is_zero() {
            break;
        }
        let waited = shared.answered.wait_timeout(state, left);
        state = waited.expect("no thread of the box service panics with the state half-changed").0;
    }
    let reclaimed = state.leases.reclaim();
    if reclaimed > 0 {
        tracing::info!(reclaimed, "freed slots of applications that did not come back");
    }
}

/// Talks to one application until it goes.
fn serve(shared: &Shared, stream: UnixStream) -> Result<(), ChannelError> {
    stream.set_write_timeout(Some(SEND_PATIENCE))?;
    let channel = Arc::new(Channel::new(stream));
    let hello = channel.receive(|_: &FromApp| false)?.0;
    let FromApp::Hello { protocol, name, ports, held, want, heir, channels, roles } = hello else {
        return Err(ChannelError::Malformed("a conversation has to start with hello".into()));
    };
    if protocol != PROTOCOL {
        let why = format!("box service protocol {PROTOCOL}, not {protocol}");
        channel.send(&ToApp::Refused { why: why.clone() })?;
        return Err(ChannelError::Malformed(why));
    }
    let owner = introduce(shared, &channel, &name, &held, want)?;
    let app = App { owner, name: name.clone(), ports };
    tracing::info!(?app, "an application joined the box service");
    {
        let mut state = shared.lock();
        // A service that has been stopped meanwhile did not know of this conversation, and has to end it too.
        if state.stopping {
            channel.shut();
        }
        state.apps.insert(owner, Connected { app, heir, channels, roles, channel: Arc::clone(&channel) });
    }
    let why = loop {
        if let Err(why) = converse(shared, &channel, owner, &name) {
            break why;
        }
    };
    let mut state = shared.lock();
    state.apps.remove(&owner);
    state.fail_orders(owner);
    if !state.stopping {
        state.leases.forget(owner);
    }
    drop(state);
    shared.answered.notify_all();
    Err(why)
}

/// Tells an application its pool and its slots; only then may orders follow. Nothing is sent under the lock: an
/// application that does not read must not hold up the others.
fn introduce(shared: &Shared, channel: &Channel, name: &str, held: &[Held], want: u32) -> Result<u32, ChannelError> {
    let (owner, introduced, lease) = {
        let mut state = shared.lock();
        let owner = state.leases.enrol();
        let mut slots = state.leases.adopt(owner, held);
        slots.extend(state.grant(owner, name, want));
        let pool = state.leases.pool();
        let introduced = ToApp::Pool { pool: pool.name(), length_bytes: pool.length_bytes() as u64 };
        (owner, introduced, ToApp::Lease { owner, slots })
    };
    let sent = channel.send_all([(&introduced, Some(shared.pool_fd.as_fd())), (&lease, None)]);
    if sent.is_err() {
        shared.lock().leases.forget(owner);
    }
    sent.map(|()| owner)
}

fn converse(shared: &Shared, channel: &Channel, owner: u32, name: &str) -> Result<(), ChannelError> {
    let message = channel.receive(|_: &FromApp| false)?.0;
    let mut state = shared.lock();
    match message {
        FromApp::Hello { .. } => return Err(ChannelError::Malformed("a second hello".into())),
        FromApp::Want { slots } => {
            let slots = state.grant(owner, name, slots);
            drop(state);
            return channel.send(&ToApp::Lease { owner, slots });
        }
        FromApp::Release { slots } => state.leases.release(owner, &slots),
        FromApp::Resumed { order } => state.note_answer(owner, order, Ok(())),
        FromApp::Declined { order, why } => state.note_answer(owner, order, Err(why)),
    }
    // Who waits, waits for all: hundreds of answers are one wake-up.
    let all_answered = state.open_orders.is_empty();
    drop(state);
    if all_answered {
        shared.answered.notify_all();
    }
    Ok(())
}

/// A socket file left by an earlier service would make bind fail; anything else at the path is left alone.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) | Err(_) => Ok(()),
    }
}
