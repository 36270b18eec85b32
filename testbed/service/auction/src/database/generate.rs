//! Fills the tables, from a seed: the same size and seed give the same rows, dates apart.
//!
//! Numbers of rows are in the proportions of RUBiS's own database: half a user per item, five bids per item, a comment
//! per two items. What the check has to know of a generated row follows from its number.

use std::{fmt::Write, pin::pin, time::SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_postgres::{Client, Transaction};

use crate::operation::Cents;

/// RUBiS has 20 and 62.
const CATEGORIES: i64 = 20;
const REGIONS: i64 = 62;
/// Bids for one item, at most; half as many on the average.
const BIDS_MAX: i64 = 10;
const RATING_MAX: i64 = 5;
/// Text that is collected before it is sent.
const CHUNK_BYTES: usize = 256 << 10;
/// No auction that was generated ends during a run.
const DAYS: i64 = 30;
const DAY_SECONDS: u64 = 86_400;
/// The Julian day of 1970-01-01.
const JULIAN_EPOCH: u64 = 2_440_588;

/// How much there shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Items, all on sale; the rest follows.
    pub items: i64,
}

impl Size {
    /// Users, numbered from 1.
    pub fn users(self) -> i64 {
        self.items / 2
    }
}

/// Password of a generated user.
pub fn generated_password(user: i64) -> String {
    format!("password{user}")
}

/// How many of a generated item there were at first.
pub fn generated_quantity(item: i64) -> i64 {
    1 + item % 10
}

/// Makes tables and rows in an empty database.
///
/// # Errors
/// When the database refuses, because the tables are there already for example.
pub async fn generate(client: &mut Client, size: Size, seed: u64) -> Result<()> {
    ensure!(size.items >= 2, "a database needs 2 items at least, not {}", size.items);
    let all = client.transaction().await?;
    all.batch_execute(include_str!("schema.sql")).await.context("the tables cannot be made: is the database empty?")?;
    let mut rows = Rows { seed, rng: StdRng::seed_from_u64(seed), size, ratings: vec![0; size.users() as usize + 1] };
    copy(&all, "categories (id, name)", CATEGORIES, |id, to| writeln!(to, "{id}\tcategory {id}")).await?;
    copy(&all, "regions (id, name)", REGIONS, |id, to| writeln!(to, "{id}\tregion {id}")).await?;
    // Before the users, whose ratings they make.
    let comments = "comments (from_user_id, to_user_id, item_id, rating, comment)";
    copy(&all, comments, size.items / 2, |id, to| rows.comment(id, to)).await?;
    let users = "users (id, firstname, lastname, nickname, password, email, rating, region)";
    copy(&all, users, size.users(), |id, to| rows.user(id, to)).await?;
    copy(&all, "bids (user_id, item_id, qty, bid, max_bid)", size.items, |id, to| rows.bids(id, to)).await?;
    let items = "items (id, name, description, initial_price, quantity, buy_now, nb_of_bids, max_bid, end_date, \
                 seller, category)";
    copy(&all, items, size.items, |id, to| rows.item(id, to)).await?;
    all.batch_execute(include_str!("indexes.sql")).await.context("indexes")?;
    all.commit().await.context("the end of the generated data")
}

/// Sends what `row` writes for 1 to `count`.
async fn copy(
    to: &Transaction<'_>,
    table: &str,
    count: i64,
    mut row: impl FnMut(i64, &mut String) -> std::fmt::Result,
) -> Result<()> {
    let sink = to.copy_in(&format!("COPY {table} FROM STDIN")).await.with_context(|| table.to_owned())?;
    let mut sink = pin!(sink);
    let mut text = String::new();
    for id in 1..=count {
        row(id, &mut text)?;
        if text.len() >= CHUNK_BYTES || id == count {
            sink.send(Bytes::from(std::mem::take(&mut text))).await.with_context(|| table.to_owned())?;
        }
    }
    sink.finish().await.with_context(|| table.to_owned())?;
    Ok(())
}

struct Rows {
    seed: u64,
    rng: StdRng,
    size: Size,
    /// Of each user, as the comments have it.
    ratings: Vec<i64>,
}

impl Rows {
    fn any_user(&mut self) -> i64 {
        self.rng.random_range(1..=self.size.users())
    }

    fn comment(&mut self, id: i64, to: &mut String) -> std::fmt::Result {
        let (from, about, item) = (self.any_user(), self.any_user(), self.rng.random_range(1..=self.size.items));
        let rating = self.rng.random_range(-RATING_MAX..=RATING_MAX);
        self.ratings[about as usize] += rating;
        writeln!(to, "{from}\t{about}\t{item}\t{rating}\tgenerated comment {id}")
    }

    fn user(&mut self, id: i64, to: &mut String) -> std::fmt::Result {
        let (rating, region) = (self.ratings[id as usize], self.rng.random_range(1..=REGIONS));
        let password = generated_password(id);
        writeln!(to, "{id}\tGreat{id}\tUser{id}\tuser{id}\t{password}\tuser{id}@example.net\t{rating}\t{region}")
    }

    /// First price and bids of an item, asked for twice: once for the bids, once for the item that counts them.
    fn offers(&self, item: i64) -> (Cents, Vec<(i64, Cents)>) {
        let mut rng = StdRng::seed_from_u64(self.seed ^ (item as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let initial = rng.random_range(100..=100_000);
        let (count, mut price) = (rng.random_range(0..=BIDS_MAX), initial);
        let offers = (0..count).map(|_| {
            price += rng.random_range(1..=1000);
            (rng.random_range(1..=self.size.users()), price)
        });
        (initial, offers.collect())
    }

    fn bids(&mut self, item: i64, to: &mut String) -> std::fmt::Result {
        let (_, offers) = self.offers(item);
        offers.iter().try_for_each(|(user, bid)| writeln!(to, "{user}\t{item}\t1\t{bid}\t{bid}"))
    }

    fn item(&mut self, id: i64, to: &mut String) -> std::fmt::Result {
        let (initial, offers) = self.offers(id);
        let (count, highest) = (offers.len(), offers.last().map_or(0, |(_, bid)| *bid));
        let (seller, category) = (self.any_user(), self.rng.random_range(1..=CATEGORIES));
        let (quantity, buy_now) = (generated_quantity(id), initial * 3);
        let end = self.rng.random_range(DAYS..2 * DAYS);
        let name = format!("item {id}");
        write!(to, "{id}\t{name}\tthe description of {name}\t{initial}\t{quantity}\t{buy_now}\t{count}\t{highest}\t")?;
        writeln!(to, "{}\t{seller}\t{category}", after_days(end))
    }
}

/// A date as COPY takes it.
fn after_days(days: i64) -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let days = since / DAY_SECONDS + days as u64;
    // PostgreSQL adds the days itself when it is told the epoch as a Julian day.
    format!("J{}", JULIAN_EPOCH + days)
}
