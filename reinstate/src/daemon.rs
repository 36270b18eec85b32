//! The control plane of a spare: who may speak, what is prepared, and that an order is carried out once.
//!
//! One thread accepts, one for each monitor listens; preparing and evacuating take turns behind one lock. An order that
//! comes again with the same token (its answer was lost) gets the same report, and nothing is done twice.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ::service::metrics::{Endpoint, text_of};
use anyhow::Context;
use contbox::{Pool, service::BoxService};
use control::{
    Channel, FrameError, VERSION,
    reinstate::{Assignment, Evacuation, GiveBack, Outcome, Reply, Report, Request, Share},
};

use crate::{config::Config, evacuate::Prepared, held::HeldFile, metrics};

/// How long a monitor may take in the middle of a message.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// Rests before the further announcements of an address that has moved: a switch that is just learning, a client that
/// was busy, a cable that was being plugged.
const ANNOUNCE_AFTER_MS: [u64; 5] = [20, 60, 200, 1000, 3000];
/// After these, too, clients are told where things stand of which nothing has been heard: as long as a kernel repeats
/// its answer to a SYN.
const TELL_AFTER_MS: [u64; 3] = [8000, 16_000, 32_000];
/// Between two looks at the sessions that are to end before an address is given back.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// Counters since the start, and what is true now.
#[derive(Debug, Default)]
pub struct Counts {
    /// Evacuations carried out.
    pub evacuations: AtomicU64,
    /// Sessions resumed.
    pub resumed: AtomicU64,
    /// Sessions lost.
    pub lost: AtomicU64,
    /// Sessions resumed whose clients acknowledged nothing for seconds.
    pub mute: AtomicU64,
    /// Orders refused.
    pub refused: AtomicU64,
    /// Duration of the last evacuation, in microseconds.
    pub last_us: AtomicU64,
    /// Targets stood by for.
    pub prepared: AtomicU64,
}

/// What is behind the lock.
struct Spare {
    config: Config,
    service: BoxService,
    prepared: HashMap<String, Prepared>,
    /// The orders that were carried out.
    reports: HashMap<Order, Report>,
    /// The orders that were taken back: one of them may still be on its way here.
    withdrawn: HashSet<Order>,
    counts: Arc<Counts>,
}

/// A running spare. Dropped, it gives every address back.
pub struct Daemon {
    spare: Arc<Mutex<Spare>>,
    _metrics: Option<Endpoint>,
}

fn locked(spare: &Mutex<Spare>) -> MutexGuard<'_, Spare> {
    // A panic in one evacuation must not take the others with it: what is prepared is checked before it is used.
    spare.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    /// Starts to listen: for applications at the box service, for monitors at the control port.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Only has to differ from the pool of the daemon that was here before.
        let name = now.as_nanos() as u64 ^ u64::from(std::process::id());
        let (fd, pool) = Pool::memfd(config.boxes.geometry(), name).context("cannot make the pool of boxes")?;
        if let Some(folder) = config.box_socket.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let service = BoxService::start(&config.box_socket, pool, fd)
            .with_context(|| format!("no box service at {}", config.box_socket.display()))?;
        let at = SocketAddr::from((config.listen, config.control_port));
        let listener = TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))?;
        // With the port ours there is no other daemon whose addresses these could be.
        let held = HeldFile::beside(&config.box_socket);
        held.clean(config.route_table).context("what a killed daemon left cannot be removed")?;
        let counts = Arc::new(Counts::default());
        let registry = metrics::registry(Arc::clone(&counts));
        let scraped = config.metrics_port.map(|port| {
            let at = SocketAddr::from((config.listen, port));
            Endpoint::start(at, move || text_of(&registry)).with_context(|| format!("no metrics at {at}"))
        });
        let metrics = scraped.transpose()?;
        let (prepared, reports, withdrawn) = Default::default();
        let spare = Spare { config: config.clone(), service, prepared, reports, withdrawn, counts };
        let spare = Arc::new(Mutex::new(spare));
        let (peers, accepting) = (config.peers.clone(), Arc::clone(&spare));
        std::thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &peers, &accepting))?;
        tracing::info!(%at, box_socket = %config.box_socket.display(), "standing by");
        Ok(Self { spare, _metrics: metrics })
    }
}

