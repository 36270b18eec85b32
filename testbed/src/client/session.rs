//! One checking session, from connect to its last byte.

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use super::{
    content,
    http::{Connection, HttpError},
    plan::{Kind, Plan},
};

/// Silence after which a client gives up: far beyond any recovery, so that a mute session ends as lost.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Between two looks at whether the director wants something.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Bytes of an upload handed to the kernel at once.
const UPLOAD_PIECE_BYTES: usize = 16 * 1024;

/// Receive buffer of a client that keeps its own pace: what it does not read stays with the server.
const FAST_RECEIVE_BUFFER: usize = 64 * 1024;

/// Receive buffer of a client that takes at last what it has left with the server.
const WIDE_RECEIVE_BUFFER: usize = 1 << 20;

/// What the sessions of a run and whoever directs them tell each other.
#[derive(Debug, Default)]
pub struct Signals {
    /// Set by the director: complete what is under way, and end.
    pub finish: AtomicBool,
    /// Sessions that have got (or brought) their first bytes, and queued ones that are connected.
    pub under_way: AtomicUsize,
    /// Sessions that are not [`Kind::Queued`]: these wait for them, so that it is they who find the server full.
    pub others: AtomicUsize,
}

/// A session about to begin.
#[derive(Debug)]
pub struct Session {
    /// What it does.
    pub plan: Plan,
    /// The service.
    pub server: SocketAddr,
    /// Zero of every time in the outcome.
    pub clock: Instant,
}

/// Bytes that reached the client (or were taken from it, for an upload).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, since the clock's zero.
    pub at: Duration,
    /// How many.
    pub bytes: u64,
}

/// What a session came to.
#[derive(Debug)]
pub struct Outcome {
    /// What it did.
    pub kind: Kind,
    /// Its end of the connection, once there was one.
    pub local: Option<SocketAddr>,
    /// Every piece that arrived, in order.
    pub arrivals: Vec<Arrival>,
    /// Body bytes compared with what belongs there.
    pub bytes_checked: u64,
    /// Body bytes that differed.
    pub wrong_bytes: u64,
    /// Those among them that the client had got before: a stretch that came twice.
    pub doubled_bytes: u64,
    /// Exchanges completed.
    pub requests: u64,
    /// Why it did not come to its end, if it did not.
    pub lost: Option<String>,
}

impl Outcome {
    /// Nothing yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            local: None,
            arrivals: Vec::new(),
            bytes_checked: 0,
            wrong_bytes: 0,
            doubled_bytes: 0,
            requests: 0,
            lost: None,
        }
    }

    /// The longest silence that ended after `fault`: its begin and end. None for a session that expected nothing.
    pub fn gap(&self, fault: Duration) -> Option<(Duration, Duration)> {
        if !matches!(self.kind, Kind::Paced | Kind::Fast | Kind::Small) {
            return None;
        }
        let pairs = self.arrivals.windows(2).map(|pair| (pair[0].at, pair[1].at));
        pairs.filter(|&(_, end)| end > fault).max_by_key(|(begin, end)| *end - *begin)
    }
}

impl Session {
    /// Runs until it shall finish and the exchange then under way is complete, or the session is lost.
    pub fn run(self, signals: &Signals) -> Outcome {
        let mut outcome = Outcome::new(self.plan.kind);
        if let Err(error) = self.exchanges(signals, &mut outcome) {
            outcome.lost = Some(error.to_string());
        }
        outcome
    }

