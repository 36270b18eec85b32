//! The channels of sessions that span processes: their ends out of the pool, what the kernel has between them, and what
//! each end is given (decision 0018).
//!
//! ```text
//!   fronts of all boxes ─► Ends                 which ends there are, by connection and by name
//!   a connection's snapshot ─► Standing         which channels it has, and where its own ends stood
//!   records of both ends ─► descriptors ─► tasks, pipes, sockets       one walk for all sessions
//!                                                                   ─► FoundChannel, or why the session is lost
//! ```
//! A channel belongs to a connection if both say so: the connection's snapshot names the channel, and the record of its
//! near end the connection's box. Neither is trusted alone, so that damage costs the session it lies in. Rounds do not
//! grow with the number of sessions, and there are none where no session has a channel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use contbox::{
    BoxImage, Geometry,
    channel::{self, EndImage, EndPlan, FoundChannel, Place, joint},
    reader::{BadBox, BoxHead},
};
use introspect::{
    Damage, Kernel,
    linux::{
        channel::{Descriptor, Waiting, walk},
        task,
    },
};
use remote_memory::{LinkError, RemoteKey, RemoteRead};

/// Why a channel cannot go on, and its session with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelLoss {
    /// Nobody can say which channels there are.
    #[error(transparent)]
    Unclear(#[from] joint::Unclear),
    /// The snapshot names a channel that names no connection, or another one, or several ends that do.
    #[error("{found} records of channel {name:#x} name this connection and no other")]
    Near {
        /// The channel.
        name: u64,
        /// One was expected.
        found: usize,
    },
    /// The process at the other end has left no record, or there are several.
    #[error("{found} records of the other end of channel {name:#x}")]
    Far {
        /// The channel.
        name: u64,
        /// One was expected.
        found: usize,
    },
    /// The record of an end cannot be used.
    #[error("a record of channel {name:#x}: {why}")]
    Record {
        /// The channel.
        name: u64,
        /// Why.
        why: BadBox,
    },
    /// The record of an end could not be read.
    #[error("a record of channel {name:#x} could not be read")]
    Unread {
        /// The channel.
        name: u64,
    },
    /// Snapshot and record cannot both be true.
    #[error("the connection's snapshot and the record of channel {name:#x} contradict each other")]
    Standing {
        /// The channel.
        name: u64,
    },
    /// A record names a descriptor that is something else.
    #[error("descriptor {fd} of process {pid} is not the end of channel {name:#x} that its record says")]
    NotThere {
        /// The channel.
        name: u64,
        /// The process.
        pid: u32,
        /// The descriptor.
        fd: u32,
    },
    /// Records and the kernel's buffers do not give the whole stream.
    #[error("channel {name:#x}: {why}")]
    Stream {
        /// The channel.
        name: u64,
        /// Why.
        why: channel::Loss,
    },
}

/// What waits behind each of some descriptors, and what was wrong in memory.
pub(crate) type Found = (Vec<Option<Waiting>>, Vec<Damage>);

/// What waits behind descriptors: a kernel's memory, or a test's.
pub(crate) trait Between {
    /// What waits behind each of `wanted`.
    ///
    /// # Errors
    /// [`LinkError`] if the path to the memory failed.
    fn waiting(&self, memory: &mut dyn RemoteRead, wanted: &[Descriptor]) -> Result<Found, LinkError>;
}

/// The dead machine's kernel, and the key to its memory.
pub(crate) struct Dead<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) ram: RemoteKey,
}

impl Between for Dead<'_> {
    fn waiting(&self, memory: &mut dyn RemoteRead, wanted: &[Descriptor]) -> Result<Found, LinkError> {
        let (tasks, mut damage) = task::walk(self.kernel, memory, self.ram)?;
        let (found, more) = walk(self.kernel, memory, self.ram, &tasks, wanted)?;
        damage.extend(more);
        Ok((found, damage))
    }
}

