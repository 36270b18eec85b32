//! Trades as they lie in the tables, and as clients asked for them: the same words for the same trade.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tokio_postgres::{Client, Row};

use crate::operation::Trade;

/// What a trade is found by.
pub(super) fn content(trade: &Trade) -> String {
    match trade {
        Trade::Register(new) => {
            format!("user {} of region {} with password {:?}", new.nickname, new.region, new.password)
        }
        Trade::Sell(sale) => {
            let (seller, category) = (sale.login.user, sale.category);
            let prices = (sale.initial_price, sale.buy_now);
            format!("item {} of user {seller} in category {category} for {} or {}", sale.name, prices.0, prices.1)
        }
        Trade::Bid(bid) => {
            let (user, item) = (bid.login.user, bid.item);
            format!("bid of user {user} for {} of item {item}: {}", bid.quantity, bid.amount)
        }
        Trade::Buy(purchase) => {
            format!("purchase by user {} of {} of item {}", purchase.login.user, purchase.quantity, purchase.item)
        }
        Trade::Comment(words) => {
            let (from, to) = (words.login.user, words.to);
            format!("comment of user {from} about {to} for item {}: {} {}", words.item, words.rating, words.text)
        }
    }
}

/// The words for a row of a table.
type Content = fn(&Row) -> String;

/// All rows above the generator's, by content.
pub(super) async fn made_by_clients(client: &Client) -> Result<HashMap<String, Vec<i64>>> {
    let tables: [(&str, Content); 5] = [
        ("SELECT id, nickname, region, password FROM users WHERE id > (SELECT users FROM ids)", |row| {
            format!("user {} of region {} with password {:?}", text(row, 1), number(row, 2), text(row, 3))
        }),
        (
            "SELECT id, name, seller, category, initial_price, buy_now FROM items WHERE id > (SELECT items FROM ids)",
            |row| {
                let (seller, category) = (number(row, 2), number(row, 3));
                let prices = (number(row, 4), number(row, 5));
                let name = text(row, 1);
                format!("item {name} of user {seller} in category {category} for {} or {}", prices.0, prices.1)
            },
        ),
        ("SELECT id, user_id, qty, item_id, bid FROM bids WHERE id > (SELECT bids FROM ids)", |row| {
            let (user, quantity, item) = (number(row, 1), number(row, 2), number(row, 3));
            format!("bid of user {user} for {quantity} of item {item}: {}", number(row, 4))
        }),
        ("SELECT id, buyer_id, qty, item_id FROM buy_now WHERE id > (SELECT buy_now FROM ids)", |row| {
            format!("purchase by user {} of {} of item {}", number(row, 1), number(row, 2), number(row, 3))
        }),
        (
            "SELECT id, from_user_id, to_user_id, item_id, rating, comment FROM comments \
             WHERE id > (SELECT comments FROM ids)",
            |row| {
                let (from, to, item) = (number(row, 1), number(row, 2), number(row, 3));
                format!("comment of user {from} about {to} for item {item}: {} {}", number(row, 4), text(row, 5))
            },
        ),
    ];
    let mut there: HashMap<String, Vec<i64>> = HashMap::new();
    for (query, content) in tables {
        for row in client.query(query, &[]).await.context("reading what clients made")? {
            there.entry(content(&row)).or_default().push(number(&row, 0));
        }
    }
    Ok(there)
}

fn number(row: &Row, column: usize) -> i64 {
    row.get(column)
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column)
}
