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
    /// The backdoor was found started anew, and the owner of the link has not been told yet.
    restarted: bool,
}

impl Conversation {
    /// Connects and greets.
    pub(crate) fn open(backdoor: SocketAddr, name: &str, patience: Duration) -> Result<Self, LinkFailure> {
        let (channel, welcome) = greet(backdoor, name, patience)?;
        Ok(Self {
            backdoor,
            name: name.to_owned(),
            patience,
            channel: Some(channel),
            welcome,
            dials: 1,
            restarted: false,
        })
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

    /// Asks, dialling anew if the last connection has ended; a refusal comes back as [`LinkFailure::Refused`]. Asks
    /// nothing and says [`LinkFailure::Restarted`], once, if the backdoor turns out to be another than before.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, LinkFailure> {
        self.ensure_open()?;
        if std::mem::take(&mut self.restarted) {
            return Err(LinkFailure::Restarted);
        }
        self.ask_anyone(request)
    }

    /// Asks whichever backdoor is there now: for what has nothing to do with keys of before.
    pub(crate) fn ask_anyone(&mut self, request: &Request) -> Result<Reply, LinkFailure> {
        self.ensure_open()?;
        let mut channel = self.channel.take().expect("just ensured");
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

    fn ensure_open(&mut self) -> Result<(), LinkFailure> {
        if self.channel.as_ref().is_some_and(|channel| still_open(channel.stream())) {
            return Ok(());
        }
        self.channel = None;
        let (channel, welcome) = greet(self.backdoor, &self.name, self.patience)?;
        if welcome.target != self.welcome.target {
            let expected = self.welcome.target.clone();
            return Err(LinkFailure::OtherTarget { expected, found: welcome.target });
        }
        self.dials += 1;
        self.restarted |= welcome.incarnation != self.welcome.incarnation;
        self.welcome = welcome;
        self.channel = Some(channel);
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn welcome(target: &str, incarnation: u64) -> Reply {
        Reply::Welcome { version: control::VERSION, target: target.into(), incarnation, fenced: false }
    }

    /// Plays a backdoor: one connection for each list, one reply for each request, then it closes.
    fn play(connections: Vec<Vec<Reply>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for replies in connections {
                let mut channel = Channel::new(listener.accept().unwrap().0);
                for reply in replies {
                    let Ok(_) = channel.receive::<Request>() else { break };
                    channel.send(&reply).unwrap();
                }
            }
        });
        address
    }

    fn open(connections: Vec<Vec<Reply>>) -> Result<Conversation, LinkFailure> {
        Conversation::open(play(connections), "test", PATIENCE)
    }

    fn stats() -> Reply {
        Reply::Stats(Default::default())
    }

    /// Asks until the closed connection has been noticed, which the network may take a moment for.
    fn ask_past_loss(talk: &mut Conversation) -> Result<Reply, LinkFailure> {
        match talk.ask(&Request::Stats) {
            Err(failure) if failure.is_path() => talk.ask(&Request::Stats),
            outcome => outcome,
        }
    }

    #[test]
    fn a_closed_connection_is_made_anew() {
        let hello = welcome("t", 1);
        let mut talk = open(vec![vec![hello.clone(), stats()], vec![hello, stats()]]).unwrap();
        assert_eq!(talk.ask(&Request::Stats).unwrap(), stats());
        assert_eq!(ask_past_loss(&mut talk).unwrap(), stats());
        assert_eq!(talk.dials(), 2);
    }

    #[test]
    fn a_restart_is_told_once_and_a_new_queue_pair_does_not_swallow_it() {
        let mut talk = open(vec![vec![welcome("t", 1)], vec![welcome("t", 2), stats(), stats()]]).unwrap();
        while talk.ask_anyone(&Request::Stats).is_err() {}
        assert!(matches!(talk.ask(&Request::Stats), Err(LinkFailure::Restarted)));
        assert_eq!(talk.ask(&Request::Stats).unwrap(), stats());
        assert_eq!(talk.welcome().incarnation, 2);
    }

    #[test]
    fn a_backdoor_of_another_target_is_not_spoken_to() {
        let mut talk = open(vec![vec![welcome("t", 1)], vec![welcome("u", 1)]]).unwrap();
        let failure = ask_past_loss(&mut talk).unwrap_err();
        assert!(matches!(failure, LinkFailure::OtherTarget { .. }), "{failure}");
        assert!(!failure.is_path());
    }

    #[test]
    fn whose_fault_a_bad_greeting_is_can_be_told() {
        let version = control::VERSION + 1;
        let newer = Reply::Welcome { version, target: "t".into(), incarnation: 1, fenced: false };
        assert!(matches!(open(vec![vec![newer]]), Err(LinkFailure::Version { theirs }) if theirs == version));
        assert!(matches!(open(vec![vec![Reply::Released]]), Err(LinkFailure::Nonsense { .. })));
        let refusal = Reply::Refused { why: "no".into() };
        assert!(matches!(open(vec![vec![refusal]]), Err(LinkFailure::Refused { why }) if why == "no"));
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let failure = Conversation::open(nobody, "test", PATIENCE).unwrap_err();
        assert!(matches!(failure, LinkFailure::Unreachable { .. }) && failure.is_path());
    }

    #[test]
    fn a_peer_that_dribbles_does_not_hold_us() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = vec![0, 0, 0x10, 0];
            bytes.resize(0x1000, b' ');
            for byte in bytes {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(PATIENCE / 10);
            }
        });
        // 4100 bytes at this pace take two minutes; each of them comes well within the patience of a single read.
        let failure = Conversation::open(address, "test", PATIENCE).unwrap_err();
        assert!(failure.is_path(), "{failure}");
    }
}
