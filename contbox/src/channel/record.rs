//! One end of a channel as it lies in a slot, and reading it.
//!
//! ```text
//!   slot     | state, owner | identity | newest | received | arriving frame's head | even | odd | snapshots | log |
//!   snapshot | flags | length of pending output | pending output | the application's words |
//! ```
//! The layout is that of a slot with a connection in it, under another state, so that nobody takes one for the other.
//! Two things lie where a connection has nothing: how far input has been received, which of a connection the kernel
//! knows, and the head of the frame that is arriving. A read puts head and payload into the slot and then counts them.
//! Between the two the frame may be in no queue of the kernel any more: its head says that it is the next one, and its
//! checksum that it is whole.

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{FRAME_HEAD_BYTES, FrameHead};
use crate::continuation::IDENTITY_WORDS;
use crate::layout::{self, BufferHead, FRONT_BYTES, Geometry, SHORT_LWS_BYTES, SLOT_HEAD_BYTES, SlotHead, SlotState};
use crate::reader::{BadBox, BoxHead, BoxPlan};
use crate::shared::Slot;

/// Bytes before the pending output in a snapshot.
pub(crate) const PREFIX_BYTES: usize = 8;
/// A non-deterministic interval follows the snapshot.
const NONDETERMINISTIC: u32 = 1;

/// The head of a slot in which one end of a channel is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EndHead {
    /// [`SlotState::Channel`].
    pub state: U32,
    /// The application that leases the slot.
    pub owner: U32,
    /// The channel's name, the same at both ends.
    pub name: U64,
    /// The process, as it calls itself.
    pub pid: U32,
    /// 0 for the end that made the channel, 1 for the other.
    pub side: U32,
    /// Inode of the pipe or socket that input comes from: guards against another file under the same number.
    pub input_inode: U64,
    /// Inode of the pipe or socket that output goes to.
    pub output_inode: U64,
    /// What its process does in the service, 0 if it has a connection itself: who goes on with this end elsewhere.
    pub role: U32,
    /// Counts what the slot has served, connections included.
    pub generation: U32,
    /// Descriptor that input is read from.
    pub input_fd: U32,
    /// Slot of the connection whose session this end belongs to.
    pub connection_slot: U32,
    /// Descriptor that output is written to.
    pub output_fd: U32,
    /// Generation of that slot: guards against the slot's next connection. 0 if the process has none.
    pub connection_generation: U32,
    /// CRC-32 of name to descriptors: guards against an identity that was being written.
    pub identity_check: U32,
    /// Zero.
    pub reserved: U32,
    /// Number of the newest export.
    pub newest: U64,
    /// Stream offset of the end of the log. Counted when the bytes are there.
    pub received: U64,
    /// Where the head of a frame arrives.
    pub arriving: [u8; FRAME_HEAD_BYTES],
    /// Zero.
    pub reserved_word: U64,
    /// Buffer 0.
    pub even: BufferHead,
    /// Zero.
    pub reserved_even: [U64; 4],
    /// Buffer 1.
    pub odd: BufferHead,
    /// Zero.
    pub reserved_odd: [U64; 4],
}

const _: () = assert!(size_of::<EndHead>() == SLOT_HEAD_BYTES as usize);
const _: () = assert!(offset_of!(EndHead, generation) == offset_of!(SlotHead, generation));
const _: () = assert!(offset_of!(EndHead, identity_check) == offset_of!(SlotHead, identity_check));
const _: () = assert!(offset_of!(EndHead, newest) == offset_of!(SlotHead, newest));
const _: () = assert!(offset_of!(EndHead, even) == offset_of!(SlotHead, even));
const _: () = assert!(offset_of!(EndHead, odd) == offset_of!(SlotHead, odd));
/// Offset of the end of the log inside a slot.
pub(crate) const RECEIVED: u32 = offset_of!(EndHead, received) as u32;
/// Offset of the place for an arriving frame's head inside a slot.
pub const ARRIVING: u32 = offset_of!(EndHead, arriving) as u32;

/// Which end of which channel, and how its process reaches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The channel's name, random, the same at both ends.
    pub name: u64,
    /// 0 for the end that made the channel, 1 for the other.
    pub side: u32,
    /// The process.
    pub pid: u32,
    /// What the process does in its service, see [`role`]; 0 if it has the session's connection.
    pub role: u32,
    /// The connection of its session, if its process has that.
    pub connection: Option<Place>,
    /// Descriptor and inode that input is read from.
    pub input: File,
    /// Descriptor and inode that output is written to.
    pub output: File,
}

/// A descriptor of a process and what it stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct File {
    /// The number of the descriptor.
    pub fd: u32,
    /// The inode, as `fstat` says.
    pub inode: u64,
}

/// A box of a pool, for as long as it serves one connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// Its slot.
    pub slot: u32,
    /// What the slot has served until then, this connection included. 0 in no box but one of four billion, whose
    /// session then has no channels.
    pub generation: u32,
}

