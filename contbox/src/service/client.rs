//! The application's half: keeps a stock of leased slots, receives reinstated sessions, and reconnects for ever.
//!
//! A connection never waits for a box service that is away or slow: [`BoxClient::lease`] gives a slot out of the stock
//! or none. More connections at once than the stock holds wait for the answer that is due ([`BoxClient::stocked`]),
//! some tens of microseconds. When the service restarts the mapping stays (the pool is the same memory), and every
//! slot is announced again.

use super::channel::{Channel, ChannelError};
use super::handed::{Handed, HandedEnd, Heir, Takers};
use super::message::{FromApp, Held, PROTOCOL, Resume, ResumeEnd, ToApp};
use crate::layout::{Geometry, SlotState};
use crate::shared::{Pool, Slot};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Slots asked for at once: two per thousand system calls saved would do, running dry would cost protection.
const STOCK: u32 = 64;
/// How long connections wait for slots that were asked for: a thousand times what an answer takes, and
/// waited for once: a service that does not answer is not waited for again.
const LEASE_PATIENCE: Duration = Duration::from_millis(50);
/// How long a pool that had no slot left is not asked again.
const REFUSAL_REST: Duration = Duration::from_millis(50);
/// Between attempts to reach a service that is not there.
const RETRY: Duration = Duration::from_millis(500);

/// What a process is to the service.
#[derive(Debug, Default)]
struct Part<'a> {
    ports: &'a [u16],
    heir: Option<Heir>,
    channels: bool,
    roles: &'a [u32],
}

/// A client, the sessions that are handed to it and the far ends that are.
type Connected = (Arc<BoxClient>, UnboundedReceiver<Handed>, UnboundedReceiver<HandedEnd>);

/// One process's connection to the box service.
#[derive(Debug)]
pub struct BoxClient {
    state: Mutex<State>,
    changed: Condvar,
    answered: Notify,
    path: PathBuf,
    name: String,
    ports: Vec<u16>,
    heir: Option<Heir>,
    /// Whether sessions with channels may come.
    channels: bool,
    roles: Vec<u32>,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Arc<Channel>>,
    pool: Option<Arc<Pool>>,
    owner: u32,
    stock: Vec<u32>,
    used: BTreeSet<(u64, u32)>,
    /// When slots were asked for that have not come yet.
    asked: Option<Instant>,
    /// When the service last had none.
    refused: Option<Instant>,
    stopping: bool,
}

impl State {
    /// Asks for more slots, unless that was done or is hopeless.
    fn ask(&mut self) {
        let hopeless = self.refused.is_some_and(|at| at.elapsed() < REFUSAL_REST);
        if self.asked.is_none() && !hopeless {
            // A failing send ends the conversation elsewhere; the next one asks again.
            let sent = self.channel.as_ref().is_some_and(|it| it.send(&FromApp::Want { slots: STOCK }).is_ok());
            self.asked = sent.then(Instant::now);
        }
    }
}

