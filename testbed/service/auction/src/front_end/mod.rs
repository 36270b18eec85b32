//! The first tier: a gateway. It names each request, forwards it to a mid tier, and sends its answer on.
//!
//! A request's whole life here is its name, the mid tier it was sent to, and how far its reply has gone: that is what a
//! snapshot of it has to hold. Nothing is remembered between requests.
//!
//! # Sending again
//! A request that was sent to a mid tier is sent again only to that one, and to no other life of it than the one that
//! may know it; a mid tier that could not be reached at all is passed over. Whatever is unclear after that is told to
//! the client as unclear (503), and is in the database at most once.

mod mid_tiers;
mod route;

pub use route::{Routed, route};

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, header};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use tokio::net::TcpListener;

use crate::{
    http::{self, NONCE},
    operation::{OPERATION_BYTES_MAX, Page},
    request_id::{Names, RequestId},
};
use mid_tiers::MidTiers;

/// Characters of a client's nonce.
const NONCE_MAX: usize = 64;

/// What a client receives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<P> {
    /// The client's own word for its request.
    pub nonce: String,
    /// The front end's name for it.
    pub request: String,
    /// The answer; nothing if there is none.
    pub page: Option<P>,
}

/// One life of a front end.
#[derive(Debug)]
pub struct FrontEnd {
    names: Names,
    mid_tiers: MidTiers,
}

impl FrontEnd {
    /// In front of these mid tiers, which take requests in turn.
    ///
    /// # Errors
    /// When the kernel gives no random bytes for the name of this life.
    pub fn new(mid_tiers: &[SocketAddr]) -> std::io::Result<Self> {
        Ok(Self { names: Names::new()?, mid_tiers: MidTiers::new(mid_tiers) })
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let nonce = head.headers.get(NONCE).and_then(|nonce| nonce.to_str().ok()).unwrap_or_default();
        let id = self.names.next();
        if nonce.len() > NONCE_MAX {
            return reply(400, "", id, None);
        }
        let routed = match http::whole(body, OPERATION_BYTES_MAX).await {
            Ok(body) => route(&head.method, &head.uri, &body),
            Err(_) => Routed::Wrong(400),
        };
        let operation = match routed {
            Routed::Operation(operation) => operation,
            Routed::Form(name) => {
                let page = serde_json::to_vec(&Page::Form(name)).expect("a page has string keys only");
                return reply(200, nonce, id, Some(&page));
            }
            Routed::Wrong(status) => return reply(status, nonce, id, None),
        };
        let operation = serde_json::to_vec(&operation).expect("an operation has string keys only");
        match self.mid_tiers.forward(id, operation.into()).await {
            Ok(answer) => {
                let page = (answer.head.status.as_u16() < 500).then_some(&answer.body[..]);
                reply(answer.head.status.as_u16(), nonce, id, page)
            }
            Err(why) => {
                tracing::warn!(%id, %why, "a request has no answer");
                reply(503, nonce, id, None)
            }
        }
    }
}

/// The reply. The mid tier's page goes into it as it came: it is looked at, and not understood. One that is no JSON is
/// the mid tier's mistake, and none.
fn reply(status: u16, nonce: &str, id: RequestId, page: Option<&[u8]>) -> Response<Full<Bytes>> {
    let page = page.filter(|page| serde_json::from_slice::<IgnoredAny>(page).is_ok()).unwrap_or(b"null");
    let nonce = serde_json::to_string(nonce).expect("a text is JSON");
    let mut body = format!(r#"{{"nonce":{nonce},"request":"{id}","page":"#).into_bytes();
    body.extend_from_slice(page);
    body.push(b'}');
    let reply = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    reply.body(Full::from(body)).expect("only well-formed header values are set")
}

/// Serves clients for ever.
pub async fn serve(front_end: Arc<FrontEnd>, listener: TcpListener) -> Infallible {
    http::serve(listener, move |request| {
        let front_end = Arc::clone(&front_end);
        async move { front_end.respond(request).await }
    })
    .await
}
