//! The adapter between a recoverable stream and hyper: one request at a time, with a snapshot before each.
//!
//! ```text
//!  collect the head ─► export a boundary ─► hand over head, then exactly its body ─► wait for the response's last byte
//!        ▲                                                                                  │ the socket took it
//!        └──────────────────────────── export the next boundary ◄───────────────────────────┘
//! ```
//!
//! Hyper never sees a byte of the next request before the socket has taken the last byte of this response, so at each
//! boundary the output position is exact, also with pipelined requests, slow clients and half-closed connections.
//! A body that the client holds back (`Expect: 100-continue`) is handed over only after the interim response is out,
//! so that progress exported inside the body stands at a definite output position.

use super::date::Second;
use super::exchange::{Exchange, HttpState, Kind};
use super::framing::{BodyMeter, Framing, HEAD_BYTES_MAX, RequestHead, request_head};
use super::input::Input;
use super::response::ResponseMeter;
use crate::reader::Snapshot;
use crate::stream::{Position, RecoverableStream};
use hyper::rt::ReadBufCursor;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes taken from the stream at once; below the receive log, so that a promise of progress can be kept.
const READ_BYTES: usize = 8 << 10;

/// A hyper connection's transport with snapshots at request boundaries.
#[derive(Debug)]
pub struct HttpIo {
    stream: RecoverableStream,
    exchange: Exchange,
    /// Read from the stream, not handed to hyper yet.
    input: Input,
    request: Request,
    response: ResponseMeter,
    /// The first request comes from another machine's log: how to date it, and whether its head was made up here.
    replay: Option<Replay>,
    /// It may be given up by its handler.
    resumed: bool,
    /// The reading side, waiting for the response to move on.
    reader: Option<Waker>,
}

#[derive(Debug)]
enum Request {
    /// Its head is being collected.
    Head,
    /// Its head is complete; so many bytes of it are still to be handed over, then the body.
    Body { head_left: usize, body: BodyMeter, held_back: bool },
    /// Not to be framed: everything goes through.
    Opaque,
}

#[derive(Clone, Copy, Debug)]
struct Replay {
    date: Option<Second>,
    synthetic: bool,
    noted: bool,
}

impl HttpIo {
    /// For a new connection.
    pub fn new(stream: RecoverableStream) -> (Self, Exchange) {
        let exchange = Exchange::new(stream.session());
        let io = Self {
            stream,
            exchange: exchange.clone(),
            input: Input::default(),
            request: Request::Head,
            response: ResponseMeter::new(None),
            replay: None,
            resumed: false,
            reader: None,
        };
        (io, exchange)
    }

    /// For a session from another machine. `preamble` turns the state of the last
    /// [`export_progress`](Exchange::export_progress) into a request head for the rest of the body, or refuses.
    ///
    /// # Errors
    /// If the snapshot is not one of these sessions, or the preamble was refused: drop the connection.
    pub fn resume(
        stream: RecoverableStream,
        snapshot: &Snapshot,
        preamble: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) -> io::Result<(Self, Exchange)> {
        let foreign = || {
            stream.end_in_reset();
            io::Error::new(io::ErrorKind::InvalidData, "the snapshot is not one of an HTTP session")
        };
        let state = HttpState::parse(snapshot).ok_or_else(foreign)?;
        let synthetic = state.kind == Kind::Progress;
        let preamble = if synthetic { preamble(&state.progress).ok_or_else(foreign)? } else { Vec::new() };
        let (mut io, exchange) = Self::new(stream);
        // Without regenerated output to swallow nothing has been said yet, and the time may be told anew.
        let date = (exchange.session().position().discard > 0).then_some(state.date);
        io.input = Input::of(preamble);
        exchange.set_session_state(&state.session);
        let noted = state.kind == Kind::Note;
        if noted {
            exchange.inherit(state.date, state.progress);
        }
        io.replay = Some(Replay { date, synthetic, noted });
        io.resumed = true;
        Ok((io, exchange))
    }

