//! What a user does next, as a Markov chain: the tables `browse.mix`, `bid.mix` and `register.mix` are data, and read
//! once.

use std::{collections::BTreeMap, str::FromStr};

use rand::Rng;

/// A page that a user may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are those of the tables")]
pub enum State {
    Home,
    Categories,
    Regions,
    SearchCategory,
    SearchRegion,
    Item,
    Bids,
    User,
    RegisterForm,
    Register,
    SellForm,
    Sell,
    BidForm,
    Bid,
    BuyForm,
    Buy,
    CommentForm,
    Comment,
    /// The user leaves, and another one comes.
    End,
}

/// Each state by its name in the tables.
const STATES: [(&str, State); 19] = [
    ("home", State::Home),
    ("categories", State::Categories),
    ("regions", State::Regions),
    ("search-category", State::SearchCategory),
    ("search-region", State::SearchRegion),
    ("item", State::Item),
    ("bids", State::Bids),
    ("user", State::User),
    ("register-form", State::RegisterForm),
    ("register", State::Register),
    ("sell-form", State::SellForm),
    ("sell", State::Sell),
    ("bid-form", State::BidForm),
    ("bid", State::Bid),
    ("buy-form", State::BuyForm),
    ("buy", State::Buy),
    ("comment-form", State::CommentForm),
    ("comment", State::Comment),
    ("end", State::End),
];

impl State {
    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        STATES.iter().find(|(_, state)| *state == self).expect("every state has a name").0
    }

    /// Whether it writes.
    pub fn trades(self) -> bool {
        matches!(self, Self::Register | Self::Sell | Self::Bid | Self::Buy | Self::Comment)
    }
}

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// Nobody trades.
    Browse,
    /// About 15 of 100 requests trade.
    Bid,
    /// About 30 of 100 requests trade, and two of three trades register a user.
    Register,
}

impl Mix {
    /// Its table.
    pub fn table(self) -> Table {
        let text = match self {
            Self::Browse => include_str!("browse.mix"),
            Self::Bid => include_str!("bid.mix"),
            Self::Register => include_str!("register.mix"),
        };
        text.parse().expect("the tables of this program are tested")
    }
}

/// From each state to the next ones, in percent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    rows: BTreeMap<State, Vec<(State, u32)>>,
}

/// Why a text is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    /// A line without the form of one.
    #[error("`{0}`: a line is `from: to percent, to percent`")]
    Line(String),
    /// A name that is none.
    #[error("`{0}` is no state")]
    State(String),
    /// The numbers of a line do not add up.
    #[error("the percents of `{0}` are {1} together, not 100")]
    Sum(String, u32),
    /// A state can be reached that has no line.
    #[error("`{0}` has no line")]
    Missing(&'static str),
}

impl FromStr for Table {
    type Err = BadTable;

    fn from_str(text: &str) -> Result<Self, BadTable> {
        let mut rows = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let bad = || BadTable::Line(line.to_owned());
            let (from, to) = line.split_once(':').ok_or_else(bad)?;
            let to = to.split(',').map(|next| {
                let (name, percent) = next.trim().split_once(' ').ok_or_else(bad)?;
                Ok((state(name)?, percent.trim().parse().map_err(|_| bad())?))
            });
            let to: Vec<(State, u32)> = to.collect::<Result<_, BadTable>>()?;
            let sum = to.iter().map(|(_, percent)| percent).sum();
            if sum != 100 {
                return Err(BadTable::Sum(from.to_owned(), sum));
            }
            rows.insert(state(from)?, to);
        }
        let reached = rows.values().flatten().map(|(next, _)| *next);
        match reached.chain([State::Home]).find(|next| !rows.contains_key(next)) {
            Some(missing) => Err(BadTable::Missing(missing.name())),
            None => Ok(Self { rows }),
        }
    }
}

fn state(name: &str) -> Result<State, BadTable> {
    let found = STATES.iter().find(|(known, _)| *known == name.trim());
    found.map(|(_, state)| *state).ok_or_else(|| BadTable::State(name.to_owned()))
}

impl Table {
    /// What follows `from`.
    pub fn next(&self, from: State, rng: &mut impl Rng) -> State {
        let row = self.rows.get(&from).unwrap_or(&self.rows[&State::Home]);
        let mut left: u32 = rng.random_range(0..100);
        for (next, percent) in row {
            match left.checked_sub(*percent) {
                Some(rest) => left = rest,
                None => return *next,
            }
        }
        unreachable!("the percents of a row are 100 together")
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// How much of all requests are those that `wanted` holds for.
    fn share(mix: Mix, wanted: impl Fn(State) -> bool) -> f64 {
        const REQUESTS: usize = 200_000;
        let (table, mut rng) = (mix.table(), StdRng::seed_from_u64(1));
        let mut at = State::Home;
        let mut requests = std::iter::repeat_with(|| {
            at = table.next(at, &mut rng);
            at
        });
        let visited = requests.by_ref().filter(|state| *state != State::End).take(REQUESTS);
        visited.filter(|state| wanted(*state)).count() as f64 / REQUESTS as f64
    }

    fn trades(mix: Mix) -> f64 {
        share(mix, State::trades)
    }

    #[test]
    fn nobody_who_browses_trades_and_of_bidders_requests_about_15_percent_do() {
        assert_eq!(trades(Mix::Browse), 0.0);
        let share = trades(Mix::Bid);
        assert!((0.13..0.17).contains(&share), "{share}");
    }

    #[test]
    fn of_the_registering_mix_about_30_percent_trade_and_most_of_these_register() {
        let (trades, registrations) = (trades(Mix::Register), share(Mix::Register, |state| state == State::Register));
        assert!((0.28..0.32).contains(&trades), "{trades}");
        assert!((0.6..0.75).contains(&(registrations / trades)), "{registrations} of {trades}");
    }

    #[test]
    fn tables_with_mistakes_are_refused() {
        let check = |text: &str, expected| assert_eq!(text.parse::<Table>(), Err(expected));
        check("home home 100", BadTable::Line("home home 100".into()));
        check("home: hoem 100", BadTable::State("hoem".into()));
        check("home: home 90", BadTable::Sum("home".into(), 90));
        check("home: end 100", BadTable::Missing("end"));
        check("", BadTable::Missing("home"));
    }
}
