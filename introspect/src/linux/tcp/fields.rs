//! From the bytes of a `tcp_sock` to a [`TcpSocket`] without its queues.

use super::layout::SockLayout;
use super::queue::Plan;
use super::socket::{State, TcpSocket};
use super::tables::Member;
use crate::{Damage, Fault};

const IPPROTO_TCP: u64 = 6;
/// Bit number of SOCK_DEAD in `sk_flags`.
const SOCK_DEAD: u64 = 1 << 0;

/// The state, if it is one whose data is worth saving.
pub(crate) fn state(raw: u64) -> Option<State> {
    Some(match raw {
        1 => State::Established,
        4 => State::FinWait1,
        5 => State::FinWait2,
        8 => State::CloseWait,
        9 => State::LastAck,
        11 => State::Closing,
        _ => return None,
    })
}

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
        damage: Vec::new(),
    };
    check_order(&mut socket);
    if let (Some(sent), Some(again)) = (layout.bytes_sent, layout.bytes_retrans) {
        settle_acknowledged(&mut socket, sent.of(bytes), again.of(bytes));
    }
    Some(socket)
}

/// Undoes the half of an acknowledgement. `tcp_snd_una_update` adds to `bytes_acked` and then moves `snd_una`; a
/// machine stopped between the two tells a stream offset that is too high by what was acknowledged. What was sent for
/// the first time is counted apart (`bytes_sent` less `bytes_retrans`) and shows it. During a retransmission that
/// count is too low itself, so then nothing vouches for the offset.
fn settle_acknowledged(socket: &mut TcpSocket, sent: u64, again: u64) {
    let in_flight = u64::from(socket.snd_nxt.wrapping_sub(socket.snd_una));
    let fin = u64::from(socket.state != State::Established && socket.state != State::CloseWait);
    let counted = socket.bytes_acked.wrapping_add(in_flight);
    let excess = counted.wrapping_sub(sent.wrapping_sub(again)).wrapping_sub(fin);
    if !socket.lock_held || excess == 0 || excess as i64 <= 0 {
        return;
    }
    let certain = again == 0 && excess <= in_flight;
    let part = if certain { "bytes_acked before snd_una" } else { UNSETTLED };
    let fault = Fault::Mismatch { expected: sent.wrapping_sub(again), found: counted };
    socket.damage.push(Damage { at: socket.address, part, fault });
    if certain {
        socket.bytes_acked -= excess;
    }
}

/// Damage that leaves the stream offset of what is sent in doubt.
pub(crate) const UNSETTLED: &str = "bytes_acked during a retransmission";

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