/// Removes what a killed daemon has left on this machine, without starting one.
///
/// # Errors
/// A daemon runs, or the kernel's.
pub fn clean(config: &Config) -> anyhow::Result<usize> {
    let at = SocketAddr::from((config.listen, config.control_port));
    let _alone = TcpListener::bind(at).with_context(|| format!("a daemon still listens at {at}"))?;
    Ok(HeldFile::beside(&config.box_socket).clean(config.route_table)?.len())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Connections may still hold the state; addresses must not outlive us.
        locked(&self.spare).prepared.clear();
    }
}

fn accept(listener: &TcpListener, peers: &[IpAddr], spare: &Arc<Mutex<Spare>>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a monitor could not be accepted");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let Ok(peer) = stream.peer_addr() else { continue };
        if !peers.is_empty() && !peers.contains(&peer.ip()) {
            tracing::warn!(%peer, "turned away: not among the configured peers");
            continue;
        }
        let spare = Arc::clone(spare);
        let talk = move || {
            if let Err(error) = converse(stream, &spare) {
                tracing::info!(%peer, %error, "a monitor has gone");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("monitor".into()).spawn(talk) {
            tracing::warn!(%error, "no thread for a monitor");
        }
    }
}

fn converse(stream: TcpStream, spare: &Arc<Mutex<Spare>>) -> Result<(), FrameError> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let mut channel = Channel::new(stream);
    let mut greeted = false;
    loop {
        let request: Request = match channel.receive() {
            Err(FrameError::Closed) => return Ok(()),
            received => received?,
        };
        let order = Instant::now();
        let reply = match request {
            Request::Hello(hello) if hello.version == VERSION => {
                tracing::info!(name = hello.name, "a monitor says hello");
                greeted = true;
                Reply::Welcome { version: VERSION }
            }
            Request::Hello(hello) => {
                let why = format!("this spare speaks version {VERSION}, not {}", hello.version);
                channel.send(&Reply::Refused { why })?;
                return Err(io::Error::from(io::ErrorKind::Unsupported).into());
            }
            _ if !greeted => Reply::Refused { why: "a conversation starts with hello".into() },
            Request::Prepare(assignment) => locked(spare).prepare(&assignment),
            Request::Evacuate(evacuation) => {
                tracing::debug!("an order has arrived");
                let reply = locked(spare).evacuate(&evacuation, order);
                if let Reply::Evacuated(report) = &reply {
                    look_after(spare, &evacuation.assignment.target, report);
                }
                reply
            }
            Request::Withdraw(evacuation) => locked(spare).withdraw(&evacuation),
            Request::GiveBack(order) => give_back(spare, &order),
            Request::Sessions { target } => {
                let (recovered, others) = locked(spare).left(&target);
                Reply::Draining { recovered, others }
            }
        };
        channel.send(&reply)?;
    }
}

impl Spare {
    /// What was prepared for a target is of no use once its service has gone back: its kernel is a new one.
    fn forget(&mut self, target: &str) {
        self.prepared.remove(target);
        self.counts.prepared.store(self.prepared.len() as u64, Ordering::Relaxed);
    }

    fn prepare(&mut self, assignment: &Assignment) -> Reply {
        match self.ready(assignment, true).and_then(|()| self.application_for(assignment)) {
            Ok(()) => Reply::Ready { kernel: self.prepared[&assignment.target].kernel().to_owned() },
            Err(why) => {
                tracing::info!(target_name = assignment.target, why, "not ready");
                Reply::NotReady { why }
            }
        }
    }

    /// Makes what has to be prepared for `assignment` be so. `refresh`: looks whether it still stands, too.
    fn ready(&mut self, assignment: &Assignment, refresh: bool) -> Result<(), String> {
        let known = self.prepared.get_mut(&assignment.target);
        if let Some(prepared) = known.filter(|prepared| prepared.assignment() == assignment) {
            // With the service here there is no healthy target to look at.
            if prepared.holds_addresses() || !refresh {
                return Ok(());
            }
            match prepared.refresh() {
                Ok(()) => return Ok(()),
                Err(why) => tracing::info!(target_name = assignment.target, why, "preparing anew"),
            }
        }
        if self.prepared.get(&assignment.target).is_some_and(Prepared::holds_addresses) {
            return Err(format!("this spare serves for {} under another assignment", assignment.target));
        }
        self.prepared.remove(&assignment.target);
        let made = Prepared::make(&self.config, assignment);
        if let Ok(prepared) = &made {
            tracing::info!(target_name = assignment.target, kernel = prepared.kernel(), "ready");
        }
        let made = made.map(|prepared| drop(self.prepared.insert(assignment.target.clone(), prepared)));
        self.counts.prepared.store(self.prepared.len() as u64, Ordering::Relaxed);
        made
    }

