//! A recorded machine with thousands of connections put into it: what a walk of them costs in reads, rounds and bytes.
//!
//! Each is a copy of a recorded socket with one sent and one unsent buffer, laid side by side as slabs have them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use remote_memory::image::Image;
use remote_memory::trace::Trace;
use remote_memory::{KernelVirt, PAGE_BYTES};

use super::damage_tests::{KEY, Machine};
use super::*;

/// Object sizes of the slabs `TCP`, `skbuff_fclone_cache` and of a buffer's head.
const SOCK_BYTES: u64 = 2432;
const SKB_BYTES: u64 = 512;
const HEAD_BYTES: u64 = 1024;

/// Where copies may be laid.
const RAM_BYTES: u64 = 256 << 20;

const COPY_PORT: u16 = 7777;

/// The copies under construction.
struct Crowd {
    machine: Machine,
    bytes: Vec<u8>,
    /// Where the copies are laid, guest-physical: no page of the recorded machine lies there.
    first: u64,
    /// Where the next object of each slab goes.
    socks: usize,
    skbs: usize,
    heads: usize,
}

impl Crowd {
    fn virt(&self, at: usize) -> u64 {
        self.machine.kernel.space.page_offset_base + self.first + at as u64
    }

    fn new(machine: Machine, count: usize) -> Self {
        let skbs = count * SOCK_BYTES as usize;
        let heads = skbs + 2 * count * SKB_BYTES as usize;
        let bytes = (heads + 2 * count * HEAD_BYTES as usize).next_multiple_of(PAGE_BYTES as usize);
        let pages = bytes as u64 / PAGE_BYTES;
        let taken: Vec<u64> = machine.image.page_numbers().chain([RAM_BYTES / PAGE_BYTES]).collect();
        let gap = taken.windows(2).find(|pair| pair[1] - pair[0] > pages).expect("a gap large enough");
        Self { machine, bytes: vec![0; bytes], first: (gap[0] + 1) * PAGE_BYTES, socks: 0, skbs, heads }
    }

    /// Copies `len` bytes of kernel memory to `at` in `bytes`.
    fn copy(&mut self, at: usize, from: u64, len: u64) {
        let phys = self.machine.kernel.space.known(KernelVirt::new(from), 8).unwrap().raw();
        let mut bytes = vec![0; len as usize];
        for (offset, byte) in bytes.iter_mut().enumerate() {
            let mut one = [0];
            // The recording has the parts that walks read.
            if self.machine.image.copy_out(phys + offset as u64, &mut one).is_some() {
                *byte = one[0];
            }
        }
        self.bytes[at..at + len as usize].copy_from_slice(&bytes);
    }

    fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// A copy of an skb with a head of its own that holds `seq..seq + 100` in its linear part.
    fn skb(&mut self, template: u64, seq: u32) -> usize {
        let layout = self.machine.kernel.tcp.skb.clone();
        let (at, head) = (self.skbs, self.heads);
        (self.skbs, self.heads) = (at + SKB_BYTES as usize, head + HEAD_BYTES as usize);
        self.copy(at, template, skb::span(&layout) as u64);
        self.bytes[head..head + 100].fill(seq as u8);
        let virt = self.virt(head);
        self.put(at + layout.head.offset, virt);
        self.put(at + layout.data.offset, virt);
        self.put32(at + layout.end.offset, 512);
        self.put32(at + layout.len.offset, 100);
        self.put32(at + layout.data_len.offset, 0);
        self.put32(at + layout.cb.offset + layout.cb_seq.offset, seq);
        self.put32(at + layout.cb.offset + layout.cb_end_seq.offset, seq + 100);
        self.bytes[at + layout.cb.offset + layout.cb_flags.offset] = 0x10;
        at
    }

    /// One connection; returns its node and where the node's `next` has to be put.
    fn connection(&mut self, template: &TcpSocket, skb_template: u64, number: u32) -> usize {
        let kernel = self.machine.kernel.clone();
        let (head, layout, skb) = (&kernel.tcp.head, &kernel.tcp.sock, &kernel.tcp.skb);
        let sock = self.socks;
        self.socks += SOCK_BYTES as usize;
        self.copy(sock, template.address.raw(), layout.span() as u64);
        let start = 1000 * number;
        let (sent, unsent) = (self.skb(skb_template, start), self.skb(skb_template, start + 100));
        for (field, value) in [
            (layout.snd_una, start),
            (layout.snd_nxt, start + 100),
            (layout.write_seq, start + 200),
            (layout.rcv_nxt, 77),
            (layout.copied_seq, 77),
            (layout.rcv_wup, 77),
            (layout.owned, 0),
            (layout.slock, 0),
        ] {
            self.put32(sock + field.offset, value);
        }
        let peer = SocketAddr::new(Ipv4Addr::from(number).into(), template.peer.port());
        let mut memory = Memory::new(&mut self.machine.image, KEY, &kernel.space.extents);
        let ends = [SocketAddr::new(template.local.ip(), COPY_PORT), peer];
        let hash = ends::today(&kernel, &mut memory, kernel.symbols["init_net"], ends);
        self.put32(sock + head.hash.unwrap().offset, hash);
        let port = head.local_port.offset;
        self.bytes[sock + port..sock + port + 2].copy_from_slice(&COPY_PORT.to_le_bytes());
        self.put32(sock + head.peer.offset, number.to_be());
        let write = self.virt(sock + layout.write_queue.offset);
        let receive = self.virt(sock + layout.receive_queue.offset);
        for (at, next, len) in
            [(layout.write_queue.offset, self.virt(unsent), 1), (layout.receive_queue.offset, receive, 0)]
        {
            self.put(sock + at + skb.queue_next.offset, next);
            self.put(sock + at + skb.queue_prev.offset, next);
            self.put32(sock + at + skb.queue_len.offset, len);
        }
        self.put(unsent + skb.next.offset, write);
        self.put(unsent + skb.prev.offset, write);
        let root = self.virt(sent);
        self.put(sock + layout.rtx_root.offset, root);
        for field in [skb.parent_color, skb.left, skb.right] {
            self.put(sent + field.offset, 0);
        }
        sock
    }
}

