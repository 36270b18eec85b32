//! Which connection can go on, and with what: a socket out of dead memory and the box with the same ends, put together.
//!
//! ```text
//!   received:  |-- digested --| lsr ---- log (box) ---- copied |-- receive queue (socket) --| rcv_nxt
//!   sent:      |-- acknowledged --| una ---- send queue (socket) ---- written |
//!                            lsw ^---- produced again and swallowed ----------|    discard = written - lsw
//! ```
//!
//! Pure: no socket, no clock. The kernel's numbers are the truth for TCP, the last export is the truth for the
//! application; where they cannot both be true the session is lost, with the reason. Never a corrupt stream.

use std::time::Duration;

use contbox::{
    BoxImage,
    channel::FoundChannel,
    continuation::Opening,
    reader::{BadBox, BoxHead},
};
use introspect::linux::tcp::{Segment, State, TcpSocket};

use crate::{
    position::Start,
    snapshot::{Snapshot, distance},
};

/// Why a session cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// The application never protected this connection.
    #[error("it has no continuation box")]
    NoBox,
    /// The application could not protect it.
    #[error("no box: all {0} of the pool are in use")]
    PoolFull(u32),
    /// The application had ended its box, but not yet the connection.
    #[error("the application was about to end it")]
    BoxEnded,
    /// Two boxes claim it: which one is true cannot be known.
    #[error("{0} continuation boxes claim it")]
    ManyBoxes(usize),
    /// Its box cannot be used.
    #[error("its box: {0}")]
    Box(#[from] BadBox),
    /// The other processes of its session cannot go on with it.
    #[error("its channels: {0}")]
    Channel(#[from] crate::channels::ChannelLoss),
    /// Something TCP_REPAIR cannot express.
    #[error("{0} cannot be rebuilt")]
    Unsupported(&'static str),
    /// Its memory was not whole.
    #[error("its {0} is not whole in the dead memory")]
    Damaged(&'static str),
    /// The machine stopped between the two stores that count what was received, and nothing tells which were made.
    #[error("its read position was being counted when the machine stopped")]
    Counting,
    /// Too many handshakes were under way whose clients say nothing.
    #[error("its client is silent, as those of {0} other unfinished handshakes")]
    Crowd(usize),
    /// The client's answer does not fit.
    #[error("{0}")]
    Refused(#[from] crate::position::Refused),
    /// This kernel would not build it.
    #[error("{0}")]
    Repair(String),
    /// The application here did not take it.
    #[error("the application: {0}")]
    Declined(String),
}

/// A session that can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number in the survey of the dead machine's connections.
    pub number: usize,
    /// Its connection.
    pub snapshot: Snapshot,
    /// Its box.
    pub image: BoxImage,
    /// Stream offset of the first byte in the receive queue.
    pub copied: u64,
    /// Stream offset after the last byte the dead kernel took from the application.
    pub written: u64,
    /// Bytes of regenerated output to swallow.
    pub discard: u64,
    /// The dead kernel had not seen the end of the handshake: the TSval of the client's SYN, to be echoed. The client
    /// may believe in the connection or still wait for the answer to its SYN.
    pub calling: Option<u32>,
    /// Its channels to other processes, in the order of its snapshot.
    pub channels: Vec<FoundChannel>,
}

impl Session {
    /// Bytes put back: log, both queues and what lay between processes.
    pub fn bytes(&self) -> u64 {
        let channels: u64 = self.channels.iter().map(FoundChannel::bytes).sum();
        channels + (self.image.logged.len() + self.snapshot.queued() + self.snapshot.receiving.len()) as u64
    }

    /// What its new box is created with, when the rebuilt socket goes on at `start`. The new kernel socket counts from
    /// there, and its first received byte is the first unread one.
    pub fn opening(&self, start: Start) -> Opening {
        let left = self.snapshot.left_from(start.seq).unwrap_or(0) as u64;
        Opening {
            owner: 0,
            local: self.snapshot.local,
            peer: self.snapshot.peer,
            base_read: self.copied,
            base_written: self.written - left,
            snapshot: self.image.snapshot.clone(),
            logged: self.image.logged.clone(),
        }
    }
}

/// The part of admission that needs no box: whether this kernel's means suffice to rebuild the connection.
///
/// # Errors
/// [`Loss`] with the first obstacle.
pub fn rebuildable(socket: &TcpSocket) -> Result<(), Loss> {
    let unsupported = [
        (socket.urgent, "urgent data"),
        (socket.repair, "a connection under checkpoint"),
        (socket.has_ulp, "an upper-layer protocol (kernel TLS)"),
        (socket.is_mptcp, "Multipath TCP"),
        (socket.local.is_ipv4() != socket.peer.is_ipv4(), "a connection between address families"),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(is, _)| *is) {
        return Err(Loss::Unsupported(what));
    }
    if socket.ends_doubtful() {
        return Err(Loss::Damaged("pair of addresses"));
    }
    let sent = socket.send_queue.iter().map(Segment::len).sum::<usize>();
    let fin_in_queue = socket.send_queue.iter().any(|segment| segment.fin);
    let unacknowledged = u64::from(distance(socket.snd_una, socket.write_seq));
    if !socket.send_queue_complete || sent as u64 + u64::from(fin_in_queue) != unacknowledged {
        return Err(Loss::Damaged("send queue"));
    }
    // Nobody will read what came after the application's end.
    if socket.orphaned {
        return Ok(());
    }
    let unread = u64::from(distance(socket.copied_seq, end_of_input(socket)));
    if !socket.receive_queue_complete || socket.receive_queue.len() as u64 != unread {
        return Err(Loss::Damaged("receive queue"));
    }
    if socket.bytes_received < unread {
        return Err(Loss::Damaged("count of received bytes"));
    }
    // The client does not send again what was acknowledged.
    if distance(socket.rcv_wup, socket.rcv_nxt) > i32::MAX as u32 {
        return Err(Loss::Damaged("count of acknowledged bytes"));
    }
    Ok(())
}

/// The sequence number after the client's last byte so far: before its FIN, unless the application has seen that.
fn end_of_input(socket: &TcpSocket) -> u32 {
    let fin_unread = socket.fin_received && socket.copied_seq != socket.rcv_nxt;
    socket.rcv_nxt.wrapping_sub(fin_unread.into())
}

/// Whether the application has said that its output is complete.
pub fn output_ended(socket: &TcpSocket) -> bool {
    let closing = matches!(socket.state, State::FinWait1 | State::FinWait2 | State::LastAck | State::Closing);
    socket.fin_queued || closing
}

/// Whether not a byte has passed between the application and this connection: then it can begin anew elsewhere.
pub fn untouched(socket: &TcpSocket) -> bool {
    socket.read_offset() == 0 && socket.written_offset() == 0 && !output_ended(socket) && !input_end_seen(socket)
}

fn input_end_seen(socket: &TcpSocket) -> bool {
    socket.fin_received && socket.copied_seq == socket.rcv_nxt
}

/// The box of a connection that the application has not touched: that of a new one.
pub fn fresh(socket: &TcpSocket) -> BoxImage {
    let Opening { local, peer, base_read, base_written, snapshot, logged, .. } =
        Opening::fresh(0, socket.local, socket.peer);
    BoxImage { local, peer, base_read, base_written, snapshot, logged }
}

/// The stream offset up to which the dead kernel handed input to the application.
///
/// # Errors
/// [`Loss::Damaged`] if box and socket cannot both be right, [`Loss::Counting`] if the socket's part is in doubt.
pub fn copied_offset(socket: &TcpSocket, head: &BoxHead) -> Result<u64, Loss> {
    copied_since(head.base_read, socket)
}

fn copied_since(base: u64, socket: &TcpSocket) -> Result<u64, Loss> {
    counted(socket)?;
    base.checked_add(socket.read_offset()).ok_or(Loss::Damaged("stream offset"))
}

/// Whether the connection's count of what its application has read can be relied on.
///
/// # Errors
/// [`Loss::Counting`], or [`Loss::Damaged`] if no stop explains it.
pub fn counted(socket: &TcpSocket) -> Result<(), Loss> {
    match (socket.read_offset_certain, socket.lock_held) {
        (true, _) => Ok(()),
        (false, true) => Err(Loss::Counting),
        (false, false) => Err(Loss::Damaged("count of received bytes")),
    }
}

/// Where a connection stands in the streams of its box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    copied: u64,
    written: u64,
    discard: u64,
}

/// Holds a socket that is [`rebuildable`] against the image of its box.
///
/// # Errors
/// [`Loss`] if their numbers contradict each other.
pub fn agree(socket: &TcpSocket, image: &BoxImage) -> Result<Standing, Loss> {
    let offset = |base: u64, more: u64| base.checked_add(more).ok_or(Loss::Damaged("stream offset"));
    let copied = copied_since(image.base_read, socket)?;
    let written = offset(image.base_written, socket.written_offset())?;
    if offset(image.snapshot.lsr, image.logged.len() as u64)? != copied {
        return Err(Loss::Damaged("receive log"));
    }
    let discard = image.discard(written)?;
    if written < socket.send_queue.iter().map(|segment| segment.len() as u64).sum() {
        return Err(Loss::Damaged("count of written bytes"));
    }
    Ok(Standing { copied, written, discard })
}

/// Puts socket `number` of a survey and the image of its box together, which [`agree`]; its channels are to be added.
pub fn admit(number: usize, socket: TcpSocket, image: BoxImage, standing: Standing, silent: Duration) -> Session {
    let Standing { copied, written, discard } = standing;
    let calling = (socket.state == State::SynReceived && !socket.accepted).then_some(socket.ts_recent);
    Session {
        number,
        snapshot: snapshot(socket, silent),
        image,
        copied,
        written,
        discard,
        calling,
        channels: Vec::new(),
    }
}

/// The connection's values with its bytes, as far as they were read. `silent` is how long the target has been silent
/// at most.
pub fn snapshot(socket: TcpSocket, silent: Duration) -> Snapshot {
    let values = values(&socket, silent);
    let sending = joined(socket.send_queue);
    Snapshot { unread: values.unread - sending.len(), sending, receiving: socket.receive_queue, ..values }
}

/// The connection's values with what its application had not read: what it takes to ask its client, and to build its
/// socket. Of a connection that nobody reads from any more, as [`ending`] has it.
pub fn unread(socket: &TcpSocket, silent: Duration) -> Snapshot {
    let receiving = if socket.orphaned { Vec::new() } else { socket.receive_queue.clone() };
    Snapshot { receiving, ..values(socket, silent) }
}

/// What may be said to a client a second time rather than wait for its answer: less than a millisecond of any network
/// that has a spare in it.
const REPEATED_BYTES_MAX: u32 = 16 << 10;

/// Whether the session goes on in the same way whatever its client answers: nobody held the socket when the machine
/// stopped, so its numbers belong together, and all that is unacknowledged fits the client's window and is little.
/// Said again from its first byte on, all of it leaves at once, and wherever in it the client is, its acknowledgement
/// lies within what was sent.
pub fn is_settled(socket: &TcpSocket) -> bool {
    let is_open = socket.state == State::Established && socket.accepted && !socket.orphaned;
    let is_closing = socket.fin_queued || socket.fin_received;
    let unacknowledged = socket.write_seq.wrapping_sub(socket.snd_una);
    let is_known = !socket.lock_held && socket.read_offset_certain;
    is_open && !is_closing && is_known && unacknowledged <= socket.snd_wnd.min(REPEATED_BYTES_MAX)
}

/// The connection's values without its bytes: what it takes to ask its client, or to end it there.
pub fn values(socket: &TcpSocket, silent: Duration) -> Snapshot {
    let fin_acknowledged = socket.fin_queued && socket.write_seq == socket.snd_una;
    let fin_in_acknowledgement = socket.fin_received && socket.rcv_wup == socket.rcv_nxt;
    Snapshot {
        local: socket.local,
        peer: socket.peer,
        snd_una: socket.snd_una.wrapping_sub(fin_acknowledged.into()),
        snd_nxt: socket.snd_nxt.wrapping_sub((socket.fin_queued && socket.snd_nxt == socket.write_seq).into()),
        closed: output_ended(socket),
        peer_closed: socket.fin_received,
        sending: Vec::new(),
        unread: socket.send_queue.iter().map(Segment::len).sum(),
        rcv_nxt: socket.rcv_nxt.wrapping_sub(socket.fin_received.into()),
        receiving: Vec::new(),
        // The window's right edge stays where it is.
        rcv_wup: socket.rcv_wup.wrapping_sub(fin_in_acknowledgement.into()),
        rcv_wnd: socket.rcv_wnd.saturating_add(fin_in_acknowledgement.into()),
        snd_wl1: socket.snd_wl1,
        snd_wnd: socket.snd_wnd,
        max_window: socket.max_window.max(socket.snd_wnd),
        scales: socket.window_scaling.then_some((socket.snd_wscale, socket.rcv_wscale)),
        sack: socket.sack,
        timestamp: socket.timestamps.then(|| timestamp(socket, silent)),
        mss_clamp: socket.mss_clamp,
    }
}

/// All bytes of a queue, copied at most once: there may be megabytes.
fn joined(mut queue: Vec<Segment>) -> Vec<u8> {
    if let [only] = queue.as_mut_slice() {
        return std::mem::take(&mut only.bytes);
    }
    let mut bytes = Vec::with_capacity(queue.iter().map(|segment| segment.bytes.len()).sum());
    queue.iter().for_each(|segment| bytes.extend_from_slice(&segment.bytes));
    bytes
}

/// The values of a connection that nobody reads from any more: its kernel alone brings it to its end.
pub fn ending(socket: TcpSocket, silent: Duration) -> Snapshot {
    snapshot(TcpSocket { receive_queue: Vec::new(), ..socket }, silent)
}

/// A TSval the client has not seen yet. Where the target counted microseconds, ours goes on from there in
/// milliseconds: it only has to grow.
fn timestamp(socket: &TcpSocket, silent: Duration) -> u32 {
    let last_us = socket.tcp_mstamp_us.max(socket.tcp_wstamp_ns / 1000);
    let passed_us = last_us.wrapping_add(silent.as_micros() as u64);
    let ticks = if socket.timestamps_in_us { passed_us } else { passed_us / 1000 };
    (ticks as u32).wrapping_add(socket.tsoffset)
}

#[cfg(test)]
pub(crate) mod tests {
    use contbox::Snapshot as Export;
    use proptest::prelude::*;
    use remote_memory::KernelVirt;

    use super::*;
    use crate::position;

    /// A connection whose application has written `written` bytes, `acked` of them acknowledged, and read `copied` of
    /// `received`; sequence numbers start at `isn`.
    pub(crate) fn socket(isn: u32, acked: u32, written: u32, copied: u32, received: u32) -> TcpSocket {
        let at = |offset| isn.wrapping_add(offset);
        let bytes = (acked..written).map(|byte| byte as u8).collect::<Vec<_>>();
        TcpSocket {
            address: KernelVirt::new(1),
            local: "10.0.0.1:80".parse().unwrap(),
            peer: "10.0.0.2:4000".parse().unwrap(),
            inet6_socket: false,
            state: State::Established,
            accepted: true,
            orphaned: false,
            in_init_net: true,
            bound_device: 0,
            snd_una: at(acked),
            snd_nxt: at(written),
            write_seq: at(written),
            rcv_nxt: at(received),
            copied_seq: at(copied),
            rcv_wup: at(received),
            rcv_wnd: 1000,
            snd_wl1: at(received),
            snd_wnd: 1000,
            max_window: 500,
            snd_cwnd: 10,
            mss_cache: 1448,
            mss_clamp: 1460,
            timestamps: true,
            window_scaling: true,
            sack: true,
            snd_wscale: 7,
            rcv_wscale: 6,
            tsoffset: 5,
            timestamps_in_us: false,
            ts_recent: 0,
            tcp_mstamp_us: 1_000_000,
            tcp_wstamp_ns: 1_002_000_000,
            bytes_acked: acked.into(),
            bytes_received: received.into(),
            read_offset_certain: true,
            lock_held: false,
            shutdown: 0,
            urgent: false,
            repair: false,
            has_ulp: false,
            is_mptcp: false,
            send_queue: vec![Segment { seq: at(acked), end_seq: at(written), bytes, sent: true, fin: false }],
            receive_queue: (copied..received).map(|byte| byte as u8).collect(),
            fin_queued: false,
            fin_received: false,
            send_queue_complete: true,
            receive_queue_complete: true,
            damage: vec![],
        }
    }

    fn image(socket: &TcpSocket, bases: (u64, u64), lsr: u64, lsw: u64) -> BoxImage {
        let copied = bases.0 + socket.read_offset();
        BoxImage {
            local: socket.local,
            peer: socket.peer,
            base_read: bases.0,
            base_written: bases.1,
            snapshot: Export { lsr, lsw, lws: vec![1] },
            logged: (lsr..copied).map(|byte| byte as u8).collect(),
        }
    }

    #[test]
    fn each_obstacle_is_named() {
        let check = |change: fn(&mut TcpSocket), expected: &str| {
            let mut socket = socket(100, 10, 20, 5, 8);
            change(&mut socket);
            assert_eq!(rebuildable(&socket).unwrap_err().to_string(), expected);
        };
        assert_eq!(rebuildable(&socket(100, 10, 20, 5, 8)), Ok(()));
        check(|socket| socket.urgent = true, "urgent data cannot be rebuilt");
        check(|socket| socket.has_ulp = true, "an upper-layer protocol (kernel TLS) cannot be rebuilt");
        check(|socket| socket.is_mptcp = true, "Multipath TCP cannot be rebuilt");
        check(|socket| socket.write_seq += 1, "its send queue is not whole in the dead memory");
        check(|socket| socket.send_queue_complete = false, "its send queue is not whole in the dead memory");
        check(|socket| socket.rcv_nxt += 1, "its receive queue is not whole in the dead memory");
        check(|socket| socket.rcv_wup += 1, "its count of acknowledged bytes is not whole in the dead memory");
        check(|socket| socket.bytes_received = 1, "its count of received bytes is not whole in the dead memory");
    }

    #[test]
    fn a_box_that_contradicts_the_kernel_is_a_loss() {
        let dead = socket(100, 10, 20, 5, 8);
        let admitted = |image| agree(&dead, &image);
        assert_eq!(admitted(image(&dead, (0, 0), 3, 15)).unwrap().discard, 5);
        let ahead = Loss::Box(BadBox::OutputAhead { lsw: 21, written: 20 });
        assert_eq!(admitted(image(&dead, (0, 0), 3, 21)), Err(ahead));
        let short = BoxImage { logged: vec![], ..image(&dead, (0, 0), 3, 15) };
        assert_eq!(admitted(short), Err(Loss::Damaged("receive log")));
        assert_eq!(admitted(image(&dead, (0, u64::MAX), 3, 15)), Err(Loss::Damaged("stream offset")));
    }

    #[test]
    fn a_read_position_in_doubt_is_a_loss_with_its_reason() {
        let whole = socket(100, 10, 20, 5, 8);
        for (lock_held, reason) in [
            (true, "its read position was being counted when the machine stopped"),
            (false, "its count of received bytes is not whole in the dead memory"),
        ] {
            let dead = TcpSocket { read_offset_certain: false, lock_held, ..whole.clone() };
            // The connection itself could be rebuilt: without an application behind it, it can still come to its end.
            assert_eq!(rebuildable(&dead), Ok(()));
            let refused = agree(&dead, &image(&dead, (0, 0), 3, 15));
            assert_eq!(refused.unwrap_err().to_string(), reason);
            assert_eq!(counted(&dead).unwrap_err().to_string(), reason);
        }
        assert_eq!(counted(&TcpSocket { lock_held: true, ..whole }), Ok(()));
    }

    #[test]
    fn the_timestamp_goes_on_from_the_last_packet() {
        let dead = socket(100, 10, 20, 5, 8);
        assert_eq!(snapshot(dead.clone(), Duration::from_millis(40)).timestamp, Some(1002 + 40 + 5));
        let fine = TcpSocket { timestamps_in_us: true, ..dead };
        assert_eq!(snapshot(fine, Duration::from_millis(40)).timestamp, Some(1_042_005));
    }

    /// The spare dies, too. Its kernel counts from where it began, holds no SYN, and its box says where that was. The
    /// application there has exported nothing since (0), or has digested and produced something.
    #[test]
    fn a_session_that_was_moved_moves_again_with_every_byte_once() {
        for (exported, held) in [(0, false), (0, true), (30, false), (30, true)] {
            let first = socket(u32::MAX - 50, 100, 180, 70, 90);
            let (lsr, lsw) = (1000 + 60, 2000 + 150);
            let boxed = image(&first, (1000, 2000), lsr, lsw);
            let standing = agree(&first, &boxed).unwrap();
            let once = admit(0, first, boxed, standing, Duration::ZERO);
            let seq = once.snapshot.snd_una.wrapping_add(20);
            let opening = once.opening(Start { seq, ..position::assumed(&once.snapshot) });
            // 60 saved bytes were sent, the application made 40 more after those it swallowed; the client has 75. It
            // has read the 20 that were unread and 25 of 35 new ones.
            let again = socket(seq, 75, 100, 45, 55);
            let again = TcpSocket { lock_held: held, ..again };
            let (lsr, lsw) = (lsr + exported, lsw + exported);
            let boxed = image(&again, (opening.base_read, opening.base_written), lsr, lsw);
            assert_eq!(rebuildable(&again), Ok(()));
            let standing = agree(&again, &boxed).unwrap();
            let twice = admit(0, again, boxed, standing, Duration::ZERO);
            assert_eq!((twice.copied, twice.written), (1000 + 70 + 45, 2000 + 180 + 40));
            assert_eq!(twice.discard, twice.written - lsw);
            assert_eq!(lsr + twice.image.logged.len() as u64, twice.copied);
            let opening = twice.opening(position::assumed(&twice.snapshot));
            assert_eq!((opening.base_read, opening.base_written), (twice.copied, 2000 + 120 + 75));
        }
    }

    proptest! {
        /// The model: the client got `[0, position)`; the application, set back to its last export, produces the
        /// stream again from `lsw` on. What is sent from the queue and what is produced after the swallowed bytes must
        /// be the rest of the stream, once. The same for input: log and receive queue are `[lsr, received)`, once.
        #[test]
        fn every_byte_once(
            isn: u32,
            bases in (0u64..1000, 0u64..1000),
            acked in 0u32..500, queued in 0u32..500, has in 0u32..500, back in 0u64..500,
            copied in 0u32..500, unread in 0u32..500, undigested in 0u64..500,
        ) {
            let (written, received) = (acked + queued, copied + unread);
            let dead = socket(isn, acked, written, copied, received);
            let lsr = (bases.0 + u64::from(copied)).saturating_sub(undigested);
            let lsw = (bases.1 + u64::from(written)).saturating_sub(back);
            let boxed = image(&dead, bases, lsr, lsw);
            prop_assert_eq!(rebuildable(&dead), Ok(()));
            let standing = agree(&dead, &boxed).unwrap();
            let session = admit(0, dead, boxed, standing, Duration::ZERO);
            let ahead = has.min(queued);
            let seq = session.snapshot.snd_una.wrapping_add(ahead);
            let start = Start { seq, ..position::assumed(&session.snapshot) };
            let opening = session.opening(start);

            let client_has = bases.1 + u64::from(acked + ahead);
            prop_assert_eq!(opening.base_written, client_has);
            let sent = session.snapshot.sending_from(seq).unwrap().to_vec();
            let expected: Vec<u8> = (acked + ahead..written).map(|byte| byte as u8).collect();
            prop_assert_eq!(&sent, &expected);
            prop_assert_eq!(client_has + sent.len() as u64, lsw + session.discard);

            prop_assert_eq!(opening.base_read, bases.0 + u64::from(copied));
            prop_assert_eq!(lsr + opening.logged.len() as u64, opening.base_read);
            prop_assert_eq!(session.snapshot.receiving.len() as u32, unread);
        }
    }

    #[test]
    fn settled_is_what_nobody_held_and_of_which_little_is_under_way() {
        let is_settled_with = |change: &dyn Fn(&mut TcpSocket)| {
            let mut socket = socket(7, 100, 100, 40, 50);
            change(&mut socket);
            is_settled(&socket)
        };
        let written = |bytes| move |socket: &mut TcpSocket| socket.write_seq = socket.write_seq.wrapping_add(bytes);
        assert!(is_settled_with(&|_| ()));
        assert!(is_settled_with(&|socket| socket.snd_wnd = 0));
        assert!(is_settled_with(&written(1000)));
        let unsettled: [&dyn Fn(&mut TcpSocket); 9] = [
            &|socket| socket.lock_held = true,
            &|socket| socket.read_offset_certain = false,
            &written(1001),
            &|socket| {
                socket.snd_wnd = u32::MAX;
                written(REPEATED_BYTES_MAX + 1)(socket);
            },
            &|socket| socket.state = State::SynReceived,
            &|socket| socket.accepted = false,
            &|socket| socket.orphaned = true,
            &|socket| socket.fin_queued = true,
            &|socket| socket.fin_received = true,
        ];
        for (number, change) in unsettled.into_iter().enumerate() {
            assert!(!is_settled_with(change), "{number}");
        }
    }
}
