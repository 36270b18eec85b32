//! A mid tier as a real process, killed again and again while clients trade: what they were told stays true. Nothing
//! recovers it here: what it had in hand is unclear, and may be in the database once.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use crate::stage::{self, Stage};
use auction::check::check;
use auction::clients::{self, Crowd, Mix, Order};
use auction::front_end::{self, FrontEnd};
use tokio::net::{TcpListener, TcpStream};

/// How long clients trade.
const LENGTH: Duration = Duration::from_secs(8);
/// Bids that a mid tier lives to see.
const LIFE: i64 = 10;

/// A mid tier that ends with its value.
struct Process(Child);

impl Process {
    async fn start(listen: SocketAddr, database: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_auction"))
            .args(["mt", "--listen", &listen.to_string(), "--database", database])
            .env("BACKDOORS_LOG", "error")
            .spawn()
            .unwrap();
        let mut process = Self(child);
        while TcpStream::connect(listen).await.is_err() {
            assert!(process.0.try_wait().unwrap().is_none(), "the mid tier has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn bids(stage: &Stage) -> i64 {
    stage.count("SELECT count(*) FROM bids").await
}

#[tokio::test]
async fn a_mid_tier_killed_at_any_moment_loses_nothing_acknowledged_and_doubles_nothing() {
    let stage = Stage::set().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mid_tier = free.local_addr().unwrap();
    drop(free);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front_ends = vec![listener.local_addr().unwrap()];
    tokio::spawn(front_end::serve(Arc::new(FrontEnd::new(&[mid_tier]).unwrap()), listener));

    let crowd = Crowd { seed: 1, clients: 20, users: stage::SIZE.users() };
    // They think for some milliseconds: there is always something in hand.
    let order = Order { front_ends, crowd, mix: Mix::Bid, length: LENGTH, slow_down: 0.002, ramp: Duration::ZERO };
    let trading = tokio::spawn(async move { clients::run(&order).await.unwrap() });
    while !trading.is_finished() {
        let process = Process::start(mid_tier, &stage.address()).await;
        let born = bids(&stage).await;
        while bids(&stage).await < born + LIFE && !trading.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
    }
    let (report, attempts) = trading.await.unwrap();
    assert!(report.failures > 0, "nobody noticed: {report:?}");
    assert_eq!(report.mismatched, 0, "{report:?}");
    let findings = check(&stage.client().await, &attempts).await.unwrap();
    assert!(findings.is_clean(), "{findings:?}");
    assert!(findings.acknowledged > 0 && findings.unclear > 0, "{findings:?}");
}
