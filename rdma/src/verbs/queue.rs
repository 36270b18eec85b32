//! The asking end on an adapter: the carrier behind [`remote_memory::Queue`].
//!
//! A completion ends its operation and all before it ([`Slots`]). Each connection has its own generation, which its
//! operations carry in their names: what comes late of an earlier one changes nothing.
//!
//! Operations take effect in the order in which they are posted, as everywhere. An adapter may take a READ's data, or
//! take them again, when WRITEs behind it have been carried out; so what changes memory is not taken before the READs
//! ahead of it have ended. The fence flag of verbs would say the same, but Linux' rxe (6.1) counts the fenced
//! operation's own claim, and those of READs and atomics behind it, among what a repetition waits for: one lost packet,
//! and it waits for ever. Other [`Manners`] are for some adapters only.
//!
//! A refused access ends the connection, a lost peer as well: [`Queue::reconnect`] goes on with one that stood by, if
//! there is one, and dials anew otherwise. A vanished adapter is let go of, so that the kernel can remove it, and
//! looked for again by the next `reconnect`.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use remote_memory::{AccessError, Completion, LinkError, Queue, Request, Window, Work};

use super::engine::{Dialer, Engine, Joined};
use super::ffi::Wc;
use super::landing::Landing;
use super::library::status_text;
use super::manners::Manners;
use super::pair::Pair;
use super::patience::Patience;
use super::slots::{Kind, Slots};
use super::work::{self, Chain, Said};
use super::{Choice, Options, VerbsError};
use crate::{Dialed, QpAttributes};

/// Completions taken from the adapter at a time.
const COMPLETIONS: usize = 64;

/// Looks at the completion queue, which lies in memory of this process, between two looks at the clock. In a guest
/// whose clock is a device, a look at it costs more than all of these.
const LOOKS: usize = 128;

/// How often it is looked whether the adapter is still there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A queue pair of an adapter, with others that stand by.
pub struct VerbsQueue {
    choice: Choice,
    options: Options,
    /// Before the landing buffer, which it has registered.
    connection: Option<Joined>,
    /// Made and not joined yet.
    fresh: Option<(Pair, QpAttributes)>,
    engine: Option<Arc<Engine>>,
    dialer: Option<Arc<Mutex<Dialer>>>,
    landing: Arc<Landing>,
    chain: Chain,
    slots: Slots,
    generation: u32,
    /// Why the connection is of no more use.
    broken: Option<Broken>,
    /// An event was asked for and has not been taken.
    is_armed: bool,
    looked: Instant,
    patience: Patience,
}

/// How a connection ended.
#[derive(Clone)]
enum Broken {
    /// By a refusal, which its operation was told.
    Refused,
    /// What every call says until there is another connection.
    Failed(LinkError),
}

const NOT_CONNECTED: LinkError = LinkError::Misused("the queue is not connected");

