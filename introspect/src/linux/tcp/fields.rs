//! From the bytes of a `tcp_sock` to a [`TcpSocket`] without its queues.

use super::layout::SockLayout;
use super::queue::Plan;
use super::skb::Queues;
use super::socket::{State, TcpSocket};
use super::tables::Member;
use crate::{Damage, Fault};

const IPPROTO_TCP: u64 = 6;
/// Bit number of SOCK_DEAD in `sk_flags`.
const SOCK_DEAD: u64 = 1 << 0;

/// Reads the members; `None` if the sock is not TCP.
pub(crate) fn socket(
    layout: &SockLayout,
    member: &Member,
    state: State,
    init_net: Option<u64>,
    bytes: &[u8],
) -> Option<TcpSocket> {
    (layout.protocol.of(bytes) == IPPROTO_TCP).then_some(())?;
    let word = |field: crate::btf::Field| field.of(bytes) as u32;
    let flag = |field: crate::btf::Field| field.of(bytes) != 0;
    let closed_by_peer = matches!(state, State::CloseWait | State::LastAck | State::Closing);
    let mut socket = TcpSocket {
        address: member.address,
        local: member.local,
        peer: member.peer,
        inet6_socket: member.inet6,
        state,
        accepted: flag(layout.socket) || layout.flags.of(bytes) & SOCK_DEAD != 0,
        orphaned: layout.flags.of(bytes) & SOCK_DEAD != 0,
        in_init_net: init_net == Some(member.net),
        bound_device: member.device,
        snd_una: word(layout.snd_una),
        snd_nxt: word(layout.snd_nxt),
        write_seq: word(layout.write_seq),
        rcv_nxt: word(layout.rcv_nxt),
        copied_seq: word(layout.copied_seq),
        rcv_wup: word(layout.rcv_wup),
        rcv_wnd: word(layout.rcv_wnd),
        snd_wl1: word(layout.snd_wl1),
        snd_wnd: word(layout.snd_wnd),
        max_window: word(layout.max_window),
        snd_cwnd: word(layout.snd_cwnd),
        mss_cache: word(layout.mss_cache),
        mss_clamp: word(layout.mss_clamp) as u16,
        timestamps: flag(layout.tstamp_ok),
        window_scaling: flag(layout.wscale_ok),
        sack: flag(layout.sack_ok),
        snd_wscale: word(layout.snd_wscale) as u8,
        rcv_wscale: word(layout.rcv_wscale) as u8,
        tsoffset: word(layout.tsoffset),
        timestamps_in_us: layout.usec_ts.is_some_and(flag),
        ts_recent: word(layout.ts_recent),
        tcp_mstamp_us: layout.tcp_mstamp.of(bytes),
        tcp_wstamp_ns: layout.tcp_wstamp_ns.of(bytes),
        bytes_acked: layout.bytes_acked.of(bytes),
        bytes_received: layout.bytes_received.of(bytes),
        read_offset_certain: false,
        lock_held: flag(layout.owned) || flag(layout.slock),
        shutdown: word(layout.shutdown) as u8,
        urgent: flag(layout.urg_data),
        repair: flag(layout.repair),
        has_ulp: flag(layout.ulp_ops),
        is_mptcp: layout.is_mptcp.is_some_and(flag),
        send_queue: Vec::new(),
        receive_queue: Vec::new(),
        // In the other closing states the FIN is not acknowledged, so it is found in the queue.
        fin_queued: state == State::FinWait2,
        fin_received: closed_by_peer,
        send_queue_complete: false,
        receive_queue_complete: false,
        damage: member.doubt.into_iter().collect(),
    };
    check_order(&mut socket);
    Some(socket)
}

