//! The third tier: RUBiS's tables in PostgreSQL, what fills them, and a server for the time of a run.
//!
//! The database is taken as it is: nothing about recovery is stored in it. What became of a transaction is asked of
//! PostgreSQL itself, see [`crate::mid_tier::fate`].

mod generate;
mod server;

pub use generate::{Size, generate, generated_password, generated_quantity};
pub use server::{Server, programs};

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

/// One connection, for whoever needs no pool. `address` is of PostgreSQL's form: `host=… port=… user=… dbname=…`.
///
/// # Errors
/// When nobody answers there.
pub async fn connect(address: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(address, NoTls)
        .await
        .with_context(|| format!("no PostgreSQL answers at `{address}`: is the address right, and the server up?"))?;
    tokio::spawn(async move {
        if let Err(why) = connection.await {
            tracing::debug!(%why, "a connection to the database ended");
        }
    });
    Ok(client)
}
