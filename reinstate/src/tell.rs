//! What clients are told once their sessions are live, again and again until something is heard of them.
//!
//! ```text
//!   handshake never seen to end   the answer to its SYN, as the dead kernel would repeat it
//!   every other                   one acknowledgement: what has arrived, and how much more it may send
//!   … that may have to repeat     a nudge for its timer, see `nudge`
//! ```
//! The first makes an open question harmless. A client that has the answer to its SYN believes in the connection and
//! may have sent its request; one that never got it does not know of it. Both look the same while they are silent,
//! and both get a connection: the socket stands, the one says where it is (RFC 9293, 3.10.7.4: a SYN in a window is
//! challenged) and the other is connected by it. Without it the other would wait in vain: its SYN is the one this
//! connection began with, so the socket's acknowledgement is acceptable to it, and dropped (3.10.7.3).
//!
//! The second is for a client that believes in a closed window or in a lost segment; the word that would have told it
//! may have died with its kernel, and the probe that ends repair has an old sequence number, from which nothing is
//! taken.
//!
//! When that was not enough, the word carries the first bytes that wait for an acknowledgement, and the client is asked
//! once more where it is. A rebuilt socket has measured no round-trip time: it would wait a second before it repeats a
//! lost flight, and three before it asks whether a closed window has opened.
//!
//! Every packet may be lost, so it is said again after longer and longer rests, while this kernel's own socket shows
//! that nothing has come. Nothing here can change a stream: each word only repeats what socket and dead kernel have
//! agreed on.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use contbox::layout::canonical;

use crate::{
    leftovers::Connection,
    nudge::{DOUBLINGS_MAX, Nudger, doublings},
    packet::{ACK, Offer, SYN, Segment, window_field},
    position::{Proof, Start},
    probe::Prober,
    resume::Resumed,
    session::Session,
    snapshot::Snapshot,
};

/// Longest segments of an Ethernet, IPv4 and IPv6.
const SEGMENT_BYTES: [u16; 2] = [1460, 1440];

/// Timestamps, which the client's segment size does not count.
const OPTION_BYTES: usize = 12;

/// A client of which nothing has been heard since its session is live.
#[derive(Debug)]
struct Client {
    /// Without its bytes.
    snapshot: Snapshot,
    start: Start,
    /// Bytes that were put back into the receive queue.
    put_back: u64,
    /// The first bytes that were sent here, as many as one segment and the client's window hold.
    first: Vec<u8>,
    /// Its handshake was not seen to end; the TSval of its SYN.
    calling: Option<u32>,
}

/// All such clients of one evacuation.
#[derive(Debug)]
pub(crate) struct Clients {
    order: Instant,
    /// How long the target had been silent then.
    silent: Duration,
    clients: Vec<Client>,
}

impl Prober {
    /// Answers a SYN as the dead kernel did: it began the connection of `snapshot`, whose socket is live. `echo` is the
    /// SYN's TSval.
    ///
    /// # Errors
    /// The kernel's: usually no route to the client.
    pub fn answer_syn(&self, snapshot: &Snapshot, echo: u32, elapsed: Duration) -> io::Result<()> {
        let longest = SEGMENT_BYTES[usize::from(snapshot.peer.is_ipv6())];
        let scale = snapshot.scales.map(|(_, ours)| ours);
        let segment_bytes = snapshot.mss_clamp.min(longest);
        self.say(&Segment {
            seq: snapshot.snd_una.wrapping_sub(1),
            ack: snapshot.rcv_nxt,
            flags: SYN | ACK,
            // Never scaled.
            window: u16::try_from(snapshot.rcv_wnd).unwrap_or(u16::MAX),
            timestamps: snapshot.timestamp_beside(elapsed).map(|value| (value, echo)),
            offer: Some(Offer { segment_bytes, scale, sack: snapshot.sack }),
            ..Segment::between(snapshot.local, snapshot.peer)
        })
    }

    /// Tells the client of a live session, which went on at `start`, what has arrived and how much it may send, with
    /// the first bytes that it was sent, if any.
    ///
    /// The number is the first that the socket has sent itself: a later one a client with a closed window refuses, and
    /// it would hold true windows for old ones afterwards. A client that has got bytes from there on has been told by
    /// them.
    ///
    /// # Errors
    /// The kernel's: usually no route to the client.
    pub fn open_window(&self, snapshot: &Snapshot, start: Start, first: &[u8], elapsed: Duration) -> io::Result<()> {
        self.say(&Segment {
            seq: start.seq,
            ack: snapshot.acknowledgement(),
            flags: ACK,
            window: window_field(snapshot.receive_room(), snapshot.scales.map(|(_, ours)| ours)),
            timestamps: snapshot.timestamp_beside(elapsed).map(|value| (value, 0)),
            payload: first,
            ..Segment::between(snapshot.local, snapshot.peer)
        })
    }
}