    fn application_for(&self, assignment: &Assignment) -> Result<(), String> {
        let apps = self.service.apps();
        let mut ports = assignment.services.iter().flat_map(|service| &service.ports);
        match ports.find(|port| !apps.iter().any(|app| app.ports.contains(port))) {
            Some(port) => Err(format!("no application here serves port {port}")),
            None => Ok(()),
        }
    }

    fn evacuate(&mut self, evacuation: &Evacuation, order: Instant) -> Reply {
        let key = key(evacuation);
        if let Some(report) = self.reports.get(&key) {
            tracing::info!(token = ?evacuation.token, "an order that was carried out comes again");
            return Reply::Evacuated(report.clone());
        }
        let outcome = match self.withdrawn.contains(&key) {
            true => Err("this order was taken back".to_owned()),
            false => self.take_over(evacuation, order),
        };
        match outcome {
            Ok(report) => {
                self.count(&report);
                self.reports.insert(key, report.clone());
                Reply::Evacuated(report)
            }
            Err(why) => {
                tracing::error!(token = ?evacuation.token, why, "nothing was taken over");
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                Reply::Refused { why }
            }
        }
    }

    /// Makes sure that an order without an answer will not be carried out here. What an earlier life of this daemon had
    /// begun was removed when this one started; what this one has begun is over, or the lock would not be ours.
    fn withdraw(&mut self, evacuation: &Evacuation) -> Reply {
        let key = key(evacuation);
        if let Some(report) = self.reports.get(&key) {
            return Reply::Evacuated(report.clone());
        }
        if self.prepared.get(&evacuation.assignment.target).is_some_and(Prepared::holds_addresses) {
            return Reply::Refused { why: format!("this spare serves for {}", evacuation.assignment.target) };
        }
        tracing::warn!(token = ?evacuation.token, "an order is taken back");
        self.withdrawn.insert(key);
        Reply::Withdrawn
    }

    fn take_over(&mut self, evacuation: &Evacuation, order: Instant) -> Result<Report, String> {
        let (assignment, token) = (&evacuation.assignment, &evacuation.token);
        if token.target != assignment.target {
            return Err(format!("the token is for {}, the assignment for {}", token.target, assignment.target));
        }
        if let Some(share) = evacuation.share.filter(|share| !share.is_sound()) {
            return Err(format!("there is no part {} of {}", share.index, share.of));
        }
        self.ready(assignment, false)?;
        let prepared = self.prepared.get_mut(&assignment.target).ok_or("not prepared")?;
        let (part, held) = (prepared.part(evacuation.share), prepared.held());
        if let Some(address) = part.iter().find(|address| held.contains(address)) {
            return Err(format!("this spare serves {address} for {} already", assignment.target));
        }
        prepared.take_over(&self.service, &self.config, evacuation, order)
    }

    /// Connections of a target's service that are here: those that were carried over, and those that came since.
    fn left(&self, target: &str) -> (u64, u64) {
        let Some(Ok(connections)) = self.prepared.get(target).map(Prepared::connections) else { return (0, 0) };
        let reports = self.reports.iter().filter(|((of, ..), _)| of == target).map(|(_, report)| report);
        let carried = reports.flat_map(|report| &report.sessions);
        let carried = carried.filter(|session| session.outcome == Outcome::Resumed).map(|session| session.peer);
        let carried: HashSet<SocketAddr> = carried.collect();
        let recovered = connections.iter().filter(|connection| carried.contains(&connection.peer)).count();
        (recovered as u64, (connections.len() - recovered) as u64)
    }

    fn count_mute(&self, target: &str, resumed: &HashSet<SocketAddr>) {
        let connections = self.prepared.get(target).map(Prepared::connections);
        let Some(Ok(connections)) = connections else { return };
        for mute in connections.iter().filter(|it| resumed.contains(&it.peer) && it.is_mute()) {
            self.counts.mute.fetch_add(1, Ordering::Relaxed);
            let (unacknowledged, traffic) = (mute.unacknowledged, mute.traffic);
            tracing::warn!(peer = %mute.peer, unacknowledged, ?traffic, "a resumed session's client is mute");
        }
    }

