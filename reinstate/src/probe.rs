//! Asks every client of a silenced target where it stands, before a socket exists for it.
//!
//! One raw segment for each session: one byte that the client already has (`seq = snd_una - 1`), acknowledging exactly
//! what the target last acknowledged and promising exactly the window it last promised. TCP must answer old data with a
//! duplicate acknowledgement (RFC 9293, 3.10.7.4), which carries the client's true `rcv_nxt` and window; and because
//! the probe says nothing new, the client sends nothing that would be lost here. It is the shape of an ordinary
//! keep-alive.
//!
//! Answers come to a packet socket: the service address is not local yet, so the kernel itself says nothing to them.
//! All sessions are asked at once; whoever has not answered when the wait is over goes on with the dead kernel's
//! numbers. Where these do whatever it answers ([`crate::session::is_settled`]) the wait is short: a late answer finds
//! the rebuilt socket, which has sent all that it can acknowledge.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{
    address::Interface,
    packet::{ACK, FIN, Heard, PSH, Segment, window_field},
    position::{self, Refused, Start},
    snapshot::Snapshot,
    tcp_repair::raw::link_address,
};

const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
/// Headers of the longest answer we read: IPv6 and TCP with all options.
const HEAD_BYTES: usize = 128;
/// Answers that may wait in the kernel: 20 000 sessions' worth of headers with their overhead.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// Times a silent client is asked: one lost packet is nothing unusual.
const ROUNDS: u32 = 2;

/// How long to wait for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// In all.
    pub most: Duration,
    /// After the last client that answered: the others are then probably gone.
    pub after_answer: Duration,
}

impl Default for Patience {
    /// For clients a local network away: 10 ms in all, 3 ms after the last answer.
    fn default() -> Self {
        Self { most: Duration::from_millis(10), after_answer: Duration::from_millis(3) }
    }
}

/// How long clients are waited for, after all were asked, if their sessions go on in the same way without an answer: it
/// can spare what would be said twice.
const CONFIRMATION: Duration = Duration::from_millis(1);

/// Clients that are asked between two looks at who has answered.
const ASKED_AT_ONCE: usize = 16;

/// What a probe brought for one session.
pub type Verdict = Result<Start, Refused>;

/// Ears and mouth, opened before they are needed.
#[derive(Debug)]
pub struct Prober {
    ears: Vec<Socket>,
    v4: Socket,
    v6: Option<Socket>,
}

impl Prober {
    /// Opens one packet socket for each service address, on the interface where it will live.
    ///
    /// # Errors
    /// The kernel's: usually a missing CAP_NET_RAW.
    pub fn open(places: &[(IpAddr, &Interface)]) -> io::Result<Self> {
        let ears = places.iter().map(|(address, interface)| ear(*address, interface)).collect::<io::Result<_>>()?;
        // IPPROTO_RAW: the IP header is ours, and so is the source address, local or not.
        let mouth = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let wants_v6 = places.iter().any(|(address, _)| address.is_ipv6());
        let v6 = wants_v6.then(|| mouth(Domain::IPV6)).transpose()?;
        Ok(Self { ears, v4: mouth(Domain::IPV4)?, v6 })
    }

    pub(crate) fn say(&self, segment: &Segment<'_>) -> io::Result<()> {
        let mouth = if segment.destination.is_ipv4() { &self.v4 } else { self.v6.as_ref().unwrap_or(&self.v4) };
        let to = SocketAddr::new(segment.destination.ip(), 0);
        mouth.send_to(&segment.to_packet(), &to.into()).map(drop)
    }

    /// Sends one probe for `snapshot`, `elapsed` after the order to take over. With a local address and no socket for
    /// this connection, the client's answer makes the kernel reset it: that is how lost sessions end.
    ///
    /// # Errors
    /// The kernel's: usually no route to the client.
    pub fn poke(&self, snapshot: &Snapshot, elapsed: Duration) -> io::Result<()> {
        self.probe(snapshot, snapshot.timestamp_after(elapsed))
    }

    /// The same beside a live socket, which hears the answer. Its time stamp is taken for the newest, so the socket's
    /// own must not be before it.
    ///
    /// # Errors
    /// The kernel's: usually no route to the client.
    pub fn poke_beside(&self, snapshot: &Snapshot, elapsed: Duration) -> io::Result<()> {
        self.probe(snapshot, snapshot.timestamp_beside(elapsed))
    }

