//! Counters and sums that follow from rows, over the whole database: an item's number of bids, its highest bid, what is
//! left of it; a user's rating. And of one item each bid is above the one before.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::database::generated_quantity;

/// An item whose bids are not those that it counts.
const BIDS: &str = "
    SELECT i.id, i.nb_of_bids, count(b.id), i.max_bid, coalesce(max(b.bid), 0)
    FROM items i LEFT JOIN bids b ON b.item_id = i.id
    GROUP BY i.id HAVING i.nb_of_bids <> count(b.id) OR i.max_bid <> coalesce(max(b.bid), 0) ORDER BY i.id";
/// A user whose comments are not those that are summed up.
const RATINGS: &str = "
    SELECT u.id, u.rating, coalesce(sum(c.rating), 0)::bigint
    FROM users u LEFT JOIN comments c ON c.to_user_id = u.id
    GROUP BY u.id HAVING u.rating <> coalesce(sum(c.rating), 0) ORDER BY u.id";
/// A bid that is not above the one before: an item is locked while a bid is written, so they are numbered in order.
const STEPS: &str = "
    SELECT id, item_id, bid, before FROM
        (SELECT id, item_id, bid, lag(bid) OVER (PARTITION BY item_id ORDER BY id) AS before FROM bids) AS steps
    WHERE bid <= before ORDER BY id";
/// Each item with what is left and what was bought.
const STOCK: &str = "
    SELECT i.id, i.name, i.quantity, coalesce(sum(p.qty), 0)::bigint, i.id <= (SELECT items FROM ids)
    FROM items i LEFT JOIN buy_now p ON p.item_id = i.id GROUP BY i.id ORDER BY i.id";

/// All that does not balance. `sold` has the quantities of items that clients sell, by name.
pub(super) async fn unbalanced(client: &Client, sold: &HashMap<&str, i64>) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for row in query(client, BIDS).await? {
        let [id, says, bids, highest, bid] = [0, 1, 2, 3, 4].map(|column| row.get::<_, i64>(column));
        wrong.push(format!("item {id} counts {says} bids up to {highest}, there are {bids} up to {bid}"));
    }
    for row in query(client, RATINGS).await? {
        let [id, says, sum] = [0, 1, 2].map(|column| row.get::<_, i64>(column));
        wrong.push(format!("user {id} is rated {says}, the comments make {sum}"));
    }
    for row in query(client, STEPS).await? {
        let [id, item, bid, before] = [0, 1, 2, 3].map(|column| row.get::<_, i64>(column));
        wrong.push(format!("bid {id} for item {item} is {bid}, not above the {before} before it"));
    }
    for row in query(client, STOCK).await? {
        let (id, name, left, bought): (i64, &str, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let first = if row.get(4) { Some(generated_quantity(id)) } else { sold.get(name).copied() };
        // One that nobody sells is told as such elsewhere.
        if first.is_some_and(|first| left < 0 || left + bought != first) {
            wrong.push(format!("item {id} has {left} left and {bought} bought of {first:?}"));
        }
    }
    Ok(wrong)
}

async fn query(client: &Client, text: &str) -> Result<Vec<tokio_postgres::Row>> {
    client.query(text, &[]).await.context("reading the books")
}
