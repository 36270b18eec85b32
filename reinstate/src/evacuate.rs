//! One evacuation, from the prepared spare to the report.
//!
//! Everything slow is done while the target is healthy ([`Prepared::make`]): link, kernel, routes, sockets to announce
//! and to listen with. The order then costs reads, a few messages and system calls. Until [`StandBy::announce`] an
//! evacuation can be refused without a trace; from there on it ends in a report, whatever happens to single sessions.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use contbox::service::BoxService;
use control::reinstate::{Assignment, Evacuation, Outcome, Report, Session as Reported, Share, Stage};
use introspect::linux::tcp::TcpFilter;

use crate::{
    address::{Interface, StandBy},
    config::Config,
    extract::{Extracted, Fronts, Lost},
    held::HeldFile,
    leftovers::{self, Connection},
    neighbours::Neighbours,
    netlink::Netlink,
    nudge::Nudger,
    position::{Refused, assumed},
    probe::{Client, Patience, Prober, Verdict},
    resume::{Ending, Orders, Resumed, Sockets, came_about, given, keepers, speak},
    routes::RaisedRoutes,
    session,
    snapshot::Snapshot,
    source::Source,
    tell::Clients,
};

/// A spare that stands by for one target. Dropped, it gives back what it changed on this machine.
#[derive(Debug)]
pub struct Prepared {
    assignment: Assignment,
    source: Source,
    netlink: Netlink,
    addresses: Vec<StandBy>,
    routes: Vec<RaisedRoutes>,
    prober: Prober,
    neighbours: Neighbours,
    nudger: Nudger,
    told: Vec<Clients>,
    held: HeldFile,
}