impl BoxClient {
    /// Starts to talk to the service at `path`, in the background and for as long as the client lives. `ports` are the
    /// TCP ports whose sessions this process can resume; they come out of the returned queue.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn connect(path: &Path, name: &str, ports: &[u16]) -> io::Result<(Arc<Self>, UnboundedReceiver<Handed>)> {
        let (client, sessions, _) = Self::connect_as(path, name, Part { ports, ..Part::default() })?;
        Ok((client, sessions))
    }

    /// The same for an application whose sessions have channels to other processes: it also takes those that have.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn connect_with_channels(
        path: &Path,
        name: &str,
        ports: &[u16],
    ) -> io::Result<(Arc<Self>, UnboundedReceiver<Handed>)> {
        let part = Part { ports, channels: true, ..Part::default() };
        let (client, sessions, _) = Self::connect_as(path, name, part)?;
        Ok((client, sessions))
    }

    /// The same for a process that has no connections, but the far ends of channels of others: those of `roles` (see
    /// [`role`](crate::channel::role)) come out of the returned queue.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn connect_as_worker(
        path: &Path,
        name: &str,
        roles: &[u32],
    ) -> io::Result<(Arc<Self>, UnboundedReceiver<HandedEnd>)> {
        let (client, sessions, ends) = Self::connect_as(path, name, Part { roles, ..Part::default() })?;
        drop(sessions);
        Ok((client, ends))
    }

    /// The same for an application that wants to know what all boxes of a dead machine said, not only those whose
    /// sessions it gets.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn connect_as_heir(
        path: &Path,
        name: &str,
        ports: &[u16],
        heir: Heir,
    ) -> io::Result<(Arc<Self>, UnboundedReceiver<Handed>)> {
        let (client, sessions, _) = Self::connect_as(path, name, Part { ports, heir: Some(heir), ..Part::default() })?;
        Ok((client, sessions))
    }

    fn connect_as(path: &Path, name: &str, part: Part<'_>) -> io::Result<Connected> {
        let ((sessions, handed), (ends, handed_ends)) = (unbounded_channel(), unbounded_channel());
        let (takers, takes_ends) = (Takers { sessions, ends }, !part.roles.is_empty());
        let client = Arc::new(Self {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            answered: Notify::new(),
            path: path.to_owned(),
            name: name.to_owned(),
            ports: part.ports.to_vec(),
            heir: part.heir,
            channels: part.channels,
            roles: part.roles.to_vec(),
        });
        let weak = Arc::downgrade(&client);
        let work = move || {
            while let Some(client) = weak.upgrade() {
                if let Err(why) = client.converse(&takers) {
                    tracing::debug!(path = %client.path.display(), %why, "no box service");
                }
                let gone = if takes_ends { takers.ends.is_closed() } else { takers.sessions.is_closed() };
                if gone || !client.pause() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("box-client".into()).spawn(work)?;
        Ok((client, handed, handed_ends))
    }

    /// Waits until the service has granted slots; false if it has not within `patience`.
    pub fn wait_ready(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.channel.is_some() && !state.stock.is_empty() {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).expect(HALF_CHANGED).0;
        }
    }

    /// That of the pool, once there is one.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        self.lock().pool.as_ref().map(|pool| pool.geometry())
    }

    /// A slot for a new connection and our number, or `None`: the connection then goes unprotected.
    pub fn lease(&self) -> Option<(Slot, u32)> {
        let mut state = self.lock();
        let index = state.stock.pop();
        if state.stock.len() < STOCK as usize / 4 {
            state.ask();
        }
        let slot = state.pool.as_ref()?.slot(index?)?;
        let used = (slot.pool().name(), slot.index());
        state.used.insert(used);
        Some((slot, state.owner))
    }

    /// Waits until the stock is not empty, if the service is to answer soon.
    pub(crate) async fn stocked(&self) {
        loop {
            let mut answered = std::pin::pin!(self.answered.notified());
            answered.as_mut().enable();
            let left = {
                let mut state = self.lock();
                if !state.stock.is_empty() {
                    return;
                }
                state.ask();
                state.asked.map_or(Duration::ZERO, |asked| LEASE_PATIENCE.saturating_sub(asked.elapsed()))
            };
            if left.is_zero() || tokio::time::timeout(left, answered).await.is_err() {
                return;
            }
        }
    }

    /// Takes a slot back whose connection has ended.
    pub fn give_back(&self, slot: &Slot) {
        let mut state = self.lock();
        let known = state.used.remove(&(slot.pool().name(), slot.index()));
        if known && state.pool.as_ref().is_some_and(|pool| pool.name() == slot.pool().name()) {
            state.stock.push(slot.index());
        }
    }

    /// Takes a slot back whose box is not gone on with: nobody may find it in there.
    pub fn refuse(&self, slot: &Slot) {
        slot.set_state(SlotState::Leased, slot.owner());
        self.give_back(slot);
    }

    /// Answers orders, all at once: whether each session is ours.
    pub fn answer(&self, answers: &[(u64, Result<(), String>)]) {
        let message = |(order, answer): &(u64, Result<(), String>)| match answer {
            Ok(()) => FromApp::Resumed { order: *order },
            Err(why) => FromApp::Declined { order: *order, why: why.clone() },
        };
        let messages: Vec<FromApp> = answers.iter().map(message).collect();
        let channel = self.lock().channel.clone();
        let sent = channel.map(|channel| channel.send_all(messages.iter().map(|message| (message, None))));
        if let Some(Err(why)) = sent {
            tracing::warn!(%why, ?answers, "answers to the box service got lost");
        }
    }

    /// One conversation, from hello to its end.
    fn converse(&self, takers: &Takers) -> Result<(), ChannelError> {
        let channel = Arc::new(Channel::new(UnixStream::connect(&self.path)?));
        channel.send(&self.hello())?;
        let mut first_lease = true;
        // Near ends whose session is still to come.
        let mut ends = Vec::new();
        let ended = loop {
            let (message, fd) = match channel.receive(ToApp::carries_fd) {
                Ok(received) => received,
                Err(why) => break Err(why),
            };
            let heard = match (message, fd) {
                (ToApp::Pool { pool, length_bytes }, Some(fd)) => self.map_pool(pool, length_bytes, &fd),
                (ToApp::Lease { owner, slots }, _) => {
                    self.note_lease(&channel, owner, &slots, std::mem::take(&mut first_lease));
                    Ok(())
                }
                (ToApp::Resume(order), Some(socket)) => {
                    self.hand_on(&channel, order, socket, std::mem::take(&mut ends), &takers.sessions)
                }
                (ToApp::End(order), Some(socket)) => self.note_end(&channel, order, socket, &mut ends, &takers.ends),
                (ToApp::Testament(testament), _) => {
                    if let Some(heir) = &self.heir {
                        heir.tell(testament);
                    }
                    Ok(())
                }
                (ToApp::Refused { why }, _) => Err(ChannelError::Malformed(why)),
                (message, None) => Err(ChannelError::Malformed(format!("no descriptor with {message:?}"))),
            };
            if heard.is_err() {
                break heard;
            }
        };
        let mut state = self.lock();
        (state.channel, state.asked) = (None, None);
        drop(state);
        self.answered.notify_waiters();
        ended
    }

    fn hello(&self) -> FromApp {
        let state = self.lock();
        let mut held: Vec<Held> = state.used.iter().map(|(pool, slot)| Held { pool: *pool, slot: *slot }).collect();
        if let Some(pool) = &state.pool {
            held.extend(state.stock.iter().map(|slot| Held { pool: pool.name(), slot: *slot }));
        }
        let want = STOCK.saturating_sub(state.stock.len() as u32);
        let (name, ports, heir) = (self.name.clone(), self.ports.clone(), self.heir.is_some());
        let (channels, roles) = (self.channels, self.roles.clone());
        FromApp::Hello { protocol: PROTOCOL, name, ports, held, want, heir, channels, roles }
    }

    fn map_pool(&self, name: u64, length_bytes: u64, fd: &OwnedFd) -> Result<(), ChannelError> {
        let mut state = self.lock();
        if state.pool.as_ref().is_some_and(|pool| pool.name() == name) {
            return Ok(());
        }
        let malformed = |why: String| ChannelError::Malformed(why);
        let length = usize::try_from(length_bytes).map_err(|why| malformed(why.to_string()))?;
        let pool = Pool::open(fd.as_fd(), length).map_err(|why| malformed(why.to_string()))?;
        state.stock.clear();
        state.pool = Some(pool);
        Ok(())
    }

    /// The first lease of a conversation lists everything that is ours; later ones add to it.
    fn note_lease(&self, channel: &Arc<Channel>, owner: u32, slots: &[u32], first: bool) {
        let mut state = self.lock();
        let pool = state.pool.as_ref().map_or(0, |pool| pool.name());
        if first {
            state.stock.clear();
            // What the service does not confirm it has given away: its boxes find out by themselves, see
            // `Exporter::is_ours`, and their slots must not come back into the stock.
            state.used.retain(|(of, slot)| *of != pool || slots.contains(slot));
            state.owner = owner;
            state.channel = Some(Arc::clone(channel));
        }
        let unused = slots.iter().filter(|slot| !state.used.contains(&(pool, **slot))).copied();
        let unused: Vec<u32> = unused.collect();
        state.refused = unused.is_empty().then(Instant::now);
        state.stock.extend(unused);
        state.asked = None;
        drop(state);
        self.changed.notify_all();
        self.answered.notify_waiters();
    }

    fn hand_on(
        &self,
        channel: &Channel,
        order: Resume,
        socket: OwnedFd,
        ends: Vec<HandedEnd>,
        handed: &UnboundedSender<Handed>,
    ) -> Result<(), ChannelError> {
        let number = order.order;
        let slots: Vec<Slot> = ends.iter().map(|end| end.slot.clone()).collect();
        // An end whose slot was none is missing.
        let is_whole = ends.len() == order.channels as usize && ends.iter().all(|end| end.order.order == number);
        let why = match self.used(order.slot) {
            Some(slot) if is_whole => match handed.send(Handed { order, slot, socket, ends }) {
                Ok(()) => return Ok(()),
                Err(_) => "the listener has gone",
            },
            Some(_) => "its channels did not come with it",
            None => "no such slot",
        };
        slots.iter().for_each(|slot| self.refuse(slot));
        channel.send(&FromApp::Declined { order: number, why: why.into() })
    }

    /// A near end waits for its session, a far end goes to whoever works.
    fn note_end(
        &self,
        channel: &Channel,
        order: ResumeEnd,
        socket: OwnedFd,
        ends: &mut Vec<HandedEnd>,
        handed: &UnboundedSender<HandedEnd>,
    ) -> Result<(), ChannelError> {
        let (number, is_near) = (order.order, order.role == 0);
        let why = match self.used(order.slot) {
            Some(slot) if is_near => {
                ends.push(HandedEnd { order, slot, socket });
                return Ok(());
            }
            Some(slot) => match handed.send(HandedEnd { order, slot, socket }) {
                Ok(()) => return Ok(()),
                Err(_) => "the worker has gone",
            },
            None if is_near => return Ok(()),
            None => "no such slot",
        };
        channel.send(&FromApp::Declined { order: number, why: why.into() })
    }

    /// A slot that an order brought.
    fn used(&self, index: u32) -> Option<Slot> {
        let mut state = self.lock();
        let slot = state.pool.as_ref().and_then(|pool| pool.slot(index))?;
        state.used.insert((slot.pool().name(), slot.index()));
        Some(slot)
    }

    /// Waits before the next attempt; false if the client is to stop.
    fn pause(&self) -> bool {
        let state = self.lock();
        let (state, _) = self.changed.wait_timeout_while(state, RETRY, |state| !state.stopping).expect(HALF_CHANGED);
        !state.stopping
    }

    /// Ends the background conversation.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        if let Some(channel) = state.channel.take() {
            channel.shut();
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(HALF_CHANGED)
    }
}

const HALF_CHANGED: &str = "no thread panics with the client's state half-changed";