/// The ends of channels in a pool, as their fronts tell them.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    plans: Vec<EndPlan>,
    of_connection: HashMap<Place, Vec<usize>>,
    of_name: HashMap<u64, Vec<usize>>,
    /// Ends whose heads are of no use, in words.
    pub(crate) damage: Vec<String>,
}

impl Ends {
    /// Adds what lies in `slot`, if it is an end.
    pub(crate) fn add(&mut self, slot: u32, geometry: &Geometry, front: &[u8]) {
        let plan = match EndPlan::parse(slot, geometry, front) {
            Ok(plan) => plan,
            Err(BadBox::NoSession { .. }) => return,
            Err(why) => return self.damage.push(format!("the end of a channel in slot {slot}: {why}")),
        };
        let (number, identity) = (self.plans.len(), plan.identity());
        self.of_name.entry(identity.name).or_default().push(number);
        if let Some(place) = identity.connection {
            self.of_connection.entry(place).or_default().push(number);
        }
        self.plans.push(plan);
    }

    /// The ends that may be of the connection whose box is `head`: they name it, and are of the same application.
    fn near(&self, head: &BoxHead) -> impl Iterator<Item = usize> {
        let place = Place { slot: head.slot, generation: head.generation };
        let named = self.of_connection.get(&place).map_or(&[][..], Vec::as_slice);
        named.iter().copied().filter(|number| self.plans[*number].owner() == head.owner)
    }

    /// The ends of a channel: those that name a connection, and those opposite.
    fn of(&self, name: u64) -> (Vec<usize>, Vec<usize>) {
        let of_name = self.of_name.get(&name).map_or(&[][..], Vec::as_slice);
        of_name.iter().partition(|number| self.plans[**number].identity().connection.is_some())
    }

    /// The ends whose records have to be read for the sessions of these boxes.
    pub(crate) fn wanted<'a>(&self, heads: impl Iterator<Item = &'a BoxHead>) -> BTreeSet<usize> {
        let mut wanted = BTreeSet::new();
        for near in heads.flat_map(|head| self.near(head)) {
            wanted.insert(near);
            // Of several opposite ends none is believed.
            if let [far] = self.of(self.plans[near].identity().name).1[..] {
                wanted.insert(far);
            }
        }
        wanted
    }

    /// What to read of end `number`, as offsets in the pool.
    pub(crate) fn ranges(&self, number: usize) -> Vec<Range<u64>> {
        self.plans[number].ranges().collect()
    }
}

/// The records of ends, as far as they were read.
pub(crate) struct Records<'a> {
    ends: &'a Ends,
    /// None of those that could not be read.
    images: BTreeMap<usize, Result<EndImage, BadBox>>,
}

/// Both ends of a channel, with the numbers of what waits for them.
struct Pair {
    near: EndImage,
    far: EndImage,
    near_number: usize,
    far_number: usize,
}

/// The channels of sessions, before what waits in them is known.
pub(crate) struct Paired {
    sessions: Vec<Result<Vec<Pair>, ChannelLoss>>,
    wanted: Vec<Descriptor>,
}

impl<'a> Records<'a> {
    /// `parts` has what was read of each of `wanted`, `None` where something could not be.
    pub(crate) fn of(ends: &'a Ends, wanted: &BTreeSet<usize>, parts: &[Option<Vec<Vec<u8>>>]) -> Self {
        let image = |(number, parts): (&usize, &Option<Vec<Vec<u8>>>)| {
            Some((*number, ends.plans[*number].finish(parts.as_ref()?)))
        };
        Self { ends, images: wanted.iter().zip(parts).filter_map(image).collect() }
    }

