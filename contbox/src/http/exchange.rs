//! What a request handler can say and ask about the recovery of its connection.

use super::date::Second;
use crate::continuation::ExportError;
use crate::reader::Snapshot;
use crate::stream::{Session, WhenFull};
use hyper::header::HeaderValue;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

/// Heads of one response (interim ones included) must stay below this for [`Exchange::already_sent`] to be exact.
pub const RESPONSE_HEAD_BYTES_MAX: u64 = 16 << 10;

/// Bytes of a snapshot besides the application's words.
pub const SNAPSHOT_FRAME_BYTES: usize = 1 + 8 + 4;

/// Why progress inside a request cannot be exported. The session stays resumable from its last snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProgressError {
    /// Output of this request is on its way already: its position is no longer that of the snapshot.
    #[error("the response has begun")]
    ResponseStarted,
    /// The request has no beginning in the log to which a note could belong: it could not be framed, or is the rest of
    /// one that began on another machine.
    #[error("the request does not begin in the log")]
    NotInLog,
    /// A chunked body's offsets are not those of the stream: such an upload restarts from its head, if at all.
    #[error("progress inside a chunked body cannot be exported")]
    Chunked,
    /// The box refused.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The recovery side of the request being served on one connection; cheap to clone into handlers.
#[derive(Clone, Debug)]
pub struct Exchange {
    shared: Arc<Mutex<Shared>>,
    session: Session,
}

#[derive(Debug)]
struct Shared {
    date: Second,
    /// Stream offset of the body's first byte, if body offsets and stream offsets run in step.
    body_start: Option<u64>,
    /// Where the request begins in the input, and its response in the output, if it begins in the log.
    boundary: Option<(u64, u64)>,
    /// The application's words about this request, from a machine that began it.
    inherited: Option<Vec<u8>>,
    abandoned: bool,
    responding: bool,
    /// Progress was promised for this request.
    promised: bool,
    /// The application's words that outlive a request.
    session_state: Vec<u8>,
    /// Where snapshots are put together, kept so that an export allocates nothing.
    scratch: Vec<u8>,
    /// The newest export, with its positions: the boundary after a response is mostly that before the next request.
    newest: Option<(u64, u64)>,
    newest_lws: Vec<u8>,
}

impl Shared {
    /// Makes what is in `scratch` the newest snapshot, unless it is.
    fn export(&mut self, session: &Session, lsr: u64, lsw: u64) -> Result<(), ExportError> {
        if self.newest == Some((lsr, lsw)) && self.newest_lws == self.scratch {
            return Ok(());
        }
        session.export_state(&self.scratch, lsr, lsw)?;
        std::mem::swap(&mut self.newest_lws, &mut self.scratch);
        self.newest = Some((lsr, lsw));
        Ok(())
    }
}

/// What a snapshot of an HTTP session says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HttpState {
    pub(super) kind: Kind,
    pub(super) date: Second,
    /// The application's words that outlive a request.
    pub(super) session: Vec<u8>,
    /// Its words about the request in progress; empty at a boundary.
    pub(super) progress: Vec<u8>,
}

/// Where in an exchange a snapshot stands. Odd constants, as everywhere in a box.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Before a request's first byte.
    Boundary = 0xb1,
    /// Inside a request's body, before its response.
    Progress = 0xb3,
    /// Before a request's first byte, too, with words about that request.
    Note = 0xb5,
}

impl HttpState {
    /// Kind, date in seconds, length of the session's words.
    const FIXED_BYTES: usize = SNAPSHOT_FRAME_BYTES;

    fn write(kind: Kind, date: Second, session: &[u8], progress: &[u8], into: &mut Vec<u8>) {
        into.clear();
        into.push(kind as u8);
        into.extend_from_slice(&date.to_le_bytes());
        into.extend_from_slice(&(session.len() as u32).to_le_bytes());
        into.extend_from_slice(session);
        into.extend_from_slice(progress);
    }

