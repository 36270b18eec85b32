//! The operations that write. Each is one transaction; the caller commits it, after the note was taken.
//!
//! Rows are locked in one order: the item or the user that changes, and then nothing else that waits.

use std::ops::RangeInclusive;

use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::{Error, Row, types::ToSql};

use super::fate::Note;
use crate::operation::{Bid, Cents, Comment, Login, Purchase, Receipt, Refusal, Registration, Sale, Trade};

/// Of one bid, purchase or item on sale.
const QUANTITIES: RangeInclusive<i64> = 1..=1000;
const RATINGS: RangeInclusive<i64> = -5..=5;
const DAYS: RangeInclusive<i64> = 1..=60;
/// Far from where sums would overflow.
const PRICES: RangeInclusive<Cents> = 0..=1_000_000_000;
/// Bytes of a name or a comment.
const WORDS_MAX: usize = 1000;

/// What each insert ends with: its row, and the transaction that made it.
const MADE: &str = "RETURNING id, pg_current_xact_id()::text::bigint";

/// Refused, or written and not yet committed.
pub(super) type Written = Result<Result<Note, Refusal>, Error>;

/// Writes everything but the commit.
pub(super) async fn write(to: &Transaction<'_>, trade: &Trade) -> Written {
    match trade {
        Trade::Register(registration) => register(to, registration).await,
        Trade::Sell(sale) => sell(to, sale).await,
        Trade::Bid(offer) => bid(to, offer).await,
        Trade::Buy(purchase) => buy(to, purchase).await,
        Trade::Comment(words) => comment(to, words).await,
    }
}

async fn register(to: &Transaction<'_>, new: &Registration) -> Written {
    if new.nickname.len() > WORDS_MAX || new.password.len() > WORDS_MAX {
        return Ok(Err(Refusal::Number));
    }
    if query(to, "SELECT FROM regions WHERE id = $1", &[&new.region]).await?.is_empty() {
        return Ok(Err(Refusal::Unknown));
    }
    let text = format!(
        "INSERT INTO users (firstname, lastname, nickname, password, email, region) \
         VALUES ($1, $1, $1, $2, $1 || '@example.net', $3) ON CONFLICT (nickname) DO NOTHING {MADE}"
    );
    let made = query(to, &text, &[&new.nickname, &new.password, &new.region]).await?;
    Ok(made.first().map(note).ok_or(Refusal::NicknameTaken))
}

async fn sell(to: &Transaction<'_>, sale: &Sale) -> Written {
    let prices = PRICES.contains(&sale.initial_price) && PRICES.contains(&sale.buy_now);
    let counts = QUANTITIES.contains(&sale.quantity) && DAYS.contains(&sale.days);
    if !prices || !counts || sale.name.len() > WORDS_MAX {
        return Ok(Err(Refusal::Number));
    }
    if !login_holds(to, &sale.login).await? {
        return Ok(Err(Refusal::Login));
    }
    if query(to, "SELECT FROM categories WHERE id = $1", &[&sale.category]).await?.is_empty() {
        return Ok(Err(Refusal::Unknown));
    }
    let text = format!(
        "INSERT INTO items (name, description, initial_price, quantity, buy_now, end_date, seller, category) \
         VALUES ($1, 'the description of ' || $1, $2, $3, $4, now() + $5 * interval '1 day', $6, $7) {MADE}"
    );
    let (prices, days) = ((&sale.initial_price, &sale.buy_now), sale.days as f64);
    let values: [&(dyn ToSql + Sync); 7] =
        [&sale.name, prices.0, &sale.quantity, prices.1, &days, &sale.login.user, &sale.category];
    Ok(Ok(note(&query_one(to, &text, &values).await?)))
}