impl Client {
    fn of_session(session: Session, start: Start) -> Self {
        let calling = session.calling.filter(|_| start.proof == Proof::Kernel);
        Self { calling, ..Self::new(session.snapshot, start) }
    }

    fn new(snapshot: Snapshot, start: Start) -> Self {
        let put_back = snapshot.receiving.len() as u64;
        let first = first_segment(&snapshot, start).to_vec();
        let snapshot = Snapshot { sending: Vec::new(), receiving: Vec::new(), ..snapshot };
        Self { snapshot, start, put_back, first, calling: None }
    }

    fn tell_again(&self, mouths: (&Prober, &Nudger), elapsed: Duration, silent: Duration) -> io::Result<()> {
        if self.calling.is_none() {
            mouths.0.poke_beside(&self.snapshot, elapsed)?;
        }
        self.tell(&self.first, mouths, elapsed, silent)
    }

    fn tell(
        &self,
        first: &[u8],
        (prober, nudger): (&Prober, &Nudger),
        elapsed: Duration,
        silent: Duration,
    ) -> io::Result<()> {
        if let Some(echo) = self.calling {
            // No nudge: whoever is still connecting would take it for a refusal.
            return prober.answer_syn(&self.snapshot, echo, elapsed);
        }
        prober.open_window(&self.snapshot, self.start, first, elapsed)?;
        match self.start {
            Start { unheard: false, .. } => Ok(()),
            // It has something to repeat, and may have had it for long: its server can have been deaf before.
            Start { proof: Proof::Client, .. } => nudger.nudge(&self.snapshot, DOUBLINGS_MAX),
            // Mostly it has nothing, and hundreds of its kind may be on one machine.
            Start { proof: Proof::Kernel, .. } => nudger.nudge(&self.snapshot, doublings(silent + elapsed)),
        }
    }

    /// Whether nothing on this connection shows that the client knows where things stand.
    fn is_waited_for(&self, connection: &Connection) -> bool {
        let nothing_new = connection.received <= self.put_back + u64::from(self.snapshot.peer_closed);
        // What it acknowledges told it the window; it does not take a timer back.
        let must_repeat = self.start.unheard && self.calling.is_none();
        nothing_new && (connection.acknowledged == 0 || must_repeat)
    }
}

/// What is sent first from `start` on, in one segment that the client takes.
fn first_segment(snapshot: &Snapshot, start: Start) -> &[u8] {
    let all = snapshot.sending_from(start.seq).unwrap_or_default();
    let most = usize::from(snapshot.mss_clamp).saturating_sub(OPTION_BYTES);
    &all[..all.len().min(most).min(start.window as usize)]
}

impl Clients {
    /// Those of the sessions that went on, by the order that arrived at `order`, when the target had been `silent`.
    pub(crate) fn of(resumed: Resumed, order: Instant, silent: Duration) -> Self {
        let sessions = resumed.sessions.into_iter().map(|(session, start)| Client::of_session(session, start));
        let ended = resumed.ended.into_iter().map(|(snapshot, start)| Client::new(snapshot, start));
        Self { order, silent, clients: sessions.chain(ended).collect() }
    }

    /// Tells all.
    pub(crate) fn tell(&self, prober: &Prober, nudger: &Nudger) {
        for client in &self.clients {
            cannot(client, client.tell(&[], (prober, nudger), self.order.elapsed(), self.silent));
        }
    }

    /// Tells those again of which nothing has come, by what this kernel's sockets show, and forgets the others.
    pub(crate) fn tell_again(&mut self, connections: &[Connection], prober: &Prober, nudger: &Nudger) {
        self.keep_waited_for(connections);
        for client in &self.clients {
            cannot(client, client.tell_again((prober, nudger), self.order.elapsed(), self.silent));
        }
    }

    fn keep_waited_for(&mut self, connections: &[Connection]) {
        let found: HashMap<_, _> = connections.iter().map(|found| ((found.local, found.peer), found)).collect();
        self.clients.retain_mut(|client| {
            let ends = (canonical(client.snapshot.local), canonical(client.snapshot.peer));
            let Some(connection) = found.get(&ends) else { return false };
            if connection.acknowledged > 0 {
                client.first.clear(); // it has them
            }
            client.is_waited_for(connection)
        });
    }

    /// Those whose handshake nobody has seen the end of.
    pub(crate) fn calling(&self) -> impl Iterator<Item = SocketAddr> {
        self.clients.iter().filter(|client| client.calling.is_some()).map(|client| client.snapshot.peer)
    }

    /// Whether somebody is left to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

fn cannot(client: &Client, told: io::Result<()>) {
    if let Err(error) = told {
        tracing::debug!(peer = %client.snapshot.peer, %error, "a client cannot be told");
    }
}
