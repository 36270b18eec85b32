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
//! The last line holds because a request that was sent to one mid tier is sent again only to that one, or to who has
//! taken over all that one had noted ([`inheritance`]): each answer names the life of the mid tier that gave it, and a
//! front end that asks again names the life it means. A mid tier refuses what was meant for another life.
//!
//! # With boxes
//! No note, no commit: a trade is committed only after the box of the connection that asked for it holds the note, and
//! one that has no box is told that nothing was done. The box says so until the connection's next request, and for
//! [`KEPT_FOR`] after the connection's end.

mod browse;
pub mod fate;
pub mod inheritance;
pub mod ledger;
mod trade;

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use contbox::{Testament, http::Exchange};
use deadpool_postgres::{Manager, Pool, PoolError};
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, header};
use tokio::runtime::Handle;
use tokio_postgres::NoTls;

use crate::{
    http::{self, LIFE, Listener, NOT_DONE, NOTE, REQUEST_ID, Tier},
    operation::{OPERATION_BYTES_MAX, Operation, Page},
    request_id::{RequestId, incarnation_from, new_incarnation},
    snapshot::{Kept, Written},
};
use fate::{Fate, Note, PATIENCE};
use inheritance::Inheritance;
use ledger::{Answer, Entry, Ledger, NoEntry, Noted};

/// How often a trade is begun anew after its transaction was aborted by the database.
const ATTEMPTS_MAX: usize = 3;

/// How long the box of a connection that has ended says what it said: as long as a front end, or its successor, may
/// take to ask again over another one.
pub const KEPT_FOR: Duration = Duration::from_secs(60);

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
    /// Its connection has no box to note it in: nothing was changed.
    #[error("the connection has no box; nothing was changed")]
    NoBox,
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
    inheritance: Inheritance,
    written: Written,
}

/// What a life of a mid tier is called at the database: its sessions can be ended by that.
fn session_name(life: u64) -> String {
    format!("auction-mt-{life:016x}")
}

impl MidTier {
    /// With up to `connections` to the database at `address`.
    ///
    /// # Errors
    /// When the address cannot be understood. Whether somebody answers there shows with the first request.
    pub fn new(address: &str, connections: usize) -> Result<Self> {
        let mut configuration: tokio_postgres::Config =
            address.parse().with_context(|| format!("`{address}` is no address of a PostgreSQL"))?;
        let life = new_incarnation()?;
        configuration.application_name(session_name(life));
        let pool = Pool::builder(Manager::new(configuration, NoTls)).max_size(connections).build()?;
        let (ledger, inheritance, written) = Default::default();
        Ok(Self { pool, ledger, life, inheritance, written })
    }

    /// Opens all connections to the database, so that the first requests need not.
    pub async fn warm(&self) {
        let mut opened = Vec::new();
        for _ in 0..self.pool.status().max_size {
            match self.pool.get().await {
                Ok(connection) => opened.push(connection),
                Err(why) => return tracing::warn!(%why, "the database cannot be reached yet"),
            }
        }
    }

    /// What its snapshots came to.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Takes over what another mid tier, which is dead and fenced, had noted of a request.
    ///
    /// # Errors
    /// See [`NoEntry`].
    pub fn adopt(&self, id: RequestId, note: Note) -> Result<(), NoEntry> {
        let entry = self.ledger.entry(id)?;
        // What is known here is newer.
        if entry.note().is_none() && entry.answer.get().is_none() {
            entry.set_note(Some(Noted { note, inherited: true }));
        }
        Ok(())
    }

    /// Takes over from another mid tier, which is dead and fenced, what its boxes said; ends its transactions.
    pub fn inherit(self: &Arc<Self>, testament: &Testament, runtime: &Handle) {
        let inheritance::Read { dead, notes, whole } = inheritance::read(testament);
        let refused = notes.iter().filter(|(id, note)| self.adopt(*id, *note).is_err()).count();
        match whole.filter(|_| refused == 0) {
            Some(life) => self.inheritance.add(life),
            None => tracing::warn!(?dead, "a testament is not whole: what it does not name is unclear"),
        }
        tracing::info!(?dead, notes = notes.len(), boxes = testament.words.len(), "taken over");
        let this = Arc::clone(self);
        runtime.spawn(async move { this.end_sessions(&dead).await });
    }