async fn bid(to: &Transaction<'_>, offer: &Bid) -> Written {
    if !QUANTITIES.contains(&offer.quantity) || !PRICES.contains(&offer.amount) {
        return Ok(Err(Refusal::Number));
    }
    if !login_holds(to, &offer.login).await? {
        return Ok(Err(Refusal::Login));
    }
    let item = match lock_item(to, offer.item).await? {
        Ok(item) => item,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if offer.amount <= item.max_bid || offer.amount < item.initial_price {
        return Ok(Err(Refusal::TooLow));
    }
    if offer.quantity > item.quantity {
        return Ok(Err(Refusal::TooMany));
    }
    let text = "UPDATE items SET nb_of_bids = nb_of_bids + 1, max_bid = $2 WHERE id = $1";
    execute(to, text, &[&offer.item, &offer.amount]).await?;
    let text = format!("INSERT INTO bids (user_id, item_id, qty, bid, max_bid) VALUES ($1, $2, $3, $4, $4) {MADE}");
    let values: [&(dyn ToSql + Sync); 4] = [&offer.login.user, &offer.item, &offer.quantity, &offer.amount];
    Ok(Ok(note(&query_one(to, &text, &values).await?)))
}

async fn buy(to: &Transaction<'_>, purchase: &Purchase) -> Written {
    if !QUANTITIES.contains(&purchase.quantity) {
        return Ok(Err(Refusal::Number));
    }
    if !login_holds(to, &purchase.login).await? {
        return Ok(Err(Refusal::Login));
    }
    let item = match lock_item(to, purchase.item).await? {
        Ok(item) => item,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if purchase.quantity > item.quantity {
        return Ok(Err(Refusal::TooMany));
    }
    // The last one ends the auction, as in RUBiS.
    let text = "UPDATE items SET quantity = quantity - $2, \
                end_date = CASE WHEN quantity = $2 THEN now() ELSE end_date END WHERE id = $1";
    execute(to, text, &[&purchase.item, &purchase.quantity]).await?;
    let text = format!("INSERT INTO buy_now (buyer_id, item_id, qty) VALUES ($1, $2, $3) {MADE}");
    let made = query_one(to, &text, &[&purchase.login.user, &purchase.item, &purchase.quantity]).await?;
    Ok(Ok(note(&made)))
}

async fn comment(to: &Transaction<'_>, words: &Comment) -> Written {
    if !RATINGS.contains(&words.rating) || words.text.len() > WORDS_MAX {
        return Ok(Err(Refusal::Number));
    }
    if !login_holds(to, &words.login).await? {
        return Ok(Err(Refusal::Login));
    }
    if query(to, "SELECT FROM items WHERE id = $1", &[&words.item]).await?.is_empty() {
        return Ok(Err(Refusal::Unknown));
    }
    let text = "UPDATE users SET rating = rating + $2 WHERE id = $1";
    if execute(to, text, &[&words.to, &words.rating]).await? == 0 {
        return Ok(Err(Refusal::Unknown));
    }
    let text = format!(
        "INSERT INTO comments (from_user_id, to_user_id, item_id, rating, comment) VALUES ($1, $2, $3, $4, $5) {MADE}"
    );
    let values: [&(dyn ToSql + Sync); 5] = [&words.login.user, &words.to, &words.item, &words.rating, &words.text];
    Ok(Ok(note(&query_one(to, &text, &values).await?)))
}

/// What decides about a bid or a purchase.
struct Locked {
    initial_price: Cents,
    max_bid: Cents,
    quantity: i64,
}

/// An item that nobody else changes before this transaction ends.
async fn lock_item(to: &Transaction<'_>, item: i64) -> Result<Result<Locked, Refusal>, Error> {
    // Not now(), which is when the transaction began: the auction may have ended while this one waited for the lock.
    let text = "SELECT initial_price, max_bid, quantity, end_date > clock_timestamp() FROM items WHERE id = $1 \
                FOR NO KEY UPDATE";
    let found = query(to, text, &[&item]).await?;
    let Some(row) = found.first() else { return Ok(Err(Refusal::Unknown)) };
    if !row.get::<_, bool>(3) {
        return Ok(Err(Refusal::Over));
    }
    Ok(Ok(Locked { initial_price: row.get(0), max_bid: row.get(1), quantity: row.get(2) }))
}

async fn login_holds(to: &Transaction<'_>, login: &Login) -> Result<bool, Error> {
    let text = "SELECT FROM users WHERE id = $1 AND password = $2";
    Ok(!query(to, text, &[&login.user, &login.password]).await?.is_empty())
}

fn note(made: &Row) -> Note {
    Note { receipt: Receipt { row: made.get(0) }, transaction: made.get(1) }
}

async fn query(to: &Transaction<'_>, text: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
    let statement = to.prepare_cached(text).await?;
    to.query(&statement, values).await
}

async fn query_one(to: &Transaction<'_>, text: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
    let statement = to.prepare_cached(text).await?;
    to.query_one(&statement, values).await
}

async fn execute(to: &Transaction<'_>, text: &str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
    let statement = to.prepare_cached(text).await?;
    to.execute(&statement, values).await
}
