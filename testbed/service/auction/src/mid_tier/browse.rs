//! The operations that read.

use deadpool_postgres::GenericClient;
use tokio_postgres::{Error, Row};

use crate::operation::{Browse, Item, Named, PAGE_ITEMS, Page, Refusal};

/// Comments shown with a user.
const COMMENTS_MAX: i64 = 10;
/// Bids shown with an item.
const BIDS_MAX: i64 = 50;
/// What [`item`] reads.
const ITEM: &str = "i.id, i.name, i.seller, i.initial_price, i.max_bid, i.nb_of_bids, i.buy_now, i.quantity";

/// The page that shows it.
pub(super) async fn look(client: &impl GenericClient, what: &Browse) -> Result<Page, Error> {
    match *what {
        Browse::Categories => names(client, "SELECT id, name FROM categories ORDER BY id").await,
        Browse::Regions => names(client, "SELECT id, name FROM regions ORDER BY id").await,
        Browse::Search { page, .. } if !(0..i64::from(u16::MAX)).contains(&page) => Ok(Page::Refused(Refusal::Number)),
        Browse::Search { category, region, page } => search(client, category, region, page).await,
        Browse::Item(id) => {
            let text = format!("SELECT {ITEM} FROM items i WHERE id = $1");
            let found = query(client, &text, &[&id]).await?;
            Ok(found.first().map_or(Page::Refused(Refusal::Unknown), |row| Page::Item(item(row))))
        }
        Browse::Bids(id) => {
            let text = "SELECT user_id, bid FROM bids WHERE item_id = $1 ORDER BY bid DESC, id LIMIT $2";
            let bids = query(client, text, &[&id, &BIDS_MAX]).await?;
            Ok(Page::Bids { item: id, bids: bids.iter().map(|row| (row.get(0), row.get(1))).collect() })
        }
        Browse::User(id) => user(client, id).await,
    }
}

async fn query(
    client: &impl GenericClient,
    text: &str,
    values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Vec<Row>, Error> {
    let statement = client.prepare_cached(text).await?;
    client.query(&statement, values).await
}

async fn names(client: &impl GenericClient, text: &str) -> Result<Page, Error> {
    let rows = query(client, text, &[]).await?;
    Ok(Page::Names(rows.iter().map(|row| Named { id: row.get(0), name: row.get(1) }).collect()))
}

async fn search(client: &impl GenericClient, category: i64, region: Option<i64>, page: i64) -> Result<Page, Error> {
    let skip = page * PAGE_ITEMS;
    let order = "ORDER BY i.end_date, i.id LIMIT $2 OFFSET $3";
    let rows = match region {
        None => {
            let text = format!("SELECT {ITEM} FROM items i WHERE i.category = $1 AND i.end_date > now() {order}");
            query(client, &text, &[&category, &PAGE_ITEMS, &skip]).await?
        }
        Some(region) => {
            let text = format!(
                "SELECT {ITEM} FROM items i JOIN users u ON i.seller = u.id \
                 WHERE i.category = $1 AND u.region = $4 AND i.end_date > now() {order}"
            );
            query(client, &text, &[&category, &PAGE_ITEMS, &skip, &region]).await?
        }
    };
    Ok(Page::Found { category, region, page, items: rows.iter().map(item).collect() })
}

async fn user(client: &impl GenericClient, id: i64) -> Result<Page, Error> {
    let found = query(client, "SELECT nickname, rating FROM users WHERE id = $1", &[&id]).await?;
    let Some(user) = found.first() else { return Ok(Page::Refused(Refusal::Unknown)) };
    let text = "SELECT comment FROM comments WHERE to_user_id = $1 ORDER BY id DESC LIMIT $2";
    let comments = query(client, text, &[&id, &COMMENTS_MAX]).await?.iter().map(|row| row.get(0)).collect();
    Ok(Page::User { user: id, nickname: user.get(0), rating: user.get(1), comments })
}

fn item(row: &Row) -> Item {
    Item {
        id: row.get(0),
        name: row.get(1),
        seller: row.get(2),
        initial_price: row.get(3),
        max_bid: row.get(4),
        bids: row.get(5),
        buy_now: row.get(6),
        quantity: row.get(7),
    }
}