    /// A dead machine's connections are alive for the database, and what they have locked stays locked.
    async fn end_sessions(&self, dead: &[u64]) {
        let ended = async {
            let client = self.pool.get().await?;
            for life in dead.iter().filter(|life| **life != self.life) {
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1";
                let row = client.query_one(end, &[&session_name(*life)]).await?;
                tracing::info!(life = format!("{life:016x}"), sessions = row.get::<_, i64>(0), "ended at the database");
            }
            Ok::<_, Unanswered>(())
        };
        if let Err(why) = ended.await {
            tracing::warn!(%why, "a dead mid tier's transactions may go on until each is asked for");
        }
    }

    /// The answer to a request: the same whenever it is asked for. It is carried out to its end, even if the caller
    /// goes away.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn answer(self: &Arc<Self>, id: RequestId, operation: Operation) -> Result<Answer, Unanswered> {
        self.answer_over(id, operation, None).await
    }

    /// The same for somebody who asks over a connection with a box.
    async fn answer_over(
        self: &Arc<Self>,
        id: RequestId,
        operation: Operation,
        exchange: Option<Exchange>,
    ) -> Result<Answer, Unanswered> {
        let entry = self.ledger.entry(id)?;
        if let Some(answer) = entry.answer.get() {
            self.note_again(id, answer, exchange.as_ref());
            return Ok(answer.clone());
        }
        let this = Arc::clone(self);
        let carried_out = tokio::spawn(async move {
            let carry_out = || this.carry_out(id, &entry, &operation, exchange.as_ref());
            let answer = entry.answer.get_or_try_init(carry_out).await.cloned();
            if let Ok(answer) = &answer {
                this.note_again(id, answer, exchange.as_ref());
            }
            answer
        });
        carried_out.await?
    }

    async fn carry_out(
        &self,
        id: RequestId,
        entry: &Entry,
        operation: &Operation,
        exchange: Option<&Exchange>,
    ) -> Result<Answer, Unanswered> {
        let trade = match operation {
            Operation::Browse(what) => return Ok(answer(&browse::look(&self.pool.get().await?, what).await?, None)),
            Operation::Trade(trade) => trade,
        };
        for _ in 0..ATTEMPTS_MAX {
            if let Some(Noted { note, inherited }) = entry.note() {
                let patience = if inherited { Duration::ZERO } else { PATIENCE };
                match fate::fate(&self.pool.get().await?, note.transaction, patience).await? {
                    Fate::Committed => return Ok(answer(&trade.done(note.receipt), Some(note))),
                    Fate::Aborted => entry.set_note(None),
                }
            }
            let mut client = self.pool.get().await?;
            let transaction = client.transaction().await?;
            let note = match trade::write(&transaction, trade).await? {
                Ok(note) => note,
                Err(refusal) => {
                    transaction.rollback().await?;
                    return Ok(answer(&Page::Refused(refusal), None));
                }
            };
            if !exchange.is_none_or(|exchange| self.note(id, note, exchange)) {
                transaction.rollback().await?;
                return Err(Unanswered::NoBox);
            }
            entry.set_note(Some(Noted { note, inherited: false }));
            match transaction.commit().await {
                Ok(()) => return Ok(answer(&trade.done(note.receipt), Some(note))),
                Err(why) => tracing::warn!(%why, transaction = note.transaction, "the end of a commit was not seen"),
            }
        }
        Err(Unanswered::Aborted)
    }

    /// Notes a trade in the box of its connection; false if there is none.
    fn note(&self, id: RequestId, note: Note, exchange: &Exchange) -> bool {
        let words = Kept { life: self.life, noted: Some((id, note)) }.to_bytes();
        exchange.set_session_state(&words);
        exchange.keep_words_for(KEPT_FOR);
        self.written.count(words.len());
        match exchange.export_note(&[]) {
            Ok(()) => exchange.is_protected(),
            Err(why) => {
                tracing::warn!(%id, %why, "a trade cannot be noted");
                false
            }
        }
    }

    /// What was noted over one connection is asked for over another one, whose box has to know it from now on. If it
    /// has none, the first one's still says so for [`KEPT_FOR`].
    fn note_again(&self, id: RequestId, answer: &Answer, exchange: Option<&Exchange>) {
        let (Some(note), Some(exchange)) = (answer.note, exchange) else { return };
        let known = Kept::from_bytes(&exchange.session_state()).and_then(|kept| kept.noted);
        if known != Some((id, note)) {
            self.note(id, note, exchange);
        }
    }

    /// Takes a request apart, if it may be answered here. Without boxes nobody takes a life over.
    async fn understood(
        &self,
        request: Request<Incoming>,
        boxes: bool,
    ) -> Result<(RequestId, Operation), (u16, &'static str)> {
        let header = |name| request.headers().get(name)?.to_str().ok();
        let id = header(REQUEST_ID).and_then(|id| id.parse().ok()).ok_or((400, "a request needs its id"))?;
        let note = header(NOTE).and_then(Note::from_text);
        let meant = header(LIFE).map(incarnation_from);
        if let Some(meant) = meant.filter(|meant| *meant != Some(self.life)) {
            let taken_over = match meant {
                Some(life) if boxes => self.inheritance.has(life).await,
                _ => false,
            };
            if !taken_over && note.is_none() {
                return Err((
                    410,
                    "the request was sent to an earlier life of this mid tier, which alone could answer",
                ));
            }
        }
        if let Some(note) = note {
            self.adopt(id, note).map_err(|_| (410, "the request is too old"))?;
        }
        let body = http::whole(request.into_body(), OPERATION_BYTES_MAX).await.map_err(|_| (400, "no whole body"))?;
        let operation = serde_json::from_slice(&body).map_err(|_| (400, "the body is no operation"))?;
        Ok((id, operation))
    }
}