    /// Reads more input; 0 at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut into = ReadBuf::new(self.input.room(READ_BYTES));
        let outcome = Pin::new(&mut self.stream).poll_read(cx, &mut into);
        let count = into.filled().len();
        self.input.added(count);
        ready!(outcome)?;
        Poll::Ready(Ok(count))
    }

    /// A complete head is there: export the boundary before it and start to hand it over.
    fn begin(&mut self, head: RequestHead) {
        let replay = self.replay.take();
        let date = replay.and_then(|replay| replay.date).unwrap_or_else(Second::now);
        let position = self.exchange.session().position();
        let synthetic = replay.is_some_and(|replay| replay.synthetic);
        let boundary = (!synthetic).then(|| self.boundary(position));
        if replay.is_none_or(|replay| !replay.synthetic && !replay.noted) {
            if self.resumed {
                self.exchange.forget_inherited();
            }
            self.export_boundary(position, date);
        }
        // Counted from the end of the input: a preamble at its start has no place in the stream.
        let body_bytes_here = (self.input.len() - head.length) as u64;
        let body_start = position.read - body_bytes_here;
        let in_step = matches!(head.framing, Framing::Length(_));
        self.exchange.begin(date, in_step.then_some(body_start), boundary);
        self.response = ResponseMeter::new(Some(head));
        self.request = Request::Body {
            head_left: head.length,
            body: BodyMeter::new(head.framing),
            held_back: head.expects_continue,
        };
    }

    /// Where the input and the output of the next request begin, if there is no preamble at the input's start.
    fn boundary(&self, position: Position) -> (u64, u64) {
        (position.read.saturating_sub(self.input.len() as u64), position.written)
    }

    fn export_boundary(&self, position: Position, date: Second) {
        let (lsr, lsw) = self.boundary(position);
        if let Err(why) = self.exchange.export_boundary(lsr, lsw, date) {
            // The snapshot before stays valid and the log keeps growing: at worst the session goes unprotected.
            tracing::warn!(%why, "a boundary could not be exported");
        }
    }

    /// Both messages have ended: the next request may come.
    fn turn_over(&mut self) -> io::Result<()> {
        let position = self.exchange.session().position();
        if position.discard > 0 {
            self.stream.end_in_reset();
            let why =
                format!("the regenerated response is {} bytes shorter than what the client has", position.discard);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.exchange.withdraw_promise();
        self.export_boundary(position, Second::now());
        self.request = Request::Head;
        Ok(())
    }

    /// Collects a head until it is complete, hopeless or cut off by the end of the stream.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let head = if self.input.is_empty() { Ok(None) } else { request_head(self.input.bytes()) };
        match head {
            Ok(Some(head)) => self.begin(head),
            Ok(None) if self.input.len() < HEAD_BYTES_MAX => {
                if ready!(self.poll_fill(cx))? == 0 {
                    self.request = Request::Opaque;
                }
            }
            Ok(None) | Err(_) => self.request = Request::Opaque,
        }
        Poll::Ready(Ok(()))
    }

    /// The request has been handed over. Mostly the client says nothing before it has the response: then the next
    /// request wakes the reader, and not the end of this response, which would cost a turn of the executor each time.
    fn wait_for_response(&mut self, cx: &mut Context<'_>) {
        let more_is_here = !self.input.is_empty() || self.stream.poll_readable(cx).is_ready();
        self.reader = more_is_here.then(|| cx.waker().clone());
    }

    /// Whether the request has been handed over, the response has been taken, and another request may follow. Where
    /// none may, the newest snapshot has to stay the one before this request: by its replay a spare learns that the
    /// connection is to be ended.
    fn may_turn_over(&self) -> bool {
        let handed_over = matches!(self.request, Request::Body { head_left: 0, body, .. } if body.is_done());
        handed_over && self.response.is_done() && !self.response.closes()
    }

    /// Moves the first `count` bytes of the input to hyper.
    fn hand_over(&mut self, count: usize, into: &mut ReadBufCursor<'_>) {
        into.put_slice(&self.input.bytes()[..count]);
        self.input.take(count);
    }

    /// Hands over some of a framed request; `false` if it has been handed over whole.
    fn poll_request(&mut self, cx: &mut Context<'_>, into: &mut ReadBufCursor<'_>) -> Poll<io::Result<bool>> {
        let Request::Body { head_left, body, held_back } = &mut self.request else { return Poll::Ready(Ok(false)) };
        if *head_left > 0 {
            let count = (*head_left).min(into.remaining());
            *head_left -= count;
            self.hand_over(count, into);
            return Poll::Ready(Ok(true));
        }
        if body.is_done() {
            return Poll::Ready(Ok(false));
        }
        if *held_back && !self.response.has_told() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        *held_back = false;
        if self.input.is_empty() && ready!(self.poll_fill(cx))? == 0 {
            return Poll::Ready(Ok(true));
        }
        let Request::Body { body, .. } = &mut self.request else { unreachable!("reading does not change the request") };
        let offered = self.input.len().min(into.remaining());
        let count = body.consume(&self.input.bytes()[..offered]);
        self.hand_over(count, into);
        Poll::Ready(Ok(true))
    }

    /// Follows output that the stream has taken.
    fn observe(&mut self, slices: &[IoSlice<'_>], mut count: usize) {
        let (begun, told) = (self.response.has_begun(), self.response.has_told());
        for slice in slices {
            let taken = count.min(slice.len());
            self.response.observe(&slice[..taken]);
            count -= taken;
            if count == 0 {
                break;
            }
        }
        if !begun && self.response.has_begun() {
            self.exchange.note_response();
        }
        if self.response.is_done() || !told && self.response.has_told() {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl hyper::rt::Read for HttpIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<Result<(), io::Error>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match this.request {
                Request::Head => ready!(this.poll_head(cx))?,
                Request::Body { .. } => {
                    if ready!(this.poll_request(cx, &mut into))? {
                        return Poll::Ready(Ok(()));
                    }
                    if !this.response.is_done() {
                        this.wait_for_response(cx);
                        return Poll::Pending;
                    }
                    this.turn_over()?;
                }
                Request::Opaque => {
                    if this.input.is_empty() {
                        ready!(this.poll_fill(cx))?;
                    }
                    let count = this.input.len().min(into.remaining());
                    this.hand_over(count, &mut into);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl hyper::rt::Write for HttpIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, io::Error>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize, io::Error>> {
        let this = self.get_mut();
        if this.resumed && this.exchange.is_abandoned() {
            this.stream.end_in_reset();
            return Poll::Ready(Err(io::Error::other("the handler gave the session up")));
        }
        let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        this.observe(slices, count);
        if this.may_turn_over() {
            this.turn_over()?; // no reader waits for it
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
