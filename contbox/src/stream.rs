//! A TCP connection whose session survives its machine, as tokio's `AsyncRead` and `AsyncWrite`.
//!
//! ```text
//!  input    lsr ............. read ............. received            (stream offsets)
//!           newest snapshot   given to caller    end of log = the kernel's copied_seq, at the latest
//!  output   lsw ......................... written
//!           newest snapshot               counted here; after a resume the first `discard` bytes are swallowed
//! ```
//!
//! Reads land in the receive log first and are copied to the caller from there; an export trims the log. Writes go
//! straight to the socket: what the kernel took is in its send queue until acknowledged, and that is where a spare
//! finds it. Where it could not, a pool has send logs, and output is copied there before the kernel gets it.
//! A closing connection cannot be rebuilt, so a protected one shuts down only when the client has everything.
//! A connection without a box behaves like a plain `TcpStream`.

use crate::channel::Place;
use crate::continuation::{ContinuationBox, ExportError};
use crate::service::BoxClient;
use crate::shared::{self, Slot};
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// How long a shutdown waits for a client that acknowledges nothing: longer than a take-over of its server lasts.
const ACKNOWLEDGE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the send queue of a connection that shuts down.
const ACKNOWLEDGE_LOOK: Duration = Duration::from_millis(10);

/// Between two looks whether the client has acknowledged enough for the send log to take more. Rarely needed: a socket
/// takes less than the log.
const ROOM_LOOK: Duration = Duration::from_millis(2);

/// What to do when the log is full and the application has not exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WhenFull {
    /// Give the session's protection up and go on: right for an application that may need the input before it can
    /// export.
    #[default]
    GiveUp,
    /// Read no more until the next export: right for an application that exports whatever it has digested.
    Wait,
}

/// Stream offsets of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Input handed to the application.
    pub read: u64,
    /// Output taken from the application, swallowed bytes included.
    pub written: u64,
    /// Output still to be swallowed because the client, or the rebuilt send queue, has it already.
    pub discard: u64,
}

/// A handle to a connection's session; application code exports through it.
#[derive(Clone, Debug)]
pub struct Session {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    continuation: Option<ContinuationBox>,
    position: Position,
    when_full: WhenFull,
    /// How long the box stays when the connection has ended.
    kept_for: Option<Duration>,
    /// A reader that waits for room in the log.
    waiting: Option<Waker>,
    /// Stream offset up to which the client is known to have everything.
    acknowledged: u64,
}

impl Session {
    /// Makes `lws` the newest snapshot of this session: the application has digested all input before `lsr` and has
    /// produced all output before `lsw`. A session without a box accepts and forgets it.
    ///
    /// # Errors
    /// See [`ExportError`]; the newest snapshot stays what it was.
    pub fn export_state(&self, lws: &[u8], lsr: u64, lsw: u64) -> Result<(), ExportError> {
        let mut shared = self.lock();
        if let Some(continuation) = shared.continuation.as_mut().filter(|it| it.is_protected()) {
            continuation.export_state(lws, lsr, lsw)?;
        }
        let waiting = shared.waiting.take();
        drop(shared);
        waiting.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Where the session stands.
    pub fn position(&self) -> Position {
        self.lock().position
    }

    /// Its box, for the records of channels that belong to the session; `None` if no spare could resume it.
    pub fn place(&self) -> Option<Place> {
        self.lock().continuation.as_ref().filter(|it| it.is_protected()).map(ContinuationBox::place)
    }

    /// Whether a spare could resume the session.
    pub fn is_protected(&self) -> bool {
        self.lock().continuation.as_ref().is_some_and(ContinuationBox::is_protected)
    }

    /// Chooses what happens when the log is full.
    pub fn set_when_full(&self, when_full: WhenFull) {
        let mut shared = self.lock();
        shared.when_full = when_full;
        let waiting = shared.waiting.take();
        drop(shared);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Has the newest snapshot stay readable for so long after the connection's end, for a
    /// [`testament`](crate::testament): what it says is not forgotten with the connection.
    pub fn keep_words_for(&self, time: Duration) {
        self.lock().kept_for = Some(time);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no thread panics with a session half-changed")
    }
}

/// A connection with a box.
#[derive(Debug)]
pub struct RecoverableStream {
    socket: TcpStream,
    session: Session,
    service: Option<Arc<BoxClient>>,
    closing: Option<Closing>,
    /// Until the next look for room in the send log.
    look: Option<Pin<Box<Sleep>>>,
}

/// A shutdown that waits for the client to acknowledge what was sent.
#[derive(Debug)]
struct Closing {
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
}

impl RecoverableStream {
    /// A connection that no spare can resume.
    pub fn unprotected(socket: TcpStream) -> Self {
        Self::assemble(socket, None, Position::default(), None)
    }

    /// A connection with its box, standing at `position`; `service` gets the slot back at the end.
    pub fn protected(
        socket: TcpStream,
        continuation: ContinuationBox,
        position: Position,
        service: Option<Arc<BoxClient>>,
    ) -> Self {
        Self::assemble(socket, Some(continuation), position, service)
    }

    fn assemble(
        socket: TcpStream,
        continuation: Option<ContinuationBox>,
        position: Position,
        service: Option<Arc<BoxClient>>,
    ) -> Self {
        let when_full = WhenFull::default();
        let shared = Shared { continuation, position, when_full, kept_for: None, waiting: None, acknowledged: 0 };
        let session = Session { shared: Arc::new(Mutex::new(shared)) };
        Self { socket, session, service, closing: None, look: None }
    }

    /// Ready when there is something to read, if only the end; otherwise the caller's task is woken then.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.session.lock().logged_input() {
            return Poll::Ready(());
        }
        self.socket.poll_read_ready(cx).map(drop)
    }

