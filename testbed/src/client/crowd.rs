//! Thousands of connections that are silent during the fault, on a few threads.
//!
//! ```text
//!   idle:    each connects and has one exchange ── silence ── all: request ── all: response
//!   unread:  each connects and asks             ── silence ──                all: response
//! ```
//! A thread for each would do as well and cost more than the emulated guest has. Nothing is measured on them but that
//! every byte comes, so it does no harm that one waits for another.

use std::{
    net::TcpStream,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{
    http::{Connection, HttpError},
    plan::Kind,
    session::{Outcome, SILENCE_MAX, Session, Signals, wait_until},
};

/// More silent sessions than this share threads.
pub const SILENT_ALONE_MAX: usize = 250;

/// Threads: so many that a guest always has a connection to accept, so few that they leave it the processor.
const THREADS: usize = 8;

/// Patience with a response that may have come already: a socket takes no time-out of nothing.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);

/// A session and what it has come to so far.
struct Member {
    session: Session,
    connection: Option<Connection<TcpStream>>,
    outcome: Outcome,
}

/// Runs `sessions`, silent ones, until they shall finish; see [`Session::run`] for one.
pub fn silent_crowd(sessions: Vec<Session>, signals: &Signals) -> Vec<Outcome> {
    let share = sessions.len().div_ceil(THREADS).max(1);
    let mut sessions = sessions.into_iter();
    let shares =
        std::iter::from_fn(|| Some(sessions.by_ref().take(share).collect::<Vec<_>>()).filter(|it| !it.is_empty()));
    thread::scope(|scope| {
        let running: Vec<_> = shares.map(|share| scope.spawn(|| together(share, signals))).collect();
        running.into_iter().filter_map(|share| share.join().ok()).flatten().collect()
    })
}

fn together(sessions: Vec<Session>, signals: &Signals) -> Vec<Outcome> {
    let mut members: Vec<Member> = sessions.into_iter().map(|session| Member::begin(session, signals)).collect();
    wait_until(|| signals.finish.load(Ordering::Relaxed));
    let asked = Instant::now();
    for member in members.iter_mut().filter(|member| member.session.plan.kind == Kind::Idle) {
        member.then(|session, connection, outcome| session.ask(connection, signals, outcome));
    }
    for member in &mut members {
        member.then(|session, connection, outcome| {
            let patience = SILENCE_MAX.saturating_sub(asked.elapsed()).max(LEAST_PATIENCE);
            connection.stream().set_read_timeout(Some(patience))?;
            session.hear(connection, signals, outcome)
        });
    }
    members.into_iter().map(|member| member.outcome).collect()
}

impl Member {
    fn begin(session: Session, signals: &Signals) -> Self {
        let mut outcome = Outcome::new(session.plan.kind);
        let connection = session.connect(&mut outcome);
        let lost = connection.as_ref().err().map(ToString::to_string);
        let mut member = Self { session, connection: connection.ok(), outcome };
        member.outcome.lost = lost;
        member.then(|session, connection, outcome| {
            session.ask(connection, signals, outcome)?;
            if session.plan.kind == Kind::Idle { session.hear(connection, signals, outcome) } else { Ok(()) }
        });
        member
    }

    /// Goes on with a session that is not lost.
    fn then(&mut self, step: impl FnOnce(&Session, &mut Connection<TcpStream>, &mut Outcome) -> Result<(), HttpError>) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(error) = step(&self.session, connection, &mut self.outcome) {
            self.outcome.lost = Some(error.to_string());
            self.connection = None;
        }
    }
}
