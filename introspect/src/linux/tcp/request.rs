//! Handshakes that the kernel has not finished: request socks, which are smaller than a sock and lie in the same table.
//!
//! ```text
//!   client                         kernel
//!   SYN  rcv_isn          ──▶      request sock (NEW_SYN_RECV)
//!                         ◀──      SYN-ACK  snt_isn, rcv_isn + 1
//!   ACK, perhaps a request ─▶      sock (ESTABLISHED); while the accept queue is full: nothing, the client repeats it
//! ```
//! Everything of the connection is settled with the SYN-ACK but the client's window, which the client's next segment
//! tells. Whether the client ever got the SYN-ACK is not known here: [`State::SynReceived`] says that somebody has to
//! ask it. A SYN cookie leaves nothing in memory.

use std::collections::HashSet;

use remote_memory::LinkError;

use super::layout::RequestLayout;
use super::socket::{State, TcpSocket};
use super::tables::Member;
use crate::memory::Memory;
use crate::{Damage, Fault, Kernel};

/// A window that every client offers: the client's own is not kept.
const WINDOW_BYTES: u32 = 536;

/// RFC 6928.
const INITIAL_CWND: u32 = 10;

/// How much later than its first one the last SYN-ACK can have left that was repeated `timeouts` times, in
/// microseconds: the timer begins with a second and doubles; busy machines add to it.
fn repeated_for_us(timeouts: u64) -> u64 {
    if timeouts == 0 { 0 } else { (1_u64 << timeouts.min(8)) * 2_000_000 }
}

/// Reads the requests among `members` that belong to no connection in `sockets`, and adds them there.
pub(crate) fn collect(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    members: &[Member],
    init_net: Option<u64>,
    sockets: &mut Vec<TcpSocket>,
    damage: &mut Vec<Damage>,
) -> Result<(), LinkError> {
    let Some(layout) = &kernel.tcp.request else { return Ok(()) };
    let mut open: Vec<_> = members.iter().filter(|member| member.is_request()).collect();
    if open.is_empty() {
        return Ok(());
    }
    // A sock replaces its request under the bucket's lock; a stop in between leaves both, and the sock knows more.
    let certain = sockets.iter().filter(|socket| !socket.ends_doubtful());
    let known: HashSet<_> = certain.map(|socket| (socket.local, socket.peer)).collect();
    open.retain(|member| !known.contains(&(member.local, member.peer)));
    let at: Vec<_> = open.iter().map(|member| member.address).collect();
    let records = kernel.space.fetch_equal(memory, &at, layout.span())?;
    for (member, record) in open.into_iter().zip(records.iter()) {
        let read = record.ok_or(Fault::Unreadable).and_then(|bytes| socket(layout, member, init_net, bytes));
        match read {
            Ok(socket) => sockets.push(socket),
            Err(fault) => damage.push(Damage { at: member.address, part: "request sock", fault }),
        }
    }
    Ok(())
}

