//! What a tier makes of the boxes of a dead one: sessions are handed over as a spare does it, to a tier in this
//! process, with a request in the log and a part of its answer said already.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::stage::Stage;
use auction::front_end::{self, FrontEnd};
use auction::http::{self, LIFE, Listener, NOT_DONE, REQUEST_ID};
use auction::mid_tier::{self, MidTier};
use auction::operation::{Bid, Browse, Login, Operation, Trade};
use auction::request_id::{Names, RequestId};
use auction::snapshot::{InHand, Kept, Note, Said, Sent};
use contbox::service::{BoxClient, BoxService, Handover};
use contbox::{ContinuationBox, Geometry, Opening, Pool, RecoverableListener, Snapshot, Testament, testament};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

const PATIENCE: Duration = Duration::from_secs(60);
/// What a mid tier that is dead was called.
const DEAD: u64 = 0xdead;

/// A box service, and an application's way to it.
struct Boxes {
    service: Arc<BoxService>,
    path: PathBuf,
}

impl Boxes {
    fn new() -> Self {
        static SERVICES: AtomicU32 = AtomicU32::new(0);
        let number = SERVICES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("auction-{}-box-{number}", std::process::id()));
        let (fd, pool) = Pool::memfd(Geometry::standard(80), u64::from(number)).unwrap();
        Self { service: Arc::new(BoxService::start(&path, pool, fd).unwrap()), path }
    }

    async fn listener(&self) -> (Listener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, handed) = BoxClient::connect(&self.path, "test", &[address.port()]).unwrap();
        let ready = Arc::clone(&client);
        assert!(tokio::task::spawn_blocking(move || ready.wait_ready(PATIENCE)).await.unwrap());
        (Listener::Recoverable(RecoverableListener::new(listener, client, handed)), address)
    }

    /// Hands a session over: `words` about the request in its log, of whose answer `said` bytes were said. What its
    /// client hears then; nothing if the connection was reset.
    async fn resume(&self, at: SocketAddr, (kind, words): (u8, &[u8]), request: &str, said: u64) -> Option<Vec<u8>> {
        // Stands for a rebuilt socket, which is live as well.
        let beside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, socket) = tokio::join!(TcpStream::connect(beside.local_addr().unwrap()), beside.accept());
        let (mut client, (socket, peer)) = (client.unwrap(), socket.unwrap());
        let session = if kind == BOUNDARY { words } else { &[] };
        let mut lws = vec![kind, 0, 0, 0, 0, 0, 0, 0, 0];
        lws.extend_from_slice(&(session.len() as u32).to_le_bytes());
        lws.extend_from_slice(words);
        let snapshot = Snapshot { lws, ..Snapshot::default() };
        let opening = Opening { snapshot, logged: request.into(), ..Opening::fresh(0, at, peer) };
        let socket = OwnedFd::from(socket.into_std().unwrap());
        let service = Arc::clone(&self.service);
        let handover = Handover { opening, discard: said, socket, channels: Vec::new() };
        let resumed = tokio::task::spawn_blocking(move || service.resume(vec![handover], PATIENCE));
        resumed.await.unwrap().remove(0).map_err(|declined| declined.why).unwrap();
        let mut heard = Vec::new();
        match tokio::time::timeout(PATIENCE, client.read_to_end(&mut heard)).await.expect("an answer or an end") {
            Ok(_) => Some(heard),
            Err(why) => {
                assert_eq!(why.kind(), std::io::ErrorKind::ConnectionReset);
                assert!(heard.is_empty(), "{}", String::from_utf8_lossy(&heard));
                None
            }
        }
    }
}

/// Kinds of snapshots of an HTTP session: before a request, and before one with words about it.
const BOUNDARY: u8 = 0xb1;
const NOTE: u8 = 0xb5;

async fn serve(mid_tier: &Arc<MidTier>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(mid_tier::serve(Arc::clone(mid_tier), listener));
    address
}

/// Asks a mid tier; status and headers of the answer.
async fn ask(
    at: SocketAddr,
    id: RequestId,
    operation: &Operation,
    meant: Option<u64>,
) -> (u16, hyper::HeaderMap, Bytes) {
    let mut request = Request::post("/").header("host", "t").header(REQUEST_ID, id.to_string());
    if let Some(life) = meant {
        request = request.header(LIFE, format!("{life:016x}"));
    }
    let request = request.body(Full::from(serde_json::to_vec(operation).unwrap())).unwrap();
    let mut connection = http::connect(at).await.unwrap();
    let reply = http::ask(&mut connection, request).await.unwrap();
    (reply.head.status.as_u16(), reply.head.headers, reply.body)
}

