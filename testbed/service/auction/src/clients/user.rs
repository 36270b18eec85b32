//! An emulated user: what it asks for next, out of a table, a seed, and the pages it has seen. No socket, no clock.
//!
//! Whatever it trades can be told from everything else that is ever traded, so that the check finds each trade again
//! without a mark in the database: names and comments carry the user's number and a count; of one item the same user
//! bids no amount twice and buys once. So no two emulated users may share a user of the database.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    asked::Asked,
    mix::{State, Table},
};
use crate::{
    database::generated_password,
    operation::{Bid, Browse, Cents, Comment, Item, Login, PAGE_ITEMS, Page, Purchase, Registration, Sale, Trade},
};

/// Mean of the time to think, and the longest, as TPC-W has them.
const THINK_MEAN: Duration = Duration::from_secs(7);
const THINK_MAX: Duration = Duration::from_secs(70);
/// The most a bid is above what was seen.
const STEP_MAX: Cents = 1000;

/// Who there is.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Everything random follows from it.
    pub seed: u64,
    /// How many emulated users there are.
    pub clients: u32,
    /// Users that the generator made, numbered from 1; at least one for each emulated user.
    pub users: i64,
}

/// One emulated user.
#[derive(Debug)]
pub struct User {
    crowd: Crowd,
    number: u32,
    table: Table,
    rng: StdRng,
    state: State,
    login: Login,
    categories: Vec<i64>,
    regions: Vec<i64>,
    /// The search whose pages are turned.
    search: Option<(i64, Option<i64>, i64)>,
    found: Vec<Item>,
    item: Option<Item>,
    /// The highest that this emulated user offered, by user and item.
    offered: HashMap<(i64, i64), Cents>,
    bought: HashSet<(i64, i64)>,
    /// Names given so far.
    named: u64,
}

impl User {
    /// Number `number` of a crowd.
    pub fn new(crowd: Crowd, number: u32, table: Table) -> Self {
        let rng = StdRng::seed_from_u64(crowd.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(number));
        let nobody = Login { user: 0, password: String::new() };
        let mut user = Self {
            crowd,
            number,
            table,
            rng,
            state: State::End,
            login: nobody,
            categories: Vec::new(),
            regions: Vec::new(),
            search: None,
            found: Vec::new(),
            item: None,
            offered: HashMap::new(),
            bought: HashSet::new(),
            named: 0,
        };
        user.arrive();
        user
    }

    /// How long it thinks before the next request: negative exponential, cut.
    pub fn think(&mut self, slow_down: f64) -> Duration {
        let uniform: f64 = self.rng.random();
        THINK_MEAN.mul_f64(-(1.0 - uniform).ln()).min(THINK_MAX).mul_f64(slow_down)
    }

    /// The next request, or none: the user leaves and closes its connection, and another one is there.
    pub fn ask(&mut self) -> Option<Asked> {
        self.state = self.table.next(self.state, &mut self.rng);
        if self.state == State::End {
            self.arrive();
            return None;
        }
        Some(self.asked())
    }

    /// Sees the answer to what it asked for last.
    pub fn see(&mut self, page: &Page) {
        match page {
            Page::Names(names) => {
                let ids = names.iter().map(|named| named.id).collect();
                if self.state == State::Regions { self.regions = ids } else { self.categories = ids }
            }
            Page::Found { items, .. } => {
                self.found.clone_from(items);
                self.item = self.any_found();
            }
            Page::Item(item) => self.item = Some(item.clone()),
            Page::Done { trade: Trade::Register(new), receipt } => {
                self.login = Login { user: receipt.row, password: new.password.clone() };
            }
            _ => {}
        }
    }

    /// A user of the database comes to the site.
    fn arrive(&mut self) {
        let clients = i64::from(self.crowd.clients);
        let round = self.rng.random_range(0..(self.crowd.users / clients).max(1));
        let user = 1 + i64::from(self.number) + clients * round;
        self.login = Login { user, password: generated_password(user) };
        (self.search, self.item) = (None, None);
        self.found.clear();
    }

