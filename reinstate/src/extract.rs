//! Sessions out of dead memory: sockets by walking the kernel, boxes by reading the pool, paired by their ends.
//!
//! Reads only, in rounds that do not grow with the number of sessions: the socket walk's, one for the pool's header,
//! one for all fronts, one for all snapshots and logs; where sessions span processes, those of one walk of tasks and of
//! one of pipes and sockets ([`crate::channels`]). Nothing read is trusted; what is wrong costs one session.
//!
//! What waits to be sent comes last ([`tcp::Survey`]): everything before can go on without it.

use std::{
    collections::{HashMap, HashSet},
    mem,
    net::SocketAddr,
    ops::Range,
    time::Duration,
};

use contbox::{
    BoxImage, Geometry,
    channel::FoundChannel,
    layout::canonical,
    reader::{BadPool, BoxHead, BoxPlan, parse_pool},
    testament::{self, Testament},
};
use introspect::{
    Kernel,
    linux::tcp::{self, Survey, TcpFilter, TcpSocket},
};
use remote_memory::{LinkError, Read, Region, RemoteKey, RemoteRead};

use crate::{
    catch_up::catch_up,
    channels::{Between, Dead, Ends, Records},
    resume::{Keeper, keepers},
    session::{self, Loss, Session},
    snapshot::Snapshot,
    tables::{OutOfSight, Tables},
};

/// Sentences about damage one report may hold.
pub const DAMAGE_MAX: usize = 100;

/// Why nothing could be extracted at all.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The path to the memory failed: try again over a new link.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A session that is given up, with what is needed to end it at its client.
#[derive(Debug)]
pub struct Lost {
    /// Its connection, as far as it is known.
    pub snapshot: Snapshot,
    /// Why.
    pub why: Loss,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Extracted {
    /// Can go on.
    pub sessions: Vec<Session>,
    /// Connections that their application had closed, with their numbers: a kernel brings them to their end.
    pub ending: Vec<(usize, Snapshot)>,
    /// Cannot.
    pub lost: Vec<Lost>,
    /// The fronts of all boxes, for [`Fronts::testaments`].
    pub fronts: Option<Fronts>,
    /// What was wrong, in words; at most [`DAMAGE_MAX`].
    pub damage: Vec<String>,
}

type Addresses = (SocketAddr, SocketAddr);

/// Connections that were found.
struct Sockets {
    all: Vec<TcpSocket>,
    /// Whether applications may have gone on with them since: a table says how they stood when something last left.
    lag: bool,
}

impl Sockets {
    /// As they were when the machine stopped.
    fn of(all: Vec<TcpSocket>) -> Self {
        Self { all, lag: false }
    }
}

/// How one socket goes on.
enum Plan<'a> {
    /// From its box, of which this has to be read.
    FromBox(&'a BoxHead, BoxPlan),
    /// From its beginning: the application has not exchanged a byte with it.
    Anew,
    /// Without an application.
    ToItsEnd,
}

impl Plan<'_> {
    fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        match self {
            Self::FromBox(_, plan) => plan.ranges().collect::<Vec<_>>().into_iter(),
            Self::Anew | Self::ToItsEnd => Vec::new().into_iter(),
        }
    }
}

/// How it goes on, or why it is lost already.
type Planned<'a> = Result<Plan<'a>, Loss>;

/// A plan whose bytes have been read.
enum Carried {
    FromBox(BoxImage),
    Anew,
    ToItsEnd,
}

/// Reads all sessions that `filter` lets through, with all their bytes. `pool` is the region of the boxes, if the
/// target registered one; `silent` is how long the target has been silent at most.
///
/// # Errors
/// [`ExtractError`]
pub fn extract(
    kernel: &Kernel,
    memory: &mut dyn RemoteRead,
    ram: RemoteKey,
    pool: Option<&Region>,
    filter: &TcpFilter,
    silent: Duration,
) -> Result<Extracted, ExtractError> {
    let mut survey = tcp::survey(kernel, memory, ram, filter)?;
    let mut extracted = pair_all(kernel, memory, ram, pool, &mut survey, silent)?;
    let keepers = keepers(mem::take(&mut extracted.sessions), mem::take(&mut extracted.ending));
    let numbers: Vec<usize> = keepers.iter().map(|(number, _)| *number).collect();
    let queues = survey.read_queued(kernel, memory, ram, &numbers)?;
    for ((number, mut keeper), bytes) in keepers.into_iter().zip(queues) {
        match (keeper.give(bytes), keeper) {
            (Ok(()), Keeper::Application(session)) => extracted.sessions.push(*session),
            (Ok(()), Keeper::Kernel(snapshot)) => extracted.ending.push((number, snapshot)),
            (Err(why), keeper) => extracted.lost.push(keeper.lost(why)),
        }
    }
    Ok(extracted)
}

