//! Prints what a box costs an HTTP request, by the size of the response and by what the handler exports:
//! `cargo run --release --example http_cost`.
//!
//! Both servers, with a box and without, and their client are on one thread and take turns batch by batch, so that
//! whatever else the machine does meets both. A figure is the median over the batches.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use contbox::{
    ContinuationBox, Geometry, RecoverableStream,
    continuation::Opening,
    http::{Exchange, HttpIo},
    shared::Pool,
    stream::Position,
};
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// As long as a browser's.
const REQUEST: &str = "GET /items/4711 HTTP/1.1\r\nhost: auction.example\r\nuser-agent: http_cost\r\naccept: */*\r\n\
    accept-encoding: identity\r\nx-nonce: 0123456789abcdef\r\n\r\n";
const BATCH: u32 = 50;
const BATCHES: usize = 1000;
/// What a front end exports before it forwards and before it answers.
const NOTE: [u8; 67] = [0x5a; 67];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{:>6} {:>6} {:>12} {:>12} {:>12}", "body", "notes", "plain", "with a box", "more");
    let (_fd, pool) = Pool::memfd(Geometry::standard(4), 1).expect("memory for boxes");
    for (slot, (body, notes)) in [(300, 0), (300, 2), (3000, 0), (3000, 2)].into_iter().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let mut clients = Vec::new();
        for boxed in [false, true] {
            let client = TcpStream::connect(address).await.expect("the listener is there");
            let (server, peer) = listener.accept().await.expect("a client has come");
            for socket in [&client, &server] {
                socket.set_nodelay(true).expect("TCP_NODELAY");
            }
            if boxed {
                let opening = Opening::fresh(1, address, peer);
                let slot = pool.slot(slot as u32).expect("a slot for each");
                let continuation = ContinuationBox::create(slot, &opening).expect("an empty snapshot fits");
                let stream = RecoverableStream::protected(server, continuation, Position::default(), None);
                tokio::spawn(with_box(stream, body, notes));
            } else {
                tokio::spawn(plain(server, body));
            }
            clients.push(Client { socket: client, buffer: vec![0; body + 1024] });
        }
        let mut taken = [Vec::new(), Vec::new()];
        for _ in 0..BATCHES {
            for (client, taken) in clients.iter_mut().zip(&mut taken) {
                taken.push(client.batch(body).await);
            }
        }
        let [plain, boxed] = taken.map(median);
        println!("{body:>6} {notes:>6} {plain:>12.2?} {boxed:>12.2?} {:>12.2?}", boxed.saturating_sub(plain));
    }
}

struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Asks some times; how long each took.
    async fn batch(&mut self, body: usize) -> Duration {
        let began = Instant::now();
        for _ in 0..BATCH {
            self.socket.write_all(REQUEST.as_bytes()).await.expect("the server is there");
            let (mut filled, mut wanted) = (0, None);
            while wanted.is_none_or(|wanted| filled < wanted) {
                filled += self.socket.read(&mut self.buffer[filled..]).await.expect("the server is there");
                let head = self.buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n");
                wanted = wanted.or(head.map(|head| head + 4 + body));
            }
        }
        began.elapsed() / BATCH
    }
}

fn median(mut taken: Vec<Duration>) -> Duration {
    taken.sort();
    taken[taken.len() / 2]
}

async fn plain(socket: TcpStream, body: usize) {
    let page = Bytes::from(vec![b'x'; body]);
    let service = service_fn(|_: Request<Incoming>| {
        let response = Response::new(Full::new(page.clone()));
        async {
            tokio::task::yield_now().await; // as one that asks somebody else
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(socket), service);
    connection.await.expect("the client only leaves");
}

async fn with_box(stream: RecoverableStream, body: usize, notes: usize) {
    let page = Bytes::from(vec![b'x'; body]);
    let (io, exchange) = HttpIo::new(stream);
    let service = service_fn(|_: Request<Incoming>| answer(exchange.clone(), page.clone(), notes));
    contbox::http::builder().serve_connection(io, service).await.expect("the client only leaves");
}

async fn answer(exchange: Exchange, page: Bytes, notes: usize) -> Result<Response<Full<Bytes>>, Infallible> {
    tokio::task::yield_now().await;
    for _ in 0..notes {
        exchange.export_note(&NOTE).expect("a note fits");
    }
    let mut response = Response::new(Full::new(page));
    response.headers_mut().insert(header::DATE, exchange.date_header());
    Ok(response)
}