fn named<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
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
        let source = Source::connect(config, assignment)?;
        let mut netlink = named("netlink", Netlink::open())?;
        let mut addresses: Vec<StandBy> = Vec::new();
        for service in &assignment.services {
            if addresses.iter().all(|known| known.address() != service.address) {
                addresses.push(named("service address", stand_by(&mut netlink, config, service.address))?);
            }
        }
        let places: Vec<_> = addresses.iter().map(|it| (it.address(), it.interface())).collect();
        let prober = named("listening for clients", Prober::open(&places))?;
        let interfaces = addresses.iter().map(|it| it.interface().clone()).collect();
        let neighbours = named("asking for link addresses", Neighbours::open(interfaces))?;
        let nudger = named("speaking ICMP", Nudger::open())?;
        let mut prepared = Self {
            assignment: assignment.clone(),
            source,
            netlink,
            addresses,
            routes: Vec::new(),
            prober,
            neighbours,
            nudger,
            told: Vec::new(),
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
        self.source.kernel()
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
        let filter = filter(&self.assignment, &self.part(None));
        let clients = self.source.refresh(&filter)?;
        if let Err(error) = self.neighbours.warm(clients) {
            tracing::debug!(%error, "clients' link addresses are not asked for");
        }
        Ok(())
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
        let token = &evacuation.token;
        let mut survey = self.source.survey(token, &filter(&self.assignment, &part))?;
        stages.end("extract");
        // From here on clients' packets come to us.
        let ours = || self.addresses.iter().filter(|address| part.contains(&address.address()));
        for address in ours() {
            named("announcing the address", address.announce())?;
        }
        let connections: Vec<_> = survey.sockets().iter().map(|socket| session::unread(socket, silent)).collect();
        let settled: Vec<_> = survey.sockets().iter().map(session::is_settled).collect();
        let wanted: Vec<_> = survey.sockets().iter().map(|socket| session::rebuildable(socket).is_ok()).collect();
        let neighbours = &mut self.neighbours;
        let again = || {
            ours().for_each(|address| drop(address.announce()));
            ask_again(neighbours);
        };
        let (source, prober) = (&mut self.source, &mut self.prober);
        // Clients take their time to answer, and boxes take theirs to be read; sockets are built as answers come.
        let (patience, mut sockets) = (config.probe.patience(), Sockets::of(&connections, order));
        let (verdicts, extracted) = thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let who = Asked { connections: &connections, settled: &settled, absent: &evacuation.absent };
            let asking = scope.spawn(|| (ask(prober, who, order, patience, again, tell), order.elapsed()));
            let building = scope.spawn(|| sockets.build(told, |number| wanted[number]));
            let extracted = source.pair(&mut survey, token, silent);
            stages.end("boxes");
            let (verdicts, heard) = joined(asking);
            stages.note("probe", stages.of("extract"), heard);
            joined(building);
            (verdicts, extracted)
        });
        let Extracted { sessions, ending, mut lost, fronts, damage } = extracted?;
        let keepers = came_about(keepers(sessions, ending), &verdicts, &mut lost);
        let numbers: Vec<usize> = keepers.iter().map(|(number, _)| *number).collect();
        let (taker, queues) = mpsc::channel();
        let Self { source, netlink, addresses, routes, prober, held, .. } = self;
        let done = thread::scope(|scope| {
            let survey = &survey;
            let reading = scope.spawn(move || {
                source.read_queues(survey, token, numbers, &taker);
                drop(taker);
                order.elapsed()
            });
            let mut silent_ones = sockets.given_to(keepers, &verdicts, &mut lost);
            stages.end("rebuild");
            take_addresses(addresses, routes, netlink, held, &part)?;
            stages.end("address");
            bequeath(service, fronts, &part);
            let paired = stages.of("boxes");
            let mut ending = Ending { resumed: Resumed::default(), lost: &mut lost };
            let mut ordered = Orders::default();
            for group in queues {
                let silent_ones = given(group, &mut silent_ones, ending.lost);
                let live = speak(prober, silent_ones, &mut ending);
                ordered.add(service, live);
            }
            stages.note("queues", paired, joined(reading));
            ordered.settle(service, Duration::from_millis(config.application_ms), &mut ending);
            stages.end("resume");
            Ok::<_, String>(ending.resumed)
        });
        let resumed = done.inspect_err(|_| self.release())?;
        self.end(lost.iter().map(|lost| &lost.snapshot), order);
        let report = report(&resumed, lost, damage, stages);
        let clients = Clients::of(resumed, order, silent);
        clients.tell(&self.prober, &self.nudger);
        self.told.push(clients);
        Ok(report)
    }

    /// Tells those clients once more where things stand of which nothing has been heard since; true if there are any.
    pub fn tell_again(&mut self) -> bool {
        ask_again(&mut self.neighbours);
        self.told.retain(|clients| !clients.is_empty());
        if self.told.is_empty() {
            return false;
        }
        let connections = self.connections().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot see which clients have been heard");
            Vec::new()
        });
        for clients in &mut self.told {
            clients.tell_again(&connections, &self.prober, &self.nudger);
        }
        true
    }

    /// Clients of which nothing has been heard although their handshakes became connections here.
    pub fn never_heard(&self) -> Vec<SocketAddr> {
        self.told.iter().flat_map(Clients::calling).collect()
    }

    /// Tells the neighbours once more where the addresses are that are here.
    pub fn announce_again(&self) {
        for address in self.addresses.iter().filter(|address| address.is_held()) {
            if let Err(error) = address.announce() {
                tracing::debug!(address = %address.address(), %error, "no further announcement");
            }
        }
    }

    /// Ends connections at their clients: asked where it stands, a client answers, and this kernel, which has the
    /// address and no such socket, resets it with exactly the number the client accepts.
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

    /// Ends the service here if no connection uses it: the addresses go first, then it is looked. False if a connection
    /// was there after all; the addresses are then back, and what was sent meanwhile comes again.
    ///
    /// # Errors
    /// A sentence for people; what can be is as before.
    pub fn give_back_unused(&mut self) -> Result<bool, String> {
        self.held.give_back_unused(&mut self.addresses, &mut self.netlink)
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

/// Questions for link addresses may have been lost, too.
fn ask_again(neighbours: &mut Neighbours) {
    match neighbours.ask_again() {
        Ok(0) => {}
        Ok(asked) => tracing::debug!(asked, "link addresses are asked for once more"),
        Err(error) => tracing::debug!(%error, "link addresses are not asked for once more"),
    }
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

    /// Notes a stage beside the others.
    fn note(&mut self, name: &str, begun: Duration, ended: Duration) {
        let (begin_us, end_us) = (begun.as_micros() as u64, ended.as_micros() as u64);
        self.done.push(Stage { name: name.to_owned(), begin_us, end_us });
    }

    /// When stage `name` ended.
    fn of(&self, name: &str) -> Duration {
        let stage = self.done.iter().find(|stage| stage.name == name);
        stage.map_or(Duration::ZERO, |stage| Duration::from_micros(stage.end_us))
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Whose clients are asked.
struct Asked<'a> {
    connections: &'a [Snapshot],
    /// Of each, whether it goes on in the same way whatever its client answers.
    settled: &'a [bool],
    /// Where there is nobody who could answer.
    absent: &'a [IpAddr],
}

/// Asks all clients where they stand, and tells as they answer; by their connections' numbers in the survey.
fn ask(
    prober: &mut Prober,
    Asked { connections, settled, absent }: Asked<'_>,
    order: Instant,
    patience: Patience,
    again: impl FnMut(),
    tell: mpsc::Sender<(usize, Verdict)>,
) -> Vec<Verdict> {
    let is_there = |one: &Snapshot| !absent.contains(&one.peer.ip().to_canonical());
    let client = |(number, snapshot)| (number, Client { snapshot, is_certain: settled[number] });
    let (numbers, asked): (Vec<usize>, Vec<Client<'_>>) =
        connections.iter().enumerate().filter(|(_, one)| is_there(one)).map(client).unzip();
    // Whoever listens does so to the end.
    let told = |place: usize, verdict| {
        let _ = tell.send((numbers[place], verdict));
    };
    let answers = prober.ask_telling(&asked, order, patience, again, told).unwrap_or_else(|error| {
        tracing::warn!(%error, "clients cannot be asked; going on with the target's numbers");
        asked.iter().map(|client| Ok(assumed(client.snapshot))).collect()
    });
    let mut verdicts = vec![Err(Refused::Absent); connections.len()];
    numbers.iter().zip(answers).for_each(|(number, answer)| verdicts[*number] = answer);
    verdicts
}

/// Tells applications that want to know it what all boxes of the addresses in `part` said.
fn bequeath(service: &BoxService, fronts: Option<Fronts>, part: &[IpAddr]) {
    let fronts = fronts.filter(|_| service.has_heirs());
    let testaments = fronts.iter().flat_map(Fronts::testaments);
    for testament in testaments.filter(|testament| part.contains(&testament.local.ip().to_canonical())) {
        service.bequeath(&testament);
    }
}

fn take_addresses(
    addresses: &mut [StandBy],
    routes: &mut [RaisedRoutes],
    netlink: &mut Netlink,
    held: &HeldFile,
    part: &[IpAddr],
) -> Result<(), String> {
    for address in addresses.iter_mut().filter(|address| part.contains(&address.address())) {
        let noted = held.note(address.address(), address.interface());
        // Sockets under repair end without a word when they are dropped.
        named("taking the address over", noted.and_then(|()| address.take(netlink)))?;
    }
    for routes in routes.iter_mut().filter(|routes| part.contains(&routes.address())) {
        let _ = routes.retire(netlink);
    }
    Ok(())
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
        resumed.sessions.iter().map(|(session, _)| went_on(&session.snapshot, session.bytes())).collect();
    sessions.extend(resumed.ended.iter().map(|(ended, _)| went_on(ended, ended.queued() as u64)));
    sessions.extend(lost.iter().map(|lost| Reported {
        local: lost.snapshot.local,
        peer: lost.snapshot.peer,
        outcome: Outcome::Lost { why: lost.why.to_string() },
        bytes: 0,
        live_us: None,
    }));
    Report { sessions, stages: stages.done, damage }
}