    fn probe(&self, snapshot: &Snapshot, timestamp: Option<u32>) -> io::Result<()> {
        self.say(&Segment {
            seq: snapshot.snd_una.wrapping_sub(1),
            ack: snapshot.rcv_wup,
            flags: ACK | PSH,
            window: window_field(snapshot.rcv_wnd, snapshot.scales.map(|(_, ours)| ours)),
            timestamps: timestamp.map(|value| (value, 0)),
            payload: &[0],
            ..Segment::between(snapshot.local, snapshot.peer)
        })
    }

    /// Says again, in the client's name and to this machine only, that the client has closed its direction: it did, the
    /// dead kernel acknowledged it, and the client will not repeat it. The address is local by now and the rebuilt
    /// socket, which goes on at `start`, is live.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_input(&self, snapshot: &Snapshot, start: Start) -> io::Result<()> {
        self.say(&Segment {
            seq: snapshot.rcv_nxt,
            ack: start.seq,
            flags: ACK | FIN,
            // Its sequence number is new, so its window counts.
            window: window_field(start.window, snapshot.scales.map(|(theirs, _)| theirs)),
            ..Segment::between(snapshot.peer, snapshot.local)
        })
    }

    /// Asks the clients of all `snapshots` and waits. `order` is when the order to take over arrived. The verdicts are
    /// in the order of `snapshots`; silent clients get [`position::assumed`]. `again` is called before silent clients
    /// are asked again: what told them where the address is may have been lost, too.
    ///
    /// # Errors
    /// The kernel's, for the ears; a client that cannot be reached is merely silent.
    pub fn ask(
        &mut self,
        snapshots: &[&Snapshot],
        order: Instant,
        patience: Patience,
        again: impl FnMut(),
    ) -> io::Result<Vec<Verdict>> {
        let who: Vec<Client<'_>> = snapshots.iter().map(|snapshot| Client { snapshot, is_certain: false }).collect();
        self.ask_telling(&who, order, patience, again, |_, _| ())
    }

    /// The same, telling each verdict as soon as it stands, with its number in `clients`: once a client has answered,
    /// or the wait for all is over. What a client says after its answer can only be further ahead of where its session
    /// goes on; it then gets bytes again that it has.
    ///
    /// # Errors
    /// See [`Prober::ask`]; some verdicts may have been told.
    pub fn ask_telling(
        &mut self,
        clients: &[Client<'_>],
        order: Instant,
        patience: Patience,
        mut again: impl FnMut(),
        mut told: impl FnMut(usize, Verdict),
    ) -> io::Result<Vec<Verdict>> {
        let ends = |client: &Client<'_>| (client.snapshot.local, client.snapshot.peer);
        let mut asked = Asked {
            verdicts: clients.iter().map(|client| Ok(position::assumed(client.snapshot))).collect(),
            silent: (0..clients.len()).collect(),
            doubtful: clients.iter().filter(|client| !client.is_certain).count(),
            index: clients.iter().enumerate().map(|(at, client)| (ends(client), at)).collect(),
            clients,
        };
        self.forget_what_was_heard()?;
        let mut begin = None;
        for round in 1..=ROUNDS {
            if round > 1 && asked.doubtful == 0 {
                break;
            }
            if round > 1 {
                again();
            }
            let silent: Vec<usize> = asked.silent.iter().copied().collect();
            for (count, at) in silent.into_iter().enumerate() {
                let snapshot = clients[at].snapshot;
                if let Err(error) = self.poke(snapshot, order.elapsed()) {
                    tracing::debug!(peer = %snapshot.peer, %error, "a client cannot be asked");
                }
                // Thousands take a while to be asked, and the first have long answered.
                if count % ASKED_AT_ONCE == ASKED_AT_ONCE - 1 {
                    while let Some(heard) = self.hear(Instant::now())? {
                        asked.take(&heard, &mut told);
                    }
                }
            }
            // The wait begins when all were asked once.
            let begin = *begin.get_or_insert_with(Instant::now);
            let end = begin + patience.most * round / ROUNDS;
            let mut until = end;
            while !asked.silent.is_empty() {
                let until_now = if asked.doubtful == 0 { until.min(begin + CONFIRMATION) } else { until };
                let Some(heard) = self.hear(until_now)? else { break };
                if asked.take(&heard, &mut told) {
                    until = end.min(Instant::now() + patience.after_answer);
                }
            }
        }
        asked.silent.iter().for_each(|at| told(*at, asked.verdicts[*at]));
        Ok(asked.verdicts)
    }

    fn forget_what_was_heard(&mut self) -> io::Result<()> {
        while self.hear(Instant::now())?.is_some() {}
        Ok(())
    }

    /// The next segment, or `None` when it is `until`.
    fn hear(&mut self, until: Instant) -> io::Result<Option<Heard>> {
        let mut head = [0; HEAD_BYTES];
        loop {
            for mut ear in &self.ears {
                match ear.read(&mut head) {
                    Ok(len) => match Heard::parse(&head[..len]) {
                        Some(heard) => return Ok(Some(heard)),
                        None => continue,
                    },
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut fds: Vec<_> = self.ears.iter().map(|ear| PollFd::new(ear.as_fd(), PollFlags::POLLIN)).collect();
            match ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whom to ask.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// What is known of the connection.
    pub snapshot: &'a Snapshot,
    /// Its session goes on in the same way whatever it answers.
    pub is_certain: bool,
}

/// Clients that were asked.
struct Asked<'a> {
    clients: &'a [Client<'a>],
    /// By number, as `clients`.
    verdicts: Vec<Verdict>,
    /// Those that have not answered.
    silent: HashSet<usize>,
    /// How many of these are not certain.
    doubtful: usize,
    index: HashMap<(SocketAddr, SocketAddr), usize>,
}

impl Asked<'_> {
    /// Takes what was overheard; true if a client has answered by it.
    fn take(&mut self, heard: &Heard, told: &mut impl FnMut(usize, Verdict)) -> bool {
        let Some(&at) = self.index.get(&(heard.destination, heard.source)) else { return false };
        if !self.silent.contains(&at) {
            return false;
        }
        take(&mut self.verdicts[at], self.clients[at].snapshot, heard);
        let settled = self.verdicts[at].as_ref().is_ok_and(|start| start.proof == position::Proof::Client);
        if settled {
            self.silent.remove(&at);
            self.doubtful -= usize::from(!self.clients[at].is_certain);
            told(at, self.verdicts[at]);
        }
        settled
    }
}

/// Lets one overheard segment change what is known of its session. An honest position beats a refusal, whichever came
/// first: strangers can send anything in a client's name, but not in its window.
fn take(verdict: &mut Verdict, snapshot: &Snapshot, heard: &Heard) {
    match (position::answered(snapshot, heard), &*verdict) {
        (Ok(next), Ok(best)) => *verdict = Ok(position::further(snapshot, *best, next)),
        (Ok(next), Err(Refused::Beyond { .. })) => *verdict = Ok(next),
        (Err(refused @ (Refused::Beyond { .. } | Refused::Reset)), Ok(best))
            if best.proof == position::Proof::Kernel =>
        {
            *verdict = Err(refused);
        }
        _ => {}
    }
}

fn ear(address: IpAddr, interface: &Interface) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.attach_filter(&filter(address))?;
    let ethertype = if address.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
    // Bound last: with protocol 0 nothing is received before the filter stands.
    socket.bind(&link_address(interface.index, ethertype, None))?;
    Ok(socket)
}

