//! One evacuation, from the prepared spare to the report.
//!
//! Everything slow is done while the target is healthy ([`Prepared::make`]): link, kernel, routes, sockets to announce
//! and to listen with. The order then costs reads, a few messages and system calls. Until [`StandBy::announce`] an
//! evacuation can be refused without a trace; from there on it ends in a report, whatever happens to single sessions.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use contbox::service::{BoxService, Handover};
use control::{
    backdoor::{FenceToken, RegionEntry},
    reinstate::{Assignment, Evacuation, Outcome, Report, Session as Reported, Share, Stage},
};
use introspect::{
    Extent, Kernel,
    linux::tcp::{self, TcpFilter},
};
use link::{Link, Options};
use remote_memory::{Region, RemoteKey};

use crate::{
    address::{Interface, StandBy},
    config::Config,
    extract::{Extracted, Lost, extract},
    held::HeldFile,
    leftovers::{self, Connection},
    netlink::Netlink,
    nudge::{self, Nudger},
    position::{Proof, Start},
    probe::{Prober, Verdict},
    routes::RaisedRoutes,
    session::{Loss, Session},
    snapshot::Snapshot,
    tcp_repair::{self, Rebuilt},
};

/// A spare that stands by for one target. Dropped, it gives back what it changed on this machine.
#[derive(Debug)]
pub struct Prepared {
    assignment: Assignment,
    link: Link,
    incarnation: u64,
    kernel: Kernel,
    netlink: Netlink,
    addresses: Vec<StandBy>,
    routes: Vec<RaisedRoutes>,
    prober: Prober,
    nudger: Nudger,
    held: HeldFile,
}

/// Who goes on with a connection.
enum Keeper {
    /// The application.
    Application(Session),
    /// This kernel alone: the application had closed it.
    Kernel(Snapshot),
}

impl Keeper {
    fn snapshot(&self) -> &Snapshot {
        match self {
            Self::Application(session) => &session.snapshot,
            Self::Kernel(snapshot) => snapshot,
        }
    }

    fn lost(self, why: Loss) -> Lost {
        let snapshot = match self {
            Self::Application(session) => session.snapshot,
            Self::Kernel(snapshot) => snapshot,
        };
        Lost { snapshot, why }
    }

    /// Whether there is no connection: its handshake was under way, and the client does not say that it ended.
    fn never_came_about(&self, verdict: &Verdict) -> bool {
        let unproven = matches!(self, Self::Application(session) if session.unproven);
        unproven && !verdict.as_ref().is_ok_and(|start| start.proof == Proof::Client)
    }
}

/// A rebuilt connection that cannot be heard yet.
struct Silent {
    keeper: Keeper,
    start: Start,
    socket: Rebuilt,
}

/// A session whose socket speaks.
struct Live {
    session: Session,
    start: Start,
    socket: OwnedFd,
}

/// What has become of the connections that were not lost.
#[derive(Default)]
struct Resumed {
    sessions: Vec<Session>,
    ended: Vec<Snapshot>,
}

fn named<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn discover(link: &mut Link) -> Result<Kernel, String> {
    let ram = named("backdoor", link.region("ram"))?;
    let extents = extents(&ram);
    named("kernel of the target", Kernel::discover(link.memory(), RemoteKey::new(ram.key), &extents))
}

fn extents(ram: &RegionEntry) -> Vec<Extent> {
    match ram.extents.as_slice() {
        [] => vec![Extent { start: ram.base, len: ram.len }],
        some => some.iter().map(|extent| Extent { start: extent.start, len: extent.len }).collect(),
    }
}

fn filter(assignment: &Assignment, part: &[IpAddr]) -> TcpFilter {
    let services = assignment.services.iter().filter(|service| part.contains(&service.address));
    let ports = services.flat_map(|service| service.ports.iter().copied());
    TcpFilter { addresses: part.to_vec(), ports: ports.collect() }
}

