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
pub mod replay;
mod ring;
pub mod timeline;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

pub use event::{Event, Line, SampleLook, SymptomLine};
pub use ring::Ring;

use crate::clock::wall_ns;

/// What travels to the writer.
enum Message {
    Line(Line),
    Evidence { target: String, ring: Ring },
}

/// The writing end, one for each thread that decides.
#[derive(Clone, Debug)]
pub struct Journal {
    to: Sender<Message>,
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
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(file)?;
        let (to, from) = channel();
        let writer = std::thread::Builder::new().name("journal".into()).spawn(move || write(file, &from))?;
        Ok((Self { to }, writer))
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

fn write(file: File, from: &Receiver<Message>) {
    let mut out = BufWriter::new(file);
    while let Ok(first) = from.recv() {
        // Everything that waits goes into one flush.
        let mut result = put(&mut out, first);
        while let Ok(next) = from.try_recv() {
            result = result.and(put(&mut out, next));
        }
        if let Err(error) = result.and(out.flush()) {
            tracing::error!(%error, "the journal cannot be written; decisions go on without a record");
        }
    }
}

fn put(out: &mut impl Write, message: Message) -> std::io::Result<()> {
    let mut line = |line: &Line| {
        serde_json::to_writer(&mut *out, line)?;
        out.write_all(b"\n")
    };
    match message {
        Message::Line(one) => line(&one),
        Message::Evidence { target, ring } => {
            let wall_ns = wall_ns();
            ring.samples()
                .try_for_each(|(mono_ns, event)| line(&Line { wall_ns, mono_ns, target: target.clone(), event }))
        }
    }
}
