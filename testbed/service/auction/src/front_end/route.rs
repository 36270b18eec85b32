//! From a client's method, path and body to an operation.
//!
//! | | |
//! |---|---|
//! | `GET /`, `GET /forms/NAME` | home and forms: pages without data |
//! | `GET /categories`, `GET /regions` | names |
//! | `GET /search?category=N&region=N&page=N` | open auctions; `region` and `page` may be left out |
//! | `GET /items/N`, `GET /items/N/bids`, `GET /users/N` | one of them |
//! | `POST /users`, `/items`, `/bids`, `/purchases`, `/comments` | a trade, as JSON |

use hyper::{Method, Uri};
use serde::de::DeserializeOwned;

use crate::operation::{Browse, Operation, Trade};

/// Characters of a form's name.
const FORM_MAX: usize = 32;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    /// A page without data; the front end has it itself.
    Form(String),
    /// Work for a mid tier.
    Operation(Operation),
    /// Nothing that is served; the status that says so.
    Wrong(u16),
}

/// Understands a request.
pub fn route(method: &Method, uri: &Uri, body: &[u8]) -> Routed {
    let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
    match *method {
        Method::GET => get(&parts, uri.query().unwrap_or_default()),
        Method::POST => post(&parts, body),
        _ => Routed::Wrong(405),
    }
}

fn get(parts: &[&str], query: &str) -> Routed {
    let browse = match *parts {
        [""] => return Routed::Form("home".to_owned()),
        ["forms", name] if name.len() <= FORM_MAX => return Routed::Form(name.to_owned()),
        ["categories"] => Some(Browse::Categories),
        ["regions"] => Some(Browse::Regions),
        ["search"] => search(query),
        ["items", id] => id.parse().ok().map(Browse::Item),
        ["items", id, "bids"] => id.parse().ok().map(Browse::Bids),
        ["users", id] => id.parse().ok().map(Browse::User),
        _ => None,
    };
    browse.map_or(Routed::Wrong(404), |browse| Routed::Operation(Operation::Browse(browse)))
}

/// None if the category is missing, or something is no number.
fn search(query: &str) -> Option<Browse> {
    let (mut category, mut region, mut page) = (None, None, 0);
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value: i64 = value.parse().ok()?;
        match name {
            "category" => category = Some(value),
            "region" => region = Some(value),
            "page" => page = value,
            _ => {}
        }
    }
    Some(Browse::Search { category: category?, region, page })
}

fn post(parts: &[&str], body: &[u8]) -> Routed {
    let trade = match *parts {
        ["users"] => read(body).map(Trade::Register),
        ["items"] => read(body).map(Trade::Sell),
        ["bids"] => read(body).map(Trade::Bid),
        ["purchases"] => read(body).map(Trade::Buy),
        ["comments"] => read(body).map(Trade::Comment),
        _ => return Routed::Wrong(404),
    };
    trade.map_or(Routed::Wrong(400), |trade| Routed::Operation(Operation::Trade(trade)))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, body: &str, expected: Routed) {
        assert_eq!(route(&method, &uri.parse().unwrap(), body.as_bytes()), expected, "{uri}");
    }

    #[test]
    fn paths_mean_what_the_table_says() {
        let browse = |what| Routed::Operation(Operation::Browse(what));
        check(Method::GET, "/", "", Routed::Form("home".into()));
        check(Method::GET, "/forms/bid", "", Routed::Form("bid".into()));
        check(Method::GET, "/items/7", "", browse(Browse::Item(7)));
        check(Method::GET, "/items/7/bids", "", browse(Browse::Bids(7)));
        let found = Browse::Search { category: 3, region: Some(4), page: 1 };
        check(Method::GET, "/search?category=3&region=4&page=1", "", browse(found));
        check(Method::GET, "/search?category=3", "", browse(Browse::Search { category: 3, region: None, page: 0 }));
        let bid = crate::operation::Bid {
            login: crate::operation::Login { user: 1, password: "p".into() },
            item: 2,
            amount: 300,
            quantity: 1,
        };
        let body = r#"{"login":{"user":1,"password":"p"},"item":2,"amount":300,"quantity":1}"#;
        check(Method::POST, "/bids", body, Routed::Operation(Operation::Trade(Trade::Bid(bid))));
    }

    #[test]
    fn nonsense_is_refused() {
        for uri in ["/items", "/items/x", "/items/99999999999999999999", "/search", "/search?category=x", "/a/b/c/d"] {
            check(Method::GET, uri, "", Routed::Wrong(404));
        }
        check(Method::POST, "/bids", "{}", Routed::Wrong(400));
        check(Method::POST, "/nothing", "{}", Routed::Wrong(404));
        check(Method::DELETE, "/items/7", "", Routed::Wrong(405));
    }
}
