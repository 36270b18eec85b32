//! `relay`: clients are served by a front end and its workers, processes of a guest with channels between them; the
//! guest breaks, and every client must get every answer exactly once, whichever process knew what.
//!
//! ```text
//!   client ─ requests ─► front end ─ pipe or Unix socket ─► worker     in the guest, then on the spare
//!          ◄─ answers ──           ◄──────────────────────
//! ```
//! Each answer depends on all requests before: one byte that is lost or comes twice between client, front end and
//! worker changes everything after it. The rest is [`hang_download`]'s: the installation, the fault, the verdict.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use relay::{ANSWER_BYTES, Answer, body, digest, served};

use super::{
    hang_download::{self, Clock, Run},
    progress::Progress,
    verdict::Verdict,
};
use crate::{
    client::{Arrival, Kind, Outcome, Signals},
    timeline::Timeline,
    topology::{FILE_PORT, SERVICE, service_v4},
};

/// The relay of an installation.
#[derive(Clone, Copy, Debug)]
pub struct Relay {
    /// A Unix socket between front end and worker; otherwise two pipes.
    pub socket: bool,
    /// Whether workers make up part of each reply.
    pub stamps: bool,
}

/// Requests that a client has on their way: more than a front end reads ahead, so that it never waits for one.
const WINDOW: u64 = 2 * relay::DEPTH;

/// Between two answers that a client takes. A guest that is as busy as it can be looks like one that hangs.
const PACE: Duration = Duration::from_millis(2);

/// No answer for so long is none.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a session does, for figures and drawings.
pub const KIND: Kind = Kind::Small;

/// Runs it; `run.order` has a relay.
///
/// # Errors
/// See [`hang_download::run_with`].
pub fn run(run: &Run, relay: Relay, progress: Progress) -> Result<(Verdict, Timeline)> {
    hang_download::run_with(run, progress, |clock, signals| {
        thread::scope(|scope| {
            let one = || Client::connect(relay, clock).run(signals);
            let all: Vec<_> = (0..run.sessions).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))).collect()
        })
    })
}

/// A client and what it has seen.
struct Client {
    stream: io::Result<TcpStream>,
    relay: Relay,
    clock: Clock,
    asked: u64,
    answered: u64,
    sum: u64,
    outcome: Outcome,
}

impl Client {
    fn connect(relay: Relay, clock: Clock) -> Self {
        let server: SocketAddr = (service_v4(SERVICE), FILE_PORT).into();
        let connect = || {
            let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        Self { stream: connect(), relay, clock, asked: 0, answered: 0, sum: 0, outcome: Outcome::new(KIND) }
    }

    fn run(mut self, signals: &Signals) -> Outcome {
        match self.exchange(signals) {
            Ok(()) => {}
            Err(why) => self.outcome.lost = Some(format!("after {} answers: {why}", self.answered)),
        }
        self.outcome
    }

    /// Asks until it shall finish, then takes the answers that are due.
    fn exchange(&mut self, signals: &Signals) -> io::Result<()> {
        let stream = self.stream.as_ref().map_err(|why| io::Error::new(why.kind(), format!("connecting: {why}")))?;
        let mut stream = stream.try_clone()?;
        self.outcome.local = Some(stream.local_addr()?);
        loop {
            let finish = signals.finish.load(Ordering::Relaxed);
            while !finish && self.asked < self.answered + WINDOW {
                stream.write_all(&served::request(self.asked))?;
                self.asked += 1;
            }
            // The front end answers a request when it has read so many behind it.
            if finish && self.asked < self.answered + relay::DEPTH {
                return Ok(());
            }
            let mut bytes = [0; ANSWER_BYTES as usize];
            stream.read_exact(&mut bytes)?;
            self.check(served::answer(&bytes));
            if self.answered == 1 {
                signals.under_way.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(PACE);
        }
    }

    fn check(&mut self, answer: Answer) {
        self.sum = digest(self.sum, &body(self.answered));
        let is_right = (answer.number, answer.sum) == (self.answered, self.sum);
        let outcome = &mut self.outcome;
        if !is_right || (answer.stamp != 0) != self.relay.stamps {
            outcome.wrong_bytes += ANSWER_BYTES;
            if answer.number < self.answered {
                outcome.doubled_bytes += ANSWER_BYTES;
            }
        }
        outcome.arrivals.push(Arrival { at: self.clock.zero.elapsed(), bytes: ANSWER_BYTES });
        outcome.bytes_checked += ANSWER_BYTES;
        outcome.requests += 1;
        self.answered += 1;
    }
}