fn bid(amount: i64) -> Operation {
    let login = Login { user: 1, password: "password1".into() };
    Operation::Trade(Trade::Bid(Bid { login, item: 1, amount, quantity: 1 }))
}

fn words(kept: Kept) -> Testament {
    let (_fd, pool) = Pool::memfd(Geometry::standard(1), 7).unwrap();
    let words = kept.to_bytes();
    let mut lws = vec![BOUNDARY, 0, 0, 0, 0, 0, 0, 0, 0];
    lws.extend_from_slice(&(words.len() as u32).to_le_bytes());
    lws.extend_from_slice(&words);
    let ends = ("10.0.0.1:8100".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
    let opening = Opening { snapshot: Snapshot { lws, ..Snapshot::default() }, ..Opening::fresh(1, ends.0, ends.1) };
    std::mem::forget(ContinuationBox::create(pool.slot(0).unwrap(), &opening).unwrap());
    testament::of_image(&pool.geometry(), &pool.image()).remove(0)
}

const ITEM: Operation = Operation::Browse(Browse::Item(1));
const GET_ITEM: &str = "GET /items/1 HTTP/1.1\r\nhost: t\r\nx-nonce: n\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_begun_is_completed_with_the_same_bytes_or_its_session_is_reset() {
    let stage = Stage::set().await;
    let (first, names) = (stage.mid_tier(), Names::new().unwrap());
    let to = serve(&first).await;
    let id = names.next();
    let (_, head, page) = ask(to, id, &ITEM, None).await;
    let life = auction::request_id::incarnation_from(head[LIFE].to_str().unwrap()).unwrap();
    let sent = Some(Sent { to, life });
    let in_hand = InHand { id, sent, said: Some(Said::of(200, Some(&page))), note: None };
    // The page is another one from here on.
    assert_eq!(ask(to, names.next(), &bid(1_000_000), None).await.0, 200);

    let boxes = Boxes::new();
    let (listener, at) = boxes.listener().await;
    tokio::spawn(front_end::serve(Arc::new(FrontEnd::new(&[to]).unwrap()), listener));
    let resume = async |in_hand: InHand, said| boxes.resume(at, (NOTE, &in_hand.to_bytes()), GET_ITEM, said).await;
    // The mid tier lives, and says the same again.
    let rest = resume(in_hand, 1).await.unwrap();
    let whole = [b"H", &rest[..]].concat();
    let text = String::from_utf8_lossy(&whole).into_owned();
    assert!(
        text.contains(&id.to_string()) && text.ends_with(&format!("{}}}", String::from_utf8_lossy(&page))),
        "{text}"
    );
    for said in [9, whole.len() / 2, whole.len() - 1] {
        assert_eq!(resume(in_hand, said as u64).await.unwrap(), whole[said..], "after {said} bytes");
    }
    // What was said is not what would be said now, as when the mid tier died, too.
    let other = InHand { said: Some(Said::of(200, Some(b"another page"))), ..in_hand };
    for said in [1, whole.len() - 1] {
        assert_eq!(resume(other, said as u64).await, None, "after {said} bytes");
    }
    assert!(resume(other, 0).await.is_some(), "nothing was said yet: any answer is the answer");
    assert_eq!(resume(InHand { said: None, ..in_hand }, 5).await, None, "what was said is unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_end_asks_for_a_dead_one_under_the_same_name_and_nothing_is_done_twice() {
    let stage = Stage::set().await;
    let (mid_tier, names) = (stage.mid_tier(), Names::new().unwrap());
    let to = serve(&mid_tier).await;
    let id = names.next();
    let (_, head, page) = ask(to, id, &bid(1_000_000), None).await;
    let life = auction::request_id::incarnation_from(head[LIFE].to_str().unwrap()).unwrap();
    let boxes = Boxes::new();
    let (listener, at) = boxes.listener().await;
    tokio::spawn(front_end::serve(Arc::new(FrontEnd::new(&[to]).unwrap()), listener));
    let Operation::Trade(Trade::Bid(bid)) = bid(1_000_000) else { unreachable!() };
    let body = serde_json::to_string(&bid).unwrap();
    let request =
        format!("POST /bids HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let in_hand = InHand { sent: Some(Sent { to, life }), ..InHand::new(id) };
    let heard = boxes.resume(at, (NOTE, &in_hand.to_bytes()), &request, 0).await.unwrap();
    let heard = String::from_utf8(heard).unwrap();
    assert!(heard.starts_with("HTTP/1.1 200") && heard.contains(std::str::from_utf8(&page).unwrap()), "{heard}");
    assert_eq!(stage.count("SELECT count(*) FROM bids WHERE bid = 1000000").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mid_tier_carries_out_for_a_dead_one_only_what_that_one_cannot_have_done() {
    let stage = Stage::set().await;
    let (spare, names, boxes) = (stage.mid_tier(), Names::new().unwrap(), Boxes::new());
    let (listener, at) = boxes.listener().await;
    tokio::spawn(mid_tier::serve(Arc::clone(&spare), listener));
    // Somebody had committed, and nobody has heard of it.
    let noted = names.next();
    let done = ask(serve(&stage.mid_tier()).await, noted, &bid(1_000_000), None).await;
    let note = Note::from_text(done.1[http::NOTE].to_str().unwrap()).unwrap();
    let told = words(Kept { life: DEAD, noted: Some((noted, note)) });

    spare.inherit(&Testament { complete: false, ..told.clone() }, &Handle::current());
    let answered = ask(at, noted, &bid(1_000_000), None).await;
    assert_eq!((answered.0, answered.2), (200, done.2), "a note counts, wherever it comes from");
    let unknown = tokio::spawn(async move { ask(at, names.next(), &bid(2_000_000), Some(DEAD)).await.0 });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!unknown.is_finished(), "perhaps there was another note");
    spare.inherit(&told, &Handle::current());
    assert_eq!(unknown.await.unwrap(), 200, "now it is known that there was none");
    assert_eq!(stage.count("SELECT count(*) FROM bids WHERE bid >= 1000000").await, 2);

    // A connection between the tiers of whose answer some was said: the front end has to ask over another one.
    let body = serde_json::to_string(&ITEM).unwrap();
    let id = Names::new().unwrap().next();
    let length = body.len();
    let request = format!("POST / HTTP/1.1\r\nhost: t\r\n{REQUEST_ID}: {id}\r\ncontent-length: {length}\r\n\r\n{body}");
    let kept = Kept { life: DEAD, noted: None }.to_bytes();
    assert_eq!(boxes.resume(at, (BOUNDARY, &kept), &request, 7).await, None);
    assert_eq!(ask(at, id, &ITEM, Some(DEAD)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trade_that_no_box_can_note_is_not_committed_and_the_front_end_is_told_so() {
    let stage = Stage::set().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let nowhere = std::env::temp_dir().join(format!("auction-{}-no-box", std::process::id()));
    let (client, handed) = BoxClient::connect(&nowhere, "test", &[at.port()]).unwrap();
    let listener = Listener::Recoverable(RecoverableListener::new(listener, client, handed));
    tokio::spawn(mid_tier::serve(stage.mid_tier(), listener));
    let names = Names::new().unwrap();
    let (status, head, _) = ask(at, names.next(), &bid(1_000_000), None).await;
    assert_eq!((status, head.contains_key(NOT_DONE)), (503, true));
    assert_eq!(stage.count("SELECT count(*) FROM bids WHERE bid = 1000000").await, 0);
    assert_eq!(ask(at, names.next(), &ITEM, None).await.0, 200, "whoever reads needs no box");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_mid_tier_has_locked_is_free_when_it_is_taken_over() {
    let stage = Stage::set().await;
    let dead = stage.client().await;
    let lock =
        format!("SET application_name = 'auction-mt-{DEAD:016x}'; BEGIN; SELECT FROM items WHERE id = 1 FOR UPDATE");
    dead.batch_execute(&lock).await.unwrap();
    let spare = stage.mid_tier();
    let waiting = tokio::spawn({
        let (spare, id) = (Arc::clone(&spare), Names::new().unwrap().next());
        async move { spare.answer(id, bid(1_000_000)).await.unwrap().status }
    });
    spare.inherit(&words(Kept { life: DEAD, noted: None }), &Handle::current());
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await.expect("the lock is gone").unwrap(), 200);
    assert!(dead.batch_execute("COMMIT").await.is_err());
}
