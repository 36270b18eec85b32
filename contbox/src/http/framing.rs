//! Where HTTP/1.1 messages end, from their bytes alone (RFC 9112, section 6), without a socket and without a server.
//!
//! Heads are parsed by httparse, the parser hyper itself uses, so that both agree about where they end. What cannot be
//! framed (an upgrade, a malformed head) is [`Framing::Opaque`]: it is passed on unchanged and the session then has no
//! further boundaries, which costs its protection and never its correctness.

use std::mem::MaybeUninit;

use httparse::ParserConfig;

/// Longest head that is framed; more than one receive log could not be replayed anyway.
pub const HEAD_BYTES_MAX: usize = 15 << 10;
/// Headers per head, hyper's own default.
const HEADERS_MAX: usize = 100;

/// How a message's body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the chunk of size 0 and its trailers.
    Chunked,
    /// With the connection, or unknown: no boundary follows.
    Opaque,
}

/// A complete request head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHead {
    /// Its length in bytes, blank line included.
    pub length: usize,
    /// How the body ends.
    pub framing: Framing,
    /// The response to HEAD has no body whatever its head says.
    pub is_head: bool,
    /// The response to CONNECT may turn the connection into a tunnel.
    pub is_connect: bool,
    /// The client waits for an interim response before it sends the body.
    pub expects_continue: bool,
    /// The connection ends with the response.
    pub closes: bool,
}

/// A complete response head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseHead {
    /// Its length in bytes, blank line included.
    pub length: usize,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the final response is still to come (1xx).
    pub is_interim: bool,
    /// The connection ends with it.
    pub closes: bool,
}

/// The bytes are no head that we could frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a head of HTTP/1.1: {0}")]
pub struct Unframed(pub httparse::Error);

/// Finds the request head at the start of `bytes`; `None` if it is not complete.
///
/// # Errors
/// [`Unframed`]
pub fn request_head(bytes: &[u8]) -> Result<Option<RequestHead>, Unframed> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut headers).map_err(Unframed)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let is_connect = request.method == Some("CONNECT");
    let is_upgrade = headers_named(request.headers, "upgrade").next().is_some();
    let framing = if is_upgrade { Framing::Opaque } else { body_framing(request.headers, Framing::Length(0)) };
    let expects_continue = headers_named(request.headers, "expect").any(|v| v.eq_ignore_ascii_case(b"100-continue"));
    let (is_head, is_http_11) = (request.method == Some("HEAD"), request.version == Some(1));
    let expects_continue = expects_continue && is_http_11;
    let closes = closes(request.headers, is_http_11);
    Ok(Some(RequestHead { length, framing, is_head, is_connect, expects_continue, closes }))
}

/// Finds the response head at the start of `bytes`, which answers `request`; `None` if it is not complete.
///
/// # Errors
/// [`Unframed`]
pub fn response_head(bytes: &[u8], request: &RequestHead) -> Result<Option<ResponseHead>, Unframed> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
    let length = match parsed.map_err(Unframed)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let code = response.code.unwrap_or(0);
    let framing = match code {
        101 => Framing::Opaque,
        100..=199 | 204 | 304 => Framing::Length(0),
        200..=299 if request.is_connect => Framing::Opaque,
        _ if request.is_head => Framing::Length(0),
        _ => body_framing(response.headers, Framing::Opaque),
    };
    let closes = closes(response.headers, response.version == Some(1));
    Ok(Some(ResponseHead { length, framing, is_interim: (100..=199).contains(&code) && code != 101, closes }))
}

fn headers_named<'h>(headers: &'h [httparse::Header<'h>], name: &'h str) -> impl Iterator<Item = &'h [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.trim_ascii())
}

/// Whether the connection ends after the message, by its Connection header or else by its version (RFC 9112, 9.3).
fn closes(headers: &[httparse::Header<'_>], is_http_11: bool) -> bool {
    let mut tokens = headers_named(headers, "connection").flat_map(|value| value.split(|byte| *byte == b','));
    let is = |token: &[u8], word: &str| token.trim_ascii().eq_ignore_ascii_case(word.as_bytes());
    if is_http_11 { tokens.any(|token| is(token, "close")) } else { !tokens.any(|token| is(token, "keep-alive")) }
}

/// Framing by Transfer-Encoding, else Content-Length, else `absent`. Anything doubtful is opaque: hyper refuses it.
fn body_framing(headers: &[httparse::Header<'_>], absent: Framing) -> Framing {
    if let Some(encoding) = headers_named(headers, "transfer-encoding").last() {
        let last = encoding.rsplit(|byte| *byte == b',').next().unwrap_or(encoding).trim_ascii();
        return if last.eq_ignore_ascii_case(b"chunked") { Framing::Chunked } else { Framing::Opaque };
    }
    let mut lengths = headers_named(headers, "content-length").map(parse_length);
    let Some(first) = lengths.next() else { return absent };
    match first {
        Some(length) if lengths.all(|other| other == first) => Framing::Length(length),
        _ => Framing::Opaque,
    }
}

fn parse_length(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// Follows a body to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyMeter {
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Length(u64),
    /// In the digits of a chunk size.
    Size(u64),
    /// In a chunk extension or the line end after a size.
    SizeLine(u64),
    Data(u64),
    /// The line end after a chunk's data.
    DataEnd,
    /// In the trailers; so many bytes of the current line.
    Trailer(u64),
    Opaque,
    Done,
}

impl BodyMeter {
    /// At the start of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0),
            Framing::Opaque => State::Opaque,
        };
        Self { state }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether no end will be found.
    pub fn is_opaque(&self) -> bool {
        self.state == State::Opaque
    }

    /// Takes the bytes that belong to the body off the front of `bytes` and returns their number.
    pub fn consume(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            at += self.step(&bytes[at..]);
        }
        at
    }

    /// Consumes a run of data or one byte of chunk framing; `bytes` is not empty.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let offered = bytes.len() as u64;
        match self.state {
            State::Length(left) => {
                let taken = left.min(offered);
                self.state = if taken == left { State::Done } else { State::Length(left - taken) };
                return taken as usize;
            }
            State::Data(left) => {
                let taken = left.min(offered);
                self.state = if taken == left { State::DataEnd } else { State::Data(left - taken) };
                return taken as usize;
            }
            State::Opaque | State::Done => return bytes.len(),
            State::Size(size) => self.state = size_step(size, bytes[0]),
            State::SizeLine(size) if bytes[0] == b'\n' => {
                self.state = if size == 0 { State::Trailer(0) } else { State::Data(size) };
            }
            State::SizeLine(_) => {}
            State::DataEnd if bytes[0] == b'\n' => self.state = State::Size(0),
            State::DataEnd => {}
            State::Trailer(length) => {
                self.state = match bytes[0] {
                    b'\n' if length == 0 => State::Done,
                    b'\n' => State::Trailer(0),
                    b'\r' => State::Trailer(length),
                    _ => State::Trailer(length + 1),
                };
            }
        }
        1
    }
}

