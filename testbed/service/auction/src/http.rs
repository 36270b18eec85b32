//! What both tiers need of HTTP/1.1: a server loop, a pool of connections, bodies with a bound.
//!
//! The tiers talk HTTP with one request at a time on each connection. It costs some dozens of bytes for each request,
//! and buys that a connection between tiers is what a connection of a client is: the same request boundaries, the same
//! replay, so that the same means make both recoverable.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use contbox::{
    Accepted, RecoverableListener,
    http::{Exchange, HttpIo},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Names a request, between the tiers.
pub const REQUEST_ID: &str = "x-request-id";
/// Names a life of a mid tier: in answers its own, in a request the one that the request was sent to before.
pub const LIFE: &str = "x-mid-tier";
/// What a mid tier noted of a trade: in its answer, and in a request that comes again.
pub const NOTE: &str = "x-note";
/// In an answer: nothing was done, and the request may go to anybody.
pub const NOT_DONE: &str = "x-not-done";
/// What a client recognizes its reply by.
pub const NONCE: &str = "x-nonce";

/// Bytes of a reply, at most.
pub const REPLY_BYTES_MAX: usize = 256 << 10;
/// Connections that are kept without a request.
const IDLE_MAX: usize = 256;
/// How long a server may take to accept, before it is tried again or another one is.
const CONNECT_BOUND: Duration = Duration::from_millis(250);
/// Connections that the kernel queues while we are busy: a take-over may bring hundreds at once.
const BACKLOG: u32 = 1024;
/// Rest after a failed accept, when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A body, if it is no longer than `bytes_max`.
///
/// # Errors
/// When it is longer, or the connection ends within it.
pub async fn whole(body: Incoming, bytes_max: usize) -> io::Result<Bytes> {
    Limited::new(body, bytes_max).collect().await.map(|whole| whole.to_bytes()).map_err(io::Error::other)
}

/// Listens at an address that this machine need not have yet: on a spare a tier is up before the take-over.
///
/// # Errors
/// Those of the socket calls.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// Nothing of them survives this machine.
    Plain(TcpListener),
    /// They have boxes.
    Recoverable(RecoverableListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Plain(listener)
    }
}

/// Who answers.
pub trait Tier: Send + Sync + 'static {
    /// A connection with a box begins, here or on a machine that is dead.
    fn begin(&self, exchange: &Exchange, resumed: bool);

    /// Answers one request; with boxes, over an exchange.
    fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        exchange: Option<Exchange>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Serves connections for ever.
pub async fn serve<T: Tier>(tier: Arc<T>, listener: impl Into<Listener>) -> Infallible {
    let mut listener = listener.into();
    loop {
        let tier = Arc::clone(&tier);
        let accepted = match &mut listener {
            Listener::Plain(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(plain(tier, stream));
            }),
            Listener::Recoverable(listener) => listener.accept().await.map(|accepted| {
                tokio::spawn(recoverable(tier, accepted));
            }),
        };
        if let Err(why) = accepted {
            tracing::warn!(%why, "accept failed");
            tokio::time::sleep(ACCEPT_REST).await;
        }
    }
}

async fn plain<T: Tier>(tier: Arc<T>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let reply = Arc::clone(&tier).respond(request, None);
        async { Ok::<_, Infallible>(reply.await) }
    });
    let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
    if let Err(why) = connection.await {
        tracing::debug!(%why, "a connection ended");
    }
}

async fn recoverable<T: Tier>(tier: Arc<T>, accepted: Accepted) {
    let Accepted { stream, peer, resumed, .. } = accepted;
    let _ = stream.socket().set_nodelay(true);
    let attached = match &resumed {
        None => Ok(HttpIo::new(stream)),
        // No tier exports progress inside a body.
        Some(snapshot) => HttpIo::resume(stream, snapshot, |_| None),
    };
    let (io, exchange) = match attached {
        Ok(attached) => attached,
        Err(why) => return tracing::warn!(%peer, %why, "a session cannot go on"),
    };
    tier.begin(&exchange, resumed.is_some());
    let service = service_fn(move |request| {
        let reply = Arc::clone(&tier).respond(request, Some(exchange.clone()));
        async { Ok::<_, Infallible>(reply.await) }
    });
    if let Err(why) = contbox::http::builder().serve_connection(io, service).await {
        tracing::debug!(%peer, %why, "a connection ended");
    }
}

/// A client's end of a connection.
pub type Connection = SendRequest<Full<Bytes>>;

/// Connects to a server, or gives up: one whose address is about to move does not refuse, it is silent.
///
/// # Errors
/// Those of the socket, and of hyper; `TimedOut`.
pub async fn connect(to: SocketAddr) -> io::Result<Connection> {
    connect_within(to, CONNECT_BOUND).await
}

/// The same with a bound of the caller's.
///
/// # Errors
/// See [`connect`].
pub async fn connect_within(to: SocketAddr, bound: Duration) -> io::Result<Connection> {
    let stream = tokio::time::timeout(bound, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(why) = connection.await {
            tracing::debug!(%why, "a connection ended");
        }
    });
    Ok(sender)
}

/// A reply that has arrived whole.
#[derive(Debug)]
pub struct Reply {
    /// Status and headers.
    pub head: hyper::http::response::Parts,
    /// Its body.
    pub body: Bytes,
}

/// Sends a request and takes its whole reply.
///
/// # Errors
/// When the connection fails; whether the request arrived is unknown then.
pub async fn ask(connection: &mut Connection, request: Request<Full<Bytes>>) -> io::Result<Reply> {
    let (head, body) = connection.send_request(request).await.map_err(io::Error::other)?.into_parts();
    Ok(Reply { head, body: whole(body, REPLY_BYTES_MAX).await? })
}

/// Connections to one server, kept between requests.
#[derive(Debug)]
pub struct Connections {
    to: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

impl Connections {
    /// None yet.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, idle: Mutex::new(Vec::new()) }
    }

    /// One that is free, or a new one.
    ///
    /// # Errors
    /// When no new one can be made.
    pub async fn take(&self) -> io::Result<Connection> {
        loop {
            let Some(mut kept) = self.lock().pop() else { return connect(self.to).await };
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
    }

    /// Keeps one for the next request.
    pub fn give_back(&self, connection: Connection) {
        let mut idle = self.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("no thread panics with the list half-changed")
    }
}