/// The connection as it is after the client's acknowledgement, in which not a byte has passed.
fn socket(layout: &RequestLayout, member: &Member, init_net: Option<u64>, bytes: &[u8]) -> Result<TcpSocket, Fault> {
    let word = |field: crate::btf::Field| field.of(bytes) as u32;
    let flag = |field: crate::btf::Field| field.of(bytes) != 0;
    let (expected, found) = (word(layout.rcv_isn).wrapping_add(1), word(layout.rcv_nxt));
    if expected != found {
        return Err(Fault::Mismatch { expected: expected.into(), found: found.into() }); // data in the SYN
    }
    let (seq, scales) = (word(layout.snt_isn).wrapping_add(1), flag(layout.wscale_ok));
    let scale = |field: crate::btf::Field| if scales { word(field) as u8 } else { 0 };
    let mss = word(layout.mss);
    Ok(TcpSocket {
        address: member.address,
        local: member.local,
        peer: member.peer,
        inet6_socket: member.inet6,
        state: State::SynReceived,
        accepted: false,
        orphaned: false,
        in_init_net: init_net == Some(member.net),
        bound_device: member.device,
        snd_una: seq,
        snd_nxt: seq,
        write_seq: seq,
        rcv_nxt: expected,
        copied_seq: expected,
        rcv_wup: expected,
        rcv_wnd: word(layout.rcv_wnd),
        snd_wl1: word(layout.rcv_isn),
        snd_wnd: WINDOW_BYTES,
        max_window: WINDOW_BYTES,
        snd_cwnd: INITIAL_CWND,
        mss_cache: mss,
        mss_clamp: mss as u16,
        timestamps: flag(layout.tstamp_ok),
        window_scaling: scales,
        sack: flag(layout.sack_ok),
        snd_wscale: scale(layout.snd_wscale),
        rcv_wscale: scale(layout.rcv_wscale),
        tsoffset: word(layout.ts_off),
        timestamps_in_us: layout.usec_ts.is_some_and(flag),
        ts_recent: word(layout.ts_recent),
        tcp_mstamp_us: layout.snt_synack.of(bytes).saturating_add(repeated_for_us(layout.num_timeout.of(bytes))),
        tcp_wstamp_ns: 0,
        bytes_acked: 0,
        bytes_received: 0,
        read_offset_certain: true,
        lock_held: false,
        shutdown: 0,
        urgent: false,
        repair: false,
        has_ulp: false,
        is_mptcp: layout.is_mptcp.is_some_and(flag),
        send_queue: Vec::new(),
        receive_queue: Vec::new(),
        fin_queued: false,
        fin_received: false,
        send_queue_complete: true,
        receive_queue_complete: true,
        damage: member.doubt.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use remote_memory::KernelVirt;

    use super::super::damage_tests::Machine;
    use super::*;
    use crate::btf::Field;

    /// That of Linux 6.1.
    fn layout() -> RequestLayout {
        let field = |offset, size| Field { offset, size, bits: None };
        let bit = |offset, bit, len| Field { offset, size: 1, bits: Some((bit, len)) };
        RequestLayout {
            rcv_wnd: field(144, 4),
            mss: field(160, 2),
            num_timeout: bit(163, 1, 7),
            ts_recent: field(164, 4),
            snd_wscale: bit(248, 0, 4),
            rcv_wscale: bit(248, 4, 4),
            tstamp_ok: bit(249, 0, 1),
            sack_ok: bit(249, 1, 1),
            wscale_ok: bit(249, 2, 1),
            snt_synack: field(280, 8),
            rcv_isn: field(300, 4),
            snt_isn: field(304, 4),
            ts_off: field(308, 4),
            rcv_nxt: field(316, 4),
            usec_ts: None,
            is_mptcp: None,
        }
    }

    /// A request sock as a kernel keeps it; the flags are those of a SYN with all options.
    fn request() -> Vec<u8> {
        let mut bytes = vec![0xee; 320];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(144, &64_240_u32.to_le_bytes());
        put(160, &1460_u16.to_le_bytes());
        put(163, &[0]);
        put(164, &77_u32.to_le_bytes());
        put(248, &[0x7a, 0b111]);
        put(280, &5_000_000_u64.to_le_bytes());
        put(300, &u32::MAX.to_le_bytes());
        put(304, &0x0101_0101_u32.to_le_bytes());
        put(308, &9_u32.to_le_bytes());
        put(316, &0_u32.to_le_bytes());
        bytes
    }

    fn member() -> Member {
        let (local, peer) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap());
        Member {
            address: KernelVirt::new(8),
            local,
            peer,
            inet6: true,
            state: 12,
            net: 5,
            device: 0,
            hash: 0,
            doubt: None,
        }
    }

    #[test]
    fn a_request_is_a_connection_in_which_nothing_has_passed() {
        let socket = socket(&layout(), &member(), Some(5), &request()).unwrap();
        assert_eq!((socket.state, socket.accepted, socket.in_init_net), (State::SynReceived, false, true));
        assert_eq!((socket.snd_una, socket.write_seq, socket.rcv_nxt), (0x0101_0102, 0x0101_0102, 0));
        assert_eq!((socket.rcv_wup, socket.rcv_wnd, socket.copied_seq), (0, 64_240, 0));
        assert_eq!((socket.snd_wscale, socket.rcv_wscale, socket.mss_clamp), (10, 7, 1460));
        assert!(socket.timestamps && socket.sack && socket.window_scaling && socket.usable());
        assert_eq!((socket.read_offset(), socket.written_offset()), (0, 0));
        assert_eq!((socket.tcp_mstamp_us, socket.tsoffset), (5_000_000, 9));
    }

    #[test]
    fn options_that_the_client_did_not_send_are_off_and_repeated_answers_make_time_pass() {
        let mut bytes = request();
        bytes[249] = 0;
        bytes[163] = 2 << 1 | 1;
        let socket = socket(&layout(), &member(), Some(1), &bytes).unwrap();
        assert!(!(socket.timestamps || socket.sack || socket.window_scaling || socket.in_init_net));
        assert_eq!((socket.snd_wscale, socket.rcv_wscale), (0, 0));
        // After one and after two more seconds, at the latest.
        assert!(socket.tcp_mstamp_us >= 5_000_000 + 3_000_000);
    }

    #[test]
    fn data_in_the_syn_is_refused() {
        let mut bytes = request();
        bytes[316] = 3;
        let refused = socket(&layout(), &member(), None, &bytes);
        assert_eq!(refused.unwrap_err(), Fault::Mismatch { expected: 0, found: 3 });
    }

    /// A recorded machine one of whose socks is called a request: its bytes are then read as one.
    #[test]
    fn a_walk_finds_requests_in_the_table_beside_socks_unless_the_sock_is_there_too() {
        let mut machine = Machine::load();
        let (before, _) = machine.walk();
        let victim = before.iter().find(|socket| !socket.receive_queue.is_empty()).unwrap();
        let state = machine.kernel.tcp.head.state;
        let at = victim.address.raw() + state.offset as u64;
        machine.put(at & !7, machine.get(at & !7) & !(0xff << (8 * (at % 8))) | 12 << (8 * (at % 8)));
        assert_eq!(machine.walk().0.len(), before.len() - 1, "without a layout they are passed over");
        // Where the numbers come to lie is of no importance: these are members of the sock.
        let sock = machine.kernel.tcp.sock.clone();
        machine.kernel.tcp.request =
            Some(RequestLayout { rcv_isn: sock.snd_wl1, rcv_nxt: sock.rcv_wup, snt_isn: sock.snd_una, ..layout() });
        let write = |machine: &mut Machine, field: Field, value: u32| {
            let (at, shift) = ((victim.address.raw() + field.offset as u64) & !7, 8 * (field.offset as u64 % 8));
            machine.put(at, machine.get(at) & !(0xffff_ffff << shift) | u64::from(value) << shift);
        };
        write(&mut machine, sock.rcv_wup, 9);
        for (isn, found) in [(8, true), (9, false)] {
            write(&mut machine, sock.snd_wl1, isn);
            let (after, damage) = machine.walk();
            let request = after.iter().find(|socket| socket.address == victim.address);
            assert_eq!((request.is_some(), damage.len()), (found, usize::from(!found)));
            assert!(request.is_none_or(|it| (it.peer, it.snd_una) == (victim.peer, victim.snd_una.wrapping_add(1))));
            let others = |all: &[TcpSocket]| all.iter().filter(|it| it.address != victim.address).cloned().collect();
            let (after, before): (Vec<_>, Vec<_>) = (others(&after), others(&before));
            assert_eq!(after, before);
        }
    }
}
