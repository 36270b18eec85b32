//! One request of a client, and whether a page is its answer.

use hyper::Method;

use crate::operation::{Browse, Page, Trade};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A page without data.
    Form(&'static str),
    /// Something to read.
    Browse(Browse),
    /// Something to write.
    Trade(Trade),
}

impl Asked {
    /// As HTTP says it.
    pub fn request(&self) -> (Method, String, Vec<u8>) {
        match self {
            Self::Form("home") => (Method::GET, "/".into(), Vec::new()),
            Self::Form(name) => (Method::GET, format!("/forms/{name}"), Vec::new()),
            Self::Browse(what) => (Method::GET, path(what), Vec::new()),
            Self::Trade(trade) => {
                let (path, body) = match trade {
                    Trade::Register(new) => ("/users", serde_json::to_vec(new)),
                    Trade::Sell(sale) => ("/items", serde_json::to_vec(sale)),
                    Trade::Bid(bid) => ("/bids", serde_json::to_vec(bid)),
                    Trade::Buy(purchase) => ("/purchases", serde_json::to_vec(purchase)),
                    Trade::Comment(comment) => ("/comments", serde_json::to_vec(comment)),
                };
                (Method::POST, path.to_owned(), body.expect("trades have string keys only"))
            }
        }
    }

    /// Whether `page` is the answer to this and to nothing else that this client could have asked for.
    pub fn is_answered_by(&self, page: &Page) -> bool {
        match (self, page) {
            (Self::Form(name), Page::Form(given)) => name == given,
            (Self::Browse(Browse::Categories | Browse::Regions), Page::Names(names)) => !names.is_empty(),
            (Self::Browse(Browse::Search { .. }), Page::Found { category, region, page, .. }) => {
                *self == Self::Browse(Browse::Search { category: *category, region: *region, page: *page })
            }
            (Self::Browse(Browse::Item(id)), Page::Item(item)) => *id == item.id,
            (Self::Browse(Browse::Bids(id)), Page::Bids { item, .. }) => id == item,
            (Self::Browse(Browse::User(id)), Page::User { user, .. }) => id == user,
            (Self::Trade(asked), Page::Done { trade, .. }) => asked == trade,
            // A user or an item that somebody saw is there for good: only trades can be refused.
            (Self::Trade(_), Page::Refused(_)) => true,
            _ => false,
        }
    }
}

fn path(what: &Browse) -> String {
    match what {
        Browse::Categories => "/categories".into(),
        Browse::Regions => "/regions".into(),
        Browse::Search { category, region: None, page } => format!("/search?category={category}&page={page}"),
        Browse::Search { category, region: Some(region), page } => {
            format!("/search?category={category}&region={region}&page={page}")
        }
        Browse::Item(id) => format!("/items/{id}"),
        Browse::Bids(id) => format!("/items/{id}/bids"),
        Browse::User(id) => format!("/users/{id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        front_end::{Routed, route},
        operation::{Operation, Receipt, Refusal, Registration},
    };

    #[test]
    fn a_front_end_understands_what_is_asked() {
        let browse = [
            Browse::Categories,
            Browse::Regions,
            Browse::Search { category: 1, region: None, page: 2 },
            Browse::Search { category: 1, region: Some(3), page: 0 },
            Browse::Item(4),
            Browse::Bids(5),
            Browse::User(6),
        ];
        let registration = Registration { nickname: "n".into(), password: "p".into(), region: 1 };
        let all = browse.map(Operation::Browse).into_iter().chain([Operation::Trade(Trade::Register(registration))]);
        for operation in all {
            let asked = match operation.clone() {
                Operation::Browse(what) => Asked::Browse(what),
                Operation::Trade(trade) => Asked::Trade(trade),
            };
            let (method, path, body) = asked.request();
            assert_eq!(route(&method, &path.parse().unwrap(), &body), Routed::Operation(operation));
        }
    }

    #[test]
    fn somebody_else_s_page_is_no_answer() {
        let registration = |nickname: &str| {
            let registration = Registration { nickname: nickname.into(), password: "p".into(), region: 1 };
            Trade::Register(registration)
        };
        let done = registration("a").done(Receipt { row: 1 });
        assert!(Asked::Trade(registration("a")).is_answered_by(&done));
        assert!(!Asked::Trade(registration("b")).is_answered_by(&done));
        assert!(!Asked::Form("home").is_answered_by(&done));
        assert!(!Asked::Browse(Browse::Bids(1)).is_answered_by(&Page::Bids { item: 2, bids: Vec::new() }));
        assert!(!Asked::Browse(Browse::User(1)).is_answered_by(&Page::Refused(Refusal::Unknown)));
    }
}
