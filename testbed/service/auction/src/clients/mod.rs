//! RUBiS's client emulator: users who browse and trade, think in between, and check that each reply is their own.
//!
//! An emulated user has one connection while it stays, asks for one page at a time, and thinks in between. A request
//! carries a nonce; its reply must repeat it and show what was asked for: that item, that user, that trade.

mod asked;
pub mod mix;
pub mod record;
mod report;
pub mod trace;
mod user;

pub use asked::Asked;
pub use mix::Mix;
pub use report::{Bin, Report};
pub use user::{Crowd, User};

use std::{
    future::{self, Future},
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use http_body_util::Full;
use hyper::{Request, header};
use tokio::sync::watch;

use crate::{
    front_end::Envelope,
    http::{self, Connection, NONCE, REPLY_BYTES_MAX},
    operation::Page,
};
use record::{Attempt, Told};
use report::Tally;
use trace::{Failure, Line, Met, Trace, now_ns};

/// How long a user waits for a connection, or for a reply: longer than a recovery, longer than a front end waits.
const REPLY_BOUND: Duration = Duration::from_secs(60);
/// Rest after a connection was refused.
const CONNECT_REST: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where, by turns.
    pub front_ends: Vec<SocketAddr>,
    /// Who.
    pub crowd: Crowd,
    /// What they do.
    pub mix: Mix,
    /// How long new requests are begun.
    pub length: Duration,
    /// Thinking takes so many times as long.
    pub slow_down: f64,
}

/// Runs all users, and returns what they counted and what they were told.
///
/// # Errors
/// When users would have to share a user of the database, or a task fails.
pub async fn run(order: &Order) -> Result<(Report, Vec<Attempt>)> {
    run_until(order, future::pending(), Trace::default()).await
}

/// The same, ended earlier if `told` to, with a trace of all that users meet.
///
/// # Errors
/// See [`run`].
pub async fn run_until(
    order: &Order,
    told: impl Future<Output = ()> + Send + 'static,
    trace: Trace,
) -> Result<(Report, Vec<Attempt>)> {
    let Crowd { clients, users, .. } = order.crowd;
    ensure!(!order.front_ends.is_empty(), "there is no front end");
    ensure!(i64::from(clients) <= users, "{clients} clients need as many users in the database, there are {users}");
    let (tally, table, trace) = (Arc::new(Tally::begin()), order.mix.table(), Arc::new(trace));
    let (begun, (end, ended)) = (Instant::now(), watch::channel(false));
    let length = order.length;
    let ending = tokio::spawn(async move {
        let _ = tokio::time::timeout(length, told).await;
        let _ = end.send(true);
        begun.elapsed()
    });
    let clients = (0..clients).map(|number| {
        let front_end = number as usize % order.front_ends.len();
        let client = Client {
            user: User::new(order.crowd, number, table.clone()),
            number,
            asked: 0,
            front_end: (front_end, order.front_ends[front_end]),
            slow_down: order.slow_down,
            tally: Arc::clone(&tally),
            trace: Arc::clone(&trace),
            attempts: Vec::new(),
        };
        tokio::spawn(client.run(ended.clone()))
    });
    let clients: Vec<_> = clients.collect();
    let mut attempts = Vec::new();
    for client in clients {
        attempts.extend(client.await?);
    }
    let tally = Arc::into_inner(tally).expect("all clients have ended");
    Ok((tally.report(order.crowd.clients, ending.await?), attempts))
}

struct Client {
    user: User,
    number: u32,
    asked: u64,
    /// Its number, and where it is.
    front_end: (usize, SocketAddr),
    slow_down: f64,
    tally: Arc<Tally>,
    trace: Arc<Trace>,
    attempts: Vec<Attempt>,
}

/// What a request came to.
enum Outcome {
    /// Its own page.
    Page(Page),
    /// The service says that it does not know; the connection is still good.
    Unclear(String),
    /// A reply that is another's, or makes no sense.
    Mismatch(String),
}