    fn exchanges(&self, signals: &Signals, outcome: &mut Outcome) -> Result<(), HttpError> {
        if self.plan.kind == Kind::Queued {
            wait_until(|| signals.under_way.load(Ordering::Relaxed) >= signals.others.load(Ordering::Relaxed));
        }
        let mut connection = self.connect(outcome)?;
        loop {
            self.exchange(&mut connection, signals, outcome)?;
            if signals.finish.load(Ordering::Relaxed) {
                return Ok(());
            }
            if self.plan.kind == Kind::Fresh {
                // Between two connections it has none, as a client that comes now and then.
                let _ = connection.stream().shutdown(Shutdown::Both);
            }
            if self.plan.kind == Kind::Idle {
                // What was silent for the whole fault still has to work.
                wait_until(|| signals.finish.load(Ordering::Relaxed));
            }
            thread::sleep(self.plan.rest);
            if self.plan.kind.reconnects() {
                connection = self.connect(outcome)?;
            }
        }
    }

    pub(super) fn connect(&self, outcome: &mut Outcome) -> Result<Connection<TcpStream>, HttpError> {
        let stream = match self.plan.kind.unread_kib() {
            None => TcpStream::connect_timeout(&self.server, SILENCE_MAX)?,
            Some(_) => narrow(self.server)?,
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        if self.plan.kind == Kind::Fast {
            setsockopt(&stream, sockopt::RcvBuf, &FAST_RECEIVE_BUFFER).map_err(io::Error::from)?;
        }
        outcome.local = Some(stream.local_addr()?);
        Ok(Connection::new(stream))
    }

    fn exchange(
        &self,
        connection: &mut Connection<TcpStream>,
        signals: &Signals,
        outcome: &mut Outcome,
    ) -> Result<(), HttpError> {
        match self.plan.kind {
            Kind::Upload => self.upload(connection, signals, outcome),
            _ => {
                self.ask(connection, signals, outcome)?;
                self.hear(connection, signals, outcome)
            }
        }
    }

    /// Seed of the next content. Another each time: a response that belongs to an earlier request must not pass.
    fn seed(&self, outcome: &Outcome) -> u64 {
        self.plan.seed + outcome.requests
    }

    /// Sends the next request of a session that downloads.
    pub(super) fn ask(
        &self,
        connection: &mut Connection<TcpStream>,
        signals: &Signals,
        outcome: &Outcome,
    ) -> Result<(), HttpError> {
        let asked = self.plan.rate.filter(|_| matches!(self.plan.kind, Kind::Paced | Kind::HalfClosed));
        let pace = asked.map(|rate| format!("?rate={rate}")).unwrap_or_default();
        connection.request("GET", &format!("/synthetic/{}/{}{pace}", self.seed(outcome), self.plan.bytes), 0)?;
        if self.plan.kind.counts_as_asked() && outcome.arrivals.is_empty() && outcome.requests == 0 {
            signals.under_way.fetch_add(1, Ordering::Relaxed);
        }
        if self.plan.kind == Kind::HalfClosed {
            connection.stream().shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Brings a file, and fetches it again: what the server has must be what was brought.
    fn upload(
        &self,
        connection: &mut Connection<TcpStream>,
        signals: &Signals,
        outcome: &mut Outcome,
    ) -> Result<(), HttpError> {
        let seed = self.seed(outcome);
        let (target, bytes) = (format!("/upload-{seed}"), self.plan.bytes);
        connection.request("PUT", &target, bytes)?;
        let mut piece = vec![0; UPLOAD_PIECE_BYTES];
        let (mut offset, begin) = (0, Instant::now());
        while offset < bytes {
            self.keep_pace(begin, offset, signals);
            let len = piece.len().min((bytes - offset) as usize);
            content::fill(seed, offset, &mut piece[..len]);
            connection.send(&piece[..len])?;
            self.note(len, signals, outcome);
            offset += len as u64;
        }
        let head = connection.head()?;
        connection.body(head.body_bytes, |_, _| {})?;
        connection.request("GET", &target, 0)?;
        self.hear(connection, signals, outcome)
    }

    /// Takes the response and compares it with what belongs there; that ends an exchange.
    pub(super) fn hear(
        &self,
        connection: &mut Connection<TcpStream>,
        signals: &Signals,
        outcome: &mut Outcome,
    ) -> Result<(), HttpError> {
        if self.plan.kind.unread_kib().is_some() {
            wait_until(|| signals.finish.load(Ordering::Relaxed));
            setsockopt(connection.stream(), sockopt::RcvBuf, &WIDE_RECEIVE_BUFFER).map_err(io::Error::from)?;
        }
        let (bytes, seed) = (self.plan.bytes, self.seed(outcome));
        let head = connection.head()?;
        if head.body_bytes != bytes {
            return Err(HttpError::Response(format!("{} bytes announced, {bytes} asked for", head.body_bytes)));
        }
        let (mut expected, begin) = (Vec::new(), Instant::now());
        connection.body(bytes, |offset, got| {
            if self.plan.kind == Kind::Stalled && offset > 0 {
                wait_until(|| signals.finish.load(Ordering::Relaxed));
            }
            if self.plan.kind == Kind::Fast {
                self.keep_pace(begin, offset, signals);
            }
            self.note(got.len(), signals, outcome);
            expected.resize(got.len(), 0);
            content::fill(seed, offset, &mut expected);
            outcome.bytes_checked += got.len() as u64;
            if expected != got {
                outcome.wrong_bytes += expected.iter().zip(got).filter(|(ours, theirs)| ours != theirs).count() as u64;
                outcome.doubled_bytes += content::repeated(seed, offset, got);
            }
        })?;
        outcome.requests += 1;
        Ok(())
    }

    /// Waits until byte `offset` is due, for a session that keeps its own pace; not any more when it shall finish.
    fn keep_pace(&self, begin: Instant, offset: u64, signals: &Signals) {
        if let Some(rate) = self.plan.rate.filter(|_| !signals.finish.load(Ordering::Relaxed)) {
            let due = Duration::from_secs_f64(offset as f64 / rate as f64);
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
    }

    fn note(&self, bytes: usize, signals: &Signals, outcome: &mut Outcome) {
        if outcome.arrivals.is_empty() && !self.plan.kind.counts_as_asked() {
            signals.under_way.fetch_add(1, Ordering::Relaxed);
        }
        outcome.arrivals.push(Arrival { at: self.clock.elapsed(), bytes: bytes as u64 });
    }
}

impl Kind {
    /// Whether its first request is all that it does before the fault.
    fn counts_as_asked(self) -> bool {
        self == Self::Queued || self.unread_kib().is_some()
    }
}

/// How long a kernel answers no second probe of one connection, in milliseconds; for all of this machine's.
const PROBES_APART: &str = "/proc/sys/net/ipv4/tcp_invalid_ratelimit";

/// A connection with the smallest window there is: a buffer that is made smaller later takes no promise back.
///
/// A server probes a closed window, and after that a client does not answer a spare's probe for half a second. That is
/// not what is measured, so these clients answer all.
fn narrow(server: SocketAddr) -> io::Result<TcpStream> {
    fs::write(PROBES_APART, "0")?;
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::RcvBuf, &1)?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    Ok(socket.into())
}

pub(super) fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(kind: Kind, at_ms: &[u64]) -> Outcome {
        let arrivals = at_ms.iter().map(|&ms| Arrival { at: Duration::from_millis(ms), bytes: 1 }).collect();
        Outcome { arrivals, ..Outcome::new(kind) }
    }

    #[test]
    fn the_gap_is_the_longest_silence_that_ends_after_the_fault() {
        let fault = Duration::from_millis(1000);
        let ms = |begin, end| Some((Duration::from_millis(begin), Duration::from_millis(end)));
        assert_eq!(outcome(Kind::Paced, &[0, 500, 990, 1100, 1120]).gap(fault), ms(990, 1100));
        assert_eq!(outcome(Kind::Paced, &[0, 999]).gap(fault), None);
        assert_eq!(outcome(Kind::Idle, &[0, 2000]).gap(fault), None);
    }
}
