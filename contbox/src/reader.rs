//! What a spare reads: boxes out of bytes that come from a machine that is dead, mad or both.
//!
//! Three rounds of remote reads, however many sessions there are: the pool's header ([`parse_pool`]), the fronts of
//! all slots ([`Geometry::front`], [`BoxHead::parse`]), then for the wanted boxes exactly the stretches that
//! [`BoxHead::plan`] names, which [`BoxPlan::finish`] turns into a [`BoxImage`]. Short snapshots came with the fronts.
//!
//! Nothing is trusted: every length is checked against the geometry, every snapshot against its checksum, and
//! garbage costs an error, never a panic and never more bytes than one slot has.
//!
//! Which snapshot: the newest whose checksum holds, of the published one and the one after it (filled, but the stop
//! came before the publishing store). Never an older one: the log behind it may have been reused, and a session
//! resumed from it would be a corrupt stream instead of a lost one.

use crate::layout::{
    self, BufferHead, FRONT_BYTES, Geometry, HEADER_BYTES, MAGIC, PoolHeader, SHORT_LWS_BYTES, SlotHead, SlotState,
    VERSION,
};
use std::net::SocketAddr;
use std::ops::Range;
use zerocopy::FromBytes;

/// The application's part of a session at one instant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Stream offset of the first received byte that the application has not digested.
    pub lsr: u64,
    /// Stream offset of the first byte of output that the application has yet to produce.
    pub lsw: u64,
    /// The application's own words: opaque here.
    pub lws: Vec<u8>,
}

/// Why bytes are no pool. The target's fault, or a registration that names other memory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPool {
    /// Fewer bytes than a header has.
    #[error("pool header truncated: {have} bytes of {need}")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Not a pool of boxes.
    #[error("no pool of boxes: magic {found:#018x}")]
    Magic {
        /// What was in its place.
        found: u64,
    },
    /// Another release's layout: run the same release on target and spare.
    #[error("pool layout version {found}, this program reads {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The header was damaged.
    #[error("pool header checksum {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The numbers contradict each other or the region.
    #[error("impossible pool geometry {0:?}")]
    Geometry(Geometry),
}

/// Why a box cannot be used. Nothing in here is the reader's fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadBox {
    /// Fewer bytes than were asked for.
    #[error("box truncated: {have} bytes of {need}")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The slot holds no session (free, leased, closed or garbage).
    #[error("no session in the slot (state {state:#010x})")]
    NoSession {
        /// The state word.
        state: u32,
    },
    /// The receive log overflowed before the application exported: input is gone for good.
    #[error("the receive log overflowed before an export")]
    LostLog,
    /// Identity damaged or half-written.
    #[error("box identity checksum {found:#010x}, computed {computed:#010x}")]
    Identity {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// No buffer holds a whole snapshot of the published sequence or the next.
    #[error("no whole snapshot (newest export {newest})")]
    NoSnapshot {
        /// The published sequence.
        newest: u64,
    },
    /// The kernel handed out input that neither snapshot nor log holds.
    #[error("input from {lsr} to {copied} is not in a log of {log_bytes} bytes")]
    LogGap {
        /// Where the snapshot's input begins.
        lsr: u64,
        /// How far the kernel says the application has read.
        copied: u64,
        /// Capacity of the log.
        log_bytes: u32,
    },
    /// The snapshot claims output that the kernel never saw.
    #[error("snapshot claims {lsw} bytes of output, the kernel has {written}")]
    OutputAhead {
        /// As the snapshot says.
        lsw: u64,
        /// As the kernel says.
        written: u64,
    },
}

/// A pool's name and geometry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolInfo {
    /// The pool's random name.
    pub pool: u64,
    /// Where its boxes lie.
    pub geometry: Geometry,
}