    /// What the state asks for; or, where something is missing for that, what comes before.
    fn asked(&mut self) -> Asked {
        match self.state {
            State::Home | State::End => Asked::Form("home"),
            State::RegisterForm => Asked::Form("register"),
            State::SellForm => Asked::Form("sell"),
            State::BidForm => Asked::Form("bid"),
            State::BuyForm => Asked::Form("buy"),
            State::CommentForm => Asked::Form("comment"),
            State::Categories => Asked::Browse(Browse::Categories),
            State::Regions => Asked::Browse(Browse::Regions),
            State::SearchCategory => self.search(false),
            State::SearchRegion => self.search(true),
            State::Register => self.register(),
            State::Sell => self.sell(),
            State::Item | State::Bids | State::User | State::Bid | State::Buy | State::Comment => self.about_an_item(),
        }
    }

    /// The next page of a search, or another one.
    fn search(&mut self, of_region: bool) -> Asked {
        if self.categories.is_empty() {
            self.state = State::Categories;
            return Asked::Browse(Browse::Categories);
        }
        if of_region && self.regions.is_empty() {
            self.state = State::Regions;
            return Asked::Browse(Browse::Regions);
        }
        let (category, region, page) = match self.search {
            Some((category, region, page))
                if region.is_some() == of_region && self.found.len() == PAGE_ITEMS as usize =>
            {
                (category, region, page + 1)
            }
            _ => {
                let region = of_region.then(|| self.regions[self.rng.random_range(0..self.regions.len())]);
                (self.categories[self.rng.random_range(0..self.categories.len())], region, 0)
            }
        };
        self.search = Some((category, region, page));
        Asked::Browse(Browse::Search { category, region, page })
    }

    fn about_an_item(&mut self) -> Asked {
        if self.state == State::Item {
            // Another one of those found, sometimes.
            self.item = self.any_found().or(self.item.take());
        }
        let Some(item) = self.item.clone() else {
            self.state = State::SearchCategory;
            return self.search(false);
        };
        let sold = (self.login.user, item.id);
        match self.state {
            State::Bids => Asked::Browse(Browse::Bids(item.id)),
            State::User => Asked::Browse(Browse::User(item.seller)),
            State::Bid => self.bid(&item),
            State::Comment => self.comment(&item),
            State::Buy if self.bought.insert(sold) => {
                Asked::Trade(Trade::Buy(Purchase { login: self.login.clone(), item: item.id, quantity: 1 }))
            }
            _ => Asked::Browse(Browse::Item(item.id)),
        }
    }

    fn bid(&mut self, item: &Item) -> Asked {
        let offered = self.offered.entry((self.login.user, item.id)).or_default();
        let amount = item.max_bid.max(item.initial_price).max(*offered) + self.rng.random_range(1..=STEP_MAX);
        *offered = amount;
        Asked::Trade(Trade::Bid(Bid { login: self.login.clone(), item: item.id, amount, quantity: 1 }))
    }

    fn comment(&mut self, item: &Item) -> Asked {
        let (text, rating) = (self.name(), self.rng.random_range(-5..=5));
        let login = self.login.clone();
        Asked::Trade(Trade::Comment(Comment { login, to: item.seller, item: item.id, rating, text }))
    }

    fn register(&mut self) -> Asked {
        let (nickname, region) = (self.name(), self.rng.random_range(1..=20));
        let password = format!("of {nickname}");
        Asked::Trade(Trade::Register(Registration { nickname, password, region }))
    }

    fn sell(&mut self) -> Asked {
        let (name, initial_price) = (self.name(), self.rng.random_range(100..=100_000));
        let (category, quantity) = (self.rng.random_range(1..=20), self.rng.random_range(1..=5));
        let (login, buy_now) = (self.login.clone(), 3 * initial_price);
        Asked::Trade(Trade::Sell(Sale { login, name, category, initial_price, buy_now, quantity, days: 7 }))
    }

