//! Speaks to QEMU's monitor (QMP): one JSON object per line, over a Unix socket.
//!
//! Minimal on purpose: a command is a name and a JSON value. The connection is made and negotiated beforehand, so that
//! a fence costs a few round trips on an open socket. Events arrive between replies at any time and are kept for
//! whoever asks. A reply that comes after its command was given up is recognised by its id and dropped.
//! Source: QEMU, docs/interop/qmp-spec.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};

/// Longest line taken, in bytes: a reply to `query-rx-filter` has 20 KiB for each NIC.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Events kept until somebody asks; the oldest are dropped beyond that.
const EVENTS_MAX: usize = 256;

/// Why QEMU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens: QEMU does not run, or the path is wrong.
    #[error("no QEMU at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU accepted and said nothing: it serves one client at a time, and another one is there.
    #[error("QEMU does not greet at {0}: is another program connected to this QMP socket?")]
    NoGreeting(PathBuf),
    /// The connection ended or broke: QEMU has exited, most likely.
    #[error("the connection to QEMU ended: {0}")]
    Ended(io::Error),
    /// No reply in time. Whether the command was carried out is not known.
    #[error("QEMU did not answer `{command}` within {patience:?}")]
    Silent {
        /// The command.
        command: String,
        /// How long was waited.
        patience: Duration,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused `{command}`: {why}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        why: String,
    },
    /// What came is no QMP.
    #[error("no QMP: {0}")]
    Nonsense(String),
}

impl QmpError {
    /// Whether the connection is of no more use.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Silent { .. })
    }
}

/// An open, negotiated connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    patience: Duration,
    /// Bytes received and not yet taken as lines.
    received: Vec<u8>,
    /// How many of them hold no line end.
    searched: usize,
    events: VecDeque<String>,
    last_id: u64,
}

impl Qmp {
    /// Connects to the socket at `path` and negotiates; every command may take `patience`.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, QmpError> {
        let broken = |source| QmpError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(broken)?;
        stream.set_write_timeout(Some(patience)).map_err(broken)?;
        let (received, events) = (Vec::new(), VecDeque::new());
        let mut qmp = Self { stream, patience, received, searched: 0, events, last_id: 0 };
        match qmp.line(Instant::now() + patience) {
            Ok(Some(line)) if parse(&line)?.get("QMP").is_some() => {}
            Ok(Some(_)) => return Err(QmpError::Nonsense("no greeting".to_owned())),
            Ok(None) => return Err(QmpError::NoGreeting(path.to_owned())),
            Err(error) => return Err(error),
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The process that listens on the socket: QEMU, unless somebody else opened the socket for it.
    pub fn peer_pid(&self) -> Option<i32> {
        getsockopt(&self.stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid()).filter(|&pid| pid > 0)
    }

    /// Runs `command` and returns what it returned.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        Ok(self.execute_all(&[(command, arguments)])?.remove(0))
    }

    /// Runs `commands` one after the other, at the cost of one round trip, and returns what each returned. A refused
    /// one does not keep QEMU from those after it.
    ///
    /// # Errors
    /// The first that went wrong, see [`QmpError`].
    pub fn execute_all(&mut self, commands: &[(&str, Value)]) -> Result<Vec<Value>, QmpError> {
        self.replies_to(commands)?.into_iter().collect()
    }

    /// As [`Self::execute_all`], with an outcome for each command.
    ///
    /// # Errors
    /// Only what is fatal, see [`QmpError::is_fatal`].
    pub fn replies_to(&mut self, commands: &[(&str, Value)]) -> Result<Vec<Result<Value, QmpError>>, QmpError> {
        let first_id = self.last_id + 1;
        let mut lines = String::new();
        for (command, arguments) in commands {
            self.last_id += 1;
            lines += &json!({ "execute": command, "arguments": arguments, "id": self.last_id }).to_string();
            lines.push('\n');
        }
        let asked = Instant::now();
        self.stream.write_all(lines.as_bytes()).map_err(QmpError::Ended)?;
        let deadline = asked + self.patience;
        let mut replies = Vec::with_capacity(commands.len());
        for (id, (command, _)) in (first_id..).zip(commands) {
            let reply = self.reply(id, command, deadline);
            tracing::debug!(command, us = asked.elapsed().as_micros(), "QEMU has answered");
            match reply {
                Err(error) if error.is_fatal() => return Err(error),
                reply => replies.push(reply),
            }
        }
        Ok(replies)
    }

