//! Which bytes of a channel are given to its reader again, and which its writer has to swallow: a pure function of what
//! was found.
//!
//! ```text
//!   w  the writer's snapshot has produced so much      r  the reader's snapshot has digested so much
//!
//!   reader behind      r ......logged...... | ...in the kernel... w ....in the kernel.... |
//!                      |---------- given to the reader -----------|   dropped: will be written again
//!   reader ahead       w .................... r ........
//!                      |--- written again ----|   and swallowed: the reader has it
//! ```
//! What was read since the reader's snapshot is in its log, what was not read in the kernel's buffer; a byte may be in
//! both, since a read copies before it consumes. Bytes beyond `w` are nobody's yet: the writer goes on from its
//! snapshot and produces them again, the same ones, because what follows an export is deterministic or held back
//! ([`super::Interval`]). Which is why it does not matter how far a write had come when the machine stopped.

use super::frame::{self, Frame};
use super::record::EndImage;

/// What is to be done before both ends go on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Stream offset of the first byte of `give_reader`: where the reader's snapshot stands.
    pub from: u64,
    /// Input of the reader, before anything that its writer produces from now on.
    pub give_reader: Vec<u8>,
    /// Output that the writer produces again and that nobody is to see twice.
    pub discard_from_writer: u64,
}

/// Why a channel cannot be put together again. Nothing in here is the reader's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Loss {
    /// What one end calls its input the other does not call its output.
    #[error("the two boxes are not the ends of one channel: {reader:#x} and {writer:#x}")]
    OtherChannel {
        /// The channel that the reader reads.
        reader: u64,
        /// The channel that the writer writes.
        writer: u64,
    },
    /// Neither log nor kernel holds these bytes, which the writer has left behind.
    #[error("bytes from {from} to {to} are neither in the reader's log nor in the kernel's buffer")]
    Missing {
        /// Stream offset of the first.
        from: u64,
        /// Stream offset of the first byte that the writer produces again.
        to: u64,
    },
    /// Log and kernel tell different bytes for one place.
    #[error("log and kernel contradict each other at {at}")]
    Contradiction {
        /// Stream offset.
        at: u64,
    },
    /// The reader has seen what a writer in a non-deterministic interval was to hold back.
    #[error("the reader has seen bytes up to {read}, of which those from {visible} on were held back")]
    SeenTooEarly {
        /// How far the reader's snapshot reads.
        read: u64,
        /// How far the writer let anybody see.
        visible: u64,
    },
}

impl Plan {
    /// What to do about the channel from `writer` to `reader`, of which the kernel's buffer held `chunks`.
    ///
    /// # Errors
    /// [`Loss`]: the session cannot be resumed.
    pub fn of(reader: &EndImage, writer: &EndImage, chunks: &[Vec<u8>]) -> Result<Self, Loss> {
        let (channel, written_as) = (reader.identity.input(), writer.identity.output());
        if channel != written_as {
            return Err(Loss::OtherChannel { reader: channel, writer: written_as });
        }
        let (read, written) = (reader.digested, writer.released);
        let ahead = read.saturating_sub(written);
        if writer.is_nondeterministic && ahead > writer.pending.len() as u64 {
            let visible = written.saturating_add(writer.pending.len() as u64);
            return Err(Loss::SeenTooEarly { read, visible });
        }
        let mut give = Gathered { from: read, bytes: reader.logged.clone() };
        for chunk in chunks {
            let mut rest = chunk.as_slice();
            // What is no frame is what a stop has left behind a read; whoever misses its bytes says so below.
            while let Some((frame, later)) = frame::split(channel, rest) {
                give.add(frame)?;
                rest = later;
            }
        }
        let wanted = written.saturating_sub(read);
        let have = give.bytes.len() as u64;
        if have < wanted {
            return Err(Loss::Missing { from: read.saturating_add(have), to: written });
        }
        give.bytes.truncate(wanted as usize);
        Ok(Self { from: read, give_reader: give.bytes, discard_from_writer: ahead })
    }

    /// Splits what the reader gets: so much into its new log, the rest as frames into the new kernel buffer, which are
    /// as few as can be and no more bytes than the old one held.
    pub fn split(&self, log_bytes: u32, channel: u64) -> (&[u8], Vec<Vec<u8>>) {
        let (logged, rest) = self.give_reader.split_at(self.give_reader.len().min(log_bytes as usize));
        let mut offset = self.from + logged.len() as u64;
        let mut frames = Vec::new();
        for payload in rest.chunks(frame::PAYLOAD_BYTES_MAX) {
            frames.push(frame::encode(channel, offset, payload));
            offset += payload.len() as u64;
        }
        (logged, frames)
    }
}

/// The reader's input, as far as it is known without a gap.
struct Gathered {
    from: u64,
    bytes: Vec<u8>,
}

impl Gathered {
    /// Adds what a frame has beyond the end; what it has before must be what is known already.
    fn add(&mut self, frame: Frame<'_>) -> Result<(), Loss> {
        let end = self.from.saturating_add(self.bytes.len() as u64);
        let frame_end = frame.offset + frame.payload.len() as u64;
        if frame.offset > end || frame_end <= self.from {
            return Ok(()); // a gap, which nothing behind it can close, or digested long ago
        }
        let skip = self.from.saturating_sub(frame.offset) as usize;
        let start = frame.offset.max(self.from);
        let known = &self.bytes[(start - self.from) as usize..];
        let both = known.iter().zip(&frame.payload[skip..]);
        if let Some(at) = both.clone().position(|(one, other)| one != other) {
            return Err(Loss::Contradiction { at: start + at as u64 });
        }
        let new = skip + both.len();
        self.bytes.extend_from_slice(&frame.payload[new..]);
        Ok(())
    }
}
