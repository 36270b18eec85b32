//! RUBiS's client emulator: users who browse and trade, think in between, and check that each reply is their own.
//!
//! An emulated user has one connection while it stays, asks for one page at a time, and thinks in between. A request
//! carries a nonce; its reply must repeat it and show what was asked for: that item, that user, that trade.

mod asked;
pub mod mix;
pub mod record;
mod report;
mod user;

pub use asked::Asked;
pub use mix::Mix;
pub use report::{Bin, Report};
pub use user::{Crowd, User};

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use http_body_util::Full;
use hyper::{Request, header};

use crate::{
    front_end::Envelope,
    http::{self, Connection, NONCE},
    operation::Page,
};
use record::{Attempt, Told};
use report::Tally;

/// How long a user waits for a reply: longer than a recovery, longer than a front end waits.
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
    let Crowd { clients, users, .. } = order.crowd;
    ensure!(!order.front_ends.is_empty(), "there is no front end");
    ensure!(i64::from(clients) <= users, "{clients} clients need as many users in the database, there are {users}");
    let (tally, table) = (Arc::new(Tally::begin()), order.mix.table());
    let end = Instant::now() + order.length;
    let clients = (0..clients).map(|number| {
        let client = Client {
            user: User::new(order.crowd, number, table.clone()),
            number,
            asked: 0,
            front_end: order.front_ends[number as usize % order.front_ends.len()],
            slow_down: order.slow_down,
            tally: Arc::clone(&tally),
            attempts: Vec::new(),
        };
        tokio::spawn(client.run(end))
    });
    let clients: Vec<_> = clients.collect();
    let mut attempts = Vec::new();
    for client in clients {
        attempts.extend(client.await?);
    }
    let tally = Arc::into_inner(tally).expect("all clients have ended");
    Ok((tally.report(order.crowd.clients, order.length), attempts))
}

struct Client {
    user: User,
    number: u32,
    asked: u64,
    front_end: SocketAddr,
    slow_down: f64,
    tally: Arc<Tally>,
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
    async fn run(mut self, end: Instant) -> Vec<Attempt> {
        let mut connection = None;
        while Instant::now() < end {
            let think = self.user.think(self.slow_down);
            tokio::time::sleep(think.min(end.saturating_duration_since(Instant::now()))).await;
            if Instant::now() >= end {
                break;
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
            self.tally.closed();
        }
    }

    /// One request; returns the connection if it is still good.
    async fn carry_out(&mut self, connection: Option<Connection>, asked: &Asked) -> Option<Connection> {
        self.tally.asked();
        let mut connection = match connection {
            Some(connection) => connection,
            None => match http::connect(self.front_end).await {
                Ok(connection) => {
                    self.tally.opened();
                    connection
                }
                Err(why) => {
                    self.tally.failed(format!("client {}: no connection: {why}", self.number));
                    self.note(asked, Told::Nothing);
                    tokio::time::sleep(CONNECT_REST).await;
                    return None;
                }
            },
        };
        let began = Instant::now();
        let outcome = tokio::time::timeout(REPLY_BOUND, self.exchange(&mut connection, asked)).await;
        match outcome.unwrap_or_else(|_| Err(io::Error::other("no reply in time"))) {
            Ok(Outcome::Page(page)) => {
                self.tally.replied(began.elapsed());
                self.note(asked, told(&page));
                self.user.see(&page);
            }
            Ok(Outcome::Unclear(why)) => {
                self.tally.failed(format!("client {}: {asked:?}: {why}", self.number));
                self.note(asked, Told::Nothing);
            }
            Ok(Outcome::Mismatch(why)) => {
                self.tally.mismatched(format!("client {}: {asked:?}: {why}", self.number));
                self.note(asked, Told::Nothing);
            }
            Err(why) => {
                self.tally.failed(format!("client {}: {asked:?}: {why}", self.number));
                self.note(asked, Told::Nothing);
                self.tally.closed();
                return None;
            }
        }
        Some(connection)
    }

    async fn exchange(&mut self, connection: &mut Connection, asked: &Asked) -> io::Result<Outcome> {
        self.asked += 1;
        let nonce = format!("{}-{}", self.number, self.asked);
        let (method, path, body) = asked.request();
        let request = Request::builder().method(method).uri(path).header(header::HOST, "auction").header(NONCE, &nonce);
        let request = request.body(Full::from(body)).expect("only well-formed header values are set");
        connection.ready().await.map_err(io::Error::other)?;
        let reply = http::ask(connection, request).await?;
        Ok(judge(asked, &nonce, reply.head.status.as_u16(), &reply.body))
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
