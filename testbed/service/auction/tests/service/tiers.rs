//! Front end and mid tier over real connections, of which one breaks at the worst moment: after the request arrived,
//! and before its answer did.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::stage::{self, Stage};
use auction::clients::Asked;
use auction::front_end::{self, Envelope, FrontEnd};
use auction::http::{self, NONCE};
use auction::mid_tier::{self, MidTier};
use auction::operation::{Bid, Browse, Login, Page, Trade};
use http_body_util::Full;
use hyper::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn serve_mid_tier(mid_tier: Arc<MidTier>) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(mid_tier::serve(mid_tier, listener));
    address
}

async fn serve_front_end(mid_tiers: &[SocketAddr]) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(front_end::serve(Arc::new(FrontEnd::new(mid_tiers).unwrap()), listener));
    address
}

/// A wire to several servers: the first connection goes to the first, and so on. With a number, it breaks when the
/// answer to that request is on its way, of which not a byte arrives. Counts the breaks.
async fn wire(to: [(SocketAddr, Option<u32>); 2]) -> (SocketAddr, Arc<AtomicU32>) {
    let (listener, address) = listener().await;
    let breaks = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&breaks);
    tokio::spawn(async move {
        for (server, breaks_at) in to {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(server).await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                if carry(near, far, breaks_at).await {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (address, breaks)
}

/// Carries bytes both ways; true if it broke as it should.
async fn carry(mut near: TcpStream, mut far: TcpStream, breaks_at: Option<u32>) -> bool {
    let (mut requests, mut there, mut back) = (0, vec![0; 4096], vec![0; 4096]);
    loop {
        tokio::select! {
            length = near.read(&mut there) => {
                let bytes = &there[..length.unwrap_or(0)];
                if bytes.is_empty() || far.write_all(bytes).await.is_err() {
                    return false;
                }
                // A body does not begin like that.
                requests += u32::from(bytes.starts_with(b"POST"));
            }
            length = far.read(&mut back) => {
                let bytes = &back[..length.unwrap_or(0)];
                if breaks_at == Some(requests) {
                    return true;
                }
                if bytes.is_empty() || near.write_all(bytes).await.is_err() {
                    return false;
                }
            }
        }
    }
}

async fn ask(front_end: SocketAddr, asked: &Asked) -> (u16, Envelope<Page>) {
    let (method, path, body) = asked.request();
    let request = Request::builder().method(method).uri(path).header("host", "auction").header(NONCE, "n");
    let request = request.body(Full::from(body)).unwrap();
    let mut connection = http::connect(front_end).await.unwrap();
    let reply = http::ask(&mut connection, request).await.unwrap();
    (reply.head.status.as_u16(), serde_json::from_slice(&reply.body).unwrap())
}

fn bid(amount: i64) -> Asked {
    let login = Login { user: 1, password: "password1".into() };
    Asked::Trade(Trade::Bid(Bid { login, item: 1, amount, quantity: 1 }))
}

async fn bids(stage: &Stage) -> i64 {
    stage.count("SELECT count(*) FROM bids WHERE id > (SELECT bids FROM ids)").await
}

#[tokio::test]
async fn pages_go_through_both_tiers_and_carry_the_client_s_nonce() {
    let stage = Stage::set().await;
    let front_end = serve_front_end(&[serve_mid_tier(stage.mid_tier()).await]).await;
    let all = [
        Asked::Form("home"),
        Asked::Form("bid"),
        Asked::Browse(Browse::Categories),
        Asked::Browse(Browse::Regions),
        Asked::Browse(Browse::Search { category: 1, region: None, page: 0 }),
        Asked::Browse(Browse::Search { category: 1, region: Some(1), page: 0 }),
        Asked::Browse(Browse::Item(1)),
        Asked::Browse(Browse::Bids(1)),
        Asked::Browse(Browse::User(1)),
    ];
    for asked in all.into_iter().chain(stage::one_of_each().map(Asked::Trade)) {
        let (status, reply) = ask(front_end, &asked).await;
        assert_eq!((status, reply.nonce.as_str()), (200, "n"), "{asked:?}");
        let page = reply.page.expect("a page");
        assert!(asked.is_answered_by(&page), "{asked:?}: {page:?}");
    }
    let (status, _) = ask(front_end, &Asked::Browse(Browse::Item(1 << 40))).await;
    assert_eq!(status, 404);
}

/// Reads over one connection, and then bids over it while it breaks; a second connection goes to `then`.
async fn check(stage: &Stage, first: SocketAddr, then: SocketAddr, breaks_at: u32, expected: u16) {
    let (address, breaks) = wire([(first, Some(breaks_at)), (then, None)]).await;
    let front_end = serve_front_end(&[address]).await;
    if breaks_at == 2 {
        assert_eq!(ask(front_end, &Asked::Browse(Browse::Item(1))).await.0, 200);
    }
    let (status, reply) = ask(front_end, &bid(1_000_000)).await;
    assert_eq!((status, reply.page.is_some()), (expected, expected == 200));
    assert_eq!((bids(stage).await, breaks.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn an_answer_that_is_lost_on_its_way_is_asked_for_again_and_nothing_is_done_twice() {
    let stage = Stage::set().await;
    let mid_tier = serve_mid_tier(stage.mid_tier()).await;
    check(&stage, mid_tier, mid_tier, 2, 200).await;
}

#[tokio::test]
async fn another_life_of_a_mid_tier_does_not_do_again_what_the_first_one_did() {
    let stage = Stage::set().await;
    let (first, second) = (serve_mid_tier(stage.mid_tier()).await, serve_mid_tier(stage.mid_tier()).await);
    check(&stage, first, second, 2, 503).await;
}

#[tokio::test]
async fn the_first_request_of_all_can_be_asked_again_since_the_life_is_known_before_it() {
    let stage = Stage::set().await;
    let mid_tier = serve_mid_tier(stage.mid_tier()).await;
    check(&stage, mid_tier, mid_tier, 1, 200).await;
}

#[tokio::test]
async fn a_mid_tier_that_cannot_be_reached_is_passed_over() {
    let stage = Stage::set().await;
    let (closed, nobody) = listener().await;
    drop(closed);
    let front_end = serve_front_end(&[nobody, serve_mid_tier(stage.mid_tier()).await]).await;
    // Each of them would be the first one's turn or the second's.
    for amount in [1_000_000, 2_000_000] {
        assert_eq!(ask(front_end, &bid(amount)).await.0, 200);
    }
    assert_eq!(bids(&stage).await, 2);
}
