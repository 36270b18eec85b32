//! Watches a response go by and says when it has ended: what the socket took, not what the server buffered.

use std::borrow::Cow;

use super::framing::{BodyMeter, Framing, HEAD_BYTES_MAX, RequestHead, response_head};

/// The state of one response.
#[derive(Debug)]
pub(super) struct ResponseMeter {
    request: Option<RequestHead>,
    head: Vec<u8>,
    body: Option<BodyMeter>,
    interim: bool,
    closes: bool,
}

impl ResponseMeter {
    /// Before the response to `request`; `None` if the request could not be framed.
    pub(super) fn new(request: Option<RequestHead>) -> Self {
        let closes = request.is_none_or(|request| request.closes);
        Self { request, head: Vec::new(), body: None, interim: false, closes }
    }

    /// Whether the response's last byte has gone by.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_some_and(|body| body.is_done())
    }

    /// Whether the connection ends with it, as far as the heads that went by say.
    pub(super) fn closes(&self) -> bool {
        self.closes
    }

    /// Whether the final response has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.body.is_some()
    }

    /// Whether the client has been told, by an interim or final response, what to do with its body.
    pub(super) fn has_told(&self) -> bool {
        self.interim || self.has_begun()
    }

    /// Follows bytes that the socket has taken.
    pub(super) fn observe(&mut self, bytes: &[u8]) {
        if let Some(body) = &mut self.body {
            body.consume(bytes);
            return;
        }
        let Some(request) = &self.request else {
            self.body = Some(BodyMeter::new(Framing::Opaque));
            return;
        };
        // Mostly a head comes whole, with its body behind it, and is looked at where it is.
        let joined = match std::mem::take(&mut self.head) {
            begun if begun.is_empty() => Cow::Borrowed(bytes),
            begun => Cow::Owned([&begun, bytes].concat()),
        };
        match response_head(&joined, request) {
            Ok(None) if joined.len() < HEAD_BYTES_MAX => self.head = joined.into_owned(),
            Ok(Some(head)) => {
                self.interim |= head.is_interim;
                self.closes |= head.closes && !head.is_interim;
                self.body = (!head.is_interim).then(|| BodyMeter::new(head.framing));
                let rest = &joined[head.length..];
                if !rest.is_empty() {
                    self.observe(rest);
                }
            }
            Ok(None) | Err(_) => self.body = Some(BodyMeter::new(Framing::Opaque)),
        }
    }
}
