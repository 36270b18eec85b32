//! Connections of a machine whose memory cannot be read, out of the table that its own kernel kept while it lived
//! (`tcptable`): the same [`TcpSocket`]s that a walk through its memory gives.
//!
//! ```text
//!   header ── one read ──► tails of all slots ── one round ──► rings of those with unread input ── one round ──►
//!   boxes (crate::extract) ──► where in the send logs what waits to be sent lies ──► one round for each group
//! ```
//! **What a record stands for.** The connection when something last left: no client has heard of anything that came
//! after it. So it is never torn, and where kernel and application had gone on, harmlessly: input that came since was
//! not acknowledged, and its client sends it again; what was acknowledged since, its client says when it is asked.
//! What the application had made of it is in its box. Input that its snapshot has digested is not taken a second time,
//! and output that its snapshot has gone by, and that had not left, is in the send log ([`crate::catch_up`]). Output
//! that was written after the snapshot and has not left, the application produces again.
//!
//! Two numbers change after the last look, inside of the path that sends: `rcv_wup`, which becomes `rcv_nxt`, and the
//! window that is offered with it. Both are taken for what they may have become at most.
//!
//! Nothing in the table is trusted. Stream offsets are held against the numbers with which the streams began; a slot
//! that does not hold together costs its session.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;

use introspect::linux::channel::Descriptor;
use introspect::linux::tcp::{Segment, State, TcpFilter, TcpSocket};
use remote_memory::{KernelVirt, LinkError, Region, RemoteRead};
use tcptable::layout::{flag, region_bytes};
use tcptable::{BadTable, Connection, Table, reader};

use crate::channels::{Between, Found};
use crate::extract::{Extracted, read_parts};
use crate::session::Session;

/// The most that a client can have been promised: a mirrored socket's buffer is bounded, and the window in the answer
/// to a SYN is not scaled.
const PROMISED_BYTES: u32 = u16::MAX as u32;

/// Where the output of a session lies in the pool of boxes.
type Stretches = [Range<u64>; 2];

/// The connections of a machine, out of its table.
#[derive(Debug, Default)]
pub struct Tables {
    /// The connections. Segments of send queues have their numbers and no bytes.
    pub sockets: Vec<TcpSocket>,
    /// What was wrong, in words.
    pub damage: Vec<String>,
    /// By number of the socket, once their boxes are known.
    sent: HashMap<usize, Stretches>,
}

/// Reads the connections that `filter` lets through, with what their applications have not read.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed; [`BadTable`] if there is no table.
pub fn survey(
    memory: &mut dyn RemoteRead,
    region: &Region,
    filter: &TcpFilter,
) -> Result<Result<Tables, BadTable>, LinkError> {
    let mut header = vec![0; reader::HEADER_BYTES];
    if let Some(at) = region.at(0, header.len() as u64) {
        let _ = memory.read_one(at, &mut header)?; // what could not be read parses as no table
    }
    let table = match Table::parse(&header, region.len) {
        Ok(table) => table,
        Err(why) => return Ok(Err(why)),
    };
    let slots: Vec<u32> = table.connections().collect();
    let heads: Vec<_> = slots.iter().map(|slot| vec![table.head(*slot)]).collect();
    let heads = read_parts(memory, Some(region), &heads)?;
    let mut tables = Tables::default();
    let mut connections = Vec::new();
    let mut ends: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
    for (slot, head) in slots.into_iter().zip(heads) {
        let bytes = head.unwrap_or_default().concat();
        match Connection::parse(slot, &bytes) {
            Ok(Some(connection)) if filter.admits(connection.local) => {
                *ends.entry((connection.local, connection.peer)).or_default() += 1;
                connections.push(connection);
            }
            Ok(_) => {}
            Err(why) => tables.damage.push(format!("slot {slot} of the table of connections: {why}")),
        }
    }
    let mut seen = HashSet::new();
    connections.retain(|connection| seen.insert((connection.local, connection.peer)));
    for connection in &connections {
        let Some(mut socket) = socket(connection) else { continue };
        let claims = ends.get(&(socket.local, socket.peer)).copied().unwrap_or(1);
        if claims > 1 {
            tables.damage.push(format!("{claims} slots of the table claim the connection of {}", socket.peer));
            socket.send_queue_complete = false;
        }
        tables.sockets.push(socket);
    }
    fill(memory, region, &connections, &mut tables.sockets)?;
    Ok(Ok(tables))
}

