//! What goes wrong with boxes and hand-overs, one test for each: the connection goes on, or the caller learns why not.

mod scratch;

use contbox::continuation::ExportError;
use contbox::listener::RecoverableListener;
use contbox::reader::{BoxHead, read_box};
use contbox::service::{BoxClient, BoxService, Declined, Handover};
use contbox::shared::Pool;
use contbox::{Geometry, Opening};
use scratch::Scratch;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(30);

fn service(scratch: &Scratch, slots: u32) -> (BoxService, Arc<Pool>, PathBuf) {
    let socket = scratch.socket();
    let (fd, pool) = Pool::memfd(Geometry::standard(slots), 1).unwrap();
    (BoxService::start(&socket, Arc::clone(&pool), fd).unwrap(), pool, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_larger_than_its_box_is_refused_and_the_session_stays_resumable_from_the_old_one() {
    let scratch = Scratch::new("large");
    let (_service, pool, socket) = service(&scratch, 4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, handed) = BoxClient::connect(&socket, "test", &[address.port()]).unwrap();
    let mut listener = RecoverableListener::new(listener, Arc::clone(&client), handed);
    assert!(client.wait_ready(PATIENCE));
    let mut peer = TcpStream::connect(address).unwrap();
    let mut stream = listener.accept().await.unwrap().stream;
    peer.write_all(b"some input").unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
    stream.session().export_state(b"small", 4, 0).unwrap();

    let capacity = pool.geometry().lws_bytes;
    let large = vec![1; capacity as usize + 1];
    let refused = stream.session().export_state(&large, 10, 0).unwrap_err();
    assert_eq!(refused, ExportError::TooLong { length: large.len(), capacity });

    let (image, geometry) = (pool.image(), pool.geometry());
    let heads =
        (0..geometry.slots).filter_map(|it| BoxHead::parse(it, &image[geometry.front(it).start as usize..]).ok());
    let slots: Vec<_> = heads.map(|head| head.slot).collect();
    let found = read_box(&image, &geometry, slots[0], 10).unwrap();
    assert_eq!((found.snapshot.lws, found.snapshot.lsr, found.logged), (b"small".to_vec(), 4, b" input".to_vec()));
    stream.session().export_state(b"small again", 10, 0).unwrap();
    client.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_pool_connections_go_on_unprotected() {
    let scratch = Scratch::new("full");
    let (_service, _pool, socket) = service(&scratch, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, handed) = BoxClient::connect(&socket, "test", &[address.port()]).unwrap();
    let mut listener = RecoverableListener::new(listener, Arc::clone(&client), handed);
    assert!(client.wait_ready(PATIENCE));
    let mut kept = Vec::new();
    for protected in [true, false] {
        let mut peer = TcpStream::connect(address).unwrap();
        let mut stream = listener.accept().await.unwrap().stream;
        assert_eq!(stream.session().is_protected(), protected);
        stream.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        peer.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        kept.push((peer, stream));
    }
    client.stop();
}

/// Incident: boxes of clients that had gone away stayed taken for a minute, until a pool of 1024 had none left.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_a_client_that_has_reset_its_connection() {
    let scratch = Scratch::new("reset");
    let (_service, _pool, socket) = service(&scratch, 4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, handed) = BoxClient::connect(&socket, "test", &[address.port()]).unwrap();
    let mut listener = RecoverableListener::new(listener, Arc::clone(&client), handed);
    assert!(client.wait_ready(PATIENCE));
    let peer = TcpStream::connect(address).unwrap();
    let mut stream = listener.accept().await.unwrap().stream;
    // More than both ends' buffers hold, so that the write waits until the peer goes with bytes that it has not read.
    let leaving = tokio::task::spawn_blocking(move || {
        peer.peek(&mut [0]).unwrap();
        drop(peer);
    });
    assert!(stream.write_all(&vec![0; 64 << 20]).await.is_err(), "the error is told here, and nowhere again");
    leaving.await.unwrap();
    assert!(stream.session().is_protected());
    let ended = tokio::time::timeout(PATIENCE, stream.shutdown()).await;
    assert!(ended.is_ok(), "a shutdown waits for a minute for clients that may be slow, not for one that is gone");
    client.stop();
}

/// Hands one session to an application and tells what came back.
fn hand_over(service: &BoxService, port: u16, patience: Duration) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    let opening = Opening::fresh(0, ([127, 0, 0, 1], port).into(), peer);
    let handover = Handover { opening, discard: 0, socket: socket.into(), channels: Vec::new() };
    let Declined { why, .. } = service.resume(vec![handover], patience).remove(0).unwrap_err();
    why
}

#[test]
fn an_application_that_hangs_declines_or_dies_costs_its_sessions_and_says_so() {
    let scratch = Scratch::new("hand-over");
    let (service, _pool, socket) = service(&scratch, 256);
    assert!(hand_over(&service, 81, PATIENCE).contains("no application here serves port 81"));

    let (hangs, _never_read) = BoxClient::connect(&socket, "hangs", &[82]).unwrap();
    assert!(hangs.wait_ready(PATIENCE));
    assert!(hand_over(&service, 82, Duration::from_millis(50)).contains("did not answer in time"));

    let (declines, handed) = BoxClient::connect(&socket, "declines", &[83]).unwrap();
    assert!(declines.wait_ready(PATIENCE));
    drop(handed);
    assert!(hand_over(&service, 83, PATIENCE).contains("the listener has gone"));

    let (dies, mut handed) = BoxClient::connect(&socket, "dies", &[84]).unwrap();
    assert!(dies.wait_ready(PATIENCE));
    let death = std::thread::spawn(move || {
        let order = handed.blocking_recv();
        dies.stop();
        drop(order);
    });
    assert!(hand_over(&service, 84, PATIENCE).contains("has gone"));
    death.join().unwrap();
    hangs.stop();
}
