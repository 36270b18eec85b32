//! The mid tiers as a front end sees them: which one a request goes to, and when it may be sent again.
//!
//! ```text
//!   life known? ── ask for it ── box: name, address, life ── send ── answer ── box: what is said, note ── give back
//!                                     `--------- again, meant for that life: here or on a spare ----´
//! ```
//!
//! A connection carries the next request only after the box knows this one's answer: a mid tier forgets what it noted
//! of a request with the next one that comes on its connection.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    http::{self, Connection, Connections, LIFE, NOT_DONE, NOTE, REQUEST_ID, Reply},
    request_id::{RequestId, incarnation_from},
    snapshot::{Note, Sent},
};

/// From a request to its answer. Longer than a mid tier takes to be taken over, and waits for a transaction's fate.
const ANSWER_BOUND: Duration = Duration::from_secs(30);
/// How long some mid tier is looked for that can be reached: longer than it takes to see that one is dead.
const REACH_BOUND: Duration = Duration::from_secs(5);
/// Between two attempts.
const REST: Duration = Duration::from_millis(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It was not sent, or nothing was done: nothing was changed.
    #[error("no mid tier can be reached: {0}")]
    NotSent(io::Error),
    /// It was sent, and may have been carried out.
    #[error("the mid tier at {0} did not answer: {1}")]
    Unclear(SocketAddr, io::Error),
    /// It was sent to a mid tier that is not one of ours.
    #[error("no mid tier is configured at {0}, where the request was sent")]
    Unknown(SocketAddr),
    /// It may be carried out still.
    #[error("no answer within {ANSWER_BOUND:?}")]
    Late,
}

/// An answer, and the connection it came by, which is to be given back when the answer is safe.
#[derive(Debug)]
pub(super) struct Answered<'a> {
    pub(super) reply: Reply,
    tier: &'a Tier,
    connection: Connection,
}

impl Answered<'_> {
    /// What the mid tier noted.
    pub(super) fn note(&self) -> Option<Note> {
        Note::from_text(self.reply.head.headers.get(NOTE)?.to_str().ok()?)
    }

    /// Lets the mid tier forget it.
    pub(super) fn give_back(self) -> Reply {
        self.tier.connections.give_back(self.connection);
        self.reply
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct MidTiers {
    tiers: Vec<Tier>,
}

#[derive(Debug)]
struct Tier {
    address: SocketAddr,
    connections: Connections,
    /// The life that answered last.
    life: Mutex<Option<u64>>,
}

impl MidTiers {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        let tiers = addresses.iter().map(|&address| Tier {
            address,
            connections: Connections::new(address),
            life: Mutex::new(None),
        });
        Self { tiers: tiers.collect() }
    }

    /// Sends a request to the mid tier whose turn it is, or to the next that can be reached; `sending` is told before.
    pub(super) async fn forward(
        &self,
        id: RequestId,
        operation: &Bytes,
        mut sending: impl FnMut(Sent),
    ) -> Result<Answered<'_>, NoAnswer> {
        let began = Instant::now();
        let answered = async {
            let mut turn = id.counter as usize;
            loop {
                let Some(tier) = self.tiers.get(turn % self.tiers.len().max(1)) else {
                    return Err(NoAnswer::NotSent(io::Error::other("none is configured")));
                };
                turn += 1;
                match tier.ask(id, operation, &mut sending).await {
                    Err(NoAnswer::NotSent(why)) if began.elapsed() > REACH_BOUND => {
                        return Err(NoAnswer::NotSent(why));
                    }
                    Err(NoAnswer::NotSent(_)) if turn.is_multiple_of(self.tiers.len()) => sleep(REST).await,
                    Err(NoAnswer::NotSent(_)) => {}
                    asked => return asked,
                }
            }
        };
        timeout(ANSWER_BOUND, answered).await.unwrap_or(Err(NoAnswer::Late))
    }

    /// Asks again for what somebody else, who is dead, may have sent.
    pub(super) async fn ask_again(
        &self,
        id: RequestId,
        operation: &Bytes,
        sent: Sent,
        note: Option<Note>,
    ) -> Result<Answered<'_>, NoAnswer> {
        let tier = self.tiers.iter().find(|tier| tier.address == sent.to).ok_or(NoAnswer::Unknown(sent.to))?;
        let why = io::Error::other("its front end has died");
        let answered = tier.again(id, operation, sent.life, note, why);
        timeout(ANSWER_BOUND, answered).await.unwrap_or(Err(NoAnswer::Late))
    }
}