/// The recorded machine with `count` connections more.
fn crowded(count: u32) -> (Kernel, Image) {
    let mut machine = Machine::load();
    let template = machine.walk().0.into_iter().find(|socket| {
        socket.local.port() == 7000 && socket.local.is_ipv4() && !socket.inet6_socket && socket.send_queue.len() > 10
    });
    let template = template.unwrap();
    let sock = template.address.raw();
    let skb_template = machine.get(sock + machine.kernel.tcp.sock.write_queue.offset as u64);
    let mut crowd = Crowd::new(machine, count as usize);
    let kernel = crowd.machine.kernel.clone();
    let head = &kernel.tcp.head;
    let buckets = kernel.tcp_tables[0].bytes() / 8;
    let socks: Vec<usize> = (0..count).map(|number| crowd.connection(&template, skb_template, number)).collect();
    for (number, sock) in socks.into_iter().enumerate() {
        let bucket = kernel.tcp_tables[0].start().raw() + number as u64 * 7 % buckets * 8;
        let node = crowd.virt(sock + head.next.offset);
        let first = crowd.machine.get(bucket);
        crowd.put(sock + head.next.offset, first);
        crowd.put(sock + head.pprev.offset, bucket);
        crowd.machine.put(bucket, node);
        if first & 1 == 0 {
            let behind = first.wrapping_sub(head.next.offset as u64).wrapping_add(head.pprev.offset as u64);
            match behind.checked_sub(crowd.virt(0)).filter(|at| (*at as usize) < crowd.bytes.len()) {
                Some(at) => crowd.put(at as usize, node),
                None => crowd.machine.put(behind, node),
            }
        }
    }
    let Crowd { machine, bytes, first, .. } = crowd;
    let mut image = machine.image;
    for (number, page) in (first / PAGE_BYTES..).zip(bytes.chunks_exact(PAGE_BYTES as usize)) {
        image.insert(number, page.try_into().unwrap());
    }
    (machine.kernel, image)
}

#[test]
fn a_crowd_is_walked_with_few_reads_and_no_more_rounds() {
    for count in [1000, 10_000] {
        let (kernel, image) = crowded(count);
        let mut trace = Trace::new(image);
        let filter = TcpFilter { ports: vec![COPY_PORT], ..TcpFilter::default() };
        let begin = Instant::now();
        let (sockets, damage) = walk(&kernel, &mut trace, KEY, &filter).unwrap();
        let took = begin.elapsed();
        assert_eq!((sockets.len(), damage.len()), (count as usize, 0), "{:?}", damage.first());
        for socket in &sockets {
            assert!(socket.usable() && socket.damage.is_empty(), "{socket:?}");
            let bytes: usize = socket.send_queue.iter().map(|segment| segment.bytes.len()).sum();
            let right = |segment: &Segment| segment.bytes.iter().all(|byte| *byte == segment.seq as u8);
            assert!(bytes == 200 && socket.send_queue.iter().all(right), "{socket:?}");
        }
        let reads = trace.reads().len();
        let bytes: usize = trace.reads().iter().map(|read| read.len).sum();
        let mut by_round: Vec<(usize, usize)> = vec![(0, 0); trace.rounds() + 1];
        for read in trace.reads() {
            by_round[read.round].0 += 1;
            by_round[read.round].1 += read.len;
        }
        println!("reads and bytes by round: {by_round:?}");
        println!(
            "{count} sessions: {reads} reads ({:.3} each), {} bytes each, {} rounds, {took:?}",
            reads as f64 / f64::from(count),
            bytes / count as usize,
            trace.rounds()
        );
        // The objects lie side by side: less than a READ per session, and not much more than the bytes of its objects.
        assert!(reads < count as usize / 4, "{reads} reads for {count} sessions");
        assert!(bytes < count as usize * 16 * 1024, "{bytes} bytes for {count} sessions");
        assert!(trace.rounds() < 60, "{} rounds for {count} sessions", trace.rounds());
    }
}