/// Finds the boxes of all sockets of a survey, which is left without them. What waits to be sent is not read.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn pair_all(
    kernel: &Kernel,
    memory: &mut dyn RemoteRead,
    ram: RemoteKey,
    pool: Option<&Region>,
    survey: &mut Survey,
    silent: Duration,
) -> Result<Extracted, LinkError> {
    let words = survey.damage.iter().map(ToString::to_string).collect();
    pair(memory, &Dead { kernel, ram }, pool, Sockets::of(mem::take(&mut survey.sockets)), silent, words)
}

/// As [`pair_all`], of the connections in a machine's tables, which are left without them.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn pair_tables(
    memory: &mut dyn RemoteRead,
    pool: Option<&Region>,
    tables: &mut Tables,
    silent: Duration,
) -> Result<Extracted, LinkError> {
    let (sockets, words) = (mem::take(&mut tables.sockets), mem::take(&mut tables.damage));
    let extracted = pair(memory, &OutOfSight, pool, Sockets { all: sockets, lag: true }, silent, words)?;
    tables.locate(&extracted);
    Ok(extracted)
}

/// Finds the box of each socket and puts both together, and with them the channels to other processes.
fn pair(
    memory: &mut dyn RemoteRead,
    between: &dyn Between,
    pool: Option<&Region>,
    Sockets { all: sockets, lag }: Sockets,
    silent: Duration,
    mut damage: Vec<String>,
) -> Result<Extracted, LinkError> {
    damage.extend(sockets.iter().flat_map(|socket| &socket.damage).map(ToString::to_string));
    let boxes = match pool {
        Some(pool) => Boxes::read(memory, pool)?.map_err(|why| why.to_string()),
        None => Err("the target registered no pool of boxes".to_owned()),
    };
    let boxes = boxes.unwrap_or_else(|why| {
        damage.insert(0, why);
        Boxes::default()
    });
    damage.extend_from_slice(&boxes.ends.damage);
    let plans = sockets.iter().map(|socket| boxes.plan(socket, lag)).collect::<Vec<_>>();
    let (images, channels) = read_plans(memory, between, pool, &boxes.ends, &plans, &mut damage)?;
    damage.truncate(DAMAGE_MAX);
    let kept_bytes = boxes.geometry.map_or(0, |geometry| geometry.send_bytes);
    let mut extracted = Extracted { damage, ..Extracted::default() };
    for (number, ((mut socket, carried), channels)) in sockets.into_iter().zip(images).zip(channels).enumerate() {
        let image = match carried {
            Ok(Carried::ToItsEnd) => {
                extracted.ending.push((number, session::ending(socket, silent)));
                continue;
            }
            Ok(Carried::FromBox(image)) => Ok(image),
            Ok(Carried::Anew) => Ok(session::fresh(&socket)),
            Err(why) => Err(why),
        };
        let agreed = image.and_then(|image| {
            if lag {
                catch_up(&mut socket, &image, kept_bytes)?;
            }
            let standing = session::agree(&socket, &image)?;
            Ok((image, standing, channels?))
        });
        match agreed {
            Ok((image, standing, channels)) => {
                let session = session::admit(number, socket, image, standing, silent);
                extracted.sessions.push(Session { channels, ..session });
            }
            // A lost session still needs its numbers, so that its client can be told.
            Err(why) => extracted.lost.push(Lost { snapshot: session::values(&socket, silent), why }),
        }
    }
    extracted.fronts = boxes.fronts;
    Ok(extracted)
}

