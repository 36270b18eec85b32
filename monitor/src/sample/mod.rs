//! Sampling: one batch of READs of a target's memory, and the values of the planned sensors out of it.
//!
//! ```text
//!   Sensor Box   header, records ──┐                        values in the order of the plan:
//!                                  ├─ one batch, one round trip ──► those of the box, then those of the kernel
//!   kernel       words, anywhere ──┘
//! ```
//! A target has a box, if an agent runs in it, or kernel sensors, or both.

mod boxes;
mod sensors;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use control::backdoor::{FenceState, FenceToken, LockHolder};
use link::{Link, LinkFailure};
use remote_memory::{
    AccessError, Completion, LinkError, Queue, Region, RemoteAddr, RemoteKey, RemoteRead, Request, Work,
};
use sensorbox::FetchError;

pub use boxes::{BoxReader, Opened};
pub use sensors::{Sensors, Unreached};

use crate::kernel::{KernelReader, Survey};

/// Name of the region that holds the Sensor Box.
pub const REGION: &str = "sb";

/// Completions that are taken at a time.
const COMPLETIONS: usize = 32;

/// The way to one target: its memory, and the fence.
pub trait Door {
    /// The region of its Sensor Box, as registered now.
    ///
    /// # Errors
    /// [`LinkFailure`]; one that [`LinkFailure::is_path`] says nothing about the target.
    fn region(&mut self) -> Result<Region, LinkFailure>;

    /// The region that is all of its memory, as everybody may read it.
    ///
    /// # Errors
    /// [`LinkFailure::NoRegion`] where that is not offered; else see [`LinkFailure`].
    fn ram(&mut self) -> Result<Region, LinkFailure> {
        Err(LinkFailure::NoRegion("ram".to_owned()))
    }

    /// Which life of the machine this is.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    fn life(&mut self) -> Result<Life, LinkFailure> {
        Ok(Life::default())
    }

    /// Its memory; `None` while there is no connection.
    fn memory(&mut self) -> Option<&mut dyn RemoteRead>;

    /// Its memory as a queue, to read many targets at once without waiting; `None` where that is not offered.
    fn queue(&mut self) -> Option<&mut dyn Queue> {
        None
    }

    /// How often something had to be sent again on its way so far: what a path that loses packets shows.
    fn repetitions(&self) -> u64 {
        0
    }

    /// Makes the connection anew after a read was given up: its late answers must not be taken for later ones'.
    fn renew(&mut self) {}

    /// Who holds it locked, if anybody does; `None` where there are no locks.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    fn lock_holder(&mut self) -> Result<Option<LockHolder>, LinkFailure> {
        Ok(None)
    }

    /// Stops it. A fence that stands under the same `claim` is answered again.
    ///
    /// # Errors
    /// [`LinkFailure`]; after a lost answer it may be asked again.
    fn fence(&mut self, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure>;

    /// Whether the fence of `token` stands.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    fn stands(&mut self, token: &FenceToken) -> Result<bool, LinkFailure> {
        Ok(self.fence_state(token)? != FenceState::Ended)
    }

    /// How the fence of `token` stands.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    fn fence_state(&mut self, token: &FenceToken) -> Result<FenceState, LinkFailure>;

    /// Resets it behind its fence; one that was reset under this fence is left alone.
    ///
    /// # Errors
    /// [`LinkFailure`]; may be repeated.
    fn reset(&mut self, token: &FenceToken) -> Result<(), LinkFailure>;

    /// Ends the fence of a target that was reset: its links come up.
    ///
    /// # Errors
    /// [`LinkFailure`]; may be repeated.
    fn plug(&mut self, token: &FenceToken) -> Result<(), LinkFailure>;
}

/// What tells one life of a machine from the next, as far as its backdoor knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Of the backdoor: a new one knows nothing of what was before.
    pub incarnation: u64,
    /// How often it has seen the machine reset.
    pub resets: u64,
}

impl Life {
    /// That of the machine behind `link`.
    ///
    /// # Errors
    /// [`LinkFailure`]
    pub fn of(link: &mut Link) -> Result<Self, LinkFailure> {
        let resets = link.stats()?.resets;
        Ok(Self { incarnation: link.welcome().incarnation, resets })
    }

