//! The control half of a link: one TCP connection, one request and one reply at a time, each within a deadline.
//!
//! A lost connection is dialled anew by the next request; the greeting then tells whether the backdoor is still the one
//! of before. Requests are never repeated silently: the caller learns that the answer was lost and decides.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use control::backdoor::{Reply, Request};
use control::{Channel, Hello};

use crate::LinkFailure;

/// What the backdoor said of itself when the conversation opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Name of the target behind the backdoor.
    pub target: String,
    /// Changes when keys and queue pairs of before are gone.
    pub incarnation: u64,
    /// Whether the target was fenced at that moment.
    pub fenced: bool,
}

/// One peer to ask.
#[derive(Debug)]
pub(crate) struct Conversation {
    backdoor: SocketAddr,
    name: String,
    patience: Duration,
    channel: Option<Channel<Patient>>,
    welcome: Welcome,
    /// Counts the connections made: queue pairs of an earlier one are gone with it.
    dials: u64,
}

impl Conversation {
    /// Connects and greets.
    pub(crate) fn open(backdoor: SocketAddr, name: &str, patience: Duration) -> Result<Self, LinkFailure> {
        let (channel, welcome) = greet(backdoor, name, patience)?;
        Ok(Self { backdoor, name: name.to_owned(), patience, channel: Some(channel), welcome, dials: 1 })
    }

    pub(crate) fn backdoor(&self) -> SocketAddr {
        self.backdoor
    }

    pub(crate) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    pub(crate) fn dials(&self) -> u64 {
        self.dials
    }

    /// Asks, dialling anew if the last connection has ended; a refusal comes back as [`LinkFailure::Refused`].
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, LinkFailure> {
        let mut channel = match self.channel.take() {
            Some(channel) if still_open(channel.stream()) => channel,
            _ => self.dial()?,
        };
        channel.stream().restart(self.patience);
        match channel.ask(request) {
            Ok(reply) => {
                self.channel = Some(channel);
                match reply {
                    Reply::Refused { why } => Err(LinkFailure::Refused { why }),
                    reply => Ok(reply),
                }
            }
            // A late answer would be taken for the next one's: this connection is not used again.
            Err(error) => Err(LinkFailure::of_frame(self.backdoor, error)),
        }
    }

    /// A reply of a kind that answers no request of ours; the connection is of no more use.
    pub(crate) fn nonsense(&mut self, reply: &Reply) -> LinkFailure {
        self.channel = None;
        let why = format!("unexpected reply {reply:?}").chars().take(200).collect();
        LinkFailure::Nonsense { backdoor: self.backdoor, why }
    }

    fn dial(&mut self) -> Result<Channel<Patient>, LinkFailure> {
        let (channel, welcome) = greet(self.backdoor, &self.name, self.patience)?;
        if welcome.target != self.welcome.target {
            let expected = self.welcome.target.clone();
            return Err(LinkFailure::OtherTarget { expected, found: welcome.target });
        }
        self.dials += 1;
        let restarted = welcome.incarnation != self.welcome.incarnation;
        self.welcome = welcome;
        if restarted {
            self.channel = Some(channel);
            return Err(LinkFailure::Restarted);
        }
        Ok(channel)
    }
}

fn greet(backdoor: SocketAddr, name: &str, patience: Duration) -> Result<(Channel<Patient>, Welcome), LinkFailure> {
    let unreachable = |source| LinkFailure::Unreachable { backdoor, source };
    let stream = TcpStream::connect_timeout(&backdoor, patience).map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let mut channel = Channel::new(Patient::new(stream, patience));
    match channel.ask(&Request::Hello(Hello::new(name))) {
        Ok(Reply::Welcome { version, .. }) if version != control::VERSION => {
            Err(LinkFailure::Version { theirs: version })
        }
        Ok(Reply::Welcome { target, incarnation, fenced, .. }) => {
            Ok((channel, Welcome { target, incarnation, fenced }))
        }
        Ok(Reply::Refused { why }) => Err(LinkFailure::Refused { why }),
        Ok(_) => Err(LinkFailure::Nonsense { backdoor, why: "it does not greet".to_owned() }),
        Err(error) => Err(LinkFailure::of_frame(backdoor, error)),
    }
}

/// Whether the peer has neither closed the stream nor said something unasked; either ends its use.
fn still_open(patient: &Patient) -> bool {
    let stream = &patient.stream;
    let quiet = stream.set_nonblocking(true).is_ok()
        && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_ok() && quiet
}

/// A stream whose reads and writes all end by one deadline, however slowly the peer dribbles.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    deadline: std::cell::Cell<Instant>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, deadline: std::cell::Cell::new(Instant::now() + patience) }
    }

    fn restart(&self, patience: Duration) {
        self.deadline.set(Instant::now() + patience);
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.get().saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late()) } else { Ok(left) }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// A socket time-out shows as `WouldBlock`; people should read what it means.
fn named(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { late() } else { error }
}

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(into).map_err(named)
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
