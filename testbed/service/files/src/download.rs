//! The body of a GET: content in pieces, paced if asked, without reading again what the client has already.

use crate::content::Content;
use crate::pieces;
use bytes::Bytes;
use contbox::http::RESPONSE_HEAD_BYTES_MAX;
use hyper::body::{Body, Frame, SizeHint};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

const PIECE_BYTES: u64 = pieces::PIECE_BYTES as u64;
/// Pieces per second of a paced download: so many that a client's pause shows the recovery, not the pace.
const PACED_PIECES_PER_S: u64 = 100;

/// Stands for bytes that are swallowed anyway.
static FILLER: [u8; PIECE_BYTES as usize] = [0; PIECE_BYTES as usize];

/// A download in progress.
#[derive(Debug)]
pub struct Download {
    content: Content,
    left: Range<u64>,
    /// Content before this offset goes to nobody.
    known_until: u64,
    /// Content before this offset is not paced. After a take-over `known_until` may fall short by a response head: a
    /// pace would make the client wait for bytes that it has already.
    paced_from: u64,
    pace: Option<Pace>,
}

#[derive(Debug)]
struct Pace {
    bytes_per_s: u64,
    /// When the first byte that anybody sees was due, and where it lay.
    origin: Option<(Instant, u64)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Download {
    /// `stretch` of `content`, at most at `bytes_per_s`; the first `already_sent` bytes may be anything.
    pub fn new(content: Content, stretch: Range<u64>, bytes_per_s: Option<u64>, already_sent: u64) -> Self {
        let known_until = stretch.start.saturating_add(already_sent).min(stretch.end);
        let paced_from = if already_sent > 0 { known_until + RESPONSE_HEAD_BYTES_MAX } else { stretch.start };
        let bytes_per_s = bytes_per_s.filter(|rate| *rate > 0);
        let pace = bytes_per_s.map(|bytes_per_s| Pace { bytes_per_s, origin: None, timer: None });
        Self { content, left: stretch, known_until, paced_from, pace }
    }

    fn next_piece(&mut self) -> io::Result<Bytes> {
        let wanted = self.left.end - self.left.start;
        if self.left.start < self.known_until {
            let length = wanted.min(PIECE_BYTES).min(self.known_until - self.left.start);
            self.left.start += length;
            return Ok(Bytes::from_static(&FILLER[..length as usize]));
        }
        let longest = self
            .pace
            .as_ref()
            .map_or(PIECE_BYTES, |pace| (pace.bytes_per_s / PACED_PIECES_PER_S).clamp(1, PIECE_BYTES));
        // Read here and not on a pool of threads: pieces are small and mostly in the page cache, and a server in a
        // small guest has no threads to spare.
        let (content, offset) = (&self.content, self.left.start);
        let piece = pieces::filled(wanted.min(longest) as usize, |piece| content.read(offset, piece))?;
        self.left.start += piece.len() as u64;
        Ok(piece)
    }
}

impl Pace {
    /// Waits until byte `offset` is due.
    fn poll_due(&mut self, cx: &mut Context<'_>, offset: u64) -> Poll<()> {
        let (start, first) = *self.origin.get_or_insert_with(|| (Instant::now(), offset));
        let after = Duration::from_secs_f64((offset - first) as f64 / self.bytes_per_s as f64);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(start + after)));
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        Poll::Ready(())
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let offset = this.left.start;
        if let Some(pace) = this.pace.as_mut().filter(|_| offset >= this.paced_from) {
            ready!(pace.poll_due(cx, offset));
        }
        Poll::Ready(Some(this.next_piece().map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}
