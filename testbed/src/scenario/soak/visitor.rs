//! One client that keeps its connection for the whole soak and asks for a little each second: whether the service
//! answers, how soon, and with the right bytes. The connection lives through the fault at the end, too.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::client::{
    content,
    http::{Connection, HttpError},
};

/// Size of an answer.
const ANSWER_BYTES: u64 = 4096;

/// From an answer to the next question.
const EVERY: Duration = Duration::from_secs(1);

/// So that the end of the soak is noticed soon.
const NAP: Duration = Duration::from_millis(50);

/// Silence that counts as no answer: far beyond any recovery and any sane load.
const PATIENCE: Duration = Duration::from_secs(30);

/// Failures after which the visitor stays away.
const FAILURES_MAX: usize = 10;

/// What a visitor met.
#[derive(Debug, Default)]
pub(super) struct Visit {
    /// Every answer: when it was asked for, and how long it took.
    pub answers: Vec<(Instant, Duration)>,
    /// Bytes that were not the right ones.
    pub wrong_bytes: u64,
    /// Questions without an answer, with the reason.
    pub failures: Vec<String>,
}

impl Visit {
    /// Answers asked for before `end`, and the slowest of them.
    pub fn before(&self, end: Instant) -> (usize, Duration) {
        let earlier = self.answers.iter().filter(|(asked, took)| *asked + *took < end);
        (earlier.clone().count(), earlier.map(|(_, took)| *took).max().unwrap_or_default())
    }

    fn ask(&mut self, connection: &mut Connection<TcpStream>, seed: u64) -> Result<(), HttpError> {
        let asked = Instant::now();
        connection.request("GET", &format!("/synthetic/{seed}/{ANSWER_BYTES}"), 0)?;
        let head = connection.head()?;
        let (mut got, mut expected) = (Vec::new(), vec![0; ANSWER_BYTES as usize]);
        connection.body(head.body_bytes.min(2 * ANSWER_BYTES), |_, bytes| got.extend_from_slice(bytes))?;
        content::fill(seed, 0, &mut expected);
        let differing = got.iter().zip(&expected).filter(|(is, should)| is != should).count();
        self.wrong_bytes += (differing + got.len().abs_diff(expected.len())) as u64;
        self.answers.push((asked, asked.elapsed()));
        Ok(())
    }
}

/// Visits `server` until `stop`, counting answers in `answered`. Every question has a seed of its own, from `seed` on.
pub(super) fn visit(server: SocketAddr, seed: u64, stop: &AtomicBool, answered: &AtomicUsize) -> Visit {
    let (mut visit, mut connection) = (Visit::default(), None);
    while !stop.load(Ordering::Relaxed) && visit.failures.len() < FAILURES_MAX {
        let question = seed.wrapping_add(visit.answers.len() as u64);
        let outcome = match &mut connection {
            Some(connection) => visit.ask(connection, question),
            None => connect(server).map(|fresh| connection = Some(fresh)),
        };
        match outcome {
            Ok(()) if visit.answers.len() == answered.load(Ordering::Relaxed) => continue, // connected; ask at once
            Ok(()) => answered.store(visit.answers.len(), Ordering::Relaxed),
            Err(error) => {
                visit.failures.push(format!("question {}: {error}", visit.answers.len() + 1));
                connection = None;
            }
        }
        let asked_again = Instant::now() + EVERY;
        while Instant::now() < asked_again && !stop.load(Ordering::Relaxed) {
            thread::sleep(NAP);
        }
    }
    visit
}

fn connect(server: SocketAddr) -> Result<Connection<TcpStream>, HttpError> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Connection::new(stream))
}