    /// The session, for exports.
    pub fn session(&self) -> Session {
        self.session.clone()
    }

    /// Waits until the client has acknowledged everything, or will not. The kernel has no event for it, so look often
    /// enough that a client does not notice.
    fn poll_acknowledged(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // Mostly so at the first look: the client's kernel is quick with the end of a first response.
            if shared::unacknowledged(self.socket.as_fd()).unwrap_or(0) == 0 {
                return Poll::Ready(());
            }
            let closing = self.closing.get_or_insert_with(|| {
                let now = Instant::now();
                Closing { deadline: now + ACKNOWLEDGE_PATIENCE, timer: Box::pin(sleep_until(now)) }
            });
            // A connection that was reset keeps what it had not sent in its count for ever, and its error goes to
            // whoever asks first, a failing write for one. That it has no peer any more stays.
            let broken = !matches!(self.socket.take_error(), Ok(None)) || self.socket.peer_addr().is_err();
            if broken || Instant::now() >= closing.deadline {
                return Poll::Ready(());
            }
            ready!(closing.timer.as_mut().poll(cx));
            closing.timer.as_mut().reset(Instant::now() + ACKNOWLEDGE_LOOK);
        }
    }

    /// Makes the connection end in a reset: a client must not take a lost session for a finished one.
    pub fn end_in_reset(&self) {
        if let Err(why) = self.socket.set_zero_linger() {
            tracing::warn!(%why, "a lost session will look finished to its client");
        }
    }

    /// The socket, for its options. Reading or writing it past this stream would break the offsets.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl Drop for RecoverableStream {
    fn drop(&mut self) {
        // The box ends before the socket closes: a box whose connection is gone could match a later one.
        let mut shared = self.session.lock();
        let Some(mut continuation) = shared.continuation.take() else { return };
        let service = self.service.take();
        let kept = shared.kept_for.and_then(|time| Some((time, tokio::runtime::Handle::try_current().ok()?)));
        let Some((time, runtime)) = kept else { return end(continuation, service) };
        continuation.keep();
        runtime.spawn(async move {
            tokio::time::sleep(time).await;
            end(continuation, service);
        });
    }
}

fn end(continuation: ContinuationBox, service: Option<Arc<BoxClient>>) {
    let slot = continuation.close();
    service.iter().for_each(|service| service.give_back(&slot));
}

impl AsyncRead for RecoverableStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut shared = this.session.lock();
        if !shared.logged_input() && shared.is_logging() {
            if shared.log_is_full() {
                match shared.when_full {
                    WhenFull::Wait => {
                        shared.waiting = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    WhenFull::GiveUp => shared.give_up(),
                }
            } else {
                ready!(shared.poll_receive(&this.socket, cx, into.remaining()))?;
                shared.deliver(into);
                return Poll::Ready(Ok(()));
            }
        }
        if shared.logged_input() {
            shared.deliver(into);
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, into))?;
        shared.position.read += (into.filled().len() - before) as u64;
        Poll::Ready(Ok(()))
    }
}

impl Shared {
    fn logged_input(&self) -> bool {
        self.continuation.as_ref().is_some_and(|it| self.position.read < it.received())
    }

    fn is_logging(&self) -> bool {
        self.continuation.as_ref().is_some_and(ContinuationBox::is_protected)
    }