impl Tier for MidTier {
    fn begin(&self, exchange: &Exchange, resumed: bool) {
        let inherited = Kept::from_bytes(&exchange.session_state()).and_then(|kept| kept.noted);
        if let Some((id, note)) = inherited
            && let Err(why) = self.adopt(id, note)
        {
            tracing::warn!(%id, %why, "what a dead mid tier noted is not taken over");
        }
        exchange.set_session_state(&Kept { life: self.life, noted: inherited }.to_bytes());
        if !resumed {
            return;
        }
        exchange.keep_words_for(KEPT_FOR);
        // Whoever takes over from this one is to know whose box it is.
        if let Err(why) = exchange.export_session_state() {
            tracing::warn!(%why, "a resumed session's box still names the dead");
        }
        if exchange.response_begun() {
            // A page may be another one by now: the front end asks again, over another connection.
            exchange.abandon();
        }
    }

    async fn respond(self: Arc<Self>, request: Request<Incoming>, exchange: Option<Exchange>) -> Response<Full<Bytes>> {
        let reply = Response::builder().header(LIFE, format!("{:016x}", self.life));
        let (reply, body) = match self.understood(request, exchange.is_some()).await {
            Err((status, why)) => (reply.status(status), why.into()),
            Ok((id, operation)) => match self.answer_over(id, operation, exchange).await {
                Ok(Answer { status, body, note: None }) => (reply.status(status), body),
                Ok(Answer { status, body, note: Some(note) }) => {
                    (reply.status(status).header(NOTE, note.to_text()), body)
                }
                Err(Unanswered::NoBox) => {
                    let reply = reply.status(503).header(NOT_DONE, "1").header(header::CONNECTION, "close");
                    (reply, "no box on this connection: nothing was done".into())
                }
                Err(why) => {
                    tracing::warn!(%id, why = format!("{:#}", anyhow::Error::new(why)), "a request has no answer");
                    (reply.status(503), "no answer, and perhaps carried out: ask again with the same id".into())
                }
            },
        };
        reply.body(Full::new(body)).expect("only well-formed header values are set")
    }
}

fn answer(page: &Page, note: Option<Note>) -> Answer {
    let status = if let Page::Refused(refusal) = page { refusal.status() } else { 200 };
    let body = serde_json::to_vec(page).expect("a page has string keys only");
    Answer { status, body: body.into(), note }
}

/// Serves front ends for ever.
pub async fn serve(mid_tier: Arc<MidTier>, listener: impl Into<Listener>) -> Infallible {
    http::serve(mid_tier, listener).await
}
