//! Makes a hyper HTTP/1.1 server recoverable by changing what it accepts from.
//!
//! ```text
//! let accepted = listener.accept().await?;
//! let (io, exchange) = match &accepted.resumed {
//!     None => HttpIo::new(accepted.stream),
//!     Some(snapshot) => HttpIo::resume(accepted.stream, snapshot, rest_of_upload)?,
//! };
//! let service = service_fn(move |request| handle(request, exchange.clone()));
//! http::builder().serve_connection(io, service).await
//! ```
//!
//! A resumed connection replays its request from the receive log; hyper and the handler regenerate the response, of
//! which the stream swallows what the client has. That demands one thing of handlers: **the same request gives the
//! same bytes**, head included. `Date` is the trap: hyper's own is switched off by [`builder`], use
//! [`Exchange::date_header`]. A handler that uploads to shared storage exports its progress instead of replaying.

mod date;
mod exchange;
mod framing;
mod input;
mod io;
mod response;

pub use exchange::{Exchange, ProgressError, RESPONSE_HEAD_BYTES_MAX, SNAPSHOT_FRAME_BYTES, session_words};
pub use framing::{
    BodyMeter, Framing, HEAD_BYTES_MAX, RequestHead, ResponseHead, Unframed, request_head, response_head,
};
pub use io::HttpIo;

/// A hyper connection builder with what recovery needs: no `Date` of its own, and half-closed connections are served.
pub fn builder() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.auto_date_header(false).half_close(true);
    builder
}
