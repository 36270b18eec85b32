//! The client's SYN, which a listener with TCP_SAVE_SYN keeps: where the stream that it sends begins.
//!
//! ```text
//!   tcp_sock.saved_syn -> mac_hdrlen | network_hdrlen | tcp_hdrlen | data: [mac header] network header, TCP header
//!                                                                                        ports, sequence number
//! ```
//! `tcp_rcv_nxt_update` counts what was received twice: `bytes_received` is the stream offset, `rcv_nxt` the sequence
//! number, and a machine stopped between its two stores has one that does not fit the other. The sequence number of the
//! SYN never changes, and `copied_seq` is one store: their difference is the read offset modulo 2^32, whatever was
//! being counted. `bytes_received` then only has to be right to within half of that.
//!
//! What memory says of the SYN is checked, not trusted: bounds, ports, flags, and that it fits what was counted.
//! Without a SYN that passes, the count is believed where nobody can have been counting, and nowhere else. Segments are
//! counted under the spinlock, or out of the backlog by the thread that owns the socket: `__release_sock` takes the
//! list first and sets `sk_backlog.len` to zero when it is done.

use remote_memory::{KernelVirt, LinkError};

use super::layout::{SavedSynLayout, SockLayout};
use super::payload::SKB_BYTES_MAX;
use super::socket::TcpSocket;
use crate::memory::{Memory, word};
use crate::{Damage, Fault, Kernel};

/// Bytes read of each: a link, an IPv6 and the fixed part of a TCP header, with room for extension headers.
const BYTES: usize = 128;

/// Of the TCP header: up to and with the flags.
const TCP_BYTES: usize = 14;

const HEADER_MIN: usize = 20;
const SYN: u8 = 0x02;
/// FIN, SYN, RST and ACK. ECN sets other flags in a SYN.
const FLAGS: u8 = 0x17;

/// Damage that leaves the stream offset of what was read in doubt.
const PART: &str = "bytes_received against rcv_nxt and the SYN";

/// Settles the read offset of each of `sockets`, whose bytes are given in `socks`: one round for all of them.
pub(crate) fn settle_all(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    socks: &[(KernelVirt, &[u8])],
    sockets: &mut [TcpSocket],
) -> Result<(), LinkError> {
    let mut first = vec![None; sockets.len()];
    if let (Some(pointer), Some(layout)) = (kernel.tcp.sock.saved_syn, &kernel.tcp.saved_syn) {
        let kept = |(index, (_, bytes)): (usize, &(KernelVirt, &[u8]))| {
            let at = pointer.of(bytes);
            (at != 0).then_some((index, KernelVirt::new(at)))
        };
        let (owners, at): (Vec<_>, Vec<_>) = socks.iter().enumerate().filter_map(kept).unzip();
        let records = kernel.space.fetch_equal(memory, &at, BYTES)?;
        for ((owner, at), record) in owners.into_iter().zip(at).zip(records.iter()) {
            let socket = &mut sockets[owner];
            let ports = (socket.peer.port(), socket.local.port());
            let found = record.ok_or(Fault::Unreadable).and_then(|bytes| sequence(layout, bytes, ports));
            match found {
                Ok(sequence) => first[owner] = Some(sequence),
                Err(fault) => socket.damage.push(Damage { at, part: "saved_syn", fault }),
            }
        }
    }
    for ((socket, (_, bytes)), syn) in sockets.iter_mut().zip(socks).zip(first) {
        settle(socket, syn, may_be_counted(&kernel.tcp.sock, bytes));
    }
    Ok(())
}

/// The sequence number of the SYN in the bytes of a `saved_syn`, if it is one from and to `ports`.
fn sequence(layout: &SavedSynLayout, bytes: &[u8], ports: (u16, u16)) -> Result<u32, Fault> {
    let [mac, network, tcp] = [layout.mac, layout.network, layout.tcp].map(|field| field.of(bytes) as usize);
    let limit = Fault::TooLong { limit: BYTES as u64 };
    if mac > BYTES || network > BYTES || tcp > BYTES {
        return Err(limit);
    }
    if network < HEADER_MIN || tcp < HEADER_MIN {
        return Err(Fault::Mismatch { expected: HEADER_MIN as u64, found: network.min(tcp) as u64 });
    }
    let at = layout.data.offset + mac + network;
    let header = bytes.get(at..at + TCP_BYTES).ok_or(limit)?;
    let big = |at: usize, len: usize| word(header, at, len).swap_bytes() >> (64 - 8 * len);
    let (expected, found) = (u64::from(ports.0) << 16 | u64::from(ports.1), big(0, 4));
    if expected != found {
        return Err(Fault::Mismatch { expected, found });
    }
    match header[13] & FLAGS {
        SYN => Ok(big(4, 4) as u32),
        flags => Err(Fault::Mismatch { expected: SYN.into(), found: flags.into() }),
    }
}