    /// Whether the machine was reset since `earlier`, for certain.
    pub fn is_after(self, earlier: Self) -> bool {
        self.incarnation == earlier.incarnation && self.resets != earlier.resets
    }
}

/// What one look at a target brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glance {
    /// Values have been filled in.
    Values {
        /// Identity of the box, or of the kernel where there is no box.
        identity: u64,
        /// Whether something else is in the place of a planned sensor now: a new plan is due.
        changed: bool,
    },
    /// The server refused: the region was registered anew or its epoch has passed.
    Refused,
    /// No Sensor Box in the bytes, and another kernel than the one whose sensors were found.
    Unreadable,
    /// No answer.
    Lost,
}

/// Why a target's sensors cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no box that could be read.
    #[error(transparent)]
    Box(#[from] FetchError),
    /// The path failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The survey of that number is of an earlier life of the kernel.
    #[error("another kernel lives there than the one whose sensors were found")]
    Stale(u64),
    /// Neither box nor survey.
    #[error("the target has no sensors: give it kernel sensors, or an agent")]
    Nothing,
}

impl OpenError {
    /// Whether nothing was learnt of the target.
    pub fn is_path(&self) -> bool {
        matches!(self, Self::Link(_) | Self::Box(FetchError::Link(_)))
    }
}

/// Reads one target's sensors over and over.
#[derive(Debug)]
pub struct Reader {
    sb: Option<BoxReader>,
    kernel: Option<KernelReader>,
    /// Sensors of the box among all that were described.
    of_box: usize,
}

