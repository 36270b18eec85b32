//! From connections that can go on to sessions that their application has: sockets built, made to speak, handed over.
//!
//! ```text
//!   keepers -- rebuild --> Silent   … address taken … -- given its bytes, speak --> Live -- Orders --> Resumed
//!          `----------------`------------------------------`------------------------`----------------> Lost
//! ```
//! A connection that fails at any step is lost by itself; its client is told when the address is here.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use contbox::service::{BoxService, Handover, Ordered};

use crate::{
    extract::Lost,
    position::{Proof, Refused, Start},
    probe::{Prober, Verdict},
    session::{Loss, Session},
    snapshot::Snapshot,
    source::Group,
    tcp_repair::{self, Rebuilt},
};

/// Handshakes under way whose clients are silent that become connections here. More are no crowd of clients but a flood
/// of forged SYNs, which must not become a flood of sessions.
const CALLING_MAX: usize = 1024;

/// How often a rebuilt socket is told that its client has closed, and how often it is looked after each time whether it
/// has heard it: at the first look, as a rule.
const END_SAID_MAX: u32 = 5;
const END_LOOKS: u32 = 20;
const END_LOOK: Duration = Duration::from_micros(50);

/// `TCP_ESTABLISHED` of `include/net/tcp_states.h`.
const ESTABLISHED: u8 = 1;

/// Who goes on with a connection.
pub(crate) enum Keeper {
    /// The application.
    Application(Box<Session>),
    /// This kernel alone: the application had closed it.
    Kernel(Snapshot),
}

impl Keeper {
    pub(crate) fn snapshot(&self) -> &Snapshot {
        match self {
            Self::Application(session) => &session.snapshot,
            Self::Kernel(snapshot) => snapshot,
        }
    }

    fn snapshot_mut(&mut self) -> &mut Snapshot {
        match self {
            Self::Application(session) => &mut session.snapshot,
            Self::Kernel(snapshot) => snapshot,
        }
    }

    pub(crate) fn lost(self, why: Loss) -> Lost {
        let snapshot = match self {
            Self::Application(session) => session.snapshot,
            Self::Kernel(snapshot) => snapshot,
        };
        Lost { snapshot, why }
    }

    /// Takes the bytes that wait to be sent, if all of them were read.
    pub(crate) fn give(&mut self, bytes: Option<Vec<u8>>) -> Result<(), Loss> {
        match bytes.map(|bytes| self.snapshot_mut().give(bytes)) {
            Some(Ok(())) => Ok(()),
            _ => Err(Loss::Damaged("send queue")),
        }
    }

    /// Whether nobody has seen the end of its handshake.
    fn is_calling(&self) -> bool {
        matches!(self, Self::Application(session) if session.calling.is_some())
    }
}

/// Those that can go on, by what their clients say. Of a handshake that was under way a client may know nothing yet:
/// its silence says neither that there is a connection nor that there is none, so it goes on too ([`crate::tell`]).
/// Only the word of a client that it knows no such connection, or the end of its machine, ends it without a loss.
pub(crate) fn came_about(
    keepers: Vec<(usize, Keeper)>,
    verdicts: &[Verdict],
    lost: &mut Vec<Lost>,
) -> Vec<(usize, Keeper)> {
    let mut silent = 0;
    let mut came_about = Vec::with_capacity(keepers.len());
    for (number, keeper) in keepers {
        match &verdicts[number] {
            Err(Refused::Reset | Refused::Absent) if keeper.is_calling() => {
                tracing::debug!(peer = %keeper.snapshot().peer, "a client does not connect any more");
            }
            Ok(Start { proof: Proof::Kernel, .. }) if keeper.is_calling() && silent == CALLING_MAX => {
                lost.push(keeper.lost(Loss::Crowd(CALLING_MAX)));
            }
            Ok(Start { proof: Proof::Kernel, .. }) if keeper.is_calling() => {
                silent += 1;
                came_about.push((number, keeper));
            }
            _ => came_about.push((number, keeper)),
        }
    }
    came_about
}

/// A rebuilt connection that cannot be heard yet.
pub(crate) struct Silent {
    pub(crate) keeper: Keeper,
    pub(crate) start: Start,
    pub(crate) socket: Rebuilt,
}

/// A session whose socket speaks.
pub(crate) struct Live {
    session: Session,
    pub(crate) start: Start,
    pub(crate) socket: OwnedFd,
}

/// What has become of the connections that were not lost.
#[derive(Default)]
pub(crate) struct Resumed {
    pub(crate) sessions: Vec<(Session, Start)>,
    pub(crate) ended: Vec<(Snapshot, Start)>,
}

/// What has become of connections.
pub(crate) struct Ending<'a> {
    pub(crate) resumed: Resumed,
    pub(crate) lost: &'a mut Vec<Lost>,
}