    /// Parses a snapshot's LWS; `None` for one that is not ours. The empty one of a new box is a boundary.
    pub(super) fn parse(snapshot: &Snapshot) -> Option<Self> {
        Self::of(&snapshot.lws)
    }

    fn of(lws: &[u8]) -> Option<Self> {
        if lws.is_empty() {
            let (date, session, progress) = (Second::now(), Vec::new(), Vec::new());
            return Some(Self { kind: Kind::Boundary, date, session, progress });
        }
        let (fixed, words) = lws.split_at_checked(Self::FIXED_BYTES)?;
        let kind = [Kind::Boundary, Kind::Progress, Kind::Note].into_iter().find(|kind| *kind as u8 == fixed[0])?;
        let date = Second::from_le_bytes(fixed[1..9].try_into().ok()?)?;
        let session_bytes = u32::from_le_bytes(fixed[9..].try_into().ok()?) as usize;
        let (session, progress) = words.split_at_checked(session_bytes)?;
        Some(Self { kind, date, session: session.to_vec(), progress: progress.to_vec() })
    }
}

/// The words of [`Exchange::set_session_state`] in a snapshot that was found in a box, as a testament has it; `None` if
/// it is none of an HTTP session.
pub fn session_words(lws: &[u8]) -> Option<Vec<u8>> {
    HttpState::of(lws).map(|state| state.session)
}

impl Exchange {
    pub(super) fn new(session: Session) -> Self {
        let shared = Shared {
            date: Second::now(),
            body_start: None,
            boundary: None,
            inherited: None,
            abandoned: false,
            responding: false,
            promised: false,
            session_state: Vec::new(),
            scratch: Vec::with_capacity(256),
            newest: None,
            newest_lws: Vec::with_capacity(256),
        };
        Self { shared: Arc::new(Mutex::new(shared)), session }
    }

    /// The time to put into this response's `Date`: a part of the snapshot, so that a regenerated head has the same
    /// bytes.
    pub fn date(&self) -> SystemTime {
        self.lock().date.time()
    }

    /// The value of that header.
    pub fn date_header(&self) -> HeaderValue {
        self.lock().date.header()
    }

    /// How many bytes of this response's body nobody will see because the client has them: a handler may yield
    /// anything of the right length for them instead of reading a file again. Ask once, before the response.
    pub fn already_sent(&self) -> u64 {
        self.session.position().discard.saturating_sub(RESPONSE_HEAD_BYTES_MAX)
    }

    /// Whether a spare could resume the session.
    pub fn is_protected(&self) -> bool {
        self.session.is_protected()
    }

    /// Promises that this request's handler exports progress whenever it has digested input: a full receive log then
    /// makes the connection wait instead of losing its protection. Holds until the response has ended.
    ///
    /// # Errors
    /// [`ProgressError::Chunked`]: the promise could not be kept.
    pub fn promise_progress(&self) -> Result<(), ProgressError> {
        let mut shared = self.lock();
        shared.body_start.ok_or(ProgressError::Chunked)?;
        shared.promised = true;
        self.session.set_when_full(WhenFull::Wait);
        Ok(())
    }

    /// Takes the promise of progress back: the handler will not export any more, and reading must not wait for it.
    pub fn withdraw_promise(&self) {
        if std::mem::take(&mut self.lock().promised) {
            self.session.set_when_full(WhenFull::GiveUp);
        }
    }

    /// Exports a point inside the request: the first `digested` body bytes of this request are safe elsewhere, and
    /// `state` says all that is needed to go on. A resumed session gets `state` back and replays the rest of the body
    /// after a preamble of the application's choice.
    ///
    /// # Errors
    /// See [`ProgressError`].
    pub fn export_progress(&self, digested: u64, state: &[u8]) -> Result<(), ProgressError> {
        let shared = &mut *self.lock();
        if shared.responding {
            return Err(ProgressError::ResponseStarted);
        }
        let lsr = shared.body_start.ok_or(ProgressError::Chunked)?.saturating_add(digested);
        let (date, written) = (shared.date, self.session.position().written);
        HttpState::write(Kind::Progress, date, &shared.session_state, state, &mut shared.scratch);
        Ok(shared.export(&self.session, lsr, written)?)
    }

