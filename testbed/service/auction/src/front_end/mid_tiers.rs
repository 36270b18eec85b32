//! The mid tiers as a front end sees them: which one a request goes to, and when it may be sent again.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header};

use crate::{
    http::{self, Connections, LIFE, REQUEST_ID, Reply},
    request_id::{RequestId, incarnation_from},
};

/// How often one request is sent to its mid tier.
const SENDS_MAX: usize = 3;
/// From a request to its answer. Longer than a mid tier waits for a transaction's fate.
const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It was not sent: nothing was changed.
    #[error("no mid tier can be reached: {0}")]
    NotSent(io::Error),
    /// It was sent, and may have been carried out.
    #[error("the mid tier at {0} did not answer: {1}")]
    Unclear(SocketAddr, io::Error),
    /// It may be carried out still.
    #[error("no answer within {ANSWER_BOUND:?}")]
    Late,
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

    /// Sends a request to the mid tier whose turn it is, or to the next that can be reached.
    pub(super) async fn forward(&self, id: RequestId, operation: Bytes) -> Result<Reply, NoAnswer> {
        let answered = async {
            let mut why = NoAnswer::NotSent(io::Error::other("none is configured"));
            for turn in 0..self.tiers.len() {
                let tier = &self.tiers[(id.counter as usize + turn) % self.tiers.len()];
                match tier.ask(id, &operation).await {
                    Err(not_sent @ NoAnswer::NotSent(_)) => why = not_sent,
                    asked => return asked,
                }
            }
            Err(why)
        };
        tokio::time::timeout(ANSWER_BOUND, answered).await.unwrap_or(Err(NoAnswer::Late))
    }
}

impl Tier {
    async fn ask(&self, id: RequestId, operation: &Bytes) -> Result<Reply, NoAnswer> {
        // Whoever answers to this number now also received what was sent from now on; see the module's words above.
        let life = *self.life();
        let mut failure = match self.send(id, operation, None).await {
            Err(Failed::Connecting(why)) => return Err(NoAnswer::NotSent(why)),
            Err(Failed::Sent(why)) => why,
            Ok(reply) => return Ok(reply),
        };
        let Some(life) = life else { return Err(NoAnswer::Unclear(self.address, failure)) };
        for _ in 1..SENDS_MAX {
            tracing::debug!(%id, %failure, "sent again");
            match self.send(id, operation, Some(life)).await {
                Ok(reply) if reply.head.status == hyper::StatusCode::GONE => {
                    return Err(NoAnswer::Unclear(self.address, failure));
                }
                Ok(reply) => return Ok(reply),
                Err(Failed::Connecting(why) | Failed::Sent(why)) => failure = why,
            }
        }
        Err(NoAnswer::Unclear(self.address, failure))
    }

    async fn send(&self, id: RequestId, operation: &Bytes, meant: Option<u64>) -> Result<Reply, Failed> {
        let mut connection = self.connections.take().await.map_err(Failed::Connecting)?;
        let request = Request::post("/").header(header::HOST, "mid-tier").header(REQUEST_ID, id.to_string());
        let request = match meant {
            Some(life) => request.header(LIFE, format!("{life:016x}")),
            None => request,
        };
        let request = request.body(Full::new(operation.clone())).expect("only well-formed header values are set");
        let reply = http::ask(&mut connection, request).await.map_err(Failed::Sent)?;
        let life = reply.head.headers.get(LIFE).and_then(|life| life.to_str().ok()).and_then(incarnation_from);
        *self.life() = life;
        self.connections.give_back(connection);
        Ok(reply)
    }

    fn life(&self) -> MutexGuard<'_, Option<u64>> {
        self.life.lock().expect("no thread panics with the number half-written")
    }
}

/// Why one attempt failed.
enum Failed {
    /// Before anything was sent.
    Connecting(io::Error),
    /// Afterwards, or perhaps before.
    Sent(io::Error),
}
