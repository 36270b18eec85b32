//! What can be asked of the auction and what is answered: RUBiS's operations, as the words between the tiers.
//!
//! A trade (whatever writes) is answered from itself and its [`Receipt`], and from nothing else: whoever has both can
//! give the same answer again, however long ago the trade was.

use serde::{Deserialize, Serialize};

/// Money, in hundredths: sums of it are exact.
pub type Cents = i64;

/// Items in one page of a search.
pub const PAGE_ITEMS: i64 = 20;

/// Bytes of an operation, as the tiers send it to each other.
pub const OPERATION_BYTES_MAX: usize = 16 << 10;

/// One request, without who asks and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Reads.
    Browse(Browse),
    /// Writes, in one transaction.
    Trade(Trade),
}

/// What only reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Browse {
    /// All categories.
    Categories,
    /// All regions.
    Regions,
    /// Open auctions of a category, those of a region's sellers only if one is named.
    Search {
        /// The category.
        category: i64,
        /// The region, or all.
        region: Option<i64>,
        /// Which page, from 0.
        page: i64,
    },
    /// One item.
    Item(i64),
    /// The bids for an item.
    Bids(i64),
    /// A user, with the comments about him.
    User(i64),
}

/// What writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trade {
    /// A new user.
    Register(Registration),
    /// A new item.
    Sell(Sale),
    /// A bid for an item.
    Bid(Bid),
    /// An item at its fixed price.
    Buy(Purchase),
    /// A comment about a user.
    Comment(Comment),
}

/// Who trades. RUBiS asks for the password with every write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Login {
    /// Number of the user.
    pub user: i64,
    /// The user's password.
    pub password: String,
}

/// A new user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Unlike all others.
    pub nickname: String,
    /// For later logins.
    pub password: String,
    /// Where the user lives.
    pub region: i64,
}

/// A new item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    /// The seller.
    pub login: Login,
    /// Name of the item.
    pub name: String,
    /// Its category.
    pub category: i64,
    /// The first bid must reach it.
    pub initial_price: Cents,
    /// For whom does not want to bid.
    pub buy_now: Cents,
    /// How many there are.
    pub quantity: i64,
    /// How long the auction is.
    pub days: i64,
}

/// A bid for an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bid {
    /// The bidder.
    pub login: Login,
    /// What for.
    pub item: i64,
    /// How much.
    pub amount: Cents,
    /// How many.
    pub quantity: i64,
}

/// An item at its fixed price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purchase {
    /// The buyer.
    pub login: Login,
    /// What.
    pub item: i64,
    /// How many.
    pub quantity: i64,
}

/// A comment about a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comment {
    /// Who comments.
    pub login: Login,
    /// About whom.
    pub to: i64,
    /// On the occasion of which item.
    pub item: i64,
    /// Added to the user's rating.
    pub rating: i64,
    /// The words.
    pub text: String,
}

/// All that a trade's answer needs besides the trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Number of the new row.
    pub row: i64,
}

/// What is answered to something that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Page {
    /// Without data: home, and the forms.
    Form(String),
    /// Categories or regions.
    Names(Vec<Named>),
    /// One page of a search.
    Found {
        /// The category that was asked for.
        category: i64,
        /// The region that was asked for.
        region: Option<i64>,
        /// Which page.
        page: i64,
        /// The items.
        items: Vec<Item>,
    },
    /// One item.
    Item(Item),
    /// The bids for an item, the highest first.
    Bids {
        /// The item.
        item: i64,
        /// Bidder and amount.
        bids: Vec<(i64, Cents)>,
    },
    /// A user.
    User {
        /// Number of the user.
        user: i64,
        /// Name of the user.
        nickname: String,
        /// Sum of the ratings.
        rating: i64,
        /// The newest comments.
        comments: Vec<String>,
    },
    /// A trade was carried out: its words and its receipt.
    Done {
        /// What was asked for.
        trade: Trade,
        /// What came of it.
        receipt: Receipt,
    },
    /// Refused, and nothing was changed.
    Refused(Refusal),
}

/// A category or a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// An item, as pages show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Who sells it.
    pub seller: i64,
    /// The first bid must reach it.
    pub initial_price: Cents,
    /// The highest bid, or 0.
    pub max_bid: Cents,
    /// How many bids there are.
    pub bids: i64,
    /// The fixed price.
    pub buy_now: Cents,
    /// How many are left.
    pub quantity: i64,
}

/// Why something was not done. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The thing asked for does not exist.
    #[error("there is no such thing")]
    Unknown,
    /// Not the user's password.
    #[error("user and password do not match")]
    Login,
    /// Another user has the name.
    #[error("the nickname is taken")]
    NicknameTaken,
    /// The auction has ended.
    #[error("the auction is over")]
    Over,
    /// Somebody offered as much.
    #[error("the bid is not above the highest one")]
    TooLow,
    /// Fewer are left.
    #[error("there are not so many left")]
    TooMany,
    /// Nothing sold by this number: no quantity, no price, no rating outside of RUBiS's.
    #[error("a number makes no sense")]
    Number,
}

impl Refusal {
    /// The HTTP status that says so.
    pub fn status(self) -> u16 {
        match self {
            Self::Unknown => 404,
            Self::Login => 403,
            _ => 409,
        }
    }
}

impl Trade {
    /// The page that tells the client of it: of the trade and its receipt, and of nothing else.
    pub fn done(&self, receipt: Receipt) -> Page {
        Page::Done { trade: self.clone(), receipt }
    }
}