/// The fronts of all boxes of a pool, as they were read.
#[derive(Debug)]
pub struct Fronts {
    geometry: Geometry,
    bytes: Vec<Vec<u8>>,
}

impl Fronts {
    /// What all boxes said, address by address, also those whose sessions are lost.
    pub fn testaments(&self) -> Vec<Testament> {
        testament::read(&self.geometry, &self.bytes)
    }

    /// Where the output of sessions lies that waits to be sent or acknowledged, by their numbers; of those that kept
    /// it.
    pub fn sent(&self, sessions: &[Session]) -> HashMap<usize, [Range<u64>; 2]> {
        let heads = self.bytes.iter().enumerate().filter_map(|(slot, bytes)| BoxHead::parse(slot as u32, bytes).ok());
        let heads: HashMap<Addresses, BoxHead> =
            heads.map(|head| ((canonical(head.local), canonical(head.peer)), head)).collect();
        let of = |session: &Session| {
            let head = heads.get(&(canonical(session.snapshot.local), canonical(session.snapshot.peer)))?;
            let from = session.written.checked_sub(session.snapshot.queued() as u64)?;
            Some((session.number, head.sent(&self.geometry, from, session.written)?))
        };
        sessions.iter().filter_map(of).collect()
    }
}

/// The heads of all boxes with a session.
#[derive(Debug, Default)]
struct Boxes {
    geometry: Option<Geometry>,
    heads: HashMap<Addresses, Vec<BoxHead>>,
    /// Connections whose boxes were ended and not used again since.
    ended: HashSet<Addresses>,
    /// The ends of channels.
    ends: Ends,
    fronts: Option<Fronts>,
}

impl Boxes {
    fn read(memory: &mut dyn RemoteRead, pool: &Region) -> Result<Result<Self, BadPool>, LinkError> {
        let mut header = vec![0; 4096.min(pool.len as usize)];
        if let Some(at) = pool.at(0, header.len() as u64) {
            let _ = memory.read_one(at, &mut header)?; // what could not be read parses as no pool
        }
        let info = match parse_pool(&header, pool.len) {
            Ok(info) => info,
            Err(why) => return Ok(Err(why)),
        };
        let places: Vec<_> = (0..info.geometry.slots).map(|slot| info.geometry.front(slot)).collect();
        let mut bytes: Vec<Vec<u8>> = places.iter().map(|place| vec![0; (place.end - place.start) as usize]).collect();
        let mut batch: Vec<Read<'_>> = places
            .iter()
            .zip(&mut bytes)
            .filter_map(|(place, into)| Some(Read::new(pool.at(place.start, place.end - place.start)?, into)))
            .collect();
        memory.read(&mut batch)?;
        let mut heads: HashMap<Addresses, Vec<BoxHead>> = HashMap::new();
        let (mut ended, mut ends) = (HashSet::new(), Ends::default());
        for (slot, bytes) in bytes.iter().enumerate() {
            ends.add(slot as u32, &info.geometry, bytes);
            match BoxHead::parse(slot as u32, bytes) {
                Ok(head) => heads.entry((canonical(head.local), canonical(head.peer))).or_default().push(head),
                Err(_) => ended.extend(BoxHead::last_ends(bytes)),
            }
        }
        let fronts = Some(Fronts { geometry: info.geometry, bytes });
        Ok(Ok(Self { geometry: Some(info.geometry), heads, ended, ends, fronts }))
    }