/// The number under which processes of one kind find each other's work on a spare: of a name that all machines of the
/// service use. Never 0.
pub fn role(name: &str) -> u32 {
    crc32fast::hash(name.as_bytes()).max(1)
}

impl Identity {
    /// What frames of this end's input are marked with.
    pub fn input(&self) -> u64 {
        direction(self.name, self.side ^ 1)
    }

    /// What frames of this end's output are marked with.
    pub fn output(&self) -> u64 {
        direction(self.name, self.side)
    }

    /// The words of a slot's head between state and newest export.
    pub(crate) fn words(&self, generation: u32) -> [u64; IDENTITY_WORDS] {
        let mut head: EndHead = zerocopy::FromZeros::new_zeroed();
        head.name = self.name.into();
        head.pid = self.pid.into();
        head.side = self.side.into();
        head.input_inode = self.input.inode.into();
        head.output_inode = self.output.inode.into();
        head.role = self.role.into();
        head.generation = generation.into();
        let connection = self.connection.unwrap_or(Place { slot: 0, generation: 0 });
        head.connection_slot = connection.slot.into();
        head.connection_generation = connection.generation.into();
        head.input_fd = self.input.fd.into();
        head.output_fd = self.output.fd.into();
        head.identity_check = head.computed_identity_check().into();
        let mut words = [0; IDENTITY_WORDS];
        for (word, bytes) in words.iter_mut().zip(head.as_bytes()[8..].chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        words
    }
}

/// Two directions of a channel have two names.
fn direction(name: u64, writer: u32) -> u64 {
    name.rotate_left(1) ^ u64::from(writer & 1)
}

impl EndHead {
    fn computed_identity_check(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[offset_of!(Self, name)..offset_of!(Self, identity_check)])
    }
}

/// A snapshot's bytes: what is written of an end at an export.
pub(crate) fn snapshot(is_nondeterministic: bool, pending: &[u8], words: &[u8]) -> Vec<u8> {
    let flags = if is_nondeterministic { NONDETERMINISTIC } else { 0 };
    [&flags.to_le_bytes(), &(pending.len() as u32).to_le_bytes(), pending, words].concat()
}

/// One end of a channel as its slot tells it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndImage {
    /// Which end, of which channel.
    pub identity: Identity,
    /// Stream offset of the first byte of input that the snapshot has not digested.
    pub digested: u64,
    /// Stream offset of the first byte of output that the snapshot has yet to produce; pending output comes first.
    pub released: u64,
    /// Output that the snapshot holds: produced before it and shown to nobody by then.
    pub pending: Vec<u8>,
    /// Whether what follows the snapshot is not deterministic: it was held back.
    pub is_nondeterministic: bool,
    /// The application's words.
    pub words: Vec<u8>,
    /// Input from `digested` on that had been read.
    pub logged: Vec<u8>,
}

impl EndImage {
    /// This end as another record says that it stood: its process exported that one first, with these offsets inside,
    /// and may not have come to this one. `None` if that cannot be: this record is never ahead, and a process with two
    /// records has no non-deterministic intervals, since what it held back would be in neither.
    #[must_use]
    pub fn at(self, digested: u64, released: u64) -> Option<Self> {
        let skip = usize::try_from(digested.checked_sub(self.digested)?).ok()?;
        let logged = self.logged.get(skip..)?.to_vec();
        let is_sound = self.pending.is_empty() && !self.is_nondeterministic && released >= self.released;
        is_sound.then_some(Self { digested, released, logged, ..self })
    }
}

/// The head of an end, and what is to be read for the rest.
#[derive(Clone, Debug)]
pub struct EndPlan {
    identity: Identity,
    head: BoxHead,
    plan: BoxPlan,
    received: u64,
    /// The frame that was arriving.
    arriving: Option<FrameHead>,
}

