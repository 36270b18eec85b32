//! The second tier: carries operations out, each request once.
//!
//! A request is named by its front end. The [`ledger`] has what became of it; a trade is noted there before it commits,
//! and where the end of a commit was not seen, [`fate`] asks the database:
//!
//! | the request comes again, and here | then |
//! |---|---|
//! | its answer is known | the same bytes again |
//! | it is in progress | wait for its end |
//! | it is noted | ask the database: committed is answered from the note, aborted is done anew |
//! | nothing is known of it | it was never carried out here: it is carried out |
//!
//! The last line holds because a request that was sent to one mid tier is sent again only to that one (or to who has
//! adopted what that one had noted): each answer names the life of the mid tier that gave it, and a front end that asks
//! again names the life it means. A mid tier refuses what was meant for another life.

mod browse;
pub mod fate;
pub mod ledger;
mod trade;

use std::{convert::Infallible, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use deadpool_postgres::{Manager, Pool, PoolError};
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;

use crate::{
    http::{self, LIFE, REQUEST_ID},
    operation::{OPERATION_BYTES_MAX, Operation, Page, Trade},
    request_id::{RequestId, incarnation_from, new_incarnation},
};
use fate::{Fate, Note, PATIENCE};
use ledger::{Answer, Entry, Ledger, NoEntry};

/// How often a trade is begun anew after its transaction was aborted by the database.
const ATTEMPTS_MAX: usize = 3;

/// Why a request has no answer. Whether it was carried out may be unknown, and the same mid tier may be asked again.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Its ledger refuses it.
    #[error(transparent)]
    Entry(#[from] NoEntry),
    /// No connection to the database.
    #[error("no connection to the database")]
    Pool(#[from] PoolError),
    /// The database failed, before the commit: nothing was changed.
    #[error("the database refused a statement; nothing was changed")]
    Database(#[from] tokio_postgres::Error),
    /// Nobody knows whether it was carried out.
    #[error(transparent)]
    Fate(#[from] fate::Unknown),
    /// The database aborted it again and again.
    #[error("the database aborted the transaction {ATTEMPTS_MAX} times")]
    Aborted,
    /// This mid tier failed.
    #[error("the request's task has ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// One life of a mid tier.
#[derive(Debug)]
pub struct MidTier {
    pool: Pool,
    ledger: Ledger,
    life: u64,
}

impl MidTier {
    /// With up to `connections` to the database at `address`.
    ///
    /// # Errors
    /// When the address cannot be understood. Whether somebody answers there shows with the first request.
    pub fn new(address: &str, connections: usize) -> Result<Self> {
        let configuration = address.parse().with_context(|| format!("`{address}` is no address of a PostgreSQL"))?;
        let pool = Pool::builder(Manager::new(configuration, NoTls)).max_size(connections).build()?;
        Ok(Self { pool, ledger: Ledger::default(), life: new_incarnation()? })
    }

    /// Takes over what another mid tier, which is dead and fenced, had noted of a request.
    ///
    /// # Errors
    /// See [`NoEntry`].
    pub fn adopt(&self, id: RequestId, note: Note) -> Result<(), NoEntry> {
        self.ledger.entry(id)?.set_note(Some(note));
        Ok(())
    }

    /// The answer to a request: the same whenever it is asked for. It is carried out to its end, even if the caller
    /// goes away.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn answer(self: &Arc<Self>, id: RequestId, operation: Operation) -> Result<Answer, Unanswered> {
        let entry = self.ledger.entry(id)?;
        if let Some(answer) = entry.answer.get() {
            return Ok(answer.clone());
        }
        let this = Arc::clone(self);
        let carried_out =
            tokio::spawn(
                async move { entry.answer.get_or_try_init(|| this.carry_out(&entry, &operation)).await.cloned() },
            );
        carried_out.await?
    }

    async fn carry_out(&self, entry: &Entry, operation: &Operation) -> Result<Answer, Unanswered> {
        let page = match operation {
            Operation::Browse(what) => browse::look(&self.pool.get().await?, what).await?,
            Operation::Trade(trade) => self.trade(entry, trade).await?,
        };
        Ok(answer(&page))
    }

    async fn trade(&self, entry: &Entry, trade: &Trade) -> Result<Page, Unanswered> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(note) = entry.note() {
                match fate::fate(&self.pool.get().await?, note.transaction, PATIENCE).await? {
                    Fate::Committed => return Ok(trade.done(note.receipt)),
                    Fate::Aborted => entry.set_note(None),
                }
            }
            let mut client = self.pool.get().await?;
            let transaction = client.transaction().await?;
            let note = match trade::write(&transaction, trade).await? {
                Ok(note) => note,
                Err(refusal) => {
                    transaction.rollback().await?;
                    return Ok(Page::Refused(refusal));
                }
            };
            entry.set_note(Some(note));
            match transaction.commit().await {
                Ok(()) => return Ok(trade.done(note.receipt)),
                Err(why) => tracing::warn!(%why, transaction = note.transaction, "the end of a commit was not seen"),
            }
        }
        Err(Unanswered::Aborted)
    }
}

fn answer(page: &Page) -> Answer {
    let status = if let Page::Refused(refusal) = page { refusal.status() } else { 200 };
    let body = serde_json::to_vec(page).expect("a page has string keys only");
    Answer { status, body: body.into() }
}

/// Serves front ends for ever.
pub async fn serve(mid_tier: Arc<MidTier>, listener: TcpListener) -> Infallible {
    http::serve(listener, move |request| {
        let mid_tier = Arc::clone(&mid_tier);
        async move { respond(&mid_tier, request).await }
    })
    .await
}

async fn respond(mid_tier: &Arc<MidTier>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match understood(mid_tier, request).await {
        Err((status, why)) => (status, why.into()),
        Ok((id, operation)) => match mid_tier.answer(id, operation).await {
            Ok(Answer { status, body }) => (status, body),
            Err(why) => {
                tracing::warn!(%id, why = format!("{:#}", anyhow::Error::new(why)), "a request has no answer");
                (503, "no answer, and perhaps carried out: ask again with the same id".into())
            }
        },
    };
    let reply = Response::builder().status(status).header(LIFE, format!("{:016x}", mid_tier.life));
    reply.body(Full::new(body)).expect("only well-formed header values are set")
}

async fn understood(
    mid_tier: &MidTier,
    request: Request<Incoming>,
) -> Result<(RequestId, Operation), (u16, &'static str)> {
    let header = |name| request.headers().get(name)?.to_str().ok();
    let id = header(REQUEST_ID).and_then(|id| id.parse().ok()).ok_or((400, "a request needs its id"))?;
    if header(LIFE).is_some_and(|life| incarnation_from(life) != Some(mid_tier.life)) {
        return Err((410, "the request was sent to an earlier life of this mid tier, which alone could answer"));
    }
    let body = http::whole(request.into_body(), OPERATION_BYTES_MAX).await.map_err(|_| (400, "no whole body"))?;
    let operation = serde_json::from_slice(&body).map_err(|_| (400, "the body is no operation"))?;
    Ok((id, operation))
}
