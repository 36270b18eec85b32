//! One end of a channel in use: reads go through the log, writes are marked, exports are stores.

use std::io;

use zerocopy::FromBytes;

use super::frame::{self, FrameHead, PAYLOAD_BYTES_MAX};
use super::joint::Standing;
use super::plan::Plan;
use super::record::{self, ARRIVING, EndImage, Identity, PREFIX_BYTES, RECEIVED};
use super::wire::Wire;
use crate::continuation::{ExportError, Exporter, Words};
use crate::layout::SlotState;
use crate::reader::{BadBox, Snapshot};
use crate::shared::Slot;

/// What an export says of the time until the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Interval {
    /// The same input gives the same output: it may be seen at once.
    #[default]
    Deterministic,
    /// Output depends on more (time, chance, another service): nobody sees it before the next export.
    Nondeterministic,
}

/// Why an end cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The operating system refused; `WouldBlock` means later.
    #[error("channel: {0}")]
    Io(#[from] io::Error),
    /// The caller has read for too long without an export: export, or use larger boxes.
    #[error("the log has {room} bytes of room, and a frame may need {PAYLOAD_BYTES_MAX}: export first")]
    LogFull {
        /// Bytes that the log can still take.
        room: u64,
    },
    /// The caller has written too much within a non-deterministic interval: export, or use larger boxes.
    #[error(
        "{held} bytes of output are held back and a snapshot of {capacity} bytes has no room for more: export first"
    )]
    HeldFull {
        /// Bytes that wait.
        held: usize,
        /// Bytes of a snapshot.
        capacity: u32,
    },
    /// The other end wrote what is no frame of this channel, or not the next.
    #[error("what arrived is not the frame at {expected} of this channel")]
    Malformed {
        /// Stream offset of the next frame.
        expected: u64,
    },
    /// The caller is not deterministic: it declares an interval of chance where the other end has output of it already
    /// that belongs to an earlier interval.
    #[error("{ahead} bytes that are to be produced again lie beyond the start of a non-deterministic interval")]
    NotReplayed {
        /// Bytes.
        ahead: u64,
    },
    /// The snapshot does not fit.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Why an end that was handed over cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The slot holds something else.
    #[error(transparent)]
    Record(#[from] BadBox),
    /// It does not fit.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Writes the record of an end that goes on in `slot`: the snapshot of `image`, and of `input` what fits into the log.
/// Returns up to where input is in the log.
pub(crate) fn lay_down(
    slot: &Slot,
    owner: u32,
    identity: Identity,
    image: &EndImage,
    input: &Plan,
) -> Result<(Exporter<Slot>, u64), ExportError> {
    let geometry = slot.geometry();
    let (logged, _) = input.split(geometry.log_bytes, identity.input());
    let received = image.digested + logged.len() as u64;
    slot.store(ARRIVING as usize / 8, 0);
    slot.store(RECEIVED as usize / 8, received);
    slot.log_fill(image.digested, logged);
    let lws = record::snapshot(image.is_nondeterministic, &image.pending, &image.words);
    let snapshot = Snapshot { lsr: image.digested, lsw: image.released, lws };
    let words = |generation| identity.words(generation);
    let exporter = Exporter::create_as(SlotState::Channel, slot.clone(), geometry, owner, words, &snapshot)?;
    Ok((exporter, received))
}

/// One end of a channel with its record.
#[derive(Debug)]
pub struct ChannelEnd<W> {
    exporter: Exporter<Slot>,
    slot: Slot,
    wire: W,
    identity: Identity,
    /// Input given to the caller.
    read: u64,
    /// End of the log.
    received: u64,
    /// Output that was sent, or swallowed because the other end has it.
    released: u64,
    /// Output still to be swallowed.
    discard: u64,
    /// Output that an export holds and that is not sent yet.
    pending: Vec<u8>,
    /// Output of a non-deterministic interval, which no export holds.
    held: Vec<u8>,
    interval: Interval,
}

impl<W: Wire> ChannelEnd<W> {
    /// A new end in a leased slot of `owner`, of the channel called `name`: `side` is 0 here and 1 there. `words` are
    /// the first snapshot.
    ///
    /// # Errors
    /// [`ExportError::TooLong`]
    pub fn open(slot: Slot, owner: u32, wire: W, name: u64, side: u32, words: &[u8]) -> Result<Self, ExportError> {
        Self::open_as(slot, owner, wire, Identity { name, side, ..Identity::default() }, words)
    }

    /// A new end of which more is known than name and side: the role of this process, or the connection of the session
    /// that it belongs to. Process and files are filled in.
    ///
    /// # Errors
    /// [`ExportError::TooLong`]
    pub fn open_as(slot: Slot, owner: u32, wire: W, identity: Identity, words: &[u8]) -> Result<Self, ExportError> {
        let fresh = EndImage { identity, words: words.to_vec(), ..EndImage::default() };
        Self::resume(slot, owner, wire, &fresh, &Plan::default(), 0)
    }

    /// The end that the box service of a spare has put into `slot`, and what its snapshot says: `wire` has what did not
    /// fit into the log, `discard` is the number of bytes to swallow.
    ///
    /// # Errors
    /// [`ImportError`] if the slot does not hold what the service promised.
    pub fn import(slot: Slot, wire: W, discard: u64) -> Result<(Self, EndImage), ImportError> {
        let image = record::read_own_end(&slot)?;
        let input = Plan { from: image.digested, give_reader: image.logged.clone(), discard_from_writer: 0 };
        let owner = slot.owner();
        Ok((Self::resume(slot, owner, wire, &image, &input, discard)?, image))
    }

    /// The end that `image` was, here: `input` is what was planned for its input, `discard` the number of bytes that
    /// the plan for its output swallows. What of the input does not fit into the log must wait on the wire, see
    /// [`Plan::split`].
    ///
    /// # Errors
    /// [`ExportError::TooLong`] if this slot's boxes are smaller than those were.
    pub fn resume(
        slot: Slot,
        owner: u32,
        wire: W,
        image: &EndImage,
        input: &Plan,
        discard: u64,
    ) -> Result<Self, ExportError> {
        let [from, to] = wire.files();
        let identity = Identity { pid: std::process::id(), input: from, output: to, ..image.identity };
        let (exporter, received) = lay_down(&slot, owner, identity, image, input)?;
        let interval = match image.is_nondeterministic {
            true => Interval::Nondeterministic,
            false => Interval::Deterministic,
        };
        Ok(Self {
            exporter,
            slot,
            wire,
            identity,
            read: image.digested,
            received,
            released: image.released,
            discard,
            pending: image.pending.clone(),
            held: Vec::new(),
            interval,
        })
    }

    /// Reads some bytes; 0 at the end of the stream.
    ///
    /// # Errors
    /// See [`EndError`].
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.flush()?;
        if self.read == self.received && !into.is_empty() && !self.receive()? {
            return Ok(0);
        }
        let count = into.len().min((self.received - self.read) as usize);
        self.slot.log_copy(self.read, &mut into[..count]);
        self.read += count as u64;
        Ok(count)
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// See [`EndError`]; of kind `UnexpectedEof` at the end of the stream.
    pub fn read_exact(&mut self, mut into: &mut [u8]) -> Result<(), EndError> {
        while !into.is_empty() {
            match self.read(into)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => into = &mut into[count..],
            }
        }
        Ok(())
    }

    /// Puts the next frame into the log, then counts it; false at the end of the stream.
    fn receive(&mut self) -> Result<bool, EndError> {
        let room = u64::from(self.slot.geometry().log_bytes) - (self.received - self.exporter.lsr());
        if room < PAYLOAD_BYTES_MAX as u64 {
            return Err(EndError::LogFull { room });
        }
        let count = self.wire.receive(&self.slot, self.received)?;
        if count == 0 {
            return Ok(false);
        }
        let malformed = EndError::Malformed { expected: self.received };
        let head = self.slot.bytes(ARRIVING, frame::FRAME_HEAD_BYTES as u32);
        let Ok(head) = FrameHead::read_from_bytes(&head) else { return Err(malformed) };
        let is_whole = count == frame::FRAME_HEAD_BYTES + head.length.get() as usize;
        if !head.is_of(self.identity.input()) || head.offset.get() != self.received || !is_whole {
            return Err(malformed);
        }
        self.received = head.range().end;
        self.slot.order();
        self.slot.store(RECEIVED as usize / 8, self.received);
        self.slot.order();
        Ok(true)
    }

    /// Writes all of `bytes`, or holds them back until the next export.
    ///
    /// # Errors
    /// [`EndError::Io`] after part of them was taken; [`EndError::HeldFull`] and nothing was.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), EndError> {
        if self.interval == Interval::Nondeterministic {
            let (held, capacity) = (self.pending.len() + self.held.len(), self.slot.geometry().lws_bytes);
            if PREFIX_BYTES + held + bytes.len() > capacity as usize {
                return Err(EndError::HeldFull { held, capacity });
            }
            self.held.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush()?;
        self.send(bytes)
    }

    /// Sends what an export has let go.
    ///
    /// # Errors
    /// [`EndError::Io`]
    pub fn flush(&mut self) -> Result<(), EndError> {
        while !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let sent = self.send_some(&pending);
            self.pending = pending;
            self.pending.drain(..sent?);
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), EndError> {
        while !bytes.is_empty() {
            bytes = &bytes[self.send_some(bytes)?..];
        }
        Ok(())
    }

    /// Swallows or sends the first of `bytes`, and says how many.
    fn send_some(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        let swallowed = self.discard.min(bytes.len() as u64) as usize;
        let count = if swallowed > 0 { swallowed } else { bytes.len().min(PAYLOAD_BYTES_MAX) };
        if swallowed == 0 {
            self.wire.send(&frame::encode(self.identity.output(), self.released, &bytes[..count]))?;
        }
        self.discard -= swallowed as u64;
        self.released += count as u64;
        Ok(count)
    }

    /// Makes `words` the newest snapshot: all input read so far is digested, all output written so far produced. What
    /// was held back is a part of it, and is sent afterwards. `next` says what comes.
    ///
    /// # Errors
    /// [`EndError::Export`], [`EndError::NotReplayed`]: the newest snapshot stays what it was. [`EndError::Io`]: the
    /// export is made, and what was held back is sent by the next call.
    pub fn export(&mut self, words: &[u8], next: Interval) -> Result<(), EndError> {
        self.publish(words, next)?;
        self.flush()
    }

    /// [`ChannelEnd::export`] without sending: no system call.
    ///
    /// # Errors
    /// See [`ChannelEnd::export`].
    pub fn publish(&mut self, words: &[u8], next: Interval) -> Result<(), EndError> {
        let pending = [&self.pending[..], &self.held].concat();
        let ahead = self.discard.saturating_sub(pending.len() as u64);
        if next == Interval::Nondeterministic && ahead > 0 {
            return Err(EndError::NotReplayed { ahead });
        }
        let lws = record::snapshot(next == Interval::Nondeterministic, &pending, words);
        self.exporter.export_state(&lws, self.read, self.released)?;
        self.pending = pending;
        self.held.clear();
        self.interval = next;
        Ok(())
    }

    /// Stream offsets of the input read and the output produced so far.
    pub fn position(&self) -> (u64, u64) {
        (self.read, self.released + (self.pending.len() + self.held.len()) as u64)
    }

    /// Where the end stands, for the snapshot of a connection whose process has no intervals of chance.
    pub fn standing(&self) -> Standing {
        Standing { name: self.identity.name, digested: self.read, released: self.released }
    }

    /// Which end of which channel.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What carries the frames.
    pub fn wire(&self) -> &W {
        &self.wire
    }

    /// Ends the record and hands its slot back, still leased.
    pub fn close(mut self) -> Slot {
        if self.exporter.is_ours() {
            self.exporter.close();
        }
        self.slot
    }
}