    /// The channels of each connection that has a box.
    pub(crate) fn pair<'b>(&self, boxes: impl Iterator<Item = Option<(&'b BoxHead, &'b BoxImage)>>) -> Paired {
        let mut wanted = Vec::new();
        let mut of_one = |found: Option<(&BoxHead, &BoxImage)>| {
            let Some((head, image)) = found else { return Ok(Vec::new()) };
            let (standings, _) = joint::split(&image.snapshot.lws)?;
            let names: BTreeSet<u64> = standings.iter().map(|standing| standing.name).collect();
            if names.len() < standings.len() {
                return Err(ChannelLoss::Unclear(joint::Unclear));
            }
            standings.iter().map(|standing| self.pair_one(head, standing, &mut wanted)).collect()
        };
        Paired { sessions: boxes.map(&mut of_one).collect(), wanted }
    }

    fn pair_one(
        &self,
        head: &BoxHead,
        standing: &joint::Standing,
        wanted: &mut Vec<Descriptor>,
    ) -> Result<Pair, ChannelLoss> {
        let name = standing.name;
        // A channel that two connections claim would be given to both.
        let (near, far) = self.ends.of(name);
        let ours: Vec<usize> = self.ends.near(head).filter(|number| near.contains(number)).collect();
        let ([near], [_]) = (&ours[..], &near[..]) else {
            let found = if ours.is_empty() { 0 } else { near.len() };
            return Err(ChannelLoss::Near { name, found });
        };
        let [far] = far[..] else { return Err(ChannelLoss::Far { name, found: far.len() }) };
        let near = self.image(*near, name)?.at(standing.digested, standing.released);
        let near = near.ok_or(ChannelLoss::Standing { name })?;
        let far = self.image(far, name)?;
        let near_number = wanted.len();
        for end in [&near, &far] {
            wanted.push(Descriptor { pid: end.identity.pid, fd: end.identity.input.fd });
        }
        Ok(Pair { near, far, near_number, far_number: near_number + 1 })
    }

    fn image(&self, number: usize, name: u64) -> Result<EndImage, ChannelLoss> {
        let image = self.images.get(&number).ok_or(ChannelLoss::Unread { name })?;
        image.clone().map_err(|why| ChannelLoss::Record { name, why })
    }
}

impl Paired {
    /// Reads what waits, and plans: the channels of each connection, in the order of their snapshots.
    ///
    /// # Errors
    /// [`LinkError`] if the path to the memory failed.
    pub(crate) fn find(
        self,
        memory: &mut dyn RemoteRead,
        between: &dyn Between,
        damage: &mut Vec<String>,
    ) -> Result<Vec<Result<Vec<FoundChannel>, ChannelLoss>>, LinkError> {
        let mut waiting = Vec::new();
        if !self.wanted.is_empty() {
            let (found, wrong) = between.waiting(memory, &self.wanted)?;
            damage.extend(wrong.iter().map(ToString::to_string));
            waiting = found;
        }
        let found = |pair: Pair| {
            let near_waiting = waiting_for(&pair.near, waiting.get(pair.near_number))?;
            let far_waiting = waiting_for(&pair.far, waiting.get(pair.far_number))?;
            let name = pair.near.identity.name;
            FoundChannel::of(pair.near, pair.far, near_waiting, far_waiting)
                .map_err(|why| ChannelLoss::Stream { name, why })
        };
        let all = |pairs: Vec<Pair>| pairs.into_iter().map(found).collect::<Result<Vec<_>, _>>();
        Ok(self.sessions.into_iter().map(|session| session.and_then(all)).collect())
    }
}

/// What waits for an end, if that is what its record says. That chunks are missing is for the plan to find out: they
/// may be of no use.
fn waiting_for<'a>(end: &EndImage, found: Option<&'a Option<Waiting>>) -> Result<&'a [Vec<u8>], ChannelLoss> {
    let (identity, input) = (&end.identity, end.identity.input);
    let is_it = |waiting: &&Waiting| waiting.inode == input.inode;
    let waiting = found.and_then(Option::as_ref).filter(is_it);
    let lost = ChannelLoss::NotThere { name: identity.name, pid: identity.pid, fd: input.fd };
    waiting.map(|waiting| waiting.chunks.as_slice()).ok_or(lost)
}

#[cfg(test)]
#[path = "channels_tests.rs"]
mod tests;