/// Parses the first bytes of a pool that lies in a region of `region_bytes`.
///
/// # Errors
/// See [`BadPool`].
pub fn parse_pool(bytes: &[u8], region_bytes: u64) -> Result<PoolInfo, BadPool> {
    let truncated = BadPool::Truncated { need: size_of::<PoolHeader>(), have: bytes.len() };
    let (header, _) = PoolHeader::read_from_prefix(bytes).map_err(|_| truncated)?;
    if header.magic.get() != MAGIC {
        return Err(BadPool::Magic { found: header.magic.get() });
    }
    if header.version.get() != VERSION || header.header_bytes.get() != HEADER_BYTES {
        return Err(BadPool::Version { found: header.version.get() });
    }
    let (found, computed) = (header.check.get(), header.computed_check());
    if found != computed {
        return Err(BadPool::Checksum { found, computed });
    }
    let geometry = Geometry {
        slots: header.slots.get(),
        slot_bytes: header.slot_bytes.get(),
        lws_bytes: header.lws_bytes.get(),
        log_bytes: header.log_bytes.get(),
        send_bytes: header.send_bytes.get(),
    };
    let fits = geometry.is_sound()
        && geometry.length_bytes() == header.length_bytes.get()
        && geometry.length_bytes() <= region_bytes;
    if fits { Ok(PoolInfo { pool: header.pool.get(), geometry }) } else { Err(BadPool::Geometry(geometry)) }
}

/// The head of a box that claims a session; its identity is checked, its snapshot is not yet.
#[derive(Clone, Debug)]
pub struct BoxHead {
    /// Which slot.
    pub slot: u32,
    /// [`SlotState::Open`] or [`SlotState::LostLog`].
    pub state: SlotState,
    /// The application that leases the slot.
    pub owner: u32,
    /// Our end of the connection.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// Stream offset of the first byte that this kernel socket received.
    pub base_read: u64,
    /// Stream offset of the first byte that this kernel socket was given to send.
    pub base_written: u64,
    /// What the slot has served until then, this connection included.
    pub generation: u32,
    /// Whether all output of the connection went through its send log.
    pub keeps_output: bool,
    pub(crate) newest: u64,
    pub(crate) buffers: [BufferHead; 2],
    /// What lies in the front behind the head.
    pub(crate) short: [[u8; SHORT_LWS_BYTES as usize]; 2],
}

impl BoxHead {
    /// Parses the [`FRONT_BYTES`] of slot `slot`.
    ///
    /// # Errors
    /// [`BadBox::NoSession`] for most slots of most pools; [`BadBox::Truncated`], [`BadBox::Identity`].
    pub fn parse(slot: u32, bytes: &[u8]) -> Result<Self, BadBox> {
        Self::parse_if(slot, bytes, |state| matches!(state, SlotState::Open | SlotState::LostLog))
    }

    fn parse_if(slot: u32, bytes: &[u8], counts: impl Fn(SlotState) -> bool) -> Result<Self, BadBox> {
        let truncated = || BadBox::Truncated { need: FRONT_BYTES as usize, have: bytes.len() };
        let (head, behind) = SlotHead::read_from_prefix(bytes).map_err(|_| truncated())?;
        let (short, _) = FromBytes::read_from_prefix(behind).map_err(|_| truncated())?;
        let state = match SlotState::from_word(head.state.get()) {
            Some(state) if counts(state) => state,
            _ => return Err(BadBox::NoSession { state: head.state.get() }),
        };
        let (found, computed) = (head.identity_check.get(), head.computed_identity_check());
        if found != computed {
            return Err(BadBox::Identity { found, computed });
        }
        Ok(Self {
            slot,
            state,
            owner: head.owner.get(),
            local: layout::address_from(head.local_address, head.local_port.get()),
            peer: layout::address_from(head.peer_address, head.peer_port.get()),
            base_read: head.base_read.get(),
            base_written: head.base_written.get(),
            generation: head.generation.get(),
            keeps_output: head.reserved_words[0].get() == layout::output_kept(head.generation.get()),
            newest: head.newest.get(),
            buffers: [head.even, head.odd],
            short,
        })
    }