impl Prepared {
    /// Gets ready for a target; a sentence for people if something stands in the way.
    ///
    /// # Errors
    /// The sentence.
    pub fn make(config: &Config, assignment: &Assignment) -> Result<Self, String> {
        let options = Options { port: config.roce_port, ..Options::new(format!("reinstate@{}", config.name)) };
        let mut link = named("backdoor", Link::connect(assignment.backdoor, config.listen, options))?;
        let welcome = link.welcome();
        if welcome.target != assignment.target {
            return Err(format!("the backdoor at {} serves {}", assignment.backdoor, welcome.target));
        }
        let kernel = discover(&mut link)?;
        let mut netlink = named("netlink", Netlink::open())?;
        let mut addresses: Vec<StandBy> = Vec::new();
        for service in &assignment.services {
            if addresses.iter().all(|known| known.address() != service.address) {
                addresses.push(named("service address", stand_by(&mut netlink, config, service.address))?);
            }
        }
        let places: Vec<_> = addresses.iter().map(|it| (it.address(), it.interface())).collect();
        let prober = named("listening for clients", Prober::open(&places))?;
        let nudger = named("speaking ICMP", Nudger::open())?;
        let mut prepared = Self {
            assignment: assignment.clone(),
            link,
            incarnation: welcome.incarnation,
            kernel,
            netlink,
            addresses,
            routes: Vec::new(),
            prober,
            nudger,
            held: HeldFile::beside(&config.box_socket),
        };
        for address in prepared.addresses.iter().map(StandBy::address) {
            // Best effort: without it a client that answers no probe may stay mute, all others go on.
            match RaisedRoutes::install(&mut prepared.netlink, address, config.route_table) {
                Ok(routes) => prepared.routes.push(routes),
                Err(error) => tracing::warn!(%address, %error, "no raised initial window"),
            }
        }
        Ok(prepared)
    }

    /// What it stands by for.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// The target's kernel release.
    pub fn kernel(&self) -> &str {
        &self.kernel.release
    }

    /// Whether the service, or a part of it, is here.
    pub fn holds_addresses(&self) -> bool {
        !self.held().is_empty()
    }

    /// The service addresses that are here.
    pub fn held(&self) -> Vec<IpAddr> {
        self.addresses.iter().filter(|address| address.is_held()).map(StandBy::address).collect()
    }

    /// The addresses an order is for.
    pub fn part(&self, share: Option<Share>) -> Vec<IpAddr> {
        match share {
            Some(share) => share.addresses(&self.assignment),
            None => self.addresses.iter().map(StandBy::address).collect(),
        }
    }