/// A record as a walk would have found the socket, without its input; `None` if its state is none that is worth saving.
fn socket(connection: &Connection) -> Option<TcpSocket> {
    let Connection { local, peer, first_received, first_sent, record, .. } = *connection;
    let state = State::from_kernel(record.state.into())?;
    let fin_received = matches!(state, State::CloseWait | State::LastAck | State::Closing);
    let fin_queued = matches!(state, State::FinWait1 | State::FinWait2 | State::LastAck | State::Closing);
    let orphaned = record.has(flag::ORPHANED);
    let promised = record.rcv_wup.wrapping_add(record.rcv_wnd).wrapping_sub(record.rcv_nxt);
    let promised = u32::try_from(promised as i32).unwrap_or(0).max(PROMISED_BYTES);
    let acked = record.snd_una.wrapping_sub(first_sent) == record.bytes_acked as u32;
    let in_order = |low: u32, high: u32| high.wrapping_sub(low) <= i32::MAX as u32;
    let waiting = record.snd_una != record.write_seq;
    let segment = Segment {
        seq: record.snd_una,
        end_seq: record.write_seq,
        bytes: Vec::new(),
        sent: true,
        fin: fin_queued && waiting,
    };
    Some(TcpSocket {
        address: KernelVirt::new(region_bytes(connection.slot)),
        local,
        peer,
        inet6_socket: record.is_inet6(),
        state,
        accepted: connection.accepted || orphaned,
        orphaned,
        in_init_net: record.has(flag::INIT_NET),
        bound_device: record.bound_device,
        snd_una: record.snd_una,
        snd_nxt: record.snd_nxt,
        write_seq: record.write_seq,
        rcv_nxt: record.rcv_nxt,
        copied_seq: record.copied_seq,
        rcv_wup: record.rcv_nxt,
        rcv_wnd: promised,
        snd_wl1: record.snd_wl1,
        snd_wnd: record.snd_wnd,
        max_window: record.max_window,
        snd_cwnd: record.snd_cwnd,
        mss_cache: record.mss_cache,
        mss_clamp: record.mss_clamp,
        timestamps: record.has(flag::TIMESTAMPS),
        window_scaling: record.has(flag::SCALING),
        sack: record.has(flag::SACK),
        snd_wscale: record.snd_wscale,
        rcv_wscale: record.rcv_wscale,
        tsoffset: record.tsoffset,
        timestamps_in_us: record.has(flag::MICROSECONDS),
        ts_recent: record.ts_recent,
        tcp_mstamp_us: record.tcp_mstamp_us,
        tcp_wstamp_ns: record.tcp_wstamp_ns,
        bytes_acked: record.bytes_acked,
        bytes_received: record.bytes_received,
        read_offset_certain: record.rcv_nxt.wrapping_sub(first_received) == record.bytes_received as u32,
        lock_held: false,
        shutdown: record.shutdown,
        urgent: record.has(flag::URGENT),
        repair: record.has(flag::REPAIR),
        has_ulp: record.has(flag::UPPER_LAYER),
        is_mptcp: record.has(flag::MPTCP),
        send_queue: if waiting { vec![segment] } else { Vec::new() },
        receive_queue: Vec::new(),
        fin_queued,
        fin_received,
        send_queue_complete: acked && in_order(record.snd_una, record.write_seq),
        receive_queue_complete: false,
        damage: Vec::new(),
    })
}