fn size_step(size: u64, byte: u8) -> State {
    match (byte as char).to_digit(16) {
        Some(digit) => match size.checked_mul(16) {
            Some(size) => State::Size(size | u64::from(digit)),
            None => State::Opaque,
        },
        None if byte == b'\n' && size == 0 => State::Trailer(0),
        None if byte == b'\n' => State::Data(size),
        None => State::SizeLine(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check_request(text: &str, framing: Framing) -> RequestHead {
        let head = request_head(text.as_bytes()).unwrap().unwrap();
        assert_eq!(head.framing, framing, "{text}");
        head
    }

    #[test]
    fn request_bodies_end_where_the_head_says() {
        check_request("GET / HTTP/1.1\r\n\r\n", Framing::Length(0));
        check_request("PUT / HTTP/1.1\r\nContent-Length: 12\r\n\r\n", Framing::Length(12));
        check_request("PUT / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3\r\n\r\n", Framing::Chunked);
        check_request("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Framing::Opaque);
        check_request("PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Framing::Opaque);
        check_request("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n", Framing::Opaque);
        assert!(check_request("PUT / HTTP/1.1\r\nExpect: 100-Continue\r\n\r\n", Framing::Length(0)).expects_continue);
        assert!(check_request("HEAD / HTTP/1.1\r\n\r\nrest", Framing::Length(0)).is_head);
        assert_eq!(request_head(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap(), None);
        assert!(request_head(b"\0\x01\x02").is_err());
    }

    #[test]
    fn response_bodies_depend_on_status_and_request() {
        let get = check_request("GET / HTTP/1.1\r\n\r\n", Framing::Length(0));
        let head = RequestHead { is_head: true, ..get };
        let framing = |text: &str, request| response_head(text.as_bytes(), request).unwrap().unwrap().framing;
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(framing(ok, &get), Framing::Length(5));
        assert_eq!(framing(ok, &head), Framing::Length(0));
        assert_eq!(framing("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", &get), Framing::Length(0));
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", &get), Framing::Opaque);
        let interim = response_head(b"HTTP/1.1 100 Continue\r\n\r\nHTTP", &get).unwrap().unwrap();
        assert!(interim.is_interim && interim.length == 25);
    }

    #[test]
    fn a_connection_ends_as_the_header_or_the_version_says() {
        let request = |text: &str| request_head(text.as_bytes()).unwrap().unwrap().closes;
        assert!(!request("GET / HTTP/1.1\r\n\r\n"));
        assert!(request("GET / HTTP/1.1\r\nConnection: te, Close\r\n\r\n"));
        assert!(!request("GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n"));
        assert!(request("GET / HTTP/1.0\r\n\r\n"));
        assert!(!request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        let get = check_request("GET / HTTP/1.1\r\n\r\n", Framing::Length(0));
        let response = |text: &str| response_head(text.as_bytes(), &get).unwrap().unwrap().closes;
        assert!(!response("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(response("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"));
    }

    #[test]
    fn a_chunked_body_ends_after_its_trailers() {
        let body = b"5;ext=1\r\nhello\r\n0A\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET /next";
        let mut meter = BodyMeter::new(Framing::Chunked);
        assert_eq!(meter.consume(body), body.len() - "GET /next".len());
        assert!(meter.is_done());
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_end_as_the_whole(
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'0'), Just(b'3'), any::<u8>()],
                0..200,
            ),
            cut in 0usize..200,
        ) {
            let cut = cut.min(bytes.len());
            let mut whole = BodyMeter::new(Framing::Chunked);
            let end = whole.consume(&bytes);
            let mut pieces = BodyMeter::new(Framing::Chunked);
            let first = pieces.consume(&bytes[..cut]);
            let second = if first == cut { pieces.consume(&bytes[cut..]) } else { 0 };
            prop_assert_eq!((first + second, pieces), (end, whole));
        }

        #[test]
        fn garbage_is_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = request_head(&bytes);
            let _ = response_head(&bytes, &check_request("GET / HTTP/1.1\r\n\r\n", Framing::Length(0)));
        }
    }
}
