//! A front end whose client is a TCP connection: both go on elsewhere, and so does the channel between front end and
//! worker.
//!
//! ```text
//!   request  | length, 4 bytes | body |            answer  | number | sum | stamp |, 8 bytes each
//! ```
//! It reads [`DEPTH`] requests ahead of its answers, never more and never fewer: what it does next follows from what it
//! has read, whichever of its two inputs is the faster.

use std::io;

use anyhow::{Context, Result, ensure};
use contbox::channel::{ChannelEnd, Interval, Standing, Wire, joint};
use contbox::shared::Slot;
use contbox::{RecoverableStream, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;

use crate::{ANSWER_BYTES, Answer, BODY_BYTES_MAX, DEPTH, EXPORT_EVERY, number, reply, words};

/// One session's front end. It blocks: a thread for each.
#[derive(Debug)]
pub struct Served<W> {
    runtime: Handle,
    stream: RecoverableStream,
    end: ChannelEnd<W>,
    asked: u64,
    answered: u64,
    /// Whether the connection's snapshot names the channel.
    is_named: bool,
}

impl<W: Wire> Served<W> {
    /// A new session. Its snapshot does not name the channel yet: a worker that is being started has no record.
    pub fn begin(runtime: Handle, stream: RecoverableStream, end: ChannelEnd<W>) -> Self {
        Self { runtime, stream, end, asked: 0, answered: 0, is_named: false }
    }

    /// A session that began elsewhere.
    ///
    /// # Errors
    /// If the snapshot is not that of a session with this channel.
    pub fn resume(runtime: Handle, stream: RecoverableStream, end: ChannelEnd<W>, snapshot: &Snapshot) -> Result<Self> {
        let (channels, words) = joint::split(&snapshot.lws)?;
        ensure!(channels == [end.standing()], "the snapshot has {channels:?}");
        let (asked, answered) = (number(words, 0), number(words, 1));
        Ok(Self { runtime, stream, end, asked, answered, is_named: true })
    }

    /// Serves until the client closes.
    ///
    /// # Errors
    /// If the client or the worker fails, or says something else than it should.
    pub fn serve(&mut self) -> Result<()> {
        loop {
            while self.asked < self.answered + DEPTH {
                let Some(body) = self.request()? else { return Ok(()) };
                self.end.write(&(body.len() as u32).to_le_bytes())?;
                self.end.write(&body)?;
                self.asked += 1;
            }
            let before = self.end.standing();
            let answer = reply(&mut self.end, self.answered)?;
            if !self.is_named {
                // The worker has spoken, so it has a record. What it said is read again from before.
                self.name(before)?;
                self.is_named = true;
            }
            let bytes = words(&[answer.number, answer.sum, answer.stamp]);
            self.runtime.block_on(self.stream.write_all(&bytes)).context("answering")?;
            self.answered += 1;
            if self.answered.is_multiple_of(EXPORT_EVERY) {
                self.export()?;
            }
        }
    }

    /// The connection's record first, with the channel's offsets inside; then the channel's.
    fn export(&mut self) -> Result<()> {
        self.name(self.end.standing())?;
        self.end.export(b"", Interval::Deterministic)?;
        Ok(())
    }

    fn name(&self, standing: Standing) -> Result<()> {
        let session = self.stream.session();
        let at = session.position();
        let snapshot = joint::snapshot(&[standing], &words(&[self.asked, self.answered]));
        Ok(session.export_state(&snapshot, at.read, at.written)?)
    }

    fn request(&mut self) -> Result<Option<Vec<u8>>> {
        self.runtime.block_on(async {
            let mut length = [0; 4];
            match self.stream.read_exact(&mut length).await {
                Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read.context("reading a request")?,
            };
            let length = u64::from(u32::from_le_bytes(length));
            ensure!(length <= BODY_BYTES_MAX, "a request of {length} bytes");
            let mut body = vec![0; length as usize];
            self.stream.read_exact(&mut body).await.context("reading a body")?;
            Ok(Some(body))
        })
    }

    /// Ends the session: its connection first, or its box would name a channel that is no more. Returns the slot of the
    /// channel.
    pub fn close(self) -> Slot {
        drop(self.stream);
        self.end.close()
    }
}

/// What a client sends as request `number`.
pub fn request(number: u64) -> Vec<u8> {
    let body = crate::body(number);
    [&(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// An answer as a client gets it.
pub fn answer(bytes: &[u8; ANSWER_BYTES as usize]) -> Answer {
    Answer { number: number(bytes, 0), sum: number(bytes, 1), stamp: number(bytes, 2) }
}
