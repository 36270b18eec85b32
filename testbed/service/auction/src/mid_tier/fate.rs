//! What became of a transaction whose end nobody saw. PostgreSQL knows: `pg_xact_status`, by transaction id.
//!
//! ```text
//!   begin ── writes ── id learned and noted ── commit ── answer
//!     └─── nothing noted: it cannot have committed ──┘└── noted: ask for its fate
//! ```
//!
//! The id is noted before the commit is sent. So a request without a noted id has committed nothing, and may be carried
//! out; one with an id is decided by the database.

use std::time::{Duration, Instant};

use deadpool_postgres::GenericClient;

pub use crate::snapshot::Note;

/// How long the connection of a mid tier that died may take to be noticed by the database, before it is ended.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to end a session of the database.
const ENDING: Duration = Duration::from_secs(2);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the database for good.
    Committed,
    /// It has left nothing, and never will.
    Aborted,
}

/// Why the fate is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The database did not answer.
    #[error("the database did not say what became of transaction {0}")]
    Database(i64, #[source] tokio_postgres::Error),
    /// So long ago that the database has forgotten it; or an id that it never gave.
    #[error("the database does not know transaction {0}")]
    Forgotten(i64),
    /// Its session neither ends nor can be ended.
    #[error("transaction {0} is still in progress")]
    InProgress(i64),
}

/// Asks until it is decided. A transaction that is in progress for longer than `patience` belongs to somebody who is
/// gone or fenced: its session is ended, which decides it. Of somebody who is known to be fenced, no patience is
/// needed.
///
/// # Errors
/// See [`Unknown`]. The request must then not be carried out again.
pub async fn fate(client: &impl GenericClient, transaction: i64, patience: Duration) -> Result<Fate, Unknown> {
    let failed = |why| Unknown::Database(transaction, why);
    let began = Instant::now();
    let mut ended = false;
    loop {
        let ask = "SELECT pg_xact_status($1::bigint::text::xid8)";
        let row = match client.query_one(ask, &[&transaction]).await {
            // An id from the future is an error to PostgreSQL; it never gave it.
            Err(why) if why.code() == Some(&tokio_postgres::error::SqlState::INVALID_PARAMETER_VALUE) => {
                return Err(Unknown::Forgotten(transaction));
            }
            asked => asked.map_err(failed)?,
        };
        match row.get::<_, Option<&str>>(0) {
            Some("committed") => return Ok(Fate::Committed),
            Some("aborted") => return Ok(Fate::Aborted),
            Some(_) => {}
            None => return Err(Unknown::Forgotten(transaction)),
        }
        if began.elapsed() > patience + ENDING {
            return Err(Unknown::InProgress(transaction));
        }
        if began.elapsed() >= patience && !ended {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE backend_xid = ($1::bigint % 4294967296)::text::xid";
            client.execute(end, &[&transaction]).await.map_err(failed)?;
            ended = true;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