impl EndPlan {
    /// Parses the [`FRONT_BYTES`] of slot `slot` and says what else to read.
    ///
    /// # Errors
    /// [`BadBox::NoSession`] for slots without a channel; the others for damaged ones.
    pub fn parse(slot: u32, geometry: &Geometry, front: &[u8]) -> Result<Self, BadBox> {
        let truncated = || BadBox::Truncated { need: FRONT_BYTES as usize, have: front.len() };
        let (raw, behind) = EndHead::read_from_prefix(front).map_err(|_| truncated())?;
        let (short, _) = <[[u8; SHORT_LWS_BYTES as usize]; 2]>::read_from_prefix(behind).map_err(|_| truncated())?;
        if raw.state.get() != SlotState::Channel as u32 {
            return Err(BadBox::NoSession { state: raw.state.get() });
        }
        let (found, computed) = (raw.identity_check.get(), raw.computed_identity_check());
        if found != computed {
            return Err(BadBox::Identity { found, computed });
        }
        let file = |fd: U32, inode: U64| File { fd: fd.get(), inode: inode.get() };
        let connection = Place { slot: raw.connection_slot.get(), generation: raw.connection_generation.get() };
        let identity = Identity {
            name: raw.name.get(),
            side: raw.side.get(),
            pid: raw.pid.get(),
            role: raw.role.get(),
            connection: (connection.generation != 0).then_some(connection),
            input: file(raw.input_fd, raw.input_inode),
            output: file(raw.output_fd, raw.output_inode),
        };
        let nowhere = layout::address_from([0; 16], 0);
        let head = BoxHead {
            slot,
            state: SlotState::Open,
            owner: raw.owner.get(),
            local: nowhere,
            peer: nowhere,
            base_read: 0,
            base_written: 0,
            generation: raw.generation.get(),
            keeps_output: false,
            newest: raw.newest.get(),
            buffers: [raw.even, raw.odd],
            short,
        };
        let received = raw.received.get();
        let arriving = FrameHead::read_from_bytes(&raw.arriving).ok();
        let is_next = |frame: &FrameHead| frame.is_of(identity.input()) && frame.offset.get() == received;
        // As long as a log with it would be too long, it cannot have arrived.
        let planned =
            arriving.filter(is_next).and_then(|frame| Some((frame, head.plan(geometry, frame.range().end).ok()?)));
        let (arriving, plan) = match planned {
            Some((frame, plan)) if plan.reaches_back() => (Some(frame), plan),
            _ => (None, head.plan(geometry, received)?),
        };
        Ok(Self { identity, head, plan, received, arriving })
    }

    /// Which end of which channel.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The application that leases the slot.
    pub fn owner(&self) -> u32 {
        self.head.owner
    }

    /// What to read, as offsets in the pool.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.plan.ranges()
    }

    /// Turns the bytes of [`EndPlan::ranges`], one slice per range, into an end.
    ///
    /// # Errors
    /// [`BadBox::NoSnapshot`] if no checksum holds or the snapshot contradicts itself, [`BadBox::LogGap`],
    /// [`BadBox::Truncated`].
    pub fn finish<B: AsRef<[u8]>>(&self, parts: &[B]) -> Result<EndImage, BadBox> {
        let image = self.plan.finish(&self.head, parts)?;
        let none = BadBox::NoSnapshot { newest: self.head.newest };
        let (lsr, mut logged) = (image.snapshot.lsr, image.logged);
        // A snapshot never digests what was not counted as received.
        let Some(counted) = self.received.checked_sub(lsr) else { return Err(none) };
        if let Some(frame) = self.arriving {
            let is_whole =
                logged.get(counted as usize..).is_some_and(|it| frame.computed_check(it) == frame.check.get());
            if !is_whole {
                logged.truncate(counted as usize);
            }
        }
        let parsed = image.snapshot.lws.split_at_checked(PREFIX_BYTES).and_then(|(prefix, rest)| {
            let (flags, length) = prefix.split_at(4);
            let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
            let (pending, words) = rest.split_at_checked(word(length)? as usize)?;
            Some((word(flags)?, pending.to_vec(), words.to_vec()))
        });
        let Some((flags, pending, words)) = parsed else { return Err(none) };
        Ok(EndImage {
            identity: self.identity,
            digested: lsr,
            released: image.snapshot.lsw,
            pending,
            is_nondeterministic: flags & NONDETERMINISTIC != 0,
            words,
            logged,
        })
    }
}

/// Reads one end out of the bytes of a whole pool, as a test or a saved image has them.
///
/// # Errors
/// See [`BadBox`].
pub fn read_end(pool: &[u8], geometry: &Geometry, slot: u32) -> Result<EndImage, BadBox> {
    let cut = |range: Range<u64>| {
        let need = range.end as usize;
        pool.get(range.start as usize..need).ok_or(BadBox::Truncated { need, have: pool.len() })
    };
    let plan = EndPlan::parse(slot, geometry, cut(geometry.front(slot))?)?;
    let parts = plan.ranges().map(cut).collect::<Result<Vec<_>, _>>()?;
    plan.finish(&parts)
}

/// Reads the end that lies in a slot of ours.
///
/// # Errors
/// See [`BadBox`].
pub(crate) fn read_own_end(slot: &Slot) -> Result<EndImage, BadBox> {
    let geometry = slot.geometry();
    let plan = EndPlan::parse(slot.index(), &geometry, &slot.front())?;
    // What a plan asks for of a slot lies behind its front.
    let body = geometry.place(slot.index(), FRONT_BYTES);
    let copy = |range: Range<u64>| match range.is_empty() {
        true => Vec::new(),
        false => slot.bytes((range.start - body) as u32 + FRONT_BYTES, (range.end - range.start) as u32),
    };
    let parts: Vec<_> = plan.ranges().map(copy).collect();
    plan.finish(&parts)
}