/// Classic BPF: TCP to `address`, cut to its headers. The packet begins with its IP header. Only frames for our link
/// address count: a switch that has forgotten the dead machine floods what is still sent there, and an answer heard
/// that way would hide that the client does not know where the address is now.
fn filter(address: IpAddr) -> Vec<SockFilter> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const TCP: u32 = 6;
    let (protocol_at, address_at, octets) = match address {
        IpAddr::V4(address) => (9, 16, address.octets().to_vec()),
        IpAddr::V6(address) => (6, 24, address.octets().to_vec()),
    };
    let mut wanted = vec![(LOAD_BYTE, protocol_at, TCP)];
    for (at, word) in (address_at..).step_by(4).zip(octets.chunks_exact(4)) {
        wanted.push((LOAD_WORD, at, u32::from_be_bytes([word[0], word[1], word[2], word[3]])));
    }
    // The kernel's extension: PACKET_HOST is 0.
    wanted.insert(0, (LOAD_BYTE, (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32, 0));
    let len = wanted.len() * 2 + 2;
    let mut program = Vec::with_capacity(len);
    for (load, at, value) in wanted {
        program.push(SockFilter::new(load, 0, 0, at));
        // A miss jumps to the last instruction, which drops the packet.
        let to_drop = (len - 1 - (program.len() + 1)) as u8;
        program.push(SockFilter::new(JUMP_EQUAL, 0, to_drop, value));
    }
    program.push(SockFilter::new(RETURN, 0, 0, HEAD_BYTES as u32));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}