    /// How a connection without a box goes on, if it can.
    /// An application that has accepted one may have read from it since its numbers were taken, if these `lag`.
    fn without(&self, socket: &TcpSocket, ends: &Addresses, lag: bool) -> Planned<'_> {
        if session::output_ended(socket) {
            return Ok(Plan::ToItsEnd);
        }
        let used = self.heads.values().map(Vec::len).sum::<usize>() as u32;
        match self.geometry {
            _ if self.ended.contains(ends) => Err(Loss::BoxEnded),
            _ if session::untouched(socket) && !(lag && socket.accepted) => {
                session::counted(socket).map(|()| Plan::Anew)
            }
            Some(geometry) if used == geometry.slots => Err(Loss::PoolFull(used)),
            _ => Err(Loss::NoBox),
        }
    }

    fn plan(&self, socket: &TcpSocket, lag: bool) -> Planned<'_> {
        session::rebuildable(socket)?;
        if socket.orphaned {
            return Ok(Plan::ToItsEnd);
        }
        let ends = (canonical(socket.local), canonical(socket.peer));
        let found = self.heads.get(&ends).map_or(&[][..], Vec::as_slice);
        let ([head], Some(geometry)) = (found, &self.geometry) else {
            return if found.is_empty() { self.without(socket, &ends, lag) } else { Err(Loss::ManyBoxes(found.len())) };
        };
        // Boxes are made by those who have accepted: this one was another connection's.
        if !socket.accepted {
            return Err(Loss::Damaged("box"));
        }
        let copied = session::copied_offset(socket, head)?;
        let plan = if lag { head.plan_from(geometry, copied) } else { head.plan(geometry, copied) };
        Ok(Plan::FromBox(head, plan?))
    }
}

/// For each plan the bytes it asked for, and the channels of its session.
type Whole = (Vec<Result<Carried, Loss>>, Vec<Result<Vec<FoundChannel>, Loss>>);