/// How many bytes of the client's are in the ring, if these are all that its application has not read.
fn unread(connection: &Connection, socket: &TcpSocket) -> Option<u32> {
    let record = &connection.record;
    if record.copied_seq == record.rcv_nxt {
        return Some(0);
    }
    let end = record.rcv_nxt.wrapping_sub(socket.fin_received.into());
    let is_whole = record.taken == end || record.taken == record.rcv_nxt;
    let length = connection.unread_bytes(socket.read_offset())?;
    (is_whole && length == end.wrapping_sub(record.copied_seq)).then_some(length)
}

/// Gives each socket its receive queue.
fn fill(
    memory: &mut dyn RemoteRead,
    region: &Region,
    connections: &[Connection],
    sockets: &mut [TcpSocket],
) -> Result<(), LinkError> {
    let by_ends: HashMap<_, _> = connections.iter().map(|it| ((it.local, it.peer), it)).collect();
    let whole = |socket: &TcpSocket| {
        let connection = by_ends.get(&(socket.local, socket.peer))?;
        Some(connection.unread(unread(connection, socket)?).to_vec())
    };
    let wanted: Vec<Option<Vec<Range<u64>>>> = sockets.iter().map(whole).collect();
    let stretches: Vec<_> = wanted.iter().map(|wanted| wanted.clone().unwrap_or_default()).collect();
    let parts = read_parts(memory, Some(region), &stretches)?;
    for ((socket, wanted), parts) in sockets.iter_mut().zip(wanted).zip(parts) {
        let bytes = wanted.and(parts);
        socket.receive_queue_complete = bytes.is_some();
        socket.receive_queue = bytes.unwrap_or_default().concat();
    }
    Ok(())
}

impl Tables {
    /// Says where the output of what was paired lies.
    pub fn locate(&mut self, extracted: &Extracted) {
        let sent = extracted.fronts.as_ref().map(|fronts| fronts.sent(&extracted.sessions)).unwrap_or_default();
        let nothing = |(number, queued): (usize, usize)| (queued == 0).then_some((number, [0..0, 0..0]));
        let sessions = extracted.sessions.iter().map(|session: &Session| (session.number, session.snapshot.queued()));
        let ending = extracted.ending.iter().map(|(number, snapshot)| (*number, snapshot.queued()));
        self.sent = sessions.chain(ending).filter_map(nothing).chain(sent).collect();
    }

    /// Bytes in the send queue of socket `number`.
    pub fn queued_bytes(&self, number: usize) -> usize {
        let stretches = self.sent.get(&number).into_iter().flatten();
        stretches.map(|stretch| (stretch.end - stretch.start) as usize).sum()
    }

    /// Reads the send queues of the sockets `numbers` out of `pool`, in one round; `None` for one that is nowhere.
    ///
    /// # Errors
    /// [`LinkError`] if the path to the memory failed.
    pub fn read_queued(
        &self,
        memory: &mut dyn RemoteRead,
        pool: Option<&Region>,
        numbers: &[usize],
    ) -> Result<Vec<Option<Vec<u8>>>, LinkError> {
        let stretches = |number: &usize| self.sent.get(number).cloned().unwrap_or([0..0, 0..0]).to_vec();
        let parts = read_parts(memory, pool, &numbers.iter().map(stretches).collect::<Vec<_>>())?;
        let known = numbers.iter().map(|number| self.sent.contains_key(number));
        Ok(parts.into_iter().zip(known).map(|(parts, known)| Some(parts?.concat()).filter(|_| known)).collect())
    }
}

/// A machine of which nothing between its processes can be seen: sessions that span them are lost.
pub(crate) struct OutOfSight;

