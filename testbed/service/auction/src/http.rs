//! What both tiers need of HTTP/1.1: a server loop, a pool of connections, bodies with a bound.
//!
//! The tiers talk HTTP with one request at a time on each connection. It costs some dozens of bytes for each request,
//! and buys that a connection between tiers is what a connection of a client is: the same request boundaries, the same
//! replay, so that the same means make both recoverable.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Mutex, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Names a request, between the tiers.
pub const REQUEST_ID: &str = "x-request-id";
/// Names a life of a mid tier: in answers its own, in a request the one that the request was sent to before.
pub const LIFE: &str = "x-mid-tier";
/// What a client recognizes its reply by.
pub const NONCE: &str = "x-nonce";

/// Bytes of a reply, at most.
pub const REPLY_BYTES_MAX: usize = 256 << 10;
/// Connections that are kept without a request.
const IDLE_MAX: usize = 256;
/// Rest after a failed accept, when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A body, if it is no longer than `bytes_max`.
///
/// # Errors
/// When it is longer, or the connection ends within it.
pub async fn whole(body: Incoming, bytes_max: usize) -> io::Result<Bytes> {
    Limited::new(body, bytes_max).collect().await.map(|whole| whole.to_bytes()).map_err(io::Error::other)
}

/// Serves connections for ever.
pub async fn serve<H, F>(listener: TcpListener, handler: H) -> Infallible
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(why) => {
                tracing::warn!(%why, "accept failed");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let reply = handler(request);
                async { Ok::<_, Infallible>(reply.await) }
            });
            let connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
            if let Err(why) = connection.await {
                tracing::debug!(%why, "a connection ended");
            }
        });
    }
}

/// A client's end of a connection.
pub type Connection = SendRequest<Full<Bytes>>;

/// Connects to a server.
///
/// # Errors
/// Those of the socket, and of hyper.
pub async fn connect(to: SocketAddr) -> io::Result<Connection> {
    let stream = TcpStream::connect(to).await?;
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