impl Tier {
    async fn ask(
        &self,
        id: RequestId,
        operation: &Bytes,
        mut sending: impl FnMut(Sent),
    ) -> Result<Answered<'_>, NoAnswer> {
        // Whoever answers to this number now also received what was sent from now on; see the module's words above.
        let known = *self.life();
        let life = match known {
            Some(life) => life,
            None => self.greet().await.map_err(NoAnswer::NotSent)?,
        };
        let connection = self.connections.take().await.map_err(NoAnswer::NotSent)?;
        sending(Sent { to: self.address, life });
        match self.send(connection, id, operation, None, None).await {
            Ok(answered) if answered.reply.head.headers.contains_key(NOT_DONE) => {
                Err(NoAnswer::NotSent(io::Error::other("its connection has no box")))
            }
            Ok(answered) => Ok(answered),
            Err(why) => self.again(id, operation, life, None, why).await,
        }
    }

    /// Sends what may have arrived already, until it is answered.
    async fn again(
        &self,
        id: RequestId,
        operation: &Bytes,
        life: u64,
        note: Option<Note>,
        mut why: io::Error,
    ) -> Result<Answered<'_>, NoAnswer> {
        loop {
            tracing::debug!(%id, %why, "sent again");
            let asked = match self.connections.take().await {
                Ok(connection) => self.send(connection, id, operation, Some(life), note).await,
                Err(unreachable) => Err(unreachable),
            };
            match asked {
                Ok(answered) if answered.reply.head.status == StatusCode::GONE => {
                    return Err(NoAnswer::Unclear(self.address, why));
                }
                Ok(answered) if answered.reply.head.headers.contains_key(NOT_DONE) => {}
                Ok(answered) => return Ok(answered),
                Err(failed) => why = failed,
            }
            sleep(REST).await;
        }
    }

    /// Learns who is there, by a request without a name.
    async fn greet(&self) -> io::Result<u64> {
        let mut connection = self.connections.take().await?;
        let request = Request::get("/").header(header::HOST, "mid-tier").body(Full::default());
        let reply = http::ask(&mut connection, request.expect("only well-formed header values are set")).await?;
        let life = self.learn(&reply).ok_or_else(|| io::Error::other("it does not say who it is"))?;
        self.connections.give_back(connection);
        Ok(life)
    }

    async fn send(
        &self,
        mut connection: Connection,
        id: RequestId,
        operation: &Bytes,
        meant: Option<u64>,
        note: Option<Note>,
    ) -> io::Result<Answered<'_>> {
        let mut request = Request::post("/").header(header::HOST, "mid-tier").header(REQUEST_ID, id.to_string());
        if let Some(life) = meant {
            request = request.header(LIFE, format!("{life:016x}"));
        }
        if let Some(note) = note {
            request = request.header(NOTE, note.to_text());
        }
        let request = request.body(Full::new(operation.clone())).expect("only well-formed header values are set");
        let reply = http::ask(&mut connection, request).await?;
        self.learn(&reply);
        Ok(Answered { reply, tier: self, connection })
    }

    /// Who answered.
    fn learn(&self, reply: &Reply) -> Option<u64> {
        let life = reply.head.headers.get(LIFE)?.to_str().ok().and_then(incarnation_from);
        *self.life() = life;
        life
    }

    fn life(&self) -> MutexGuard<'_, Option<u64>> {
        self.life.lock().expect("no thread panics with the number half-written")
    }
}
