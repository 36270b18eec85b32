//! The journal: every decision with the samples it rested on, one JSON object per line, only ever appended to.
//!
//! The sampling thread hands lines and whole rings of samples to a writer thread and never waits for the disk. Rings
//! are handed over by moving them, so that the path from a verdict to the fence does not pay for its evidence.
//!
//! ```text
//!   last_sign ── verdict ── fenced ── ordered ── evacuated        the stages of an incident, by `mono_ns`
//! ```
//!
//! The lines of one target are in the order of its decisions; the samples of a verdict stand before it.

mod event;
pub mod heritage;
pub mod replay;
mod ring;
pub mod timeline;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

pub use event::{Event, Line, RepairLine, SampleLook, SymptomLine};
pub use heritage::{Heritage, Incident};
pub use ring::Ring;

use crate::clock::wall_ns;

/// Bytes gathered for one write. Every write ends at the end of a line, so that lines written from another thread
/// stand between whole ones.
const WRITE_BYTES: usize = 64 * 1024;

/// What travels to the writer.
enum Message {
    Line(Line),
    Evidence { target: String, ring: Ring },
}

/// The writing end, one for each thread that decides.
#[derive(Clone, Debug)]
pub struct Journal {
    to: Sender<Message>,
    file: Arc<File>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl Journal {
    /// Opens `file` for appending (its owner's only: it holds fence tokens) and starts the writer, which ends, all
    /// written, when every clone of the journal is gone.
    ///
    /// # Errors
    /// Those of opening the file.
    pub fn open(file: &Path) -> std::io::Result<(Self, JoinHandle<()>)> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(file)?;
        cut_torn_line(&mut file)?;
        let file = Arc::new(file);
        let (to, from) = channel();
        let mut out = Arc::clone(&file);
        let writer = std::thread::Builder::new().name("journal".into()).spawn(move || write(&mut out, &from))?;
        Ok((Self { to, file }, writer))
    }

    /// Writes a line before it returns, ahead of those that wait for the writer: for what a successor must know before
    /// this process does something that cannot be taken back. It outlives the process, not a power failure of its host.
    pub fn commit(&self, target: &str, mono_ns: u64, event: Event) {
        let line = Line { wall_ns: wall_ns(), mono_ns, target: target.to_owned(), event };
        let mut text = Vec::new();
        if let Err(error) = put_line(&mut text, &line).and_then(|()| (&*self.file).write_all(&text)) {
            tracing::error!(%error, "the journal cannot be written; a successor will not know of this order");
        }
    }

    /// Adds a line that happened at `mono_ns`.
    pub fn note(&self, target: &str, mono_ns: u64, event: Event) {
        self.send(Message::Line(Line { wall_ns: wall_ns(), mono_ns, target: target.to_owned(), event }));
    }

    /// Adds the samples of `ring`, oldest first.
    pub fn evidence(&self, target: &str, ring: Ring) {
        self.send(Message::Evidence { target: target.to_owned(), ring });
    }

    fn send(&self, message: Message) {
        if self.to.send(message).is_err() {
            tracing::error!("the journal's writer has ended: this decision is not recorded");
        }
    }
}

fn write(file: &mut Arc<File>, from: &Receiver<Message>) {
    let mut out = Vec::with_capacity(2 * WRITE_BYTES);
    while let Ok(first) = from.recv() {
        // Everything that waits goes into one write.
        let mut result = put(&mut out, file, first);
        while let Ok(next) = from.try_recv() {
            result = result.and(put(&mut out, file, next));
        }
        result = result.and((&**file).write_all(&out));
        out.clear();
        if let Err(error) = result {
            tracing::error!(%error, "the journal cannot be written; decisions go on without a record");
        }
    }
}

fn put(out: &mut Vec<u8>, mut file: &File, message: Message) -> std::io::Result<()> {
    match message {
        Message::Line(one) => put_line(out, &one),
        Message::Evidence { target, ring } => {
            let wall_ns = wall_ns();
            ring.samples().try_for_each(|(mono_ns, event)| {
                put_line(out, &Line { wall_ns, mono_ns, target: target.clone(), event })?;
                if out.len() >= WRITE_BYTES {
                    file.write_all(out)?;
                    out.clear();
                }
                Ok(())
            })
        }
    }
}

fn put_line(out: &mut Vec<u8>, line: &Line) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.push(b'\n');
    Ok(())
}

/// Removes what follows the last end of line: a process that was killed while it wrote leaves half a line, and the
/// next one must not be glued to it.
fn cut_torn_line(file: &mut File) -> std::io::Result<()> {
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = [0; 4096];
    while end > 0 {
        let len = end.min(block.len() as u64);
        file.seek(SeekFrom::Start(end - len))?;
        let part = &mut block[..len as usize];
        file.read_exact(part)?;
        match part.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => return file.set_len(end - len + last as u64 + 1),
            None => end -= len,
        }
    }
    file.set_len(0)
}