    /// Parses the front of a box whose words count for a [`crate::testament`]: of a session, or of one that has ended.
    ///
    /// # Errors
    /// See [`BoxHead::parse`].
    pub fn parse_words(slot: u32, bytes: &[u8]) -> Result<Self, BadBox> {
        Self::parse_if(slot, bytes, |state| matches!(state, SlotState::Open | SlotState::LostLog | SlotState::Kept))
    }

    /// The newest snapshot, if it is whole and lies in the front.
    pub fn words(&self, geometry: &Geometry) -> Option<Vec<u8>> {
        let newest = self.candidates(geometry).find(|candidate| match &candidate.lws {
            Lws::Here(lws) => candidate.is_whole(self.generation, lws),
            // Which it would be cannot be told without reading it.
            Lws::InBody(_) => true,
        })?;
        match newest.lws {
            Lws::Here(lws) => Some(lws),
            Lws::InBody(_) => None,
        }
    }

    /// The ends of the connection whose box lies, or lay last, in a slot: its words stay when it is closed. `None` for
    /// a slot that never had one.
    pub fn last_ends(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
        let (head, _) = SlotHead::read_from_prefix(bytes).ok()?;
        (head.generation.get() != 0 && head.identity_check.get() == head.computed_identity_check()).then_some(())?;
        let local = layout::address_from(head.local_address, head.local_port.get());
        Some((local, layout::address_from(head.peer_address, head.peer_port.get())))
    }

    /// What to read to resume this session, given the stream offset up to which the kernel handed input to the
    /// application (`base_read` + bytes received − bytes still in the socket's receive queue).
    ///
    /// # Errors
    /// [`BadBox::LostLog`]; [`BadBox::NoSnapshot`] or [`BadBox::LogGap`] if nothing that could be read would do.
    pub fn plan(&self, geometry: &Geometry, copied: u64) -> Result<BoxPlan, BadBox> {
        self.plan_by(geometry, copied, false)
    }

    /// As [`BoxHead::plan`] by an offset that may be behind: a snapshot that has digested more says so itself.
    ///
    /// # Errors
    /// See [`BoxHead::plan`].
    pub fn plan_from(&self, geometry: &Geometry, copied: u64) -> Result<BoxPlan, BadBox> {
        self.plan_by(geometry, copied, true)
    }

    fn plan_by(&self, geometry: &Geometry, copied: u64, lags: bool) -> Result<BoxPlan, BadBox> {
        if self.state == SlotState::LostLog {
            return Err(BadBox::LostLog);
        }
        let candidates: Vec<Candidate> = self.candidates(geometry).collect();
        let fits = |lsr: &u64| lags || *lsr <= copied;
        let Some(lsr) = candidates.iter().map(|candidate| candidate.lsr).filter(fits).min() else {
            return Err(match candidates.first() {
                Some(head) => BadBox::LogGap { lsr: head.lsr, copied, log_bytes: geometry.log_bytes },
                None => BadBox::NoSnapshot { newest: self.newest },
            });
        };
        let from = lsr.min(copied).max(copied.saturating_sub(u64::from(geometry.log_bytes)));
        let log_start = geometry.place(self.slot, geometry.log_offset());
        let log = geometry.log_stretches(from, copied);
        let log = log.map(|stretch| log_start + u64::from(stretch.start)..log_start + u64::from(stretch.end));
        let lws = candidates.iter().map(|candidate| candidate.range(geometry)).collect();
        Ok(BoxPlan { candidates, lws, log, from, copied, lags, log_bytes: geometry.log_bytes })
    }

    /// Where the bytes lie that the application was to send at stream offsets `from .. to`; `None` if they were not
    /// kept.
    pub fn sent(&self, geometry: &Geometry, from: u64, to: u64) -> Option<[Range<u64>; 2]> {
        let length = to.checked_sub(from).filter(|length| *length <= u64::from(geometry.send_bytes))?;
        if length == 0 {
            return Some([0..0, 0..0]);
        }
        let start = geometry.place(self.slot, geometry.send_offset());
        let stretches = geometry.send_stretches(from, to);
        let stretches = stretches.map(|stretch| start + u64::from(stretch.start)..start + u64::from(stretch.end));
        self.keeps_output.then_some(stretches)
    }

