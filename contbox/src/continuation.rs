//! The application's API, named after the paper: create a box, export the session's state, import it again.
//!
//! # Why a stop at any instruction leaves a whole snapshot
//!
//! ```text
//!  export n+1:   A  description and LWS of buffer (n+1)&1     the buffer of export n-1; nobody needs it any more
//!                B  newest := n+1                             one aligned 8-byte store
//!                C  log below lsr(n+1) may be reused          only by receives that come after B
//! ```
//!
//! A release fence separates A, B and C, and x86-64 keeps stores in order anyhow; inside A any order will do, so
//! that A is a plain copy, at the speed of the memory. So a reader finds `newest = n` with buffer `n&1` untouched
//! during A (and all log bytes from lsr(n) on, for C has not begun), or `newest = n+1` with buffer `(n+1)&1` complete.
//! If the stop came between the end of A and B, the checksum of buffer n+1 holds already and the reader may take it:
//! its log is a part of n's. Checksums cover generation, sequence, offsets and length, so neither a half-filled buffer
//! nor one of the slot's previous connection passes. `export_state` makes no system call and allocates nothing.
//!
//! What a box does not do: it knows no socket and no clock, and one writer at a time is its owner's promise.

use crate::channel::Place;
use crate::layout::{BufferHead, Geometry, SlotHead, SlotState, address_bytes, output_kept};
use crate::reader::{BadBox, Snapshot, read_own};
use crate::shared::Slot;
use std::mem::offset_of;
use std::net::SocketAddr;
use zerocopy::IntoBytes;

/// Memory of one slot as 64-bit words. A trait so that a test can stop the writer after every single store.
pub trait Words {
    /// Word `index` of the slot.
    fn load(&self, index: usize) -> u64;
    /// Stores word `index`.
    fn store(&self, index: usize, value: u64);
    /// Stores before this become visible before stores after it.
    fn order(&self);
    /// Stores bytes from word `first` on, in any order among themselves; the last word is filled up with zeroes.
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(first + index, u64::from_le_bytes(word));
        }
    }
}

/// The application asked for what a box cannot hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    /// Keep the snapshot light, or configure larger boxes.
    #[error("snapshot of {length} bytes, the box holds {capacity}")]
    TooLong {
        /// Bytes offered.
        length: usize,
        /// Bytes a buffer has.
        capacity: u32,
    },
    /// A snapshot cannot forget less than the one before: that input may be gone.
    #[error("snapshot steps back in the input, from {newest} to {asked}")]
    StepsBack {
        /// The newest snapshot's lsr.
        newest: u64,
        /// The offset asked for.
        asked: u64,
    },
    /// A snapshot cannot have digested bytes that were never received.
    #[error("snapshot digests input up to {asked}, received {received}")]
    StepsAhead {
        /// Bytes received.
        received: u64,
        /// The offset asked for.
        asked: u64,
    },
}

/// What a box is created with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The application's number at the box service.
    pub owner: u32,
    /// Our end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// Stream offset of the first byte this kernel socket receives; 0 for a new connection.
    pub base_read: u64,
    /// Stream offset of the first byte this kernel socket sends; 0 for a new connection.
    pub base_written: u64,
    /// The first snapshot; the default one for a new connection.
    pub snapshot: Snapshot,
    /// Input from `snapshot.lsr` on that the log has to hold from the start; empty for a new connection.
    pub logged: Vec<u8>,
}

impl Opening {
    /// A new connection that starts with nothing received and nothing sent.
    pub fn fresh(owner: u32, local: SocketAddr, peer: SocketAddr) -> Self {
        let (snapshot, logged) = (Snapshot::default(), Vec::new());
        Self { owner, local, peer, base_read: 0, base_written: 0, snapshot, logged }
    }
}

/// The writing half of a box over any memory: [`ContinuationBox`] in service, a cut one in tests.
#[derive(Debug)]
pub struct Exporter<W> {
    words: W,
    geometry: Geometry,
    generation: u32,
    newest: u64,
    lsr: u64,
}

const STATE: usize = 0;
/// The word whose upper half is the generation.
const GENERATION: usize = offset_of!(SlotHead, local_port) / 8;
const NEWEST: usize = offset_of!(SlotHead, newest) / 8;
const OUTPUT_KEPT: usize = offset_of!(SlotHead, reserved_words) / 8;

impl<W: Words> Exporter<W> {
    /// Writes a new box: identity and first snapshot, then the state that makes them count.
    ///
    /// # Errors
    /// [`ExportError::TooLong`] if the first snapshot does not fit.
    pub fn create(words: W, geometry: Geometry, opening: &Opening) -> Result<Self, ExportError> {
        let identity = |generation| identity_words(opening, generation);
        Self::create_as(SlotState::Open, words, geometry, opening.owner, identity, &opening.snapshot)
    }