/// Reads what all plans ask for in one batch, with the records of the channels that these sessions may have; then what
/// waits in those.
fn read_plans(
    memory: &mut dyn RemoteRead,
    between: &dyn Between,
    pool: Option<&Region>,
    ends: &Ends,
    plans: &[Planned<'_>],
    damage: &mut Vec<String>,
) -> Result<Whole, LinkError> {
    let heads = plans.iter().map(|plan| match plan {
        Ok(Plan::FromBox(head, _)) => Some(*head),
        _ => None,
    });
    let of_channels = ends.wanted(heads.clone().flatten());
    let ranges = plans.iter().map(|plan| plan.iter().flat_map(Plan::ranges).collect());
    let ranges = ranges.chain(of_channels.iter().map(|number| ends.ranges(*number)));
    let mut parts = read_parts(memory, pool, &ranges.collect::<Vec<_>>())?;
    let of_ends = parts.split_off(plans.len());
    let finish = |(plan, parts): (&Planned<'_>, Option<Vec<Vec<u8>>>)| {
        let (head, plan) = match plan.as_ref().map_err(Clone::clone)? {
            Plan::FromBox(head, plan) => (head, plan),
            Plan::Anew => return Ok(Carried::Anew),
            Plan::ToItsEnd => return Ok(Carried::ToItsEnd),
        };
        Ok(Carried::FromBox(plan.finish(head, &parts.ok_or(Loss::Damaged("box"))?)?))
    };
    let carried: Vec<Result<Carried, Loss>> = plans.iter().zip(parts).map(finish).collect();
    let images = carried.iter().map(|carried| match carried {
        Ok(Carried::FromBox(image)) => Some(image),
        _ => None,
    });
    let boxes = heads.zip(images).map(|(head, image)| head.zip(image));
    let channels = Records::of(ends, &of_channels, &of_ends).pair(boxes).find(memory, between, damage)?;
    Ok((carried, channels.into_iter().map(|channels| channels.map_err(Loss::from)).collect()))
}

/// Reads lists of stretches of the pool in one batch; `None` for a list of which something could not be read. Only
/// snapshots have checksums: what was not read must not be taken for zeroes.
pub(crate) fn read_parts(
    memory: &mut dyn RemoteRead,
    pool: Option<&Region>,
    wanted: &[Vec<Range<u64>>],
) -> Result<Vec<Option<Vec<Vec<u8>>>>, LinkError> {
    let bytes = |ranges: &Vec<Range<u64>>| {
        ranges.iter().map(|range| vec![0; (range.end - range.start) as usize]).collect::<Vec<Vec<u8>>>()
    };
    let mut parts: Vec<Vec<Vec<u8>>> = wanted.iter().map(bytes).collect();
    let mut whole = vec![true; wanted.len()];
    let (mut batch, mut of_list) = (Vec::new(), Vec::new());
    for (list, (ranges, parts)) in wanted.iter().zip(&mut parts).enumerate() {
        for (range, into) in ranges.iter().zip(parts).filter(|(range, _)| !range.is_empty()) {
            match pool.and_then(|pool| pool.at(range.start, range.end - range.start)) {
                Some(at) => {
                    batch.push(Read::new(at, into));
                    of_list.push(list);
                }
                None => whole[list] = false,
            }
        }
    }
    memory.read(&mut batch)?;
    for (read, list) in batch.iter().zip(of_list) {
        whole[list] &= read.outcome.is_ok();
    }
    drop(batch);
    Ok(parts.into_iter().zip(whole).map(|(parts, whole)| whole.then_some(parts)).collect())
}

#[cfg(test)]
mod tests {
    use contbox::{ContinuationBox, Opening, Pool, Snapshot as Export};
    use introspect::linux::{channel::Descriptor, tcp::State};
    use remote_memory::{Rights, image::Image};

    use super::*;
    use crate::channels::Found;
    use crate::session::tests::socket;

    const BASE: u64 = 0x4000;

    /// A machine whose sessions have none.
    struct NoChannels;

    impl Between for NoChannels {
        fn waiting(&self, _: &mut dyn RemoteRead, wanted: &[Descriptor]) -> Result<Found, LinkError> {
            panic!("nobody has channels, and {wanted:?} is looked for");
        }
    }

    fn opening(socket: &TcpSocket, lsr: u64, lsw: u64, logged: &[u8]) -> Opening {
        let snapshot = Export { lsr, lsw, lws: b"state".to_vec() };
        Opening { snapshot, logged: logged.to_vec(), ..Opening::fresh(1, socket.local, socket.peer) }
    }

    /// The memory of a target whose pool holds these boxes, one per slot.
    fn target(boxes: &[Opening]) -> (Image, Region) {
        let (_fd, pool) = Pool::memfd(Geometry::with(4, 64, 256), 7).unwrap();
        for (slot, opening) in boxes.iter().enumerate() {
            // Kept open: a box that is dropped is a session that has ended.
            std::mem::forget(ContinuationBox::create(pool.slot(slot as u32).unwrap(), opening).unwrap());
        }
        let bytes = pool.image();
        let mut image = Image::new();
        image.write_at(BASE, &bytes);
        let len = bytes.len() as u64;
        (image, Region { name: "cb".into(), key: RemoteKey::new(3), base: BASE, len, rights: Rights::READ })
    }

    fn paired(boxes: &[Opening], sockets: Vec<TcpSocket>) -> Extracted {
        let (mut image, region) = target(boxes);
        pair(&mut image, &NoChannels, Some(&region), Sockets::of(sockets), Duration::ZERO, Vec::new()).unwrap()
    }

    fn other(port: u16) -> TcpSocket {
        TcpSocket { peer: SocketAddr::from(([10, 0, 0, 2], port)), ..socket(9, 10, 20, 5, 8) }
    }

    #[test]
    fn each_socket_gets_its_own_box() {
        let sockets = vec![other(1), other(2), other(3)];
        let boxes = [opening(&sockets[1], 2, 15, &[2, 3, 4]), opening(&sockets[0], 5, 20, &[])];
        let extracted = paired(&boxes, sockets);
        let found: Vec<_> = extracted.sessions.iter().map(|it| (it.snapshot.peer.port(), it.discard)).collect();
        assert_eq!(found, [(1, 0), (2, 5)]);
        assert_eq!(extracted.sessions[1].image.logged, [2, 3, 4]);
        assert_eq!(extracted.sessions[1].image.snapshot.lws, b"state");
        let lost: Vec<_> = extracted.lost.iter().map(|it| (it.snapshot.peer.port(), it.why.clone())).collect();
        assert_eq!(lost, [(3, Loss::NoBox)]);
    }

    #[test]
    fn what_the_box_of_a_lost_session_said_is_known_and_a_pool_that_was_not_read_whole_leaves_no_complete_testament() {
        let one = other(1);
        let boxes = [opening(&one, 5, 20, &[]), opening(&one, 5, 20, &[])];
        let extracted = paired(&boxes, vec![one.clone()]);
        assert_eq!(extracted.lost[0].why, Loss::ManyBoxes(2));
        let testaments = extracted.fronts.unwrap().testaments();
        let words = vec![b"state".to_vec(); 2];
        assert_eq!(testaments, [Testament { local: canonical(one.local), words, complete: true }]);

        let (mut image, region) = target(&boxes);
        let unread = Geometry::with(4, 64, 256).front(3);
        image.write_at(BASE + unread.start, &vec![0; (unread.end - unread.start) as usize]);
        let extracted =
            pair(&mut image, &NoChannels, Some(&region), Sockets::of(vec![one]), Duration::ZERO, Vec::new()).unwrap();
        let testaments = extracted.fronts.unwrap().testaments();
        assert_eq!((testaments[0].words.len(), testaments[0].complete), (2, false));
    }

    #[test]
    fn a_connection_nobody_has_touched_begins_anew_unless_its_box_was_ended() {
        let waiting = |port| TcpSocket { accepted: false, ..touched(other(port), 0, 0) };
        let extracted = paired(&[], vec![waiting(1), touched(other(2), 0, 0)]);
        assert_eq!(extracted.lost.len(), 0);
        for session in &extracted.sessions {
            assert_eq!((session.copied, session.written, session.discard), (0, 0, 0));
            assert_eq!(session.snapshot.receiving.len(), 8);
            assert!(session.image.logged.is_empty() && session.image.snapshot.lws.is_empty());
        }
        let (_fd, pool) = Pool::memfd(Geometry::with(4, 64, 256), 7).unwrap();
        let one = waiting(1);
        ContinuationBox::create(pool.slot(0).unwrap(), &Opening::fresh(1, one.local, one.peer)).unwrap().close();
        let mut image = Image::new();
        image.write_at(BASE, &pool.image());
        let region = target(&[]).1;
        let extracted =
            pair(&mut image, &NoChannels, Some(&region), Sockets::of(vec![one]), Duration::ZERO, Vec::new()).unwrap();
        assert_eq!(extracted.lost[0].why, Loss::BoxEnded);
    }

    #[test]
    fn without_a_box_because_the_pool_was_full_is_said() {
        let boxed: Vec<_> = (1..5).map(other).collect();
        let boxes: Vec<_> = boxed.iter().map(|socket| opening(socket, 5, 20, &[])).collect();
        let extracted = paired(&boxes, boxed.into_iter().chain([other(9)]).collect());
        assert_eq!((extracted.sessions.len(), &extracted.lost[0].why), (4, &Loss::PoolFull(4)));
    }

    #[test]
    fn what_its_application_had_closed_ends_without_one() {
        let closed = TcpSocket { state: State::FinWait2, fin_queued: true, orphaned: true, ..other(1) };
        let closed = TcpSocket { send_queue: vec![], snd_una: closed.write_seq, ..closed };
        let extracted = paired(&[], vec![closed.clone(), TcpSocket { orphaned: false, ..closed.clone() }]);
        assert_eq!((extracted.lost.len(), extracted.ending.len()), (0, 2));
        let snapshot = &extracted.ending[0].1;
        assert_eq!((snapshot.closed, snapshot.snd_una), (true, closed.write_seq.wrapping_sub(1)));
        assert!(snapshot.receiving.is_empty());
    }

    fn touched(socket: TcpSocket, read: u32, written: u32) -> TcpSocket {
        TcpSocket { local: socket.local, peer: socket.peer, ..crate::session::tests::socket(9, 0, written, read, 8) }
    }

    #[test]
    fn two_boxes_for_one_connection_are_none() {
        let one = other(1);
        let extracted = paired(&[opening(&one, 5, 20, &[]), opening(&one, 5, 20, &[])], vec![one]);
        assert_eq!(extracted.lost[0].why, Loss::ManyBoxes(2));
    }

    #[test]
    fn without_a_readable_pool_every_session_is_lost_with_a_word() {
        let (mut image, region) = target(&[]);
        image.write_at(BASE, &[0; 64]);
        for pool in [None, Some(&region)] {
            let extracted =
                pair(&mut image, &NoChannels, pool, Sockets::of(vec![other(1)]), Duration::ZERO, Vec::new()).unwrap();
            assert_eq!((extracted.sessions.len(), &extracted.lost[0].why), (0, &Loss::NoBox));
            assert!(extracted.damage[0].contains("pool"), "{:?}", extracted.damage);
        }
    }
}
