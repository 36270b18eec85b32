//! Sessions out of dead memory: sockets by walking the kernel, boxes by reading the pool, paired by their ends.
//!
//! Reads only, in rounds that do not grow with the number of sessions: the socket walk's, one for the pool's header,
//! one for all heads, one for all snapshots and logs. Nothing read is trusted; what is wrong costs one session.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use contbox::{
    BoxImage, Geometry,
    layout::canonical,
    reader::{BadPool, BoxHead, BoxPlan, parse_pool},
};
use introspect::{
    Kernel,
    linux::tcp::{self, TcpFilter, TcpSocket},
};
use remote_memory::{LinkError, Read, Region, RemoteKey, RemoteRead};

use crate::{
    session::{self, Loss, Session},
    snapshot::Snapshot,
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
    /// Cannot.
    pub lost: Vec<Lost>,
    /// What was wrong, in words; at most [`DAMAGE_MAX`].
    pub damage: Vec<String>,
}

type Ends = (SocketAddr, SocketAddr);

/// What has to be read for one socket, or why it is lost already.
type Planned<'a> = Result<(&'a BoxHead, BoxPlan), Loss>;

/// Reads all sessions that `filter` lets through. `pool` is the region of the boxes, if the target registered one;
/// `silent` is how long the target has been silent at most.
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
    let (sockets, damage) = tcp::walk(kernel, memory, ram, filter)?;
    let words = damage.iter().map(ToString::to_string).collect();
    Ok(pair(memory, pool, sockets, silent, words)?)
}

/// Finds the box of each socket and puts both together.
fn pair(
    memory: &mut dyn RemoteRead,
    pool: Option<&Region>,
    sockets: Vec<TcpSocket>,
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
    damage.truncate(DAMAGE_MAX);
    let mut extracted = Extracted { damage, ..Extracted::default() };
    let plans = sockets.iter().map(|socket| boxes.plan(socket)).collect::<Vec<_>>();
    let images = read_plans(memory, pool, &plans)?;
    for (socket, image) in sockets.into_iter().zip(images) {
        // A lost session still needs its numbers, so that its client can be told.
        let numbers = TcpSocket { send_queue: Vec::new(), receive_queue: Vec::new(), ..socket.clone() };
        match image.and_then(|image| session::admit(socket, image, silent)) {
            Ok(session) => extracted.sessions.push(session),
            Err(why) => extracted.lost.push(Lost { snapshot: session::snapshot(numbers, silent), why }),
        }
    }
    Ok(extracted)
}

/// The heads of all boxes with a session.
#[derive(Debug, Default)]
struct Boxes {
    geometry: Option<Geometry>,
    heads: HashMap<Ends, Vec<BoxHead>>,
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
        let places: Vec<_> = (0..info.geometry.slots).map(|slot| info.geometry.head(slot)).collect();
        let mut bytes: Vec<Vec<u8>> = places.iter().map(|place| vec![0; (place.end - place.start) as usize]).collect();
        let mut batch: Vec<Read<'_>> = places
            .iter()
            .zip(&mut bytes)
            .filter_map(|(place, into)| Some(Read::new(pool.at(place.start, place.end - place.start)?, into)))
            .collect();
        memory.read(&mut batch)?;
        let mut heads: HashMap<Ends, Vec<BoxHead>> = HashMap::new();
        for (slot, bytes) in bytes.iter().enumerate() {
            if let Ok(head) = BoxHead::parse(slot as u32, bytes) {
                heads.entry((canonical(head.local), canonical(head.peer))).or_default().push(head);
            }
        }
        Ok(Ok(Self { geometry: Some(info.geometry), heads }))
    }

    fn plan(&self, socket: &TcpSocket) -> Planned<'_> {
        session::rebuildable(socket)?;
        let found = self.heads.get(&(canonical(socket.local), canonical(socket.peer)));
        let head = match found.map(Vec::as_slice) {
            Some([head]) => head,
            Some(many @ [_, _, ..]) => return Err(Loss::ManyBoxes(many.len())),
            _ => return Err(Loss::NoBox),
        };
        let geometry = self.geometry.as_ref().ok_or(Loss::NoBox)?;
        Ok((head, head.plan(geometry, session::copied_offset(socket, head)?)?))
    }
}

/// Reads what all plans ask for in one batch.
fn read_plans(
    memory: &mut dyn RemoteRead,
    pool: Option<&Region>,
    plans: &[Planned<'_>],
) -> Result<Vec<Result<BoxImage, Loss>>, LinkError> {
    let mut parts: Vec<Vec<Vec<u8>>> = Vec::with_capacity(plans.len());
    for plan in plans {
        let ranges = plan.iter().flat_map(|(_, plan)| plan.ranges());
        parts.push(ranges.map(|range| vec![0; (range.end - range.start) as usize]).collect());
    }
    let mut batch = Vec::new();
    if let Some(pool) = pool {
        for (plan, parts) in plans.iter().zip(&mut parts) {
            let ranges = plan.iter().flat_map(|(_, plan)| plan.ranges());
            for (range, into) in ranges.zip(parts).filter(|(range, _)| !range.is_empty()) {
                batch.extend(pool.at(range.start, range.end - range.start).map(|at| Read::new(at, into)));
            }
        }
    }
    // Bytes that could not be read stay zero: the snapshot's checksum then fails. A log has no checksum, so a session
    // with any unread part is given up below.
    memory.read(&mut batch)?;
    let failed: Vec<bool> = batch.iter().map(|read| read.outcome.is_err()).collect();
    drop(batch);
    let mut failed = failed.into_iter();
    let finish = |(plan, parts): (&Planned<'_>, &Vec<Vec<u8>>)| {
        let (head, plan) = plan.as_ref().map_err(Clone::clone)?;
        let reads = parts.iter().filter(|part| !part.is_empty()).count();
        let unread = failed.by_ref().take(reads).filter(|failed| *failed).count();
        if unread > 0 {
            return Err(Loss::Damaged("box"));
        }
        Ok(plan.finish(head, parts)?)
    };
    Ok(plans.iter().zip(&parts).map(finish).collect())
}

#[cfg(test)]
mod tests {
    use contbox::{ContinuationBox, Opening, Pool, Snapshot as Export};
    use remote_memory::{Rights, image::Image};

    use super::*;
    use crate::session::tests::socket;

    const BASE: u64 = 0x4000;

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
        pair(&mut image, Some(&region), sockets, Duration::ZERO, Vec::new()).unwrap()
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
            let extracted = pair(&mut image, pool, vec![other(1)], Duration::ZERO, Vec::new()).unwrap();
            assert_eq!((extracted.sessions.len(), &extracted.lost[0].why), (0, &Loss::NoBox));
            assert!(extracted.damage[0].contains("pool"), "{:?}", extracted.damage);
        }
    }
}