    /// [`Exporter::create`] of whatever has boxes: `state` says what, `identity` which for a generation.
    pub(crate) fn create_as(
        state: SlotState,
        words: W,
        geometry: Geometry,
        owner: u32,
        identity: impl FnOnce(u32) -> [u64; IDENTITY_WORDS],
        snapshot: &Snapshot,
    ) -> Result<Self, ExportError> {
        let owner = u64::from(owner) << 32;
        words.store(STATE, SlotState::Leased as u64 | owner);
        words.order();
        let generation = ((words.load(GENERATION) >> 32) as u32).wrapping_add(1);
        let newest = words.load(NEWEST);
        for (index, value) in identity(generation).iter().enumerate() {
            words.store(1 + index, *value);
        }
        words.order();
        let mut exporter = Self { words, geometry, generation, newest, lsr: snapshot.lsr };
        exporter.export_state(&snapshot.lws, snapshot.lsr, snapshot.lsw)?;
        exporter.words.store(STATE, state as u64 | owner);
        exporter.words.order();
        Ok(exporter)
    }

    /// Takes over the box that somebody else (the box service of a spare) has made in a slot.
    fn adopt(words: W, geometry: Geometry, head: &SlotHead, lsr: u64) -> Self {
        Self { words, geometry, generation: head.generation.get(), newest: head.newest.get(), lsr }
    }

    /// Makes `lws` the newest snapshot, standing at the stream offsets `lsr` and `lsw`. See the module for the order.
    ///
    /// # Errors
    /// [`ExportError::TooLong`], [`ExportError::StepsBack`]; the newest snapshot stays what it was.
    pub fn export_state(&mut self, lws: &[u8], lsr: u64, lsw: u64) -> Result<(), ExportError> {
        let capacity = self.geometry.lws_bytes;
        if lws.len() > capacity as usize {
            return Err(ExportError::TooLong { length: lws.len(), capacity });
        }
        if lsr < self.lsr {
            return Err(ExportError::StepsBack { newest: self.lsr, asked: lsr });
        }
        let sequence = self.newest.wrapping_add(1);
        let mut head = BufferHead {
            sequence: sequence.into(),
            lsr: lsr.into(),
            lsw: lsw.into(),
            length: (lws.len() as u32).into(),
            check: 0.into(),
        };
        head.check = head.computed_check(self.generation, lws).into();
        let description = if sequence & 1 == 0 { offset_of!(SlotHead, even) } else { offset_of!(SlotHead, odd) };
        self.words.store_bytes(description / 8, head.as_bytes());
        self.words.store_bytes(self.geometry.lws_offset(sequence, lws.len() as u32) as usize / 8, lws);
        self.words.order();
        self.words.store(NEWEST, sequence);
        self.words.order();
        (self.newest, self.lsr) = (sequence, lsr);
        Ok(())
    }

    /// Says that the log has lost input: the session goes on, unprotected.
    pub fn give_up(&mut self) {
        self.change_state(SlotState::LostLog);
    }

    /// Whether the slot still holds this box: a box service that lost patience may have given it to another.
    pub fn is_ours(&self) -> bool {
        let state = SlotState::from_word(self.words.load(STATE) as u32);
        matches!(state, Some(SlotState::Open | SlotState::LostLog | SlotState::Channel))
            && (self.words.load(GENERATION) >> 32) as u32 == self.generation
    }

    /// Ends the box; its slot stays leased.
    pub fn close(&mut self) {
        self.change_state(SlotState::Closed);
        self.change_state(SlotState::Leased);
    }

    /// Ends the session and leaves its newest snapshot to be read, until [`Exporter::close`].
    fn keep(&mut self) {
        self.change_state(SlotState::Kept);
    }

    fn is_kept(&self) -> bool {
        let state = SlotState::from_word(self.words.load(STATE) as u32);
        state == Some(SlotState::Kept) && (self.words.load(GENERATION) >> 32) as u32 == self.generation
    }

    /// Which of the slot's boxes this is.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Where the newest snapshot's input begins: what lies before may be trimmed from the log.
    pub fn lsr(&self) -> u64 {
        self.lsr
    }

    fn change_state(&mut self, state: SlotState) {
        let owner = self.words.load(STATE) & !u64::from(u32::MAX);
        self.words.store(STATE, state as u64 | owner);
        self.words.order();
    }
}

/// Words of a slot's head between state and newest export.
pub(crate) const IDENTITY_WORDS: usize = NEWEST - 1;