    /// The published buffer and the next one, newest first, as far as their descriptions are possible.
    fn candidates(&self, geometry: &Geometry) -> impl Iterator<Item = Candidate> {
        [self.newest.wrapping_add(1), self.newest].into_iter().filter_map(move |sequence| {
            let odd = (sequence & 1) as usize;
            let (head, length) = (self.buffers[odd], self.buffers[odd].length.get());
            let possible = head.sequence.get() == sequence && length <= geometry.lws_bytes;
            let lws = match self.short[odd].get(..length as usize) {
                Some(short) => Lws::Here(short.to_vec()),
                None => Lws::InBody(geometry.lws_offset(sequence, length)),
            };
            possible.then(|| Candidate { head, slot: self.slot, lsr: head.lsr.get(), lws })
        })
    }
}

/// Where the words of a snapshot are.
#[derive(Clone, Debug)]
enum Lws {
    /// They came with the front.
    Here(Vec<u8>),
    /// At this offset inside the slot.
    InBody(u32),
}

#[derive(Clone, Debug)]
struct Candidate {
    head: BufferHead,
    slot: u32,
    lsr: u64,
    lws: Lws,
}

impl Candidate {
    /// What is to be read: nothing if it is here.
    fn range(&self, geometry: &Geometry) -> Option<Range<u64>> {
        let Lws::InBody(offset) = self.lws else { return None };
        let start = geometry.place(self.slot, offset);
        Some(start..start + u64::from(self.head.length.get()))
    }

    fn is_whole(&self, generation: u32, lws: &[u8]) -> bool {
        self.head.computed_check(generation, lws) == self.head.check.get()
    }

    fn snapshot(&self, lws: Vec<u8>) -> Snapshot {
        Snapshot { lsr: self.head.lsr.get(), lsw: self.head.lsw.get(), lws }
    }
}

/// The reads that one session needs, see [`BoxHead::plan`].
#[derive(Clone, Debug)]
pub struct BoxPlan {
    candidates: Vec<Candidate>,
    /// What is to be read of each.
    lws: Vec<Option<Range<u64>>>,
    log: [Range<u64>; 2],
    from: u64,
    copied: u64,
    /// A snapshot may have digested more.
    lags: bool,
    log_bytes: u32,
}

impl BoxPlan {
    /// What to read, as offsets in the pool, in the order [`BoxPlan::finish`] expects; some may be empty.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.lws.iter().flatten().cloned().chain(self.log.iter().cloned())
    }

    /// Whether the log that is read begins where the oldest snapshot does that may be taken.
    pub(crate) fn reaches_back(&self) -> bool {
        self.candidates.iter().all(|candidate| candidate.lsr >= self.from)
    }

    /// Turns the bytes of [`BoxPlan::ranges`], one slice per range, into a session.
    ///
    /// # Errors
    /// [`BadBox::NoSnapshot`] if no checksum holds, [`BadBox::LogGap`] if input is missing, [`BadBox::Truncated`].
    pub fn finish<B: AsRef<[u8]>>(&self, head: &BoxHead, parts: &[B]) -> Result<BoxImage, BadBox> {
        for (index, range) in self.ranges().enumerate() {
            let need = (range.end - range.start) as usize;
            let have = parts.get(index).map_or(0, |part| part.as_ref().len());
            if have != need {
                return Err(BadBox::Truncated { need, have });
            }
        }
        let (buffers, log) = parts.split_at(self.lws.iter().flatten().count());
        let mut buffers = buffers.iter();
        let snapshot = self.candidates.iter().find_map(|candidate| {
            let lws = match &candidate.lws {
                Lws::Here(lws) => lws,
                Lws::InBody(_) => buffers.next()?.as_ref(),
            };
            candidate.is_whole(head.generation, lws).then(|| candidate.snapshot(lws.to_vec()))
        });
        let snapshot = snapshot.ok_or(BadBox::NoSnapshot { newest: head.newest })?;
        let (lsr, copied, log_bytes) = (snapshot.lsr, self.copied, self.log_bytes);
        if lsr < self.from || copied < lsr && !self.lags {
            return Err(BadBox::LogGap { lsr, copied, log_bytes });
        }
        let logged = log.iter().flat_map(|part| part.as_ref()).skip((lsr - self.from) as usize).copied().collect();
        Ok(BoxImage {
            local: head.local,
            peer: head.peer,
            base_read: head.base_read,
            base_written: head.base_written,
            snapshot,
            logged,
        })
    }
}

