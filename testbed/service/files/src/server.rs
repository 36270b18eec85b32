//! The server: connections, sessions that arrive from a dead machine, and one function from request to response.

use crate::conditions::{self, Part};
use crate::content::Content;
use crate::download::Download;
use crate::upload;
use bytes::Bytes;
use contbox::http::{self, Exchange, HttpIo};
use contbox::listener::{Accepted, RecoverableListener};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, http::response::Builder};
use nix::sys::socket::{setsockopt, sockopt};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

/// Connections the kernel queues while we are busy: a take-over may bring hundreds at once.
const BACKLOG: u32 = 1024;
/// Rest after a failed accept, when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// When synthetic content was last modified: never. Any fixed time that all nodes agree about.
const SYNTHETIC_MODIFIED: &str = "Sat, 01 Jan 2000 00:00:00 GMT";

type Reply = Response<BoxBody<Bytes, io::Error>>;

/// Listens at an address that this machine need not have yet: on a spare the server is up before the take-over.
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

/// Serves `root` for ever, at most `connections_max` connections at a time.
pub async fn serve(mut listener: RecoverableListener, root: PathBuf, connections_max: Option<usize>) -> Infallible {
    let root: Arc<Path> = root.into();
    let places = Arc::new(Semaphore::new(connections_max.unwrap_or(Semaphore::MAX_PERMITS)));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        match listener.accept().await {
            Ok(accepted) => {
                let serving = connection(accepted, Arc::clone(&root));
                tokio::spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(why) => {
                tracing::warn!(%why, "accept failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection(accepted: Accepted, root: Arc<Path>) {
    let Accepted { stream, peer, resumed, .. } = accepted;
    // Responses are written in large pieces; waiting for more would only delay the last one.
    let _ = stream.socket().set_nodelay(true);
    let attached = match &resumed {
        None => Ok(HttpIo::new(stream)),
        Some(snapshot) => {
            let position = stream.session().position();
            let contbox::stream::Position { read, written, discard } = position;
            tracing::debug!(%peer, read, written, discard, "resumed");
            HttpIo::resume(stream, snapshot, upload::rest_of_upload)
        }
    };
    let (io, exchange) = match attached {
        Ok(attached) => attached,
        Err(why) => return tracing::warn!(%peer, %why, "a session cannot go on"),
    };
    let service = service_fn(move |request| {
        let (root, exchange) = (Arc::clone(&root), exchange.clone());
        async move { Ok::<_, Infallible>(answer(&root, request, &exchange).await) }
    });
    if let Err(why) = http::builder().serve_connection(io, service).await {
        tracing::debug!(%peer, %why, "connection ended");
    }
}

/// The response to one request. The same request has to give the same bytes, see [`contbox::http`].
async fn answer(root: &Path, request: Request<Incoming>, exchange: &Exchange) -> Reply {
    let reply = Response::builder().header(header::DATE, exchange.date_header());
    tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
    match *request.method() {
        Method::GET | Method::HEAD => download(root, &request, exchange, reply),
        Method::PUT => match upload::store(root, request, exchange).await {
            Ok(size) => text(reply.status(StatusCode::CREATED), format!("{size}\n")),
            Err(why) => text(reply.status(why.status()), format!("{why}\n")),
        },
        _ => {
            let reply = reply.status(StatusCode::METHOD_NOT_ALLOWED).header(header::ALLOW, "GET, HEAD, PUT");
            text(reply, "GET, HEAD or PUT\n".into())
        }
    }
}

fn download(root: &Path, request: &Request<Incoming>, exchange: &Exchange, reply: Builder) -> Reply {
    let path = request.uri().path();
    let content = match Content::open(root, path) {
        Ok(content) => content,
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => {
            return text(reply.status(StatusCode::FORBIDDEN), "forbidden\n".into());
        }
        Err(_) => return text(reply.status(StatusCode::NOT_FOUND), "not found\n".into()),
    };
    let (length, etag) = (content.length(), content.etag(path));
    let headers = request.headers();
    let mut reply = reply.header(header::ACCEPT_RANGES, "bytes").header(header::ETAG, &etag);
    if matches!(content, Content::Synthetic { .. }) {
        reply = reply.header(header::LAST_MODIFIED, SYNTHETIC_MODIFIED);
    }
    if value(headers, header::IF_NONE_MATCH).is_some_and(|list| conditions::names_etag(list, &etag)) {
        return text(reply.status(StatusCode::NOT_MODIFIED), String::new());
    }
    let range_holds = value(headers, header::IF_RANGE).is_none_or(|tag| tag == etag);
    let range = value(headers, header::RANGE).filter(|_| range_holds && request.method() == Method::GET);
    let stretch = match conditions::part(range, length) {
        Part::Unsatisfiable => {
            let reply = reply.status(StatusCode::RANGE_NOT_SATISFIABLE);
            return text(reply.header(header::CONTENT_RANGE, format!("bytes */{length}")), String::new());
        }
        Part::Whole => 0..length,
        Part::Stretch(stretch) => {
            let place = format!("bytes {}-{}/{length}", stretch.start, stretch.end - 1);
            reply = reply.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, place);
            stretch
        }
    };
    let reply = reply
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, stretch.end - stretch.start);
    let body = Download::new(content, stretch, rate(request.uri()), exchange.already_sent());
    finish(reply, body.boxed())
}

fn value(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// `?rate=BYTES_PER_S`
fn rate(uri: &Uri) -> Option<u64> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix("rate=")?.parse().ok())
}

fn text(reply: Builder, text: String) -> Reply {
    finish(reply, Full::from(text).map_err(|never| match never {}).boxed())
}

fn finish(reply: Builder, body: BoxBody<Bytes, io::Error>) -> Reply {
    reply.body(body).expect("only well-formed header values are set")
}