/// Whether somebody may be counting what was received: whoever has the spinlock, or the owner with the backlog.
fn may_be_counted(layout: &SockLayout, bytes: &[u8]) -> bool {
    let backlog = layout.backlog_len.is_none_or(|len| len.of(bytes) != 0);
    layout.slock.of(bytes) != 0 || (layout.owned.of(bytes) != 0 && backlog)
}

/// Makes `bytes_received` fit `rcv_nxt`, given the sequence number of the client's SYN, and says whether the read
/// offset that follows from them is certain. To be called before either is changed. `counted` is what
/// [`may_be_counted`] says.
///
/// Nobody counts unless he holds the socket, and what arrives at once is no longer than a buffer can be: a greater
/// difference is damage of another kind.
fn settle(socket: &mut TcpSocket, syn: Option<u32>, counted: bool) {
    let Some(syn) = syn else {
        let nothing_received = socket.bytes_received == 0 && socket.rcv_nxt == socket.copied_seq;
        socket.read_offset_certain = !counted || nothing_received;
        return;
    };
    let received = socket.rcv_nxt.wrapping_sub(syn).wrapping_sub(1);
    let ahead = received.wrapping_sub(socket.bytes_received as u32) as i32;
    if ahead == 0 {
        socket.read_offset_certain = true;
        return;
    }
    let settled = socket.bytes_received.checked_add_signed(ahead.into());
    let being_counted = socket.lock_held && ahead.unsigned_abs() <= SKB_BYTES_MAX;
    socket.read_offset_certain = being_counted && settled.is_some();
    let expected = settled.unwrap_or(received.into());
    let fault = Fault::Mismatch { expected, found: socket.bytes_received };
    socket.damage.push(Damage { at: socket.address, part: PART, fault });
    if socket.read_offset_certain {
        socket.bytes_received = expected;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::damage_tests::{KEY, Machine};
    use super::super::{TcpFilter, walk};
    use super::*;
    use crate::btf::Field;

    fn layout() -> SavedSynLayout {
        let field = |offset, size| Field { offset, size, bits: None };
        SavedSynLayout { mac: field(0, 4), network: field(4, 4), tcp: field(8, 4), data: field(12, 0) }
    }

    const PORTS: (u16, u16) = (4000, 8080);

    /// A `saved_syn` with these lengths; the SYN comes from 4000 to 8080 and has number 0x89abcdef.
    fn saved(mac: u32, network: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [mac, network, 40].iter().flat_map(|len| len.to_le_bytes()).collect();
        bytes.resize(12 + (mac + network) as usize, 0);
        bytes.extend([PORTS.0, PORTS.1].iter().flat_map(|port| port.to_be_bytes()));
        bytes.extend(0x89ab_cdef_u32.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0xa0, 0xc2]); // no acknowledgement; SYN, ECE, CWR
        bytes.resize(bytes.len().max(BYTES), 0);
        bytes
    }

    /// A socket of a recorded machine, whose numbers the tests then choose.
    fn socket() -> TcpSocket {
        let mut socket = Machine::load().walk().0.remove(0);
        socket.damage.clear();
        socket
    }

    /// The socket of a connection whose SYN has number `syn`, with `received` bytes of which `unread` are queued.
    fn numbered(socket: &TcpSocket, syn: u32, received: u64, unread: u32) -> TcpSocket {
        let rcv_nxt = syn.wrapping_add(1).wrapping_add(received as u32);
        let copied_seq = rcv_nxt.wrapping_sub(unread);
        let fresh = TcpSocket { rcv_nxt, copied_seq, bytes_received: received, ..socket.clone() };
        TcpSocket { fin_received: false, read_offset_certain: false, ..fresh }
    }

    #[test]
    fn the_number_is_found_behind_headers_of_any_length() {
        for (mac, network) in [(0, 20), (0, 40), (14, 60), (18, 64)] {
            assert_eq!(sequence(&layout(), &saved(mac, network), PORTS), Ok(0x89ab_cdef), "{mac} {network}");
        }
    }

    #[test]
    fn what_is_not_this_connections_syn_is_refused() {
        let check = |spoil: fn(&mut Vec<u8>), expected: Fault| {
            let mut bytes = saved(0, 20);
            spoil(&mut bytes);
            assert_eq!(sequence(&layout(), &bytes, PORTS), Err(expected));
        };
        let limit = Fault::TooLong { limit: BYTES as u64 };
        check(|bytes| bytes[3] = 0xff, limit);
        check(|bytes| bytes[4..8].fill(0xff), limit);
        check(|bytes| bytes[8..12].fill(0xff), limit);
        check(|bytes| bytes[4] = 110, limit);
        check(|bytes| bytes[4] = 0, Fault::Mismatch { expected: 20, found: 0 });
        check(|bytes| bytes[8] = 19, Fault::Mismatch { expected: 20, found: 19 });
        check(|bytes| bytes[33] ^= 1, Fault::Mismatch { expected: 4000 << 16 | 8080, found: 4001 << 16 | 8080 });
        check(|bytes| bytes[45] = 0x12, Fault::Mismatch { expected: 2, found: 0x12 });
        check(|bytes| bytes[45] = 0, Fault::Mismatch { expected: 2, found: 0 });
    }

    #[test]
    fn whichever_of_the_two_counts_was_written_the_offset_is_right() {
        let base = socket();
        // Across the wrap of sequence numbers, and in streams of which it has wrapped often.
        for received in [0, 1, 1000, u64::from(u32::MAX), 1 << 32, (5 << 32) + 7, (1 << 40) - 1] {
            for syn in [0, 7, u32::MAX, u32::MAX - 999, 1 << 31] {
                for (sequence_first, arriving) in [(true, 1448), (false, 1448), (true, 65_000), (false, 65_000)] {
                    let mut torn = numbered(&base, syn, received, 0);
                    torn.lock_held = true;
                    match sequence_first {
                        true => torn.rcv_nxt = torn.rcv_nxt.wrapping_add(arriving),
                        false => torn.bytes_received += u64::from(arriving),
                    }
                    settle(&mut torn, Some(syn), true);
                    assert!(torn.read_offset_certain, "{syn} {received}: {:?}", torn.damage);
                    assert_eq!((torn.read_offset(), torn.damage.len()), (received, 1), "{syn} {received}");
                }
            }
        }
    }

    #[test]
    fn a_difference_that_no_stop_explains_is_reported_and_leaves_the_offset_in_doubt() {
        let base = socket();
        for (lock_held, off) in [(false, 1), (false, 1448), (true, SKB_BYTES_MAX + 1), (true, 1 << 31)] {
            let mut odd = TcpSocket { lock_held, ..numbered(&base, 5, 1 << 33, 10) };
            odd.rcv_nxt = odd.rcv_nxt.wrapping_add(off);
            settle(&mut odd, Some(5), lock_held);
            let expected = (false, 1 << 33, 1);
            assert_eq!((odd.read_offset_certain, odd.bytes_received, odd.damage.len()), expected, "{off}");
        }
        // Before the beginning of the stream.
        let mut odd = TcpSocket { lock_held: true, ..numbered(&base, 5, 100, 0) };
        settle(&mut odd, Some(500), true);
        assert!(!odd.read_offset_certain && odd.bytes_received == 100);
    }

    #[test]
    fn without_a_syn_the_count_is_certain_unless_somebody_may_be_counting() {
        let base = socket();
        for (counted, received, unread, certain) in
            [(false, 500, 0, true), (true, 500, 0, false), (true, 0, 0, true), (true, 0, 10, false)]
        {
            let mut socket = TcpSocket { lock_held: true, ..numbered(&base, 5, received, unread) };
            settle(&mut socket, None, counted);
            assert_eq!(socket.read_offset_certain, certain, "{counted} {received} {unread}");
            assert!(socket.damage.is_empty() && socket.bytes_received == received);
        }
    }

    /// The second evacuation's case: TCP_REPAIR made the socket, so no SYN was kept.
    #[test]
    fn a_walk_believes_the_count_of_a_socket_that_only_its_application_holds() {
        let mut machine = Machine::load();
        let (before, _) = machine.walk();
        let whole = before.iter().find(|socket| socket.bytes_received > 0 && !socket.lock_held).unwrap();
        let sock = machine.kernel.tcp.sock.clone();
        let backlog = Field { offset: sock.span().next_multiple_of(8), size: 4, bits: None };
        machine.put(whole.address.raw() + backlog.offset as u64, 0);
        let set = |machine: &mut Machine, field: Field, value: u64| {
            let (at, shift) = (whole.address.raw() + field.offset as u64, 8 * (field.offset as u64 % 8));
            machine.put(at & !7, machine.get(at & !7) & !(0xffff_ffff << shift) | value << shift);
        };
        for (owned, slock, waiting, known, certain) in [
            (0, 0, 0, true, true),
            (1, 0, 0, true, true),
            (1, 0, 0, false, false),
            (1, 0, 4096, true, false),
            (1, 1, 0, true, false),
            (0, 1, 0, true, false),
        ] {
            machine.kernel.tcp.sock.backlog_len = known.then_some(backlog);
            set(&mut machine, sock.owned, owned);
            set(&mut machine, sock.slock, slock);
            set(&mut machine, backlog, waiting);
            let found = machine.walk().0.into_iter().find(|socket| socket.address == whole.address).unwrap();
            assert_eq!(found.lock_held, owned + slock > 0);
            assert_eq!(found.read_offset_certain, certain, "{owned} {slock} {waiting} {known}");
            assert_eq!(found.read_offset(), whole.read_offset());
        }
    }

    /// A recorded machine whose sockets point to a SYN: it comes to lie behind the members of the socket that are read.
    #[test]
    fn a_walk_follows_the_pointer_and_survives_a_wild_one() {
        let mut machine = Machine::load();
        let before = machine.walk().0.into_iter().find(|socket| !socket.receive_queue.is_empty()).unwrap();
        let at = machine.kernel.tcp.sock.span().next_multiple_of(8);
        machine.kernel.tcp.sock.saved_syn = Some(Field { offset: at, size: 8, bits: None });
        machine.kernel.tcp.saved_syn = Some(layout());
        let pointer = before.address.raw() + at as u64;
        let mut syn = saved(0, 40);
        syn[52..54].copy_from_slice(&before.peer.port().to_be_bytes());
        syn[54..56].copy_from_slice(&before.local.port().to_be_bytes());
        let first = before.rcv_nxt.wrapping_sub(before.bytes_received as u32).wrapping_sub(1);
        syn[56..60].copy_from_slice(&first.to_be_bytes());
        for (index, bytes) in syn.chunks(8).enumerate() {
            machine.put(pointer + 8 + 8 * index as u64, word(bytes, 0, 8));
        }
        for (value, damaged) in [(pointer + 8, false), (0, false), (0x1000, true), (u64::MAX - 3, true)] {
            machine.put(pointer, value);
            let (sockets, _) = walk(&machine.kernel, &mut machine.image, KEY, &TcpFilter::default()).unwrap();
            let after = sockets.into_iter().find(|socket| socket.address == before.address).unwrap();
            let reported = after.damage.iter().any(|damage| damage.part == "saved_syn");
            assert_eq!((reported, after.read_offset()), (damaged, before.read_offset()), "{value:#x}");
            // And the number is used: one that does not fit is noticed.
            if value == pointer + 8 {
                let number = pointer + 8 + 56;
                machine.put(number, machine.get(number) ^ 0xff << 24);
                let (sockets, _) = walk(&machine.kernel, &mut machine.image, KEY, &TcpFilter::default()).unwrap();
                let after = sockets.into_iter().find(|socket| socket.address == before.address).unwrap();
                assert!(!after.read_offset_certain && after.damage.iter().any(|damage| damage.part == PART));
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_read_inside_their_bounds(
            bytes in proptest::collection::vec(any::<u8>(), BYTES),
            lengths: [u16; 3],
        ) {
            let mut bytes = bytes;
            for (field, length) in bytes.chunks_mut(4).zip(lengths) {
                field[..2].copy_from_slice(&(length & 0x7f).to_le_bytes());
                field[2..].fill(0);
            }
            let _ = sequence(&layout(), &bytes, PORTS);
        }
    }
}
