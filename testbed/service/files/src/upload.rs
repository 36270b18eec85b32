//! PUT: the body goes to storage as it arrives, and after every piece the session's snapshot says how far it got.
//!
//! ```text
//!  NAME.part  being written, at the offset the request says      ──rename──►  NAME  when the last byte is there
//! ```
//!
//! A spare continues with a PUT for the rest, made up from the last snapshot. Writing is idempotent: the piece after
//! the snapshot may be written twice, and the last piece may meet a file that has been renamed already. A snapshot
//! never covers the whole body, so there is always a rest to make up a request for.

use crate::conditions::{self, Placed};
use crate::content::stored_path;
use contbox::http::{Exchange, ProgressError};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::CONTENT_RANGE;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a spare needs to continue an upload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Progress {
    /// The request's path and query.
    target: String,
    /// Offset of the next byte in the file.
    next: u64,
    /// Length of the finished file.
    total: u64,
    /// Bytes of the request's body still to come: a part upload ends before `total`.
    rest: u64,
}

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The path names nothing that can be written.
    #[error("no such place")]
    Nowhere,
    /// `Content-Range` contradicts the body or what is stored.
    #[error("the range does not continue what is here")]
    BadRange,
    /// The storage failed.
    #[error("storage: {0}")]
    Storage(#[from] io::Error),
    /// The client's body broke off.
    #[error("the body broke off: {0}")]
    Body(#[from] hyper::Error),
}

impl UploadError {
    /// The status that says so.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Nowhere => StatusCode::FORBIDDEN,
            Self::BadRange => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Storage(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Body(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Stores the body of `request` and returns how many bytes the file has then.
///
/// # Errors
/// See [`UploadError`].
pub async fn store(root: &Path, request: Request<Incoming>, exchange: &Exchange) -> Result<u64, UploadError> {
    let (head, mut body) = request.into_parts();
    let stored = store_body(root, &head, &mut body, exchange).await;
    if stored.is_err() {
        exchange.withdraw_promise();
        drain(&mut body).await;
    }
    stored
}

/// Takes the rest of a refused body, within reason: closing with input unread would reset the connection, and the
/// client might never see why.
async fn drain(body: &mut Incoming) {
    const DRAINED_BYTES_MAX: usize = 1 << 20;
    let mut drained = 0;
    while drained < DRAINED_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        drained += frame.data_ref().map_or(0, |piece| piece.len());
    }
}

async fn store_body(root: &Path, head: &Parts, body: &mut Incoming, exchange: &Exchange) -> Result<u64, UploadError> {
    let finished = stored_path(root, head.uri.path()).ok_or(UploadError::Nowhere)?;
    let target = head.uri.to_string();
    let body_bytes = body.size_hint().exact();
    let placed = match (head.headers.get(CONTENT_RANGE), body_bytes) {
        (None, known) => Placed { first: 0, total: known.unwrap_or(0) },
        (Some(range), Some(known)) => {
            range.to_str().ok().and_then(|range| conditions::placed(range, known)).ok_or(UploadError::BadRange)?
        }
        (Some(_), None) => return Err(UploadError::BadRange),
    };
    let part = Part::open(&finished, placed.first, placed.total)?;
    // A body of unknown length replays from its head; it stays resumable as long as the log holds it.
    let exports = exchange.promise_progress().is_ok();
    let mut digested = 0;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        tokio::task::block_in_place(|| part.write(&piece, placed.first + digested))?;
        digested += piece.len() as u64;
        let rest = body_bytes.unwrap_or(0).saturating_sub(digested);
        if exports && rest > 0 {
            let next = placed.first + digested;
            export(exchange, digested, &Progress { target: target.clone(), next, total: placed.total, rest });
        }
    }
    let end = placed.first + digested;
    if end >= placed.total {
        tokio::task::block_in_place(|| part.finish(&finished, end))?;
    }
    Ok(end)
}

fn export(exchange: &Exchange, digested: u64, progress: &Progress) {
    let state = serde_json::to_vec(progress).expect("plain numbers and a string serialize");
    match exchange.export_progress(digested, &state) {
        Ok(()) => {}
        Err(why @ ProgressError::Export(_)) => {
            // Unbounded targets do not fit a box; the session then lives on its log.
            tracing::warn!(%why, "upload progress could not be exported");
        }
        Err(why) => unreachable!("progress was promised for this request: {why}"),
    }
}

/// The request head for the rest of an upload, made up from the state of its last export.
pub fn rest_of_upload(state: &[u8]) -> Option<Vec<u8>> {
    let Progress { target, next, total, rest } = serde_json::from_slice(state).ok()?;
    let last = next.checked_add(rest)?.checked_sub(1)?;
    let clean = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic());
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: resumed\r\nContent-Length: {rest}\r\n\
         Content-Range: bytes {next}-{last}/{total}\r\n\r\n"
    );
    (clean && last < total).then(|| head.into_bytes())
}

/// The file an upload is written to.
#[derive(Debug)]
struct Part {
    file: File,
    /// Where it has to be renamed from, unless it is the finished file already.
    path: Option<PathBuf>,
}

impl Part {
    fn open(finished: &Path, first: u64, total: u64) -> Result<Self, UploadError> {
        let name = finished.file_name().ok_or(UploadError::Nowhere)?;
        let mut part_name = name.to_os_string();
        part_name.push(".part");
        let path = finished.with_file_name(part_name);
        if first == 0 {
            std::fs::create_dir_all(finished.parent().ok_or(UploadError::Nowhere)?)?;
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
            return Ok(Self { file, path: Some(path) });
        }
        let (file, path) = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => (file, Some(path)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                let file = OpenOptions::new().write(true).open(finished).map_err(|_| UploadError::BadRange)?;
                // Renamed before its response was out: only the last piece is written again.
                if file.metadata()?.len() != total {
                    return Err(UploadError::BadRange);
                }
                (file, None)
            }
            Err(why) => return Err(why.into()),
        };
        if file.metadata()?.len() < first {
            return Err(UploadError::BadRange);
        }
        Ok(Self { file, path })
    }

    /// Writes a piece and waits until the storage has it: a snapshot must not claim what only dead memory holds.
    fn write(&self, piece: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(piece, offset)?;
        self.file.sync_data()
    }

    fn finish(&self, finished: &Path, length: u64) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        self.file.set_len(length)?;
        self.file.sync_all()?;
        std::fs::rename(path, finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_an_upload_is_a_put_with_a_range() {
        let state = br#"{"target":"/a?x=1","next":10,"total":100,"rest":90}"#;
        let head = String::from_utf8(rest_of_upload(state).unwrap()).unwrap();
        assert!(head.starts_with("PUT /a?x=1 HTTP/1.1\r\n") && head.contains("Content-Range: bytes 10-99/100\r\n"));
        assert_eq!(rest_of_upload(br#"{"target":"/a\r\nX: y","next":10,"total":100,"rest":90}"#), None);
        assert_eq!(rest_of_upload(b"garbage"), None);
    }
}