impl Client {
    async fn run(mut self, mut ended: watch::Receiver<bool>) -> Vec<Attempt> {
        let mut connection = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.user.think(self.slow_down)) => {}
                _ = ended.wait_for(|ended| *ended) => break,
            }
            match self.user.ask() {
                None => self.hang_up(connection.take()),
                Some(asked) => connection = self.carry_out(connection.take(), &asked).await,
            }
        }
        self.hang_up(connection);
        self.attempts
    }

    fn hang_up(&self, connection: Option<Connection>) {
        if connection.is_some() {
            self.closed();
        }
    }

    fn closed(&self) {
        self.tally.closed();
        self.met(Met::Closed { at_ns: now_ns() });
    }

    fn met(&self, met: Met) {
        self.trace.note(&Line { client: self.number, front_end: self.front_end.0, met });
    }

    /// A connection, if one can be made.
    async fn connect(&self) -> io::Result<Connection> {
        let connection = http::connect_within(self.front_end.1, REPLY_BOUND).await?;
        self.tally.opened();
        self.met(Met::Connected { at_ns: now_ns() });
        Ok(connection)
    }

    /// One request; returns the connection if it is still good.
    async fn carry_out(&mut self, connection: Option<Connection>, asked: &Asked) -> Option<Connection> {
        self.tally.asked();
        let made = match connection {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        };
        let mut connection = match made {
            Ok(connection) => connection,
            Err(why) => {
                self.fail(asked, now_ns(), Failure::Refused, format!("no connection: {why}"));
                tokio::time::sleep(CONNECT_REST).await;
                return None;
            }
        };
        let (began, asked_ns) = (Instant::now(), now_ns());
        let outcome = tokio::time::timeout(REPLY_BOUND, self.exchange(&mut connection, asked)).await;
        match outcome.unwrap_or_else(|_| Err(io::Error::other("no reply in time"))) {
            Ok((Outcome::Page(page), first_ns)) => {
                self.tally.replied(began.elapsed());
                self.met(Met::Answered { asked_ns, first_ns, whole_ns: now_ns() });
                self.note(asked, told(&page));
                self.user.see(&page);
            }
            Ok((Outcome::Unclear(why), _)) => self.fail(asked, asked_ns, Failure::Unclear, why),
            Ok((Outcome::Mismatch(why), _)) => self.fail(asked, asked_ns, Failure::Mismatched, why),
            Err(why) => {
                self.fail(asked, asked_ns, Failure::Broken, why.to_string());
                self.closed();
                return None;
            }
        }
        Some(connection)
    }

    /// Returns what the reply is, and when its head was there.
    async fn exchange(&mut self, connection: &mut Connection, asked: &Asked) -> io::Result<(Outcome, u64)> {
        self.asked += 1;
        let nonce = format!("{}-{}", self.number, self.asked);
        let (method, path, body) = asked.request();
        let request = Request::builder().method(method).uri(path).header(header::HOST, "auction").header(NONCE, &nonce);
        let request = request.body(Full::from(body)).expect("only well-formed header values are set");
        connection.ready().await.map_err(io::Error::other)?;
        let (head, body) = connection.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let first_ns = now_ns();
        let body = http::whole(body, REPLY_BYTES_MAX).await?;
        Ok((judge(asked, &nonce, head.status.as_u16(), &body), first_ns))
    }

    /// Notes that a request has no reply of its own.
    fn fail(&mut self, asked: &Asked, asked_ns: u64, failure: Failure, why: String) {
        let words = format!("client {}: {asked:?}: {why}", self.number);
        match failure {
            Failure::Mismatched => self.tally.mismatched(words),
            _ => self.tally.failed(words),
        }
        self.met(Met::Failed { asked_ns, at_ns: now_ns(), failure, why });
        self.note(asked, Told::Nothing);
    }

    fn note(&mut self, asked: &Asked, told: Told) {
        if let Asked::Trade(trade) = asked {
            self.attempts.push(Attempt { trade: trade.clone(), told });
        }
    }
}

/// Whether a reply is the one to this request.
fn judge(asked: &Asked, nonce: &str, status: u16, body: &[u8]) -> Outcome {
    let reply: Envelope<Page> = match serde_json::from_slice(body) {
        Ok(reply) => reply,
        Err(why) => return Outcome::Mismatch(format!("status {status}, and the body is no reply: {why}")),
    };
    if reply.nonce != nonce {
        return Outcome::Mismatch(format!("the reply to {} came instead of that to {nonce}", reply.nonce));
    }
    if status >= 500 {
        return Outcome::Unclear(format!("status {status} for request {}", reply.request));
    }
    match reply.page {
        Some(page) if asked.is_answered_by(&page) => Outcome::Page(page),
        page => Outcome::Mismatch(format!("status {status}, and the page is another's: {page:?}")),
    }
}

fn told(page: &Page) -> Told {
    match page {
        Page::Done { receipt, .. } => Told::Done(*receipt),
        Page::Refused(refusal) => Told::Refused(*refusal),
        _ => Told::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Browse;

    #[test]
    fn a_reply_with_another_s_nonce_or_page_is_a_mismatch() {
        let asked = Asked::Browse(Browse::Bids(7));
        let reply = |nonce: &str, item| {
            let page = Some(Page::Bids { item, bids: Vec::new() });
            serde_json::to_vec(&Envelope { nonce: nonce.to_owned(), request: String::new(), page }).unwrap()
        };
        assert!(matches!(judge(&asked, "1-1", 200, &reply("1-1", 7)), Outcome::Page(_)));
        assert!(matches!(judge(&asked, "1-1", 200, &reply("2-1", 7)), Outcome::Mismatch(_)));
        assert!(matches!(judge(&asked, "1-1", 200, &reply("1-1", 8)), Outcome::Mismatch(_)));
        assert!(matches!(judge(&asked, "1-1", 200, b"{}"), Outcome::Mismatch(_)));
        assert!(matches!(judge(&asked, "1-1", 503, &reply("1-1", 7)), Outcome::Unclear(_)));
    }
}