    /// Waits for the reply to command number `id`.
    fn reply(&mut self, id: u64, command: &str, deadline: Instant) -> Result<Value, QmpError> {
        loop {
            let Some(line) = self.line(deadline)? else {
                return Err(QmpError::Silent { command: command.to_owned(), patience: self.patience });
            };
            let mut message = parse(&line)?;
            if self.note_event(&message) {
                continue;
            }
            if message.get("id").and_then(Value::as_u64) != Some(id) {
                continue; // the reply to a command that was given up
            }
            if let Some(error) = message.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), why });
            }
            return Ok(message.get_mut("return").map(Value::take).unwrap_or_default());
        }
    }

    /// Runs a line of the human monitor and returns its text.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub fn human(&mut self, line: &str) -> Result<String, QmpError> {
        let (command, arguments) = human(line);
        match self.execute(command, arguments)? {
            Value::String(text) => Ok(text),
            other => Err(QmpError::Nonsense(format!("text expected, found {other}"))),
        }
    }

    /// The names of the events that have arrived, oldest first, without waiting.
    ///
    /// # Errors
    /// [`QmpError::Ended`] when QEMU has gone; events before that are returned first.
    pub fn events(&mut self) -> Result<Vec<String>, QmpError> {
        loop {
            match self.line(Instant::now()) {
                Ok(Some(line)) => {
                    let message = parse(&line)?;
                    self.note_event(&message);
                }
                Ok(None) => break,
                Err(_) if !self.events.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.drain(..).collect())
    }

    /// How many events of this name have arrived and not been asked for yet.
    pub fn waiting(&self, event: &str) -> usize {
        self.events.iter().filter(|name| *name == event).count()
    }

    /// Drops the events of this name that have arrived and not been asked for yet.
    pub fn forget(&mut self, event: &str) {
        self.events.retain(|name| name != event);
    }

    fn note_event(&mut self, message: &Value) -> bool {
        let Some(name) = message.get("event").and_then(Value::as_str) else { return false };
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(name.to_owned());
        true
    }

    /// The next line, or `None` if none is complete by `deadline`.
    fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, QmpError> {
        loop {
            let fresh = &self.received[self.searched..];
            if let Some(at) = fresh.iter().position(|&byte| byte == b'\n') {
                let line = self.received.drain(..=self.searched + at).collect();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.received.len();
            if self.received.len() > LINE_BYTES_MAX {
                return Err(QmpError::Nonsense("a line without end".to_owned()));
            }
            if !self.receive(deadline).map_err(QmpError::Ended)? {
                return Ok(None);
            }
        }
    }

    /// Takes what has arrived; false if nothing has by `deadline`.
    fn receive(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_nonblocking(left.is_zero())?;
        if !left.is_zero() {
            self.stream.set_read_timeout(Some(left))?;
        }
        let mut chunk = [0; 16 << 10];
        let outcome = self.stream.read(&mut chunk);
        self.stream.set_nonblocking(false)?;
        match outcome {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.received.extend_from_slice(&chunk[..len]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The command that runs a line of the human monitor.
pub fn human(line: &str) -> (&'static str, Value) {
    ("human-monitor-command", json!({ "command-line": line }))
}

fn parse(line: &[u8]) -> Result<Value, QmpError> {
    serde_json::from_slice(line).map_err(|error| QmpError::Nonsense(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Qmp, UnixStream) {
        let (stream, peer) = UnixStream::pair().unwrap();
        let (received, events) = (Vec::new(), VecDeque::new());
        (Qmp { stream, patience: Duration::from_millis(50), received, searched: 0, events, last_id: 0 }, peer)
    }

    #[test]
    fn events_and_late_replies_do_not_confuse_a_command() {
        let (mut qmp, mut peer) = pair();
        assert!(matches!(qmp.execute("stop", json!({})), Err(QmpError::Silent { .. })));
        peer.write_all(b"{\"event\":\"STOP\"}\r\n{\"return\":{\"late\":1},\"id\":1}\r\n").unwrap();
        peer.write_all(b"{\"event\":\"RESET\"}\r\n{\"return\":{\"x\":2},\"id\":2}\r\n{\"event\":\"A\"}\n").unwrap();
        assert_eq!(qmp.execute("x", json!({})).unwrap(), json!({ "x": 2 }));
        assert_eq!(qmp.events().unwrap(), ["STOP", "RESET", "A"]);
        assert!(qmp.events().unwrap().is_empty());
    }

    #[test]
    fn a_refused_command_of_several_is_told_after_all_are_answered() {
        let (mut qmp, mut peer) = pair();
        peer.write_all(b"{\"return\":1,\"id\":1}\n{\"error\":{\"desc\":\"no\"},\"id\":2}\n").unwrap();
        peer.write_all(b"{\"event\":\"STOP\"}\n{\"return\":3,\"id\":3}\n{\"return\":4,\"id\":4}\n").unwrap();
        let three = [("a", json!({})), ("b", json!({})), ("c", json!({}))];
        let outcome = qmp.execute_all(&three);
        assert!(matches!(outcome, Err(QmpError::Refused { ref command, .. }) if command == "b"), "{outcome:?}");
        assert_eq!(qmp.execute("d", json!({})).unwrap(), json!(4));
    }

    #[test]
    fn whose_fault_a_failure_is_can_be_told() {
        let (mut qmp, mut peer) = pair();
        peer.write_all(b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":1}\n").unwrap();
        assert!(matches!(qmp.execute("x", json!({})), Err(QmpError::Refused { why, .. }) if why == "no"));
        peer.write_all(b"what?\n").unwrap();
        assert!(matches!(qmp.execute("x", json!({})), Err(QmpError::Nonsense(_))));
        drop(peer);
        assert!(matches!(qmp.execute("x", json!({})), Err(QmpError::Ended(_))));
        assert!(matches!(qmp.events(), Err(QmpError::Ended(_))));
    }
}
