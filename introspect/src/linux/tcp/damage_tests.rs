//! One fault at a time put into a recorded machine: what is reported, and that everything else is still found.

use std::fs::{self, File};
use std::io::Read;

use remote_memory::image::Image;
use remote_memory::{KernelVirt, RemoteKey};

use super::*;
use crate::memory::word;

pub(super) const KEY: RemoteKey = RemoteKey::new(1);

/// Its socket on port 7000 from this machine has a long send queue, and received data.
const PORT: u16 = 7000;

pub(super) struct Machine {
    pub(super) kernel: Kernel,
    pub(super) image: Image,
}

impl Machine {
    pub(super) fn load() -> Self {
        let prefix = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/linux-6.1-5level");
        let kernel = serde_json::from_slice(&fs::read(format!("{prefix}.kernel.json")).unwrap()).unwrap();
        let mut bytes = Vec::new();
        let file = File::open(format!("{prefix}.image.xz")).unwrap();
        xz2::read::XzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        Self { kernel, image: Image::load(&bytes[..]).unwrap() }
    }

    pub(super) fn walk(&mut self) -> (Vec<TcpSocket>, Vec<Damage>) {
        walk(&self.kernel, &mut self.image, KEY, &TcpFilter::default()).unwrap()
    }

    fn phys(&self, virt: u64) -> u64 {
        self.kernel.space.known(KernelVirt::new(virt), 8).unwrap().raw()
    }

    pub(super) fn get(&self, virt: u64) -> u64 {
        let mut bytes = [0; 8];
        self.image.copy_out(self.phys(virt), &mut bytes).unwrap();
        word(&bytes, 0, 8)
    }

    pub(super) fn put(&mut self, virt: u64, value: u64) {
        let at = self.phys(virt);
        self.image.write_at(at, &value.to_le_bytes());
    }

    /// A socket with both a send and a receive queue.
    fn victim(&mut self) -> TcpSocket {
        let (sockets, _) = self.walk();
        let wanted = |socket: &&TcpSocket| {
            socket.local.port() == PORT && socket.send_queue.len() > 10 && !socket.receive_queue.is_empty()
        };
        sockets.iter().find(wanted).unwrap().clone()
    }

    /// Does `spoil` to the victim (given its address) and checks that the others are found as before.
    fn check(mut self, spoil: impl FnOnce(&mut Self, u64)) -> (Option<TcpSocket>, Vec<Damage>) {
        let victim = self.victim().address;
        let (before, _) = self.walk();
        spoil(&mut self, victim.raw());
        let (mut after, damage) = self.walk();
        let place = after.iter().position(|socket| socket.address == victim);
        let found = place.map(|place| after.remove(place));
        let others: Vec<_> = before.into_iter().filter(|socket| socket.address != victim).collect();
        assert_eq!(after, others);
        (found, damage)
    }
}

fn faults(damage: &[Damage]) -> Vec<(&'static str, Fault)> {
    damage.iter().map(|damage| (damage.part, damage.fault)).collect()
}

#[test]
fn a_chain_that_bites_its_tail_is_left_after_one_turn() {
    let (found, damage) = Machine::load().check(|machine, sock| {
        let node = sock + machine.kernel.tcp.head.next.offset as u64;
        machine.put(node, node);
    });
    assert!(found.is_some());
    assert_eq!(faults(&damage), [("ehash chain", Fault::Cycle)]);
}

#[test]
fn a_chain_that_ends_in_another_buckets_marker_is_reported() {
    let (found, damage) = Machine::load().check(|machine, sock| {
        let node = sock + machine.kernel.tcp.head.next.offset as u64;
        let next = machine.get(node);
        assert_eq!(next & 1, 1, "the victim is the last of its chain");
        machine.put(node, next ^ 2);
    });
    assert!(found.is_some());
    assert!(matches!(faults(&damage)[..], [("ehash chain", Fault::Mismatch { .. })]), "{damage:?}");
}

#[test]
fn a_chain_into_nowhere_is_reported() {
    let (found, damage) = Machine::load().check(|machine, sock| {
        let node = sock + machine.kernel.tcp.head.next.offset as u64;
        machine.put(node, 0x1000);
    });
    assert!(found.is_some());
    assert_eq!(faults(&damage), [("ehash chain", Fault::Unreadable)]);
}

/// The first buffers of a socket's write queue.
fn write_queue(machine: &Machine, sock: u64) -> Vec<u64> {
    let next = machine.kernel.tcp.skb.next.offset as u64;
    let head = sock + machine.kernel.tcp.sock.write_queue.offset as u64;
    std::iter::successors(Some(machine.get(head + next)), |skb| Some(machine.get(skb + next))).take(8).collect()
}

