//! The first tier: a gateway. It names each request, forwards it to a mid tier, and sends its answer on.
//!
//! A request's whole life here is its name, the mid tier it was sent to, and what was said to it: that is its snapshot
//! ([`InHand`]). Nothing is remembered between requests.
//!
//! # Sending again
//! A request that was sent to a mid tier is sent again only to that one, to no other life of it than the one that may
//! know it or who has taken that over; a mid tier that could not be reached at all is passed over. Whatever is unclear
//! after that is told to the client as unclear (503), and is in the database at most once.
//!
//! A front end that takes a session over finds the request in the box's log and asks under the same name. The box also
//! says what was said, by length and checksum: where the client has a part of it already, the rest has to be of the
//! same answer, or the session ends in a reset.

mod mid_tiers;
mod route;

pub use route::{Routed, route};

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use contbox::http::Exchange;
use http_body_util::Full;
use hyper::{Method, Request, Response, Uri, body::Incoming, header};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    http::{self, Listener, NONCE, Tier},
    operation::{self, OPERATION_BYTES_MAX},
    request_id::{Names, RequestId},
    snapshot::{InHand, Said, Sent, Written},
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
    written: Written,
}

impl FrontEnd {
    /// In front of these mid tiers, which take requests in turn.
    ///
    /// # Errors
    /// When the kernel gives no random bytes for the name of this life.
    pub fn new(mid_tiers: &[SocketAddr]) -> io::Result<Self> {
        Ok(Self { names: Names::new()?, mid_tiers: MidTiers::new(mid_tiers), written: Written::default() })
    }

    /// What its snapshots came to.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// What to say to a request: a page with its status, noted in its box before anybody hears it.
    async fn said(&self, method: &Method, uri: &Uri, body: io::Result<Bytes>, noted: &mut Noted<'_>) -> (u16, Page) {
        let routed = match body {
            Ok(body) => route(method, uri, &body),
            Err(_) => Routed::Wrong(400),
        };
        let operation = match routed {
            Routed::Operation(operation) => operation,
            Routed::Form(name) => {
                let page = serde_json::to_vec(&operation::Page::Form(name)).expect("a page has string keys only");
                return (200, noted.said(200, Some(page.into())));
            }
            Routed::Wrong(status) => return (status, noted.said(status, None)),
        };
        let operation = serde_json::to_vec(&operation).expect("an operation has string keys only").into();
        let in_hand = noted.in_hand;
        let answered = match in_hand.sent {
            Some(sent) => self.mid_tiers.ask_again(in_hand.id, &operation, sent, in_hand.note).await,
            None => self.mid_tiers.forward(in_hand.id, &operation, |sent| noted.sending(sent)).await,
        };
        match answered {
            Ok(answered) => {
                let status = answered.reply.head.status.as_u16();
                let page = (status < 500).then(|| answered.reply.body.clone());
                noted.in_hand.note = answered.note();
                let page = noted.said(status, page);
                answered.give_back();
                (status, page)
            }
            Err(why) => {
                tracing::warn!(id = %in_hand.id, %why, "a request has no answer");
                (503, noted.said(503, None))
            }
        }
    }
}

impl Tier for FrontEnd {
    fn begin(&self, _: &Exchange, _: bool) {}

    async fn respond(self: Arc<Self>, request: Request<Incoming>, exchange: Option<Exchange>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let nonce = head.headers.get(NONCE).and_then(|nonce| nonce.to_str().ok()).unwrap_or_default();
        let inherited = exchange.as_ref().and_then(Exchange::inherited);
        let inherited = inherited.and_then(|words| InHand::from_bytes(&words));
        let in_hand = inherited.unwrap_or_else(|| InHand::new(self.names.next()));
        let mut noted = Noted { front_end: &self, exchange: exchange.as_ref(), in_hand };
        let (status, nonce, page) = if nonce.len() > NONCE_MAX {
            (400, "", noted.said(400, None))
        } else {
            let body = http::whole(body, OPERATION_BYTES_MAX).await;
            let (status, page) = self.said(&head.method, &head.uri, body, &mut noted).await;
            (status, nonce, page)
        };
        reply(status, nonce, in_hand.id, page.as_deref(), exchange.as_ref())
    }
}

/// A page, if there is one.
type Page = Option<Bytes>;

/// A request in hand, and the box that says so, if it has one.
struct Noted<'a> {
    front_end: &'a FrontEnd,
    exchange: Option<&'a Exchange>,
    in_hand: InHand,
}

impl Noted<'_> {
    fn export(&self) {
        let Some(exchange) = self.exchange else { return };
        let words = self.in_hand.to_bytes();
        self.front_end.written.count(words.len());
        if let Err(why) = exchange.export_note(&words) {
            // The one before stays: what it does not say is asked for again, and nothing else can come of it than the
            // session's loss.
            tracing::warn!(id = %self.in_hand.id, %why, "a request cannot be noted");
        }
    }

    /// To be called before it is sent.
    fn sending(&mut self, sent: Sent) {
        self.in_hand.sent = Some(sent);
        self.export();
    }

    /// To be called before it is said. If the client has a part of what a dead front end said to it, this has to be the
    /// same; otherwise the session is lost.
    fn said(&mut self, status: u16, page: Page) -> Page {
        let said = Said::of(status, page.as_deref());
        match self.exchange {
            Some(exchange) if exchange.response_begun() && self.in_hand.said != Some(said) => {
                tracing::warn!(id = %self.in_hand.id, status, "the answer is not the one that was begun");
                exchange.abandon();
            }
            _ => {
                self.in_hand.said = Some(said);
                self.export();
            }
        }
        page
    }
}

/// The reply. The mid tier's page goes into it as it came: it is looked at, and not understood. One that is no JSON is
/// the mid tier's mistake, and none.
fn reply(
    status: u16,
    nonce: &str,
    id: RequestId,
    page: Option<&[u8]>,
    exchange: Option<&Exchange>,
) -> Response<Full<Bytes>> {
    let page = page.filter(|page| serde_json::from_slice::<IgnoredAny>(page).is_ok()).unwrap_or(b"null");
    let nonce = serde_json::to_string(nonce).expect("a text is JSON");
    let mut body = format!(r#"{{"nonce":{nonce},"request":"{id}","page":"#).into_bytes();
    body.extend_from_slice(page);
    body.push(b'}');
    let mut reply = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    if let Some(exchange) = exchange {
        // Without boxes hyper sets it.
        reply = reply.header(header::DATE, exchange.date_header());
    }
    reply.body(Full::from(body)).expect("only well-formed header values are set")
}

/// Serves clients for ever.
pub async fn serve(front_end: Arc<FrontEnd>, listener: impl Into<Listener>) -> Infallible {
    http::serve(front_end, listener).await
}
