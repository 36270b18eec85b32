//! Leases, hand-overs and restarts over a real Unix socket.

mod scratch;

use contbox::listener::{Accepted, RecoverableListener};
use contbox::reader::{BadBox, BoxHead};
use contbox::service::{BoxClient, BoxService, Handover};
use contbox::shared::Pool;
use contbox::{ContinuationBox, Geometry, Opening, Snapshot};
use scratch::Scratch;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(30);

fn boxes(pool: &Pool) -> Vec<BoxHead> {
    let (image, geometry) = (pool.image(), pool.geometry());
    let head = |slot| BoxHead::parse(slot, &image[geometry.front(slot).start as usize..]);
    (0..geometry.slots).filter_map(|slot| head(slot).ok()).collect()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn recoverable(scratch: &Scratch) -> (RecoverableListener, Arc<BoxClient>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, handed) = BoxClient::connect(&scratch.socket(), "test", &[address.port()]).unwrap();
    (RecoverableListener::new(listener, Arc::clone(&client), handed), client, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_box_with_its_addresses_for_as_long_as_it_lives() {
    let scratch = Scratch::new("lives");
    let (fd, pool) = Pool::memfd(Geometry::standard(8), 1).unwrap();
    let service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd).unwrap();
    let (mut listener, client, address) = recoverable(&scratch).await;
    assert!(client.wait_ready(PATIENCE));

    let mut peer = TcpStream::connect(address).unwrap();
    let Accepted { mut stream, resumed, .. } = listener.accept().await.unwrap();
    assert_eq!(resumed, None);
    peer.write_all(b"hello").unwrap();
    let mut read = [0; 5];
    stream.read_exact(&mut read).await.unwrap();
    let found = boxes(&pool);
    assert_eq!((found[0].local, found[0].peer), (address, peer.local_addr().unwrap()));
    let image = contbox::reader::read_box(&pool.image(), &pool.geometry(), found[0].slot, 5).unwrap();
    assert_eq!(image.logged, b"hello");
    stream.session().export_state(b"digested", 3, 0).unwrap();
    let image = contbox::reader::read_box(&pool.image(), &pool.geometry(), found[0].slot, 5).unwrap();
    assert_eq!((image.snapshot.lws.as_slice(), image.logged.as_slice()), (&b"digested"[..], &b"lo"[..]));

    drop(stream);
    assert!(boxes(&pool).is_empty());
    assert_eq!(service.apps().len(), 1);
    client.stop();
    eventually("the slots come back", || service.counts().0 == 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_overflows_costs_the_protection_and_no_byte() {
    let scratch = Scratch::new("overflow");
    let (fd, pool) = Pool::memfd(Geometry::with(4, 64, 256), 1).unwrap();
    let _service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd).unwrap();
    let (mut listener, client, address) = recoverable(&scratch).await;
    assert!(client.wait_ready(PATIENCE));
    let mut peer = TcpStream::connect(address).unwrap();
    let mut stream = listener.accept().await.unwrap().stream;
    let sent: Vec<u8> = (0..5000u32).map(|value| value as u8).collect();
    peer.write_all(&sent).unwrap();
    let mut read = vec![0; sent.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, sent);
    assert!(!stream.session().is_protected());
    let head = &boxes(&pool)[0];
    assert_eq!(head.plan(&pool.geometry(), 5000).unwrap_err(), BadBox::LostLog);
    client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_service_loses_no_box_and_goes_on_leasing() {
    let scratch = Scratch::new("restart");
    let (fd, pool) = Pool::memfd(Geometry::standard(4), 1).unwrap();
    let service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd.try_clone().unwrap()).unwrap();
    let (mut listener, client, address) = recoverable(&scratch).await;
    assert!(client.wait_ready(PATIENCE));
    let _first = TcpStream::connect(address).unwrap();
    let kept = listener.accept().await.unwrap().stream;
    drop(service);
    let _between = TcpStream::connect(address).unwrap();
    let second = listener.accept().await.unwrap().stream;
    assert!(second.session().is_protected(), "the stock of slots outlives the service");

    let service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd).unwrap();
    eventually("the application announces its slots", || service.counts() == (0, 4, 0)).await;
    let _after = TcpStream::connect(address).unwrap();
    let third = listener.accept().await.unwrap().stream;
    assert!(kept.session().is_protected() && third.session().is_protected());
    let mut slots: Vec<u32> = boxes(&pool).iter().map(|head| head.slot).collect();
    slots.dedup();
    assert_eq!(slots.len(), 3);
    client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_connections_are_served_unprotected() {
    let scratch = Scratch::new("without");
    let (mut listener, client, address) = recoverable(&scratch).await;
    let mut peer = TcpStream::connect(address).unwrap();
    let mut stream = listener.accept().await.unwrap().stream;
    assert!(!stream.session().is_protected());
    stream.write_all(b"served").await.unwrap();
    let mut read = [0; 6];
    peer.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"served");
    client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_are_handed_over_in_one_go() {
    const SESSIONS: usize = 200;
    let scratch = Scratch::new("handover");
    let (fd, pool) = Pool::memfd(Geometry::standard(SESSIONS as u32 + 64), 1).unwrap();
    let service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd).unwrap();
    let (mut listener, client, address) = recoverable(&scratch).await;
    assert!(client.wait_ready(PATIENCE));

    // Plain socket pairs stand for reinstated connections; what moves them is not this test's matter.
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peers = Vec::new();
    let handovers: Vec<Handover> = (0..SESSIONS)
        .map(|index| {
            let peer = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
            let socket = OwnedFd::from(elsewhere.accept().unwrap().0);
            let mut opening = Opening::fresh(0, address, peer.local_addr().unwrap());
            let lws = index.to_string().into_bytes();
            opening.snapshot = Snapshot { lsr: 100, lsw: 1000, lws };
            opening.logged = format!("logged {index};").into_bytes();
            peers.push(peer);
            Handover { opening, discard: 3, socket, channels: Vec::new() }
        })
        .collect();
    let serving = tokio::spawn(async move {
        for _ in 0..SESSIONS {
            let Accepted { mut stream, resumed, .. } = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let number = String::from_utf8(resumed.unwrap().lws).unwrap();
                let expected = format!("logged {number};live");
                let mut read = vec![0; expected.len()];
                stream.read_exact(&mut read).await.unwrap();
                assert_eq!(read, expected.as_bytes());
                stream.write_all(format!("???answer {number}").as_bytes()).await.unwrap();
                assert_eq!(stream.session().position().discard, 0);
            });
        }
        listener
    });
    let outcomes = tokio::task::spawn_blocking(move || (service.resume(handovers, PATIENCE), service));
    let (outcomes, service) = outcomes.await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    for (index, peer) in peers.iter_mut().enumerate() {
        peer.write_all(b"live").unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("answer {index}"));
    }
    let _listener = serving.await.unwrap();

    let peer = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
    let socket = OwnedFd::from(elsewhere.accept().unwrap().0);
    let opening = Opening::fresh(0, "127.0.0.1:1".parse().unwrap(), peer.local_addr().unwrap());
    let declined = service
        .resume(vec![Handover { opening, discard: 0, socket, channels: Vec::new() }], PATIENCE)
        .remove(0)
        .unwrap_err();
    assert!(declined.why.contains("port 1"), "{}", declined.why);
    client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_slot_was_given_away_never_writes_to_it_again() {
    let scratch = Scratch::new("revoked");
    let (fd, pool) = Pool::memfd(Geometry::standard(2), 1).unwrap();
    let _service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd).unwrap();
    let (mut listener, client, address) = recoverable(&scratch).await;
    assert!(client.wait_ready(PATIENCE));
    let mut peer = TcpStream::connect(address).unwrap();
    let mut stream = listener.accept().await.unwrap().stream;
    let slot = pool.slot(boxes(&pool)[0].slot).unwrap();
    assert!(stream.session().is_protected());

    let other = Opening::fresh(99, "10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    ContinuationBox::create(slot.clone(), &other).unwrap();
    let before = slot.image();
    peer.write_all(b"not for the other's log").unwrap();
    let mut read = [0; 23];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"not for the other's log");
    stream.session().export_state(b"nor its snapshot", 23, 0).unwrap();
    assert!(!stream.session().is_protected());
    drop(stream);
    assert!(slot.image() == before);
    client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_more_connections_than_are_in_stock_is_protected_as_far_as_the_pool_goes() {
    const BOXES: usize = 300;
    let scratch = Scratch::new("burst");
    let (fd, pool) = Pool::memfd(Geometry::with(BOXES as u32, 64, 256), 1).unwrap();
    let _service = BoxService::start(&scratch.socket(), Arc::clone(&pool), fd).unwrap();
    let (mut listener, client, address) = recoverable(&scratch).await;
    assert!(client.wait_ready(PATIENCE));
    // In the kernel's queue before any is accepted, a hundred at a time: the queue is not longer.
    let (mut peers, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        peers.extend((0..100).map(|_| TcpStream::connect(address).unwrap()));
        while streams.len() < peers.len() {
            streams.push(listener.accept().await.unwrap().stream);
        }
    }
    let protected = streams.iter().take_while(|stream| stream.session().is_protected()).count();
    assert_eq!(protected, BOXES);
    assert_eq!(streams.iter().filter(|stream| stream.session().is_protected()).count(), BOXES);
    client.stop();
}