fn identity_words(opening: &Opening, generation: u32) -> [u64; IDENTITY_WORDS] {
    let mut words = [0; IDENTITY_WORDS];
    let mut head: SlotHead = zerocopy::FromZeros::new_zeroed();
    head.local_address = address_bytes(&opening.local);
    head.peer_address = address_bytes(&opening.peer);
    head.local_port = opening.local.port().into();
    head.peer_port = opening.peer.port().into();
    head.generation = generation.into();
    head.base_read = opening.base_read.into();
    head.base_written = opening.base_written.into();
    head.identity_check = head.computed_identity_check().into();
    for (word, bytes) in words.iter_mut().zip(head.as_bytes()[8..].chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
    }
    words
}

/// The box of one live connection: snapshots and receive log.
#[derive(Debug)]
pub struct ContinuationBox {
    exporter: Exporter<Slot>,
    slot: Slot,
    /// Stream offset of the end of the log: everything received so far.
    received: u64,
    lost: bool,
    keeps_output: bool,
}

impl ContinuationBox {
    /// Makes a box in a leased slot.
    ///
    /// # Errors
    /// [`ExportError::TooLong`] if the snapshot or the logged input exceeds the slot's geometry.
    pub fn create(slot: Slot, opening: &Opening) -> Result<Self, ExportError> {
        let geometry = slot.geometry();
        if opening.logged.len() as u64 > u64::from(geometry.log_bytes) {
            return Err(ExportError::TooLong { length: opening.logged.len(), capacity: geometry.log_bytes });
        }
        let received = opening.snapshot.lsr + opening.logged.len() as u64;
        slot.log_fill(opening.snapshot.lsr, &opening.logged);
        let exporter = Exporter::create(slot.clone(), geometry, opening)?;
        // What a socket that was made elsewhere has still to send did not come through here.
        let keeps_output = geometry.send_bytes > 0 && opening.base_written == 0 && opening.snapshot.lsw == 0;
        slot.store(OUTPUT_KEPT, if keeps_output { output_kept(exporter.generation()) } else { 0 });
        Ok(Self { exporter, slot, received, lost: false, keeps_output })
    }

    /// Takes over a session whose box the service has put into a slot of ours, with input logged up to `received`.
    ///
    /// # Errors
    /// [`BadBox`] if the slot does not hold what the service promised.
    pub fn import_state(slot: Slot, received: u64) -> Result<(Self, Snapshot), BadBox> {
        let geometry = slot.geometry();
        let copy = |offset, length| slot.bytes(offset, length);
        let (head, snapshot) = read_own(&slot.front(), &geometry, received, copy)?;
        let exporter = Exporter::adopt(slot.clone(), geometry, &head, snapshot.lsr);
        // Nor did what its first application here sends while it swallows.
        slot.store(OUTPUT_KEPT, 0);
        Ok((Self { exporter, slot, received, lost: false, keeps_output: false }, snapshot))
    }

    /// Makes `lws` the newest snapshot; input before `lsr` is forgotten. No system call, no allocation.
    ///
    /// # Errors
    /// See [`ExportError`]; the newest snapshot stays what it was.
    pub fn export_state(&mut self, lws: &[u8], lsr: u64, lsw: u64) -> Result<(), ExportError> {
        if lsr > self.received {
            return Err(ExportError::StepsAhead { received: self.received, asked: lsr });
        }
        self.exporter.export_state(lws, lsr, lsw)
    }

    /// The slot it lies in.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Slot and generation, for the records of channels that belong to the connection.
    pub fn place(&self) -> Place {
        Place { slot: self.slot.index(), generation: self.exporter.generation() }
    }

    /// Stream offset of the end of the log.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the session can be resumed at all. False once the log is lost, or the slot is another's: then nothing
    /// may be written to it any more.
    pub fn is_protected(&self) -> bool {
        !self.lost && self.exporter.is_ours()
    }

    /// Whether all output has to go through the send log.
    pub fn keeps_output(&self) -> bool {
        self.keeps_output
    }

    /// Bytes the log can take before the next export.
    pub fn log_room(&self) -> u64 {
        u64::from(self.slot.geometry().log_bytes) - (self.received - self.exporter.lsr())
    }

    /// Counts `bytes` that [`Slot::log_receive`] has put at the end of the log.
    pub fn note_received(&mut self, bytes: usize) {
        assert!(bytes as u64 <= self.log_room(), "the log cannot have taken {bytes} bytes");
        self.received += bytes as u64;
    }

    /// Gives the session's protection up because its log is full.
    pub fn give_up(&mut self) {
        self.lost = true;
        self.exporter.give_up();
    }

    /// Ends the session, of which nothing can be resumed any more; its snapshot stays until [`Self::close`].
    pub fn keep(&mut self) {
        if self.exporter.is_ours() {
            self.exporter.keep();
        }
    }

    /// Ends the box and hands its slot back, still leased.
    pub fn close(mut self) -> Slot {
        if self.exporter.is_ours() || self.exporter.is_kept() {
            self.exporter.close();
        }
        self.slot
    }
}
