//! A small auction in a PostgreSQL of its own, gone with the test.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use auction::database::{self, Server, Size};
use auction::mid_tier::MidTier;
use auction::operation::{Bid, Comment, Login, Purchase, Registration, Sale, Trade};
use tokio_postgres::Client;

pub const SIZE: Size = Size { items: 200 };
const CONNECTIONS_MAX: u32 = 40;

pub struct Stage {
    server: Server,
    // After the server, which writes into it.
    _folder: Folder,
}

/// Short: the name of a Unix socket lies in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stage {
    pub async fn set() -> Self {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let folder = Folder(std::env::temp_dir().join(format!("auction-{}-{number}", std::process::id())));
        let server = Server::start(&folder.0, None, CONNECTIONS_MAX).unwrap();
        let stage = Self { server, _folder: folder };
        database::generate(&mut stage.client().await, SIZE, 1).await.unwrap();
        stage
    }

    pub fn address(&self) -> String {
        self.server.address()
    }

    pub fn mid_tier(&self) -> Arc<MidTier> {
        Arc::new(MidTier::new(&self.address(), 4).unwrap())
    }

    pub async fn client(&self) -> Client {
        database::connect(&self.address()).await.unwrap()
    }

    pub async fn count(&self, text: &str) -> i64 {
        self.client().await.query_one(text, &[]).await.unwrap().get(0)
    }
}

/// A trade of each kind that will be carried out.
pub fn one_of_each() -> [Trade; 5] {
    let login = Login { user: 1, password: "password1".into() };
    let registration = Registration { nickname: "n".into(), password: "p".into(), region: 1 };
    let (initial_price, buy_now) = (100, 300);
    let sale =
        Sale { login: login.clone(), name: "i".into(), category: 1, initial_price, buy_now, quantity: 2, days: 7 };
    let bid = Bid { login: login.clone(), item: 2, amount: 1_000_000, quantity: 1 };
    let purchase = Purchase { login: login.clone(), item: 3, quantity: 1 };
    let comment = Comment { login, to: 2, item: 3, rating: 4, text: "c".into() };
    [Trade::Register(registration), Trade::Sell(sale), Trade::Bid(bid), Trade::Buy(purchase), Trade::Comment(comment)]
}
