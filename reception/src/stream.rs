//! A TCP stream on which a peer may be silent between messages, but neither dribble nor flood inside one.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

/// The longest request, in bytes; the real ones have a few hundred.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// How long a message may take from its first byte to its last, in either direction.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(5);

/// When a peer that has vanished without a word is noticed: after 10 s of silence and 3 questions 5 s apart.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A peer's stream, see the module.
#[derive(Debug)]
pub struct Patient {
    stream: TcpStream,
    deadline: Cell<Instant>,
    /// Bytes the peer may still send of this message.
    budget: Cell<usize>,
}

impl Patient {
    /// Wraps a connection that was accepted.
    ///
    /// # Errors
    /// The system refuses the options of the socket.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_RETRIES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { stream, deadline: Cell::new(Instant::now()), budget: Cell::new(0) })
    }

    /// Waits for the first byte of a message; false if none came within `wait`.
    ///
    /// # Errors
    /// The stream has failed.
    pub fn begins(&self, wait: Duration) -> io::Result<bool> {
        self.stream.set_read_timeout(Some(wait))?;
        match self.stream.peek(&mut [0]) {
            Ok(_) => {
                self.allow_message();
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// From here on, one message may pass.
    pub fn allow_message(&self) {
        self.deadline.set(Instant::now() + MESSAGE_PATIENCE);
        self.budget.set(REQUEST_BYTES_MAX);
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.get().saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let budget = self.budget.get();
        if budget == 0 {
            return Err(io::Error::other("the message is longer than any request"));
        }
        let room = into.len().min(budget);
        self.stream.set_read_timeout(Some(self.left()?))?;
        let len = self.stream.read(&mut into[..room])?;
        self.budget.set(budget - len);
        Ok(len)
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