impl Between for OutOfSight {
    fn waiting(&self, _: &mut dyn RemoteRead, wanted: &[Descriptor]) -> Result<Found, LinkError> {
        Ok((vec![None; wanted.len()], Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use remote_memory::{RemoteKey, Rights, image::Image};
    use tcptable::layout::{MAGIC, OPEN, RING_BYTES, SLOT_BYTES, VERSION, checksum, header, record, tail};

    use super::*;
    use crate::session;

    const FIRST_RECEIVED: u32 = u32::MAX - 9;
    const FIRST_SENT: u32 = 5000;

    fn halves(low: u32, high: u32) -> u64 {
        u64::from(low) | u64::from(high) << 32
    }

    /// A table of three slots of which those in `words` are given: the words of their tails.
    fn table(tails: &[(u32, Vec<u64>)]) -> (Image, Region) {
        let mut bytes = vec![0; 4 * SLOT_BYTES as usize];
        let head = [MAGIC, halves(VERSION, SLOT_BYTES), halves(4, RING_BYTES)];
        let mut put = |at: usize, words: &[u64]| {
            words.iter().enumerate().for_each(|(index, word)| {
                bytes[at + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
            });
        };
        put(0, &head);
        put(8 * header::CHECK, &[checksum(MAGIC, &head)]);
        for (slot, words) in tails {
            put((slot * SLOT_BYTES + RING_BYTES) as usize, words);
        }
        for (slot, _) in tails {
            let ring = &mut bytes[(slot * SLOT_BYTES) as usize..][..RING_BYTES as usize];
            ring.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
        }
        let mut image = Image::new();
        image.write_at(0, &bytes);
        let len = bytes.len() as u64;
        (image, Region { name: "tcp".into(), key: RemoteKey::new(1), base: 0, len, rights: Rights::READ })
    }

    /// A connection that has received 100 bytes, of which 80 are read, and sent 50, of which 20 are acknowledged.
    fn connection(change: impl Fn(&mut [u64; record::WORDS])) -> Vec<u64> {
        let received = |offset: u32| FIRST_RECEIVED.wrapping_add(offset);
        let mut words = vec![0; 48];
        words[tail::STATE] = OPEN;
        words[tail::GENERATION] = 3;
        words[tail::LOCAL + 1] = 0x0100_000a_ffff_0000;
        words[tail::PEER + 1] = 0x0200_000a_ffff_0000;
        words[tail::PORTS] = 80 | 4000 << 16;
        words[tail::FIRST] = halves(FIRST_RECEIVED, FIRST_SENT);
        words[tail::IDENTITY_CHECK] = checksum(MAGIC, &words[tail::GENERATION..tail::IDENTITY_CHECK]);
        words[tail::ACCEPTED] = 1;
        let mut it = [0; record::WORDS];
        it[record::NUMBER] = 8;
        it[record::SND_UNA_NXT] = halves(FIRST_SENT + 20, FIRST_SENT + 50);
        it[record::WRITE_SEQ_RCV_NXT] = halves(FIRST_SENT + 50, received(100));
        it[record::COPIED_SEQ_RCV_WUP] = halves(received(80), received(60));
        it[record::RCV_WND_SND_WL1] = halves(70_000, received(60));
        it[record::BYTES_ACKED] = 20;
        it[record::BYTES_RECEIVED] = 100;
        it[record::TAKEN_MSS_SCALES] = u64::from(received(100)) | 1460 << 32;
        it[record::STATE_FLAGS_DEVICE] = 1;
        change(&mut it);
        it[record::CHECK] = checksum(3, &it[..record::CHECK]);
        words[tail::RECORDS..tail::RECORDS + record::WORDS].copy_from_slice(&it);
        words
    }

    fn found(tails: &[(u32, Vec<u64>)]) -> Tables {
        let (mut image, region) = table(tails);
        survey(&mut image, &region, &TcpFilter::default()).unwrap().unwrap()
    }

    #[test]
    fn a_record_becomes_the_socket_that_a_walk_would_find() {
        let mut tables = found(&[(2, connection(|_| ()))]);
        let socket = tables.sockets.remove(0);
        assert_eq!((socket.local, socket.peer), ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap()));
        assert_eq!((socket.state, socket.accepted, socket.mss_clamp), (State::Established, true, 1460));
        assert_eq!((socket.read_offset(), socket.written_offset()), (80, 50));
        assert_eq!(socket.receive_queue, (80..100).collect::<Vec<u8>>());
        // What has left may have acknowledged all, and moved the promise.
        assert_eq!((socket.rcv_wup, socket.rcv_wnd), (socket.rcv_nxt, 69_960));
        assert_eq!(session::rebuildable(&socket), Ok(()));
        assert_eq!((session::counted(&socket), session::values(&socket, Default::default()).queued()), (Ok(()), 30));
    }

    #[test]
    fn what_does_not_hold_together_costs_its_session_and_no_other() {
        let check = |change: fn(&mut [u64; record::WORDS]), expected: &str| {
            let tables = found(&[(1, connection(change))]);
            let socket = &tables.sockets[0];
            let judged = session::rebuildable(socket).and_then(|()| session::counted(socket));
            assert_eq!(judged.unwrap_err().to_string(), expected);
        };
        check(|it| it[record::BYTES_ACKED] = 21, "its send queue is not whole in the dead memory");
        check(|it| it[record::BYTES_RECEIVED] = 101, "its count of received bytes is not whole in the dead memory");
        check(|it| it[record::TAKEN_MSS_SCALES] -= 1, "its receive queue is not whole in the dead memory");
        check(|it| it[record::WRITE_SEQ_RCV_NXT] ^= 1 << 31, "its send queue is not whole in the dead memory");
        let overwritten = |words: Vec<u64>| {
            let mut words = words;
            words[tail::OVERWRITTEN] = 81;
            found(&[(1, words)]).sockets.remove(0)
        };
        assert!(!overwritten(connection(|_| ())).receive_queue_complete);
        let mut torn = connection(|_| ());
        torn[tail::RECORDS + 4] ^= 1;
        let tables = found(&[(1, torn), (3, connection(|_| ()))]);
        assert_eq!((tables.sockets.len(), tables.damage.len()), (1, 1));
    }

    #[test]
    fn two_slots_that_claim_a_connection_lose_it() {
        let tables = found(&[(1, connection(|_| ())), (3, connection(|_| ()))]);
        assert_eq!((tables.sockets.len(), tables.damage.len()), (1, 1));
        assert!(session::rebuildable(&tables.sockets[0]).is_err());
    }

    #[test]
    fn a_closed_end_counts_as_in_a_walk() {
        // The client's FIN follows the last byte; ours is queued.
        let closing = connection(|it| {
            it[record::STATE_FLAGS_DEVICE] = 9;
            it[record::BYTES_RECEIVED] += 1;
            it[record::WRITE_SEQ_RCV_NXT] = halves(FIRST_SENT + 51, FIRST_RECEIVED.wrapping_add(101));
        });
        let socket = found(&[(1, closing)]).sockets.remove(0);
        assert!(socket.fin_received && socket.fin_queued && socket.receive_queue_complete);
        assert_eq!((socket.receive_queue.len(), socket.read_offset(), socket.written_offset()), (20, 80, 50));
        assert_eq!(session::rebuildable(&socket), Ok(()));
    }

    proptest! {
        #[test]
        fn no_words_make_a_panic(words in proptest::collection::vec(any::<u64>(), 48)) {
            let mut tail = connection(|it| {
                it[1..15].copy_from_slice(&words[..14]);
                it[record::STATE_FLAGS_DEVICE] = (words[13] << 8) | (words[20] % 13);
            });
            tail[tail::OVERWRITTEN] = words[30];
            for socket in found(&[(1, tail)]).sockets {
                let _ = (session::rebuildable(&socket), session::counted(&socket), socket.written_offset());
            }
        }
    }
}