    /// A connection whose handshake nobody saw the end of, and whose client never said a word: it may never have been.
    fn name_never_heard(&self, target: &str) {
        for peer in self.prepared.get(target).map(Prepared::never_heard).unwrap_or_default() {
            self.counts.mute.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%peer, "nothing was ever heard of a client that was connecting");
        }
    }

    fn count(&self, report: &Report) {
        let resumed = report.sessions.iter().filter(|session| session.outcome == Outcome::Resumed).count() as u64;
        let lost = report.sessions.len() as u64 - resumed;
        let took_us = report.stages.last().map_or(0, |stage| stage.end_us);
        self.counts.evacuations.fetch_add(1, Ordering::Relaxed);
        self.counts.resumed.fetch_add(resumed, Ordering::Relaxed);
        self.counts.lost.fetch_add(lost, Ordering::Relaxed);
        self.counts.last_us.store(took_us, Ordering::Relaxed);
        tracing::info!(resumed, lost, took_us, stages = ?report.stages, "evacuated");
        for session in report.sessions.iter().filter(|session| session.outcome != Outcome::Resumed) {
            tracing::warn!(peer = %session.peer, outcome = ?session.outcome, "a session is lost");
        }
    }
}

/// What makes two orders the same: target, epoch and secret of the fence, and the part.
type Order = (String, u64, u64, Option<Share>);

fn key(Evacuation { token, share, .. }: &Evacuation) -> Order {
    (token.target.clone(), token.epoch, token.secret, *share)
}

/// Announcements have no answer and may be lost: they are repeated, each time after a longer rest, and so is what
/// clients are told. After that, whether every client answers its session: one that does not is counted and named.
fn look_after(spare: &Arc<Mutex<Spare>>, target: &str, report: &Report) {
    let (spare, target) = (Arc::downgrade(spare), target.to_owned());
    let resumed = report.sessions.iter().filter(|session| session.outcome == Outcome::Resumed);
    let resumed: HashSet<SocketAddr> = resumed.map(|session| session.peer).collect();
    let work = move || {
        for rest_ms in ANNOUNCE_AFTER_MS {
            std::thread::sleep(Duration::from_millis(rest_ms));
            let Some(spare) = spare.upgrade() else { return };
            if let Some(prepared) = locked(&spare).prepared.get_mut(&target) {
                prepared.announce_again();
                prepared.tell_again();
            }
        }
        if let Some(spare) = spare.upgrade() {
            locked(&spare).count_mute(&target, &resumed);
        }
        for rest_ms in TELL_AFTER_MS {
            std::thread::sleep(Duration::from_millis(rest_ms));
            let Some(spare) = spare.upgrade() else { return };
            if !locked(&spare).prepared.get_mut(&target).is_some_and(Prepared::tell_again) {
                return;
            }
        }
        if let Some(spare) = spare.upgrade() {
            locked(&spare).name_never_heard(&target);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("announce".into()).spawn(work) {
        tracing::warn!(%error, "no further announcements");
    }
}

/// Ends the service of a target here. Sessions go on while it waits for them, and so do other orders.
///
/// Without loss at a moment without connections, if there is one before the time is over: the address is then gone
/// before the last look, so that nobody can come in between; a client that tries is not refused but not heard, and
/// tries again.
fn give_back(spare: &Mutex<Spare>, order: &GiveBack) -> Reply {
    let begin = Instant::now();
    let deadline = begin + Duration::from_millis(order.drain_ms);
    let answer_at = order.wait_ms.map_or(deadline, |wait_ms| deadline.min(begin + Duration::from_millis(wait_ms)));
    loop {
        let mut spare = locked(spare);
        let Some(prepared) = spare.prepared.get_mut(&order.target) else {
            return Reply::GivenBack { aborted: 0 };
        };
        let is_over = Instant::now() >= deadline;
        let is_quiet = prepared.connections().is_ok_and(|connections| connections.is_empty());
        let ended = match (is_quiet, is_over) {
            (_, true) => prepared.give_back().map(Some),
            (true, false) => prepared.give_back_unused().map(|is_gone| is_gone.then_some(0)),
            (false, false) => Ok(None),
        };
        match ended {
            Ok(Some(aborted)) => {
                spare.forget(&order.target);
                tracing::info!(target_name = order.target, aborted, "the service was given back");
                return Reply::GivenBack { aborted: aborted as u64 };
            }
            Err(why) => return Reply::Refused { why },
            Ok(None) if Instant::now() >= answer_at && answer_at < deadline => {
                let (recovered, others) = spare.left(&order.target);
                return Reply::Draining { recovered, others };
            }
            Ok(None) => {}
        }
        drop(spare);
        let next = if is_quiet { Duration::ZERO } else { DRAIN_LOOK };
        std::thread::sleep(next.min(deadline.saturating_duration_since(Instant::now())));
    }
}