/// Undoes the half of an acknowledgement: `tcp_snd_una_update` writes `bytes_acked` and `snd_una`, in the order that
/// the compiler chose; a machine stopped between the two tells a wrong stream offset.
///
/// What was sent for the first time is counted apart (`bytes_sent` less `bytes_retrans`) and shows it:
/// * too much acknowledged: `snd_una` has still to move. During a retransmission the count is too low itself, so once
///   there was one, nothing vouches for the offset.
/// * too little: `snd_una` has moved, and the buffers before it are still in the retransmission queue. Or a segment is
///   on its way out, `snd_nxt` has still to move: then the first unsent buffer is as long as the difference.
///
/// Where nobody holds the socket the counts agree, or one of them is damage. They are also left apart for good by a
/// segment that the machine's own queue refused, which is counted as sent each time: such a connection is lost too.
pub(crate) fn settle_acknowledged(layout: &SockLayout, socket: &mut TcpSocket, bytes: &[u8], queues: &Queues) {
    let (Some(sent), Some(again)) = (layout.bytes_sent, layout.bytes_retrans) else { return };
    let (again, first) = (again.of(bytes), sent.of(bytes).wrapping_sub(again.of(bytes)));
    let in_flight = u64::from(socket.snd_nxt.wrapping_sub(socket.snd_una));
    let closed = !matches!(socket.state, State::SynReceived | State::Established | State::CloseWait);
    let fin = closed && (socket.lock_held || socket.snd_nxt == socket.write_seq);
    let counted = socket.bytes_acked.wrapping_add(in_flight);
    let excess = counted.wrapping_sub(first).wrapping_sub(fin.into()) as i64;
    // A connection that this machine opened counts its SYN; of those it accepts for contbox it keeps the client's.
    let opened_here = excess == 1 && layout.saved_syn.is_none_or(|syn| syn.of(bytes) == 0);
    if excess == 0 || (!socket.lock_held && opened_here) {
        return;
    }
    if !socket.lock_held {
        let fault = Fault::Mismatch { expected: first, found: counted };
        socket.damage.push(Damage { at: socket.address, part: UNSETTLED, fault });
        return;
    }
    let amount = excess.unsigned_abs();
    let back = |seq: u32| u64::from(socket.snd_una.wrapping_sub(seq));
    let before = queues.rtx.iter().map(|skb| back(skb.seq)).filter(|back| *back < 1 << 31).max().unwrap_or(0);
    let outgoing = queues.write.first().map(|skb| u64::from(skb.end_seq.wrapping_sub(socket.snd_nxt)));
    let settled = match (excess > 0, before >= amount, outgoing == Some(amount)) {
        (true, ..) if again == 0 && amount <= in_flight => socket.bytes_acked.checked_sub(amount),
        (true, ..) | (false, true, true) => None,
        (false, true, false) => socket.bytes_acked.checked_add(amount),
        (false, false, _) => return,
    };
    let part = if settled.is_some() { "bytes_acked against snd_una" } else { UNSETTLED };
    socket.damage.push(Damage { at: socket.address, part, fault: Fault::Mismatch { expected: first, found: counted } });
    socket.bytes_acked = settled.unwrap_or(socket.bytes_acked);
}

/// Damage that leaves the stream offset of what is sent in doubt.
pub(crate) const UNSETTLED: &str = "bytes_acked, which cannot be settled";

/// Undoes the half-done arrival of a segment. The kernel counts a segment received (`rcv_nxt`, `bytes_received`) before
/// it queues it (`tcp_queue_rcv`), so a machine stopped between the two has counted bytes that are nowhere. No
/// acknowledgement of them has left as long as `rcv_wup` lies before them: taken back, the peer sends them again.
pub(crate) fn take_back_unqueued(socket: &mut TcpSocket, receive: &mut Plan) {
    let unqueued = socket.rcv_nxt.wrapping_sub(receive.reached);
    let acknowledged_after = socket.rcv_wup.wrapping_sub(receive.reached) as i32 > 0;
    let torn = socket.lock_held && receive.gapless && !receive.complete && unqueued as i32 > 0;
    if torn && !acknowledged_after && !socket.fin_received {
        socket.rcv_nxt = receive.reached;
        socket.bytes_received = socket.bytes_received.saturating_sub(unqueued.into());
        receive.complete = true;
    }
}

/// Undoes the half-done merging of a segment. `tcp_try_coalesce` appends it to the last buffer of the queue before
/// `rcv_nxt` counts it: what lies beyond `rcv_nxt` was never acknowledged, and the peer sends it again.
pub(crate) fn cut_off_uncounted(socket: &TcpSocket, receive: &mut Plan) {
    let beyond = receive.reached.wrapping_sub(socket.rcv_nxt);
    if !socket.lock_held || !receive.gapless || receive.complete || receive.fin || beyond as i32 <= 0 {
        return;
    }
    let Some(last) = receive.cuts.last_mut().filter(|last| last.take > beyond) else { return };
    last.take -= beyond;
    receive.reached = socket.rcv_nxt;
    receive.complete = true;
}

/// Sequence numbers that no running kernel leaves, whatever it was interrupted in.
fn check_order(socket: &mut TcpSocket) {
    let pairs = [
        ("snd_nxt before snd_una", socket.snd_una, socket.snd_nxt),
        ("write_seq before snd_nxt", socket.snd_nxt, socket.write_seq),
        ("rcv_nxt before copied_seq", socket.copied_seq, socket.rcv_nxt),
        ("rcv_nxt before rcv_wup", socket.rcv_wup, socket.rcv_nxt),
    ];
    for (part, low, high) in pairs {
        if (high.wrapping_sub(low) as i32) < 0 {
            let fault = Fault::Mismatch { expected: low.into(), found: high.into() };
            socket.damage.push(Damage { at: socket.address, part, fault });
        }
    }
}
