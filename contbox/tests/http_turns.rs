//! Who wakes the reader of a connection between two requests: the next request, and the end of a response only if more
//! of the client is here already.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use contbox::stream::Position;
use contbox::{ContinuationBox, Geometry, Opening, Pool, RecoverableStream, http::HttpIo};
use hyper::rt::{Read, ReadBuf, Write};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A connection with a box, and its client.
struct Connection {
    io: HttpIo,
    client: TcpStream,
    pool: Arc<Pool>,
}

impl Connection {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).await.unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        let (_fd, pool) = Pool::memfd(Geometry::standard(1), 1).unwrap();
        let opening = Opening::fresh(1, local, peer);
        let continuation = ContinuationBox::create(pool.slot(0).unwrap(), &opening).unwrap();
        let stream = RecoverableStream::protected(server, continuation, Position::default(), None);
        Self { io: HttpIo::new(stream).0, client, pool }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<usize> {
        let mut into = ReadBuf::new(into);
        let outcome = Pin::new(&mut self.io).poll_read(cx, into.unfilled());
        outcome.map(|outcome| {
            outcome.unwrap();
            into.filled().len()
        })
    }

    /// Reads one request.
    async fn request(&mut self, expected: &[u8]) {
        let mut bytes = [0; 256];
        let count = poll_fn(|cx| self.poll_read(cx, &mut bytes)).await;
        assert_eq!(&bytes[..count], expected);
    }

    /// Looks whether there is more, which there is not before the response; whoever waits is `woken`.
    fn wait(&mut self, woken: &Arc<Woken>) {
        let waker = Waker::from(Arc::clone(woken));
        let more = self.poll_read(&mut Context::from_waker(&waker), &mut [0; 256]);
        assert!(more.is_pending(), "{more:?}");
    }

    async fn respond(&mut self) {
        let count = poll_fn(|cx| Pin::new(&mut self.io).poll_write(cx, RESPONSE)).await.unwrap();
        assert_eq!(count, RESPONSE.len());
    }

    /// What the newest snapshot says once `received` bytes have come: so much was read, and so much written.
    fn boundary(&self, received: usize) -> (u64, u64) {
        let (_, snapshot) = ContinuationBox::import_state(self.pool.slot(0).unwrap(), received as u64).unwrap();
        (snapshot.lsr, snapshot.lsw)
    }
}

#[tokio::test]
async fn the_next_request_wakes_the_reader_and_not_the_end_of_a_response() {
    let mut connection = Connection::new().await;
    let woken = Arc::new(Woken::default());
    connection.client.write_all(REQUEST).await.unwrap();
    connection.request(REQUEST).await;
    connection.wait(&woken);
    connection.respond().await;
    assert_eq!(woken.times(), 0, "nothing has come that could be read");
    assert_eq!(connection.boundary(REQUEST.len()), (REQUEST.len() as u64, RESPONSE.len() as u64));
    connection.client.write_all(REQUEST).await.unwrap();
    while woken.times() == 0 {
        tokio::task::yield_now().await;
    }
    connection.request(REQUEST).await;
}

#[tokio::test]
async fn the_end_of_a_response_wakes_the_reader_of_a_client_that_has_said_more() {
    let mut connection = Connection::new().await;
    let woken = Arc::new(Woken::default());
    connection.client.write_all(&[REQUEST, REQUEST].concat()).await.unwrap();
    connection.request(REQUEST).await;
    connection.wait(&woken);
    connection.respond().await;
    assert_eq!(woken.times(), 1);
    connection.request(REQUEST).await;
}

/// A spare that replays the request ends the connection after it, as this machine would have done.
#[tokio::test]
async fn the_snapshot_before_the_last_request_of_a_connection_stays() {
    let mut connection = Connection::new().await;
    connection.client.write_all(LAST_REQUEST).await.unwrap();
    connection.request(LAST_REQUEST).await;
    connection.wait(&Arc::new(Woken::default()));
    connection.respond().await;
    assert_eq!(connection.boundary(LAST_REQUEST.len()), (0, 0));
}