    /// A name that nobody else gives.
    fn name(&mut self) -> String {
        self.named += 1;
        format!("s{}c{}n{}", self.crowd.seed, self.number, self.named)
    }

    fn any_found(&mut self) -> Option<Item> {
        (!self.found.is_empty()).then(|| self.found[self.rng.random_range(0..self.found.len())].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clients::mix::Mix,
        operation::{Named, Receipt},
    };

    const CROWD: Crowd = Crowd { seed: 5, clients: 3, users: 30 };

    fn item(id: i64) -> Item {
        let name = String::new();
        Item { id, name, seller: 1, initial_price: 10, max_bid: 0, bids: 0, buy_now: 30, quantity: 9 }
    }

    /// All trades of a user who finds the same few items again and again. Each is done as the one of its number.
    fn trades(number: u32, mix: Mix) -> Vec<Trade> {
        let mut user = User::new(CROWD, number, mix.table());
        let mut trades: Vec<Trade> = Vec::new();
        for _ in 0..20_000 {
            match user.ask() {
                Some(Asked::Browse(Browse::Categories | Browse::Regions)) => {
                    user.see(&Page::Names(vec![Named { id: 1, name: String::new() }]));
                }
                Some(Asked::Browse(Browse::Search { category, region, page })) => {
                    user.see(&Page::Found { category, region, page, items: (1..=3).map(item).collect() });
                }
                Some(Asked::Trade(trade)) => {
                    user.see(&trade.done(Receipt { row: row(number, trades.len()) }));
                    trades.push(trade);
                }
                _ => {}
            }
        }
        trades
    }

    /// Where the trade of this place is, as no other one's of any emulated user.
    fn row(number: u32, place: usize) -> i64 {
        1_000_000 * i64::from(number + 1) + place as i64
    }

    #[test]
    fn no_two_trades_are_alike() {
        for mix in [Mix::Bid, Mix::Register] {
            let all: Vec<Trade> = (0..CROWD.clients).flat_map(|number| trades(number, mix)).collect();
            let distinct: HashSet<String> = all.iter().map(|trade| format!("{trade:?}")).collect();
            assert_eq!(all.len(), distinct.len());
            assert!(all.len() > 1000, "{}", all.len());
        }
    }

    #[test]
    fn who_has_registered_trades_under_the_new_name() {
        let trades = trades(0, Mix::Register);
        let (mut registered, mut by_them) = (HashMap::new(), 0);
        for (place, trade) in trades.iter().enumerate() {
            match trade {
                Trade::Register(new) => drop(registered.insert(row(0, place), new.password.clone())),
                Trade::Sell(Sale { login, .. }) | Trade::Bid(Bid { login, .. }) => {
                    let known = registered.get(&login.user);
                    assert!(known.is_none_or(|password| *password == login.password), "{trade:?}");
                    by_them += usize::from(known.is_some());
                }
                _ => {}
            }
        }
        assert!(by_them > 100, "{by_them}");
    }

    #[test]
    fn the_same_seed_gives_the_same_user() {
        assert_eq!(trades(0, Mix::Bid), trades(0, Mix::Bid));
        assert_ne!(trades(0, Mix::Bid), trades(1, Mix::Bid));
    }

    #[test]
    fn it_thinks_seven_seconds_on_the_average_and_seventy_at_most() {
        let mut user = User::new(CROWD, 0, Mix::Bid.table());
        let thought: Vec<f64> = (0..100_000).map(|_| user.think(1.0).as_secs_f64()).collect();
        let mean = thought.iter().sum::<f64>() / thought.len() as f64;
        assert!((6.9..7.1).contains(&mean), "{mean}");
        assert!(thought.iter().all(|time| *time <= 70.0));
        assert!(thought.iter().any(|time| *time > 40.0));
        assert!(user.think(0.1) <= Duration::from_secs(7));
    }
}