impl Reader {
    /// Reads the box in `sb` and looks whether the kernel of the survey lives in the memory behind the key beside it;
    /// says what sensors there are. With a box, a stale survey is left out, see [`Opened::stale`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        memory: &mut dyn RemoteRead,
        sb: Option<Region>,
        kernel: Option<(Arc<Survey>, RemoteKey)>,
    ) -> Result<(Self, Opened), OpenError> {
        let opened = sb.map(|region| BoxReader::open(memory, region)).transpose()?;
        let mut kernel = kernel.map(|(survey, ram)| KernelReader::new(survey, ram));
        let mut stale = None;
        if let Some(reader) = &mut kernel
            && !reader.is_current(memory)?
        {
            stale = Some(reader.survey().number);
            kernel = None;
        }
        let (sb, mut opened) = match (opened, &kernel) {
            (Some((sb, opened)), _) => (Some(sb), opened),
            (None, Some(kernel)) => {
                let identity = kernel.survey().identity;
                (None, Opened { identity, described: Vec::new(), damaged: 0, stale: None })
            }
            (None, None) => return Err(stale.map_or(OpenError::Nothing, OpenError::Stale)),
        };
        let of_box = opened.described.len();
        opened.described.extend(kernel.iter().flat_map(KernelReader::described).cloned());
        opened.stale = stale;
        Ok((Self { sb, kernel, of_box }, opened))
    }

    /// Keeps the sensors at `places` of [`Opened::described`], ascending; values come in that order.
    pub fn keep(&mut self, places: &[usize]) {
        let (of_box, of_kernel) = places.split_at(places.partition_point(|place| *place < self.of_box));
        if let Some(sb) = &mut self.sb {
            sb.keep(of_box);
        }
        if let Some(kernel) = &mut self.kernel {
            kernel.keep(of_kernel.iter().map(|place| place - self.of_box));
        }
    }

    /// Goes on with a newer survey that differs in its users only; false if that is not so.
    pub fn take_users(&mut self, newer: &Arc<Survey>) -> bool {
        self.kernel.as_mut().is_some_and(|kernel| kernel.take_users(newer))
    }

    /// Takes one sample at `now_ns` in one round trip; fills `values`, one for each sensor kept. `whole` fetches all of
    /// the box, for [`Reader::differs_from`].
    pub fn look(
        &mut self,
        memory: &mut dyn RemoteRead,
        now_ns: u64,
        values: &mut Vec<Option<u64>>,
        whole: bool,
    ) -> Glance {
        values.clear();
        let mut batch = Vec::new();
        let is_inside = self.sb.as_mut().is_none_or(|sb| sb.ask(&mut batch, whole));
        if let Some(kernel) = &mut self.kernel {
            kernel.ask(&mut batch);
        }
        if !is_inside {
            return Glance::Refused;
        }
        if memory.read(&mut batch).is_err() {
            return Glance::Lost;
        }
        let is_granted = batch.iter().all(|read| read.outcome.is_ok());
        drop(batch);
        if is_granted { self.parse(now_ns, values) } else { Glance::Refused }
    }

    /// Posts the reads of one sample and does not wait; [`Reader::collect`] has the rest. `None` if the queue does not
    /// take all of them.
    pub fn post(&self, queue: &mut dyn Queue, whole: bool) -> Option<Flight> {
        let mut requests = Vec::new();
        for (at, into) in self.reads(whole) {
            let (len, landing) = (u32::try_from(into.len()).ok()?, u32::try_from(into.start).ok()?);
            requests.push(Request { id: requests.len() as u64, work: Work::Read { at: at?, len, landing } });
        }
        if requests.len() > queue.depth() {
            return None;
        }
        match queue.post(&requests) {
            Ok(posted) if posted == requests.len() => {
                Some(Flight { outstanding: posted, is_refused: false, is_whole: whole })
            }
            _ => None,
        }
    }

    /// Takes what has come back of `flight`, which was posted at `begin_ns`; the sample once all has. `None` while
    /// something is missing.
    pub fn collect(
        &mut self,
        queue: &mut dyn Queue,
        flight: &mut Flight,
        begin_ns: u64,
        values: &mut Vec<Option<u64>>,
    ) -> Option<Glance> {
        let mut completions = [Completion { id: 0, outcome: Err(AccessError::Flushed) }; COMPLETIONS];
        loop {
            let Ok(taken) = queue.poll(&mut completions, Duration::ZERO) else { return Some(Glance::Lost) };
            flight.outstanding = flight.outstanding.saturating_sub(taken);
            flight.is_refused |= completions[..taken].iter().any(|completion| completion.outcome.is_err());
            if taken < COMPLETIONS || flight.outstanding == 0 {
                break;
            }
        }
        if flight.outstanding > 0 {
            return None;
        }
        values.clear();
        if flight.is_refused {
            return Some(Glance::Refused);
        }
        self.land(queue.landing(), flight.is_whole);
        Some(self.parse(begin_ns, values))
    }

    /// From where, and where in the landing buffer: the box as it is, the kernel's words behind it.
    fn reads(&self, whole: bool) -> impl Iterator<Item = (Option<RemoteAddr>, Range<usize>)> {
        let behind = self.sb.as_ref().map_or(0, BoxReader::len);
        let of_box = self.sb.iter().flat_map(move |sb| sb.reads(whole));
        let of_kernel = self.kernel.iter().flat_map(KernelReader::reads);
        of_box.chain(of_kernel.map(move |(at, into)| (Some(at), into.start + behind..into.end + behind)))
    }

    fn land(&mut self, landing: &[u8], whole: bool) {
        let mut behind = 0;
        if let Some(sb) = &mut self.sb {
            behind = sb.len();
            sb.land(landing, whole);
        }
        if let Some(kernel) = &mut self.kernel {
            let buffer = kernel.buffer_mut();
            let len = buffer.len();
            buffer.copy_from_slice(&landing[behind..behind + len]);
        }
    }

    fn parse(&mut self, now_ns: u64, values: &mut Vec<Option<u64>>) -> Glance {
        let glance = match (&self.sb, &self.kernel) {
            (Some(sb), _) => sb.parse(values),
            (None, Some(kernel)) => Glance::Values { identity: kernel.survey().identity, changed: false },
            (None, None) => Glance::Unreadable,
        };
        let (Glance::Values { identity, .. }, Some(kernel)) = (glance, &mut self.kernel) else { return glance };
        match (kernel.values(now_ns, values), self.sb.is_some()) {
            (true, _) => glance,
            // The box is of whoever lives now; without one there is nothing.
            (false, true) => Glance::Values { identity, changed: true },
            (false, false) => Glance::Unreadable,
        }
    }

    /// Whether the bytes of the last whole look hold other sensors than those of `opened`: new ones are found this way.
    pub fn differs_from(&self, opened: &Opened) -> bool {
        self.sb.as_ref().is_some_and(|sb| sb.differs_from(&opened.described[..self.of_box]))
    }
}

/// Reads of one sample that are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    outstanding: usize,
    is_refused: bool,
    is_whole: bool,
}

impl Flight {
    /// Whether the whole box is read, and not the planned records only.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }
}