    /// Looks whether everything still stands while the target is healthy: the link, and the kernel that was learned.
    /// A target that was started anew is learned anew. Also keeps the walk's code and the link warm.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn refresh(&mut self) -> Result<(), String> {
        named("backdoor", self.link.ping())?;
        let incarnation = self.link.welcome().incarnation;
        let ram = named("backdoor", self.link.region("ram"))?;
        let filter = filter(&self.assignment, &self.part(None));
        let walked = tcp::walk(&self.kernel, self.link.memory(), RemoteKey::new(ram.key), &filter);
        let (sockets, damage) = named("sockets of the target", walked)?;
        // A busy machine tears a chain now and then; a rebooted one has nothing where it was.
        if incarnation != self.incarnation || (sockets.is_empty() && !damage.is_empty()) {
            self.kernel = discover(&mut self.link)?;
            self.incarnation = incarnation;
        }
        Ok(())
    }

    /// Reads the sessions out of the fenced target.
    ///
    /// # Errors
    /// A sentence for people; nothing has been changed then.
    fn extract(&mut self, part: &[IpAddr], token: &FenceToken, silent: Duration) -> Result<Extracted, String> {
        let regions = named("regions under the fence", self.link.regions(Some(token)))?;
        let pool = regions.iter().find(|region| region.name == "cb").cloned().map(Region::from);
        let ram = RemoteKey::new(token.ram_key);
        let filter = filter(&self.assignment, part);
        named("extraction", extract(&self.kernel, self.link.memory(), ram, pool.as_ref(), &filter, silent))
    }

    /// Takes over. `order` is when the order arrived.
    ///
    /// # Errors
    /// A sentence for people; nothing has been changed then.
    pub fn take_over(
        &mut self,
        service: &BoxService,
        config: &Config,
        evacuation: &Evacuation,
        order: Instant,
    ) -> Result<Report, String> {
        let mut stages = Stages { order, done: Vec::new(), begun: Duration::ZERO };
        let part = self.part(evacuation.share);
        if part.is_empty() {
            return Ok(Report::default());
        }
        let silent = Duration::from_millis(evacuation.silent_ms);
        let Extracted { sessions, ending, mut lost, damage } = self.extract(&part, &evacuation.token, silent)?;
        stages.end("extract");
        // From here on clients' packets come to us.
        let ours = || self.addresses.iter().filter(|address| part.contains(&address.address()));
        for address in ours() {
            named("announcing the address", address.announce())?;
        }
        let keepers = sessions.into_iter().map(Keeper::Application).chain(ending.into_iter().map(Keeper::Kernel));
        let keepers: Vec<_> = keepers.collect();
        let snapshots: Vec<_> = keepers.iter().map(Keeper::snapshot).collect();
        let again = || ours().for_each(|address| drop(address.announce()));
        let verdicts = self.prober.ask(&snapshots, order, config.probe.patience(), again).unwrap_or_else(|error| {
            tracing::warn!(%error, "clients cannot be asked; going on with the target's numbers");
            snapshots.iter().map(|snapshot| Ok(crate::position::assumed(snapshot))).collect()
        });
        stages.end("probe");
        let (existing, begun): (Vec<_>, Vec<_>) =
            keepers.into_iter().zip(verdicts).partition(|(it, is)| !it.never_came_about(is));
        let silent_ones = rebuild(existing, order, &mut lost);
        stages.end("rebuild");
        self.take_addresses(&part)?;
        stages.end("address");
        let mut resumed = Resumed::default();
        let live = speak(&self.prober, silent_ones, &mut resumed, &mut lost);
        hand_over(service, live, Duration::from_millis(config.application_ms), &mut resumed, &mut lost);
        stages.end("resume");
        self.end(lost.iter().map(|lost| &lost.snapshot), order);
        self.end(begun.iter().map(|(keeper, _)| keeper.snapshot()), order);
        self.nudge(&resumed, silent + order.elapsed());
        Ok(report(&resumed, lost, damage, stages))
    }

    /// Tells the neighbours once more where the addresses are that are here.
    pub fn announce_again(&self) {
        for address in self.addresses.iter().filter(|address| address.is_held()) {
            if let Err(error) = address.announce() {
                tracing::debug!(address = %address.address(), %error, "no further announcement");
            }
        }
    }

    /// Wakes clients that wait for their own timers; those cannot have run out in a short silence.
    fn nudge(&self, resumed: &Resumed, silent: Duration) {
        let times = nudge::doublings(silent);
        for snapshot in resumed.sessions.iter().map(|session| &session.snapshot) {
            if let Err(error) = self.nudger.nudge(snapshot, times) {
                tracing::debug!(peer = %snapshot.peer, %error, "a client cannot be nudged");
            }
        }
    }

    fn take_addresses(&mut self, part: &[IpAddr]) -> Result<(), String> {
        for address in self.addresses.iter_mut().filter(|address| part.contains(&address.address())) {
            let noted = self.held.note(address.address(), address.interface());
            if let Err(error) = noted.and_then(|()| address.take(&mut self.netlink)) {
                // Sockets under repair end without a word when they are dropped; give back what we took.
                self.release();
                return Err(format!("taking the address over: {error}"));
            }
        }
        for routes in self.routes.iter_mut().filter(|routes| part.contains(&routes.address())) {
            let _ = routes.retire(&mut self.netlink);
        }
        Ok(())
    }

    /// Ends connections at their clients: asked where it stands, a client answers, and this kernel, which has the
    /// address and no such socket, resets it with exactly the number the client accepts. A client that still waits for
    /// the answer to its SYN does not, and begins anew with the listener here when it repeats its SYN.
    fn end<'a>(&self, connections: impl Iterator<Item = &'a Snapshot>, order: Instant) {
        for snapshot in connections {
            if let Err(error) = self.prober.poke(snapshot, order.elapsed()) {
                tracing::debug!(peer = %snapshot.peer, %error, "the client of a lost session cannot be told");
            }
        }
    }

    /// The connections of the addresses that are here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connections(&self) -> io::Result<Vec<Connection>> {
        let mut all = Vec::new();
        for address in self.held() {
            all.extend(leftovers::connections(address)?);
        }
        Ok(all)
    }

    /// Ends the service here: aborts its connections (see [`leftovers`]), gives the addresses back. Returns how many
    /// connections were left.
    ///
    /// # Errors
    /// A sentence for people. An address whose connections cannot be ended stays: two machines would speak for it.
    pub fn give_back(&mut self) -> Result<usize, String> {
        let mut aborted = 0;
        for address in self.addresses.iter_mut().filter(|address| address.is_held()) {
            aborted += named("ending the address's connections", leftovers::abort(address.address()))?;
            named("giving the address back", address.give_back(&mut self.netlink))?;
            named("noting that it is gone", self.held.forget(address.address()))?;
        }
        Ok(aborted)
    }

    /// The end of standing by: whatever was changed on this machine is undone, as far as possible.
    fn release(&mut self) {
        match self.give_back() {
            Ok(0) => {}
            Ok(aborted) => tracing::info!(aborted, "connections ended"),
            Err(why) => {
                tracing::warn!(why, "connections stay behind");
                for address in &mut self.addresses {
                    let _ = address.give_back(&mut self.netlink);
                }
            }
        }
        for routes in &mut self.routes {
            routes.remove(&mut self.netlink);
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.release();
    }
}

fn stand_by(netlink: &mut Netlink, config: &Config, address: IpAddr) -> io::Result<StandBy> {
    let interface = match &config.interface {
        Some(name) => Interface::named(netlink, name)?,
        None => Interface::towards(netlink, address)?,
    };
    StandBy::prepare(address, interface)
}

