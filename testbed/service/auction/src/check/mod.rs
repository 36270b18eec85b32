//! Walks the database after a run, with the clients' own record of what they were told.
//!
//! | a client was told | then its trade is there |
//! |---|---|
//! | done | once, under the number it was told |
//! | refused | not at all |
//! | nothing | once, or not at all |
//!
//! Nothing else is there that the generator did not make. A trade is found by its whole content: clients never ask for
//! the same twice ([`crate::clients::User`]). Whoever is registered, by the generator or because a client was told so,
//! may trade: a login of theirs that was refused is a broken promise, too. The books must balance, see [`balance`].
//! The services must have ended. What they had begun may end a moment later, and is waited for: what is written during
//! the walk would be seen by halves.

mod balance;
mod logins;
mod rows;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::{
    clients::record::{Attempt, Told},
    operation::Trade,
};

/// What was found. Empty lists are what is promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Trades that clients were told are done.
    pub acknowledged: usize,
    /// Trades that clients were told are refused.
    pub refused: usize,
    /// Trades of which clients were told nothing.
    pub unclear: usize,
    /// Those of them that are there.
    pub unclear_done: usize,
    /// Acknowledged, and not there.
    pub missing: Vec<String>,
    /// There more than once.
    pub doubled: Vec<String>,
    /// Acknowledged under another number than it has.
    pub misnumbered: Vec<String>,
    /// Refused, and there.
    pub refused_but_done: Vec<String>,
    /// There, and nobody asked for it.
    pub unasked: Vec<String>,
    /// Refused for the login of a user who is registered.
    pub locked_out: Vec<String>,
    /// Counters and sums that do not follow from the rows.
    pub unbalanced: Vec<String>,
}

impl Findings {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        let lists = [&self.missing, &self.doubled, &self.misnumbered, &self.refused_but_done, &self.unasked];
        lists.into_iter().chain([&self.locked_out, &self.unbalanced]).all(Vec::is_empty)
    }
}

/// For transactions of mid tiers that have ended to end, too.
const QUIET_BOUND: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Compares.
///
/// # Errors
/// When the database cannot be read, or somebody does not stop writing.
pub async fn check(client: &Client, attempts: &[Attempt]) -> Result<Findings> {
    wait_until_nobody_writes(client).await?;
    let mut there = rows::made_by_clients(client).await?;
    let mut findings = Findings::default();
    for attempt in attempts {
        let found = there.remove(&rows::content(&attempt.trade)).unwrap_or_default();
        findings.weigh(attempt, &found);
    }
    let unasked = there.into_iter().flat_map(|(content, rows)| rows.into_iter().map(move |row| (content.clone(), row)));
    findings.unasked = unasked.map(|(content, row)| format!("{content} is there as {row}")).collect();
    findings.unasked.sort();
    findings.locked_out = logins::locked_out(logins::generated(client).await?, attempts);
    findings.unbalanced = balance::unbalanced(client, &quantities(attempts)).await?;
    Ok(findings)
}

async fn wait_until_nobody_writes(client: &Client) -> Result<()> {
    let began = Instant::now();
    loop {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND xact_start IS NOT NULL \
                    AND backend_type = 'client backend'";
        let writing: i64 = client.query_one(text, &[]).await.context("asking who writes")?.get(0);
        if writing == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < QUIET_BOUND, "{writing} transactions do not end: end the mid tiers before the check");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

impl Findings {
    fn weigh(&mut self, attempt: &Attempt, found: &[i64]) {
        let content = rows::content(&attempt.trade);
        if found.len() > 1 {
            self.doubled.push(format!("{content} is there as {found:?}"));
        }
        match attempt.told {
            Told::Done(receipt) => {
                self.acknowledged += 1;
                match found {
                    [] => self.missing.push(format!("{content}, acknowledged as {}", receipt.row)),
                    rows if !rows.contains(&receipt.row) => {
                        self.misnumbered
                            .push(format!("{content}, acknowledged as {}, is there as {rows:?}", receipt.row));
                    }
                    _ => {}
                }
            }
            Told::Refused(refusal) => {
                self.refused += 1;
                if !found.is_empty() {
                    self.refused_but_done.push(format!("{content}, refused ({refusal}), is there as {found:?}"));
                }
            }
            Told::Nothing => {
                self.unclear += 1;
                self.unclear_done += usize::from(!found.is_empty());
            }
        }
    }
}

/// How many of each item there were at first, of those that clients sell: by name.
fn quantities(attempts: &[Attempt]) -> HashMap<&str, i64> {
    let sales = attempts.iter().filter_map(|attempt| match &attempt.trade {
        Trade::Sell(sale) => Some((sale.name.as_str(), sale.quantity)),
        _ => None,
    });
    sales.collect()
}