    /// Exports what has to be known of this request if it is begun again elsewhere (a name it was given, say): unlike
    /// progress, it leaves the request in the log, which is replayed from its first byte. [`Exchange::inherited`] then
    /// has the words. Once the response has ended they are forgotten.
    ///
    /// # Errors
    /// See [`ProgressError`]. Whether there is a box that holds it now is another question:
    /// [`Exchange::is_protected`].
    pub fn export_note(&self, words: &[u8]) -> Result<(), ProgressError> {
        let shared = &mut *self.lock();
        if shared.responding {
            return Err(ProgressError::ResponseStarted);
        }
        let (lsr, lsw) = shared.boundary.ok_or(ProgressError::NotInLog)?;
        HttpState::write(Kind::Note, shared.date, &shared.session_state, words, &mut shared.scratch);
        Ok(shared.export(&self.session, lsr, lsw)?)
    }

    /// What [`Exchange::export_note`] said of this request on a machine that is dead now.
    pub fn inherited(&self) -> Option<Vec<u8>> {
        self.lock().inherited.clone()
    }

    /// Whether some of this response was said already, by a machine that is dead now. Ask before the response.
    pub fn response_begun(&self) -> bool {
        self.session.position().discard > 0
    }

    /// Gives a resumed session up: its handler cannot regenerate the response that was begun. Whatever is responded
    /// now, the client gets a reset instead.
    pub fn abandon(&self) {
        self.lock().abandoned = true;
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    /// Makes [`Exchange::set_session_state`] count at once on a session that was just resumed, not from its first
    /// replayed request on.
    ///
    /// # Errors
    /// The box refused.
    pub fn export_session_state(&self) -> Result<(), ExportError> {
        let shared = &mut *self.lock();
        let (at, note) = (self.session.position(), shared.inherited.clone());
        let kind = if note.is_some() { Kind::Note } else { Kind::Boundary };
        HttpState::write(kind, shared.date, &shared.session_state, &note.unwrap_or_default(), &mut shared.scratch);
        shared.export(&self.session, at.read, at.written)
    }

    /// Has the words of [`Exchange::set_session_state`] outlive the connection, see [`Session::keep_words_for`].
    pub fn keep_words_for(&self, time: Duration) {
        self.session.keep_words_for(time);
    }

    /// Words of the application that outlive a request (a login, say); they are part of every boundary snapshot from
    /// the next one on, and of the snapshot a resumed session gets.
    pub fn set_session_state(&self, state: &[u8]) {
        self.lock().session_state = state.to_vec();
    }

    /// The words of [`Exchange::set_session_state`], also those set before this connection moved here.
    pub fn session_state(&self) -> Vec<u8> {
        self.lock().session_state.clone()
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Exports the boundary before the request whose head begins at `lsr` and whose response will begin at `lsw`.
    pub(super) fn export_boundary(&self, lsr: u64, lsw: u64, date: Second) -> Result<(), ExportError> {
        let shared = &mut *self.lock();
        shared.date = date;
        HttpState::write(Kind::Boundary, date, &shared.session_state, &[], &mut shared.scratch);
        shared.export(&self.session, lsr, lsw)
    }

    pub(super) fn begin(&self, date: Second, body_start: Option<u64>, boundary: Option<(u64, u64)>) {
        let mut shared = self.lock();
        (shared.date, shared.body_start, shared.responding) = (date, body_start, false);
        shared.boundary = boundary;
    }

    /// Takes over what a dead machine noted of the first request.
    pub(super) fn inherit(&self, date: Second, words: Vec<u8>) {
        let mut shared = self.lock();
        (shared.date, shared.inherited) = (date, Some(words));
    }

    pub(super) fn forget_inherited(&self) {
        self.lock().inherited = None;
    }

    pub(super) fn note_response(&self) {
        self.lock().responding = true;
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no thread panics with an exchange half-changed")
    }
}