/// Sessions handed over whose application has not been heard yet.
#[derive(Default)]
pub(crate) struct Orders {
    pub(crate) sessions: Vec<(Session, Start)>,
    ordered: Vec<Ordered>,
}

/// Who goes on, by number in the survey.
pub(crate) fn keepers(sessions: Vec<Session>, ending: Vec<(usize, Snapshot)>) -> Vec<(usize, Keeper)> {
    let sessions = sessions.into_iter().map(|session| (session.number, Keeper::Application(Box::new(session))));
    sessions.chain(ending.into_iter().map(|(number, snapshot)| (number, Keeper::Kernel(snapshot)))).collect()
}

/// A socket and where it goes on, or why there is none.
type Built = Result<(Start, Rebuilt), Loss>;

/// The sockets of surveyed connections, by their numbers.
pub(crate) struct Sockets<'a> {
    /// The connections, with what was not read of them.
    connections: &'a [Snapshot],
    order: Instant,
    built: HashMap<usize, Built>,
}

impl<'a> Sockets<'a> {
    pub(crate) fn of(connections: &'a [Snapshot], order: Instant) -> Self {
        Self { connections, order, built: HashMap::with_capacity(connections.len()) }
    }

    /// Builds the socket of each connection whose verdict comes, if it is `wanted`, until no more come. Whether it has
    /// a box need not be known: a socket under repair that nobody takes goes without a word.
    pub(crate) fn build(
        &mut self,
        verdicts: impl IntoIterator<Item = (usize, Verdict)>,
        wanted: impl Fn(usize) -> bool,
    ) {
        for (number, verdict) in verdicts.into_iter().filter(|(number, _)| wanted(*number)) {
            self.built.insert(number, self.one(&self.connections[number], verdict));
        }
    }

    fn one(&self, snapshot: &Snapshot, verdict: Verdict) -> Built {
        let start = verdict?;
        let socket = tcp_repair::rebuild(snapshot, start, snapshot.timestamp_after(self.order.elapsed()));
        socket.map(|socket| (start, socket)).map_err(|error| Loss::Repair(error.to_string()))
    }

    /// Gives the sockets to who goes on with them. The others are closed, and were never heard.
    pub(crate) fn given_to(
        mut self,
        keepers: Vec<(usize, Keeper)>,
        verdicts: &[Verdict],
        lost: &mut Vec<Lost>,
    ) -> HashMap<usize, Silent> {
        let mut silent = HashMap::with_capacity(keepers.len());
        for (number, keeper) in keepers {
            let built = self.built.remove(&number);
            let snapshot = keeper.snapshot();
            // Input that nobody will read must not be in the socket: its end would be a reset.
            let fits = self.connections[number].receiving.len() == snapshot.receiving.len();
            let built = built.filter(|_| fits).unwrap_or_else(|| self.one(snapshot, verdicts[number]));
            match built {
                Ok((start, socket)) => drop(silent.insert(number, Silent { keeper, start, socket })),
                Err(why) => lost.push(keeper.lost(why)),
            }
        }
        silent
    }
}

/// The rebuilt connections of a group, with what they have to send.
pub(crate) fn given(group: Group, silent: &mut HashMap<usize, Silent>, lost: &mut Vec<Lost>) -> Vec<Silent> {
    let mut given = Vec::with_capacity(group.len());
    for (number, bytes) in group {
        let Some(mut silent) = silent.remove(&number) else { continue };
        match silent.keeper.give(bytes) {
            Ok(()) => given.push(silent),
            // Its socket goes without a word; its client is told with those of the others that are lost.
            Err(why) => lost.push(silent.keeper.lost(why)),
        }
    }
    given
}