impl VerbsQueue {
    /// Opens the adapter that `choice` means; returns the queue and the attributes its peer has to be told.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn open(choice: Choice, options: Options) -> Result<(Self, QpAttributes), VerbsError> {
        let landing = Arc::new(Landing::new(options.landing_bytes, options.depth));
        let engine = Engine::open(&choice, &landing, &options)?;
        let (pair, ours) = engine.pair()?;
        let queue = Self {
            choice,
            connection: None,
            fresh: Some((pair, ours)),
            engine: Some(engine),
            dialer: None,
            landing,
            chain: Chain::new(options.depth),
            slots: Slots::new(options.depth),
            patience: Patience::new(options.spin),
            options,
            generation: 0,
            broken: None,
            is_armed: false,
            looked: Instant::now(),
        };
        Ok((queue, ours))
    }

    /// Joins the queue to its peer. Until then nothing can be posted.
    ///
    /// # Errors
    /// [`LinkError::Misused`] if the peer makes no sense or there is nothing to join; else what the adapter says.
    pub fn connect(&mut self, dialed: impl Into<Dialed>) -> Result<(), LinkError> {
        let (Some(engine), Some((pair, ours))) = (&self.engine, self.fresh.take()) else {
            return Err(LinkError::Misused("a queue is connected once; afterwards it reconnects"));
        };
        let joined = engine.join(pair, ours, &dialed.into())?;
        self.retire();
        self.begin(joined);
        Ok(())
    }

    /// Sets how the peer's control plane is reached, for new connections and for those that stand by.
    pub fn set_dialer(&mut self, dialer: Dialer) {
        self.dialer = Some(Arc::new(Mutex::new(dialer)));
        self.tend();
    }

    /// This end, as its peer has to know it; `None` while there is none.
    pub fn attributes(&self) -> Option<QpAttributes> {
        let fresh = self.fresh.as_ref().map(|(_, ours)| *ours);
        self.connection.as_ref().map(|connection| connection.ours).or(fresh)
    }

    /// Connections that stand by.
    pub fn standbys(&self) -> usize {
        self.engine.as_ref().map_or(0, |engine| engine.standbys())
    }

    /// Has standbys made up for in the background, if some are missing: worth doing whenever the peer's control plane
    /// has answered. Returns at once.
    pub fn tend(&self) {
        if let (Some(engine), Some(dialer), Some(connection)) = (&self.engine, &self.dialer, &self.connection) {
            engine.fill(dialer, connection.further);
        }
    }

    /// Dials anew, also where others stand by: the peer has given all of them up.
    ///
    /// # Errors
    /// As [`Queue::reconnect`].
    pub fn replace(&mut self) -> Result<(), LinkError> {
        self.retire();
        if let Some(engine) = &self.engine {
            engine.drop_standbys();
        }
        self.dial()
    }

    fn dial(&mut self) -> Result<(), LinkError> {
        let Some(dialer) = self.dialer.clone() else {
            return Err(LinkError::Misused("the queue has no dialer to reconnect with"));
        };
        let joined = self.opened()?.dial(&dialer, false)?;
        self.begin(joined);
        Ok(())
    }

    /// The adapter, opened again if it had vanished.
    fn opened(&mut self) -> Result<&Arc<Engine>, LinkError> {
        if self.engine.as_ref().is_some_and(|engine| engine.adapter.is_gone()) {
            self.let_go();
        }
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => Engine::open(&self.choice, &self.landing, &self.options)?,
        };
        Ok(self.engine.insert(engine))
    }

    fn begin(&mut self, joined: Joined) {
        self.generation = self.generation.wrapping_add(1);
        self.slots.clear();
        self.broken = None;
        self.connection = Some(joined);
        self.tend();
    }

    /// Ends the connection: when this returns, nothing of it reaches memory any more.
    fn retire(&mut self) {
        self.connection = None;
        self.slots.clear();
        let Some(engine) = &self.engine else { return };
        let mut stale = [Wc::default(); COMPLETIONS];
        while engine.completions.poll(&mut stale).is_ok_and(|count| count == stale.len()) {}
    }

    /// Closes all that was opened of the adapter.
    fn let_go(&mut self) {
        self.connection = None;
        self.fresh = None;
        self.is_armed = false;
        if let Some(engine) = self.engine.take() {
            engine.drop_standbys();
        }
    }

    /// Looks whether the adapter is still there, now and then.
    fn look(&mut self, now: Instant) -> Result<(), LinkError> {
        if now.duration_since(self.looked) < LOOK_EVERY {
            return Ok(());
        }
        self.looked = now;
        let Some(engine) = &self.engine else { return Ok(()) };
        while engine.adapter.event().is_some() {}
        if !engine.adapter.is_gone() {
            return Ok(());
        }
        let error: LinkError = VerbsError::Gone { device: engine.adapter.chosen().device.clone() }.into();
        self.let_go();
        self.broken = Some(Broken::Failed(error.clone()));
        Err(error)
    }

    /// Takes what has completed from the adapter.
    fn collect(&mut self) -> Result<(), LinkError> {
        let mut arrived = [Wc::default(); COMPLETIONS];
        loop {
            let Some(engine) = &self.engine else { return Ok(()) };
            let count = engine.completions.poll(&mut arrived)?;
            for completion in &arrived[..count] {
                self.absorb(completion);
            }
            if count < arrived.len() {
                return Ok(());
            }
        }
    }

    fn absorb(&mut self, completion: &Wc) {
        let (generation, position) = ((completion.wr_id >> 32) as u32, completion.wr_id as u32);
        let Some(ending) = self.slots.ending_with(position) else { return };
        if generation != self.generation || self.broken.is_some() {
            return;
        }
        let said = work::meaning(completion.status);
        let well = if said == Said::Done { ending } else { ending - 1 };
        for _ in 0..well {
            if !self.end_well() {
                // The peer has said that it is done, and not what an atomic found: that was lost.
                return self.fail(LinkError::Lost { tries: 1 });
            }
        }
        match said {
            Said::Done => {}
            Said::Refused(error) => {
                self.slots.end(Err(error));
                self.broken = Some(Broken::Refused);
                // The adapter would say the same of each, one by one.
                while self.slots.oldest().is_some() {
                    self.slots.end(Err(AccessError::Flushed));
                }
            }
            Said::Silent => self.fail(LinkError::Lost { tries: u32::from(self.options.retries) + 1 }),
            // The first failure of a connection is not a flush, unless the queue pair was broken from elsewhere.
            Said::Flushed => self.fail(LinkError::Lost { tries: 1 }),
            Said::Failed(code) => {
                let said = self.engine.as_ref().map(|engine| status_text(engine.adapter.verbs(), code));
                self.fail(LinkError::Local(format!("the adapter gave up: {}", said.unwrap_or_default())));
            }
        }
    }

    /// Ends the oldest outstanding operation well; whether its answer is there, if it asked for one.
    fn end_well(&mut self) -> bool {
        let found = match self.slots.oldest() {
            Some((Kind::Atomic, place)) => self.landing.answer(place),
            _ => Some(0),
        };
        if let Some(found) = found {
            self.slots.end(Ok(found));
        }
        found.is_some()
    }

    /// The connection is of no more use; what is outstanding is void.
    fn fail(&mut self, error: LinkError) {
        self.slots.void();
        self.broken = Some(Broken::Failed(error));
    }

    /// Lays out as many of `requests` as there is room for; stops before one that makes no sense, or that has to wait
    /// for another.
    fn lay_out(&mut self, requests: &[Request], depth: usize) -> Result<usize, LinkError> {
        let Some((engine, connection)) = self.engine.as_ref().zip(self.connection.as_ref()) else {
            return Err(NOT_CONNECTED);
        };
        let (key, inline_bytes) = (engine.registered.local_key(), connection.pair.inline_bytes());
        let (manners, packet) = (engine.adapter.manners(), connection.mtu.bytes());
        self.chain.clear();
        for (index, request) in requests.iter().enumerate() {
            match work::check(&request.work, self.landing.landing_bytes()) {
                Err(error) if index == 0 => return Err(error),
                Err(_) => return Ok(index), // reported when it comes first
                Ok(()) => {}
            }
            let pieces = work::pieces(request.work, |len| manners.piece_bytes(len, packet, depth));
            let room = depth.saturating_sub(self.slots.outstanding());
            if pieces.len() > room || must_wait(&request.work, &self.slots, manners) {
                return Ok(index);
            }
            for (kind, work) in pieces {
                let (position, place) = self.slots.next();
                let name = u64::from(self.generation) << 32 | u64::from(position);
                self.slots.put(request.id, kind);
                self.chain.push(name, &work, place, &self.landing, key, inline_bytes);
            }
        }
        Ok(requests.len())
    }

    /// Looks until something has completed, some times at most. Without the processor's hint of a loop that waits: an
    /// emulated one ends its turn at each, and a READ took half as long again.
    fn spin(&mut self) -> Result<(), LinkError> {
        for _ in 0..LOOKS {
            let before = self.slots.ended();
            self.collect()?;
            if self.slots.ended() != before || self.broken.is_some() {
                return Ok(());
            }
        }
        std::thread::yield_now(); // gives way to a software adapter on the same processor
        Ok(())
    }

    /// Looks at first, then sleeps until something can have changed.
    fn idle(&mut self, now: Instant, since: Instant, until: Instant) -> Result<(), LinkError> {
        if now.duration_since(since) < self.patience.looks_for() {
            return self.spin();
        }
        self.look(now)?;
        let Some(engine) = &self.engine else { return Ok(()) };
        if !self.is_armed {
            engine.completions.arm()?;
            self.is_armed = true;
            return Ok(()); // what came before the event was asked for is seen by the poll that follows
        }
        let wait = until.saturating_duration_since(now).min(LOOK_EVERY);
        let (completed, told) = (engine.completions.fd(), engine.adapter.event_fd());
        let fds = &mut [PollFd::new(completed, PollFlags::POLLIN), PollFd::new(told, PollFlags::POLLIN)];
        match ppoll(fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(LinkError::Local(format!("cannot wait for the adapter: {error}"))),
        }
        let has_told = fds[1].any().unwrap_or(false);
        if engine.completions.disarm() {
            self.is_armed = false;
        }
        if has_told {
            self.looked = now.checked_sub(LOOK_EVERY).unwrap_or(now);
        }
        Ok(())
    }
}