struct Stages {
    order: Instant,
    done: Vec<Stage>,
    begun: Duration,
}

impl Stages {
    fn end(&mut self, name: &str) {
        let now = self.order.elapsed();
        let (begin_us, end_us) = (self.begun.as_micros() as u64, now.as_micros() as u64);
        self.done.push(Stage { name: name.to_owned(), begin_us, end_us });
        tracing::debug!(stage = name, end_us, "a stage has ended");
        self.begun = now;
    }
}

fn rebuild(keepers: Vec<(Keeper, Verdict)>, order: Instant, lost: &mut Vec<Lost>) -> Vec<Silent> {
    let mut rebuilt = Vec::with_capacity(keepers.len());
    for (keeper, verdict) in keepers {
        let snapshot = keeper.snapshot();
        let built = verdict.map_err(Loss::from).and_then(|start| {
            let socket = tcp_repair::rebuild(snapshot, start, snapshot.timestamp_after(order.elapsed()));
            socket.map(|socket| (start, socket)).map_err(|error| Loss::Repair(error.to_string()))
        });
        match built {
            Ok((start, socket)) => rebuilt.push(Silent { keeper, start, socket }),
            Err(why) => lost.push(keeper.lost(why)),
        }
    }
    rebuilt
}

/// Lets the sockets speak. Those that no application wants are left to the kernel.
fn speak(prober: &Prober, silent: Vec<Silent>, resumed: &mut Resumed, lost: &mut Vec<Lost>) -> Vec<Live> {
    let mut live = Vec::with_capacity(silent.len());
    for Silent { keeper, start, socket } in silent {
        let spoken = revive(prober, keeper.snapshot(), start, socket);
        match (spoken, keeper) {
            (Ok(socket), Keeper::Application(session)) => live.push(Live { session, start, socket }),
            (Ok(socket), Keeper::Kernel(snapshot)) => {
                tcp_repair::leave_to_kernel(socket);
                resumed.ended.push(snapshot);
            }
            (Err(why), keeper) => lost.push(keeper.lost(Loss::Repair(why))),
        }
    }
    live
}

/// Brings a socket to where its connection was: live, and closed in the directions that were closed.
///
/// # Errors
/// A sentence for people; the client has then been reset.
pub fn revive(prober: &Prober, snapshot: &Snapshot, start: Start, socket: Rebuilt) -> Result<OwnedFd, String> {
    let socket = socket.go_live(snapshot, start).map_err(|error| error.to_string())?;
    if snapshot.peer_closed {
        named("saying that the client has closed", prober.end_input(snapshot, start))?;
    }
    if snapshot.closed {
        named("closing", tcp_repair::close_output(socket.as_fd()))?;
    }
    Ok(socket)
}

fn hand_over(service: &BoxService, live: Vec<Live>, patience: Duration, resumed: &mut Resumed, lost: &mut Vec<Lost>) {
    let mut sessions = Vec::with_capacity(live.len());
    let mut handovers = Vec::with_capacity(live.len());
    for Live { session, start, socket } in live {
        handovers.push(Handover { opening: session.opening(start), discard: session.discard, socket });
        sessions.push(session);
    }
    for (session, answer) in sessions.into_iter().zip(service.resume(handovers, patience)) {
        match answer {
            Ok(()) => resumed.sessions.push(session),
            Err(declined) => {
                // An application that was merely slow must not go on with a session that is reported lost.
                if let Err(error) = tcp_repair::reset(&declined.socket) {
                    tracing::warn!(peer = %session.snapshot.peer, %error, "a declined session may live on");
                }
                lost.push(Lost { snapshot: session.snapshot, why: Loss::Declined(declined.why) });
            }
        }
    }
}

fn report(resumed: &Resumed, lost: Vec<Lost>, damage: Vec<String>, stages: Stages) -> Report {
    let live_us = Some(stages.begun.as_micros() as u64);
    let went_on = |snapshot: &Snapshot, bytes| Reported {
        local: snapshot.local,
        peer: snapshot.peer,
        outcome: Outcome::Resumed,
        bytes,
        live_us,
    };
    let mut sessions: Vec<Reported> =
        resumed.sessions.iter().map(|session| went_on(&session.snapshot, session.bytes())).collect();
    sessions.extend(resumed.ended.iter().map(|ended| went_on(ended, ended.sending.len() as u64)));
    sessions.extend(lost.iter().map(|lost| Reported {
        local: lost.snapshot.local,
        peer: lost.snapshot.peer,
        outcome: Outcome::Lost { why: lost.why.to_string() },
        bytes: 0,
        live_us: None,
    }));
    Report { sessions, stages: stages.done, damage }
}