/// A session as its box tells it: what `reinstate` copies into a box of its own pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoxImage {
    /// Our end of the connection.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// Stream offset of the first byte that the dead kernel socket received.
    pub base_read: u64,
    /// Stream offset of the first byte that the dead kernel socket was given to send.
    pub base_written: u64,
    /// The application's state.
    pub snapshot: Snapshot,
    /// Input `[snapshot.lsr, copied)`: read by the application after the snapshot, to be replayed; none if the snapshot
    /// is ahead of that.
    pub logged: Vec<u8>,
}

impl BoxImage {
    /// Bytes of regenerated output to swallow, given the stream offset up to which the kernel took output
    /// (everything below it is acknowledged or in the send queue that is rebuilt).
    ///
    /// # Errors
    /// [`BadBox::OutputAhead`]: the application counts a byte only after the kernel took it, so the box is damaged.
    pub fn discard(&self, written: u64) -> Result<u64, BadBox> {
        let lsw = self.snapshot.lsw;
        written.checked_sub(lsw).ok_or(BadBox::OutputAhead { lsw, written })
    }
}

/// Reads one box out of the bytes of a whole pool, as a test or a saved image has them.
///
/// # Errors
/// See [`BadBox`].
pub fn read_box(pool: &[u8], geometry: &Geometry, slot: u32, copied: u64) -> Result<BoxImage, BadBox> {
    let cut = |range: Range<u64>| {
        let need = range.end as usize;
        pool.get(range.start as usize..need).ok_or(BadBox::Truncated { need, have: pool.len() })
    };
    let head = BoxHead::parse(slot, cut(geometry.front(slot))?)?;
    let plan = head.plan(geometry, copied)?;
    let parts = plan.ranges().map(cut).collect::<Result<Vec<_>, _>>()?;
    plan.finish(&head, &parts)
}

/// Reads the snapshot of a box in memory of our own, and its raw head for the one who goes on writing it. The logged
/// input stays where it is. `copy` takes bytes out of the slot, by offset and length.
pub(crate) fn read_own(
    front: &[u8],
    geometry: &Geometry,
    received: u64,
    copy: impl Fn(u32, u32) -> Vec<u8>,
) -> Result<(SlotHead, Snapshot), BadBox> {
    let truncated = BadBox::Truncated { need: size_of::<SlotHead>(), have: front.len() };
    let (raw, _) = SlotHead::read_from_prefix(front).map_err(|_| truncated)?;
    let head = BoxHead::parse(0, front)?;
    if head.state == SlotState::LostLog {
        return Err(BadBox::LostLog);
    }
    let snapshot = head.candidates(geometry).find_map(|candidate| {
        let lws = match &candidate.lws {
            Lws::Here(lws) => lws.clone(),
            Lws::InBody(offset) => copy(*offset, candidate.head.length.get()),
        };
        candidate.is_whole(head.generation, &lws).then(|| candidate.snapshot(lws))
    });
    let snapshot = snapshot.ok_or(BadBox::NoSnapshot { newest: head.newest })?;
    let (lsr, log_bytes) = (snapshot.lsr, geometry.log_bytes);
    let logged = received.checked_sub(lsr).is_some_and(|length| length <= u64::from(log_bytes));
    if logged { Ok((raw, snapshot)) } else { Err(BadBox::LogGap { lsr, copied: received, log_bytes }) }
}