/// What changes memory is not taken before the READs ahead of it have ended, see the module.
fn must_wait(work: &Work, slots: &Slots, manners: Manners) -> bool {
    match work {
        Work::Read { .. } => false,
        Work::Write { .. } => slots.has_reads(),
        Work::CompareSwap { .. } | Work::FetchAdd { .. } => {
            slots.has_reads() || manners.atomics_wait && slots.has_writes()
        }
    }
}

impl Queue for VerbsQueue {
    fn landing(&self) -> &[u8] {
        self.landing.bytes()
    }

    fn landing_mut(&mut self) -> &mut [u8] {
        // SAFETY: `self` is borrowed for as long as the bytes are, and nobody else looks at them.
        unsafe { self.landing.bytes_mut() }
    }

    fn depth(&self) -> usize {
        self.connection.as_ref().map_or(self.options.depth, |connection| connection.pair.depth())
    }

    fn packet_bytes(&self) -> usize {
        self.connection.as_ref().map_or(1024, |connection| connection.mtu.bytes())
    }

    fn window(&self) -> Option<Window> {
        self.connection.as_ref()?.window
    }

    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
        match &self.broken {
            Some(Broken::Failed(error)) => return Err(error.clone()),
            Some(Broken::Refused) => return Ok(0),
            None => {}
        }
        let depth = self.depth();
        let count = self.lay_out(requests, depth)?;
        let (Some(connection), first) = (&mut self.connection, self.chain.first()) else { return Err(NOT_CONNECTED) };
        if count > 0 {
            // SAFETY: the chain and its lists are `self.chain`'s and stay as they are; the places it names lie in the
            // landing buffer, which is registered and outlives the queue pair.
            if let Err(error) = unsafe { connection.pair.post(first) } {
                let error = LinkError::from(error);
                self.fail(error.clone());
                return Err(error);
            }
        }
        Ok(count)
    }

    fn poll(&mut self, completions: &mut [Completion], wait: Duration) -> Result<usize, LinkError> {
        if self.connection.is_none() && self.broken.is_none() {
            return Err(NOT_CONNECTED);
        }
        let began = Instant::now();
        self.look(began)?;
        let mut now = began;
        loop {
            self.collect()?;
            let taken = self.slots.take(completions);
            match &self.broken {
                Some(Broken::Failed(error)) if taken == 0 => return Err(error.clone()),
                _ if taken > 0 => {
                    self.patience.learn(now.duration_since(began));
                    return Ok(taken);
                }
                _ if completions.is_empty() || self.slots.outstanding() == 0 => return Ok(taken),
                _ => {}
            }
            if wait.is_zero() || now.duration_since(began) >= wait {
                return Ok(0);
            }
            self.idle(now, began, began + wait)?;
            now = Instant::now();
        }
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        self.retire();
        if let Some(joined) = self.opened()?.take_standby() {
            self.begin(joined);
            return Ok(());
        }
        self.dial()
    }

    fn is_broken(&self) -> bool {
        self.connection.is_none() || self.broken.is_some()
    }
}

impl fmt::Debug for VerbsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsQueue")
            .field("ours", &self.attributes())
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}