    fn log_is_full(&self) -> bool {
        self.continuation.as_ref().is_some_and(|it| it.log_room() == 0)
    }

    fn give_up(&mut self) {
        tracing::debug!(position = ?self.position, "the receive log is full: the session goes on unprotected");
        self.continuation.as_mut().expect("only a session with a box logs").give_up();
    }

    /// Receives from the socket into the log, up to `wanted` bytes.
    fn poll_receive(&mut self, socket: &TcpStream, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<()>> {
        let continuation = self.continuation.as_mut().expect("only a session with a box logs");
        let room = continuation.log_room().min(wanted as u64);
        let room = continuation.slot().log_run(continuation.received(), room);
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let (slot, end) = (continuation.slot(), continuation.received());
            let mut received = None;
            let outcome = socket.try_io(Interest::READABLE, || {
                let count = *received.insert(slot.log_receive(socket.as_fd(), end, room)?);
                // Less than there was room for: the socket is empty now. Saying so, as tokio's own read does, spares
                // the call that would find nothing. Not at the end of the stream, which stays readable.
                let emptied = 0 < count && (count as u64) < room;
                if emptied { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            if let Some(count) = received {
                continuation.note_received(count);
                return Poll::Ready(Ok(()));
            }
            match outcome {
                Ok(()) => {}
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }

    /// Copies logged input that the caller has not seen; nothing at the end of the stream.
    fn deliver(&mut self, into: &mut ReadBuf<'_>) {
        let continuation = self.continuation.as_ref().expect("only a session with a box has logged input");
        let count = (continuation.received() - self.position.read).min(into.remaining() as u64) as usize;
        continuation.slot().log_copy(self.position.read, &mut into.initialize_unfilled()[..count]);
        into.advance(count);
        self.position.read += count as u64;
    }

    /// The slot into which output has to go before the kernel gets it, if there is one.
    fn keeping_output(&self) -> Option<Slot> {
        let continuation = self.continuation.as_ref().filter(|it| it.keeps_output() && it.is_protected())?;
        Some(continuation.slot().clone())
    }

    /// Bytes of the `wanted` ones that a send log of `capacity` can take: what the client has acknowledged may go. The
    /// kernel is asked how much that is only where what is known does not do.
    fn output_room(&mut self, capacity: u32, wanted: usize, socket: &TcpStream) -> usize {
        let (capacity, written) = (u64::from(capacity), self.position.written);
        if capacity - (written - self.acknowledged) < capacity.min(wanted as u64) {
            let waiting = shared::unacknowledged(socket.as_fd()).map_or(u64::MAX, |count| count as u64);
            self.acknowledged = self.acknowledged.max(written.saturating_sub(waiting));
        }
        (capacity - (written - self.acknowledged)).min(wanted as u64) as usize
    }

    /// Takes up to `offered` bytes of output that the client has already, or 0 if there are none to swallow.
    fn swallow(&mut self, offered: usize) -> usize {
        let swallowed = self.position.discard.min(offered as u64);
        self.position.discard -= swallowed;
        self.position.written += swallowed;
        swallowed as usize
    }
}

impl AsyncWrite for RecoverableStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut shared = this.session.lock();
        let swallowed = shared.swallow(slices.iter().map(|slice| slice.len()).sum());
        if swallowed > 0 {
            return Poll::Ready(Ok(swallowed));
        }
        let count = match shared.keeping_output() {
            None => ready!(Pin::new(&mut this.socket).poll_write_vectored(cx, slices))?,
            Some(slot) => {
                ready!(this.socket.poll_write_ready(cx))?;
                let (capacity, wanted) = (slot.geometry().send_bytes, slices.iter().map(|slice| slice.len()).sum());
                let room = loop {
                    match shared.output_room(capacity, wanted, &this.socket) {
                        0 if wanted > 0 => {
                            let look = this.look.get_or_insert_with(|| Box::pin(sleep(ROOM_LOOK)));
                            ready!(look.as_mut().poll(cx));
                            this.look = None;
                        }
                        room => break room,
                    }
                };
                let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                let first = [IoSlice::new(&first[..first.len().min(room)])];
                let slices = if room < wanted { &first } else { slices };
                let mut end = shared.position.written;
                for slice in slices {
                    slot.sent_fill(end, slice);
                    end += slice.len() as u64;
                }
                ready!(Pin::new(&mut this.socket).poll_write_vectored(cx, slices))?
            }
        };
        shared.position.written += count as u64;
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.session.is_protected() {
            ready!(this.poll_acknowledged(cx));
        }
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