/// Lets the sockets speak. Those that no application wants are left to the kernel.
pub(crate) fn speak(prober: &Prober, silent: Vec<Silent>, ending: &mut Ending<'_>) -> Vec<Live> {
    let mut live = Vec::with_capacity(silent.len());
    for Silent { keeper, start, socket } in silent {
        let spoken = revive(prober, keeper.snapshot(), start, socket);
        match (spoken, keeper) {
            (Ok(socket), Keeper::Application(session)) => live.push(Live { session: *session, start, socket }),
            (Ok(socket), Keeper::Kernel(snapshot)) => {
                tcp_repair::leave_to_kernel(socket);
                ending.resumed.ended.push((snapshot, start));
            }
            (Err(why), keeper) => ending.lost.push(keeper.lost(Loss::Repair(why))),
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
        end_input(prober, snapshot, start, socket.as_fd())?;
    }
    if snapshot.closed {
        tcp_repair::close_output(socket.as_fd()).map_err(|error| format!("closing: {error}"))?;
    }
    Ok(socket)
}

/// Says to the rebuilt socket that the client has closed, until it has heard it.
///
/// Going on without would be the worst of all: the socket's acknowledgements stay one short, so its client takes each
/// of its segments for an old one (and its data, which is how it is noticed late). It then keeps no TSval of them, the
/// TSvals that it echoes are old, and for this kernel each repetition was premature and each round trip longer than the
/// one before: soon a lost segment is repeated after minutes.
///
/// # Errors
/// A sentence for people.
fn end_input(prober: &Prober, snapshot: &Snapshot, start: Start, socket: BorrowedFd<'_>) -> Result<(), String> {
    let failed = |error: io::Error| format!("saying that the client has closed: {error}");
    for _ in 0..END_SAID_MAX {
        prober.end_input(snapshot, start).map_err(failed)?;
        for _ in 0..END_LOOKS {
            if tcp_repair::state(socket).map_err(failed)? != ESTABLISHED {
                return Ok(());
            }
            thread::sleep(END_LOOK);
        }
    }
    Err("its socket here does not hear that the client has closed".to_owned())
}

impl Orders {
    /// Hands live sessions over; their application is heard later.
    pub(crate) fn add(&mut self, service: &BoxService, live: Vec<Live>) {
        let mut handovers = Vec::with_capacity(live.len());
        for Live { session, start, socket } in live {
            let (opening, channels) = (session.opening(start), session.channels.clone());
            handovers.push(Handover { opening, discard: session.discard, socket, channels });
            self.sessions.push((session, start));
        }
        self.ordered.extend(service.order(handovers));
    }

    pub(crate) fn settle(self, service: &BoxService, patience: Duration, ending: &mut Ending<'_>) {
        for ((session, start), answer) in self.sessions.into_iter().zip(service.outcomes(self.ordered, patience)) {
            match answer {
                Ok(()) => ending.resumed.sessions.push((session, start)),
                Err(declined) => {
                    // An application that was merely slow must not go on with a session that is reported lost.
                    if let Err(error) = tcp_repair::reset(&declined.socket) {
                        tracing::warn!(peer = %session.snapshot.peer, %error, "a declined session may live on");
                    }
                    ending.lost.push(Lost { snapshot: session.snapshot, why: Loss::Declined(declined.why) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use introspect::linux::tcp::State;

    use super::*;
    use crate::{
        position,
        session::{admit, agree, fresh, tests::socket},
    };

    /// What becomes of an unfinished handshake, alone and as the last of a crowd of silent ones.
    fn handshake(verdict: impl Fn(&Snapshot) -> Verdict, crowd: usize) -> (usize, Vec<Loss>) {
        let keeper = |number| {
            let mut socket = socket(7, 0, 0, 0, 0);
            (socket.state, socket.accepted) = (State::SynReceived, false);
            let image = fresh(&socket);
            let standing = agree(&socket, &image).unwrap();
            let session = admit(number, socket, image, standing, Duration::ZERO);
            assert!(session.calling.is_some());
            (number, Keeper::Application(Box::new(session)))
        };
        let keepers: Vec<_> = (0..=crowd).map(keeper).collect();
        let silent = |keeper: &Keeper| Ok(position::assumed(keeper.snapshot()));
        let mut verdicts: Vec<Verdict> = keepers.iter().map(|(_, keeper)| silent(keeper)).collect();
        verdicts[crowd] = verdict(keepers[crowd].1.snapshot());
        let mut lost = Vec::new();
        let here = came_about(keepers, &verdicts, &mut lost).len();
        (here, lost.into_iter().map(|lost| lost.why).collect())
    }

    #[test]
    fn an_unfinished_handshake_goes_on_unless_its_client_knows_nothing_of_it_and_is_never_dropped_in_silence() {
        let silent = |snapshot: &Snapshot| Ok(position::assumed(snapshot));
        let vouched = |snapshot: &Snapshot| Ok(Start { proof: Proof::Client, ..position::assumed(snapshot) });
        assert_eq!(handshake(silent, 0), (1, vec![]));
        assert_eq!(handshake(vouched, CALLING_MAX), (CALLING_MAX + 1, vec![]));
        assert_eq!(handshake(|_| Err(Refused::Reset), 0), (0, vec![]));
        assert_eq!(handshake(|_| Err(Refused::Absent), 0), (0, vec![]));
        assert_eq!(
            handshake(|_| Err(Refused::Beyond { beyond: 1 }), 0),
            (1, vec![]),
            "its rebuilding fails, and is said"
        );
        assert_eq!(handshake(silent, CALLING_MAX), (CALLING_MAX, vec![Loss::Crowd(CALLING_MAX)]));
    }
}