#[test]
fn a_ring_with_one_broken_pointer_is_still_whole() {
    let (found, _) = Machine::load().check(|machine, sock| {
        let skbs = write_queue(machine, sock);
        machine.put(skbs[4] + machine.kernel.tcp.skb.next.offset as u64, 0xdead_0000);
    });
    let found = found.unwrap();
    // The forward end stops at the cut; the backward end comes all the way round to it.
    assert!(found.send_queue_complete, "{:?}", found.damage);
    assert!(found.damage.iter().any(|damage| damage.fault == Fault::Unreadable), "{:?}", found.damage);
}

#[test]
fn a_ring_broken_in_both_directions_loses_its_middle_and_says_so() {
    let (found, _) = Machine::load().check(|machine, sock| {
        let skbs = write_queue(machine, sock);
        machine.put(skbs[3] + machine.kernel.tcp.skb.next.offset as u64, 0);
        machine.put(skbs[5] + machine.kernel.tcp.skb.prev.offset as u64, 0);
    });
    let found = found.unwrap();
    assert!(!found.send_queue_complete && found.receive_queue_complete, "{:?}", found.damage);
    assert!(found.send_queue.first().is_some_and(|segment| segment.seq == found.snd_una));
    assert!(found.send_queue.last().is_some_and(|segment| segment.end_seq == found.write_seq));
}

#[test]
fn a_ring_that_runs_in_a_circle_ends() {
    let (found, _) = Machine::load().check(|machine, sock| {
        let layout = machine.kernel.tcp.skb.clone();
        let head = sock + machine.kernel.tcp.sock.write_queue.offset as u64;
        let first = machine.get(head + layout.next.offset as u64);
        machine.put(first + layout.next.offset as u64, first);
        machine.put(head + layout.prev.offset as u64, first);
    });
    let found = found.unwrap();
    assert!(!found.send_queue_complete && found.receive_queue_complete);
}

#[test]
fn a_lying_fragment_count_spoils_its_queue_only() {
    let (found, _) = Machine::load().check(|machine, sock| {
        let layout = machine.kernel.tcp.skb.clone();
        let head = sock + machine.kernel.tcp.sock.write_queue.offset as u64;
        let skb = machine.get(head + layout.next.offset as u64);
        let end = machine.get(skb + layout.end.offset as u64) & 0xffff_ffff;
        let shared = machine.get(skb + layout.head.offset as u64) + end;
        let count = shared + machine.kernel.tcp.shared.nr_frags.offset as u64;
        machine.put(count, machine.get(count) | 0xff);
    });
    let found = found.unwrap();
    assert!(!found.send_queue_complete && found.receive_queue_complete && !found.usable());
    assert!(faults(&found.damage).iter().any(|(part, _)| *part == "skb_shared_info.nr_frags"), "{:?}", found.damage);
}

#[test]
fn a_wrong_sequence_number_makes_the_queue_incomplete() {
    let (found, _) = Machine::load().check(|machine, sock| {
        let una = sock + machine.kernel.tcp.sock.snd_una.offset as u64;
        machine.put(una, machine.get(una).wrapping_sub(1000) & 0xffff_ffff | machine.get(una) & !0xffff_ffff);
    });
    let found = found.unwrap();
    assert!(!found.send_queue_complete && found.receive_queue_complete);
}

/// Adds `bytes` to the 32-bit member at `offset` of the victim.
fn add32(machine: &mut Machine, sock: u64, offset: usize, bytes: u32) {
    let at = sock + offset as u64;
    let word = machine.get(at);
    machine.put(at, word & !0xffff_ffff | u64::from((word as u32).wrapping_add(bytes)));
}

#[test]
fn a_segment_counted_but_not_queued_is_taken_back_unless_it_was_acknowledged() {
    for (locked, acknowledged, whole) in [(true, false, true), (false, false, false), (true, true, false)] {
        let before = Machine::load().victim();
        let (found, _) = Machine::load().check(|machine, sock| {
            let layout = machine.kernel.tcp.sock.clone();
            add32(machine, sock, layout.rcv_nxt.offset, 1000);
            let received = machine.get(sock + layout.bytes_received.offset as u64);
            machine.put(sock + layout.bytes_received.offset as u64, received + 1000);
            add32(machine, sock, layout.rcv_wup.offset, if acknowledged { 1000 } else { 0 });
            add32(machine, sock, layout.owned.offset, locked.into());
        });
        let found = found.unwrap();
        assert_eq!(found.receive_queue_complete, whole, "locked {locked}, acknowledged {acknowledged}");
        assert_eq!((found.rcv_nxt == before.rcv_nxt, found.read_offset()), (whole, before.read_offset()));
        assert!(!found.damage.is_empty());
    }
}
