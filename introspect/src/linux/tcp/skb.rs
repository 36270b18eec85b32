//! The packet buffers of all sockets' queues, collected in rounds.
//!
//! ```text
//!   tcp_rtx_queue     red-black tree   one level per round
//!   sk_write_queue    ring             from both ends towards the middle, two buffers per round
//!   sk_receive_queue  ring             likewise
//! ```
//! All trees and rings of all sockets advance together: the rounds are those of the longest ring, not of their number.

use std::collections::HashSet;

use remote_memory::{KernelVirt, LinkError};

use super::layout::SkbLayout;
use crate::memory::Memory;
use crate::{Damage, Fault, Kernel};

/// Buffers of one queue; a receive queue of 6 MiB holds fewer even when each has but a hundred bytes.
const SKBS_PER_QUEUE_MAX: usize = 64 * 1024;

/// Buffers of all queues of a walk: bounds our memory at about 200 MiB.
const SKBS_MAX: usize = 1024 * 1024;

/// A red-black tree of 2^32 nodes is no higher.
const TREE_DEPTH_MAX: usize = 64;

/// One buffer as its memory claims it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Skb {
    pub address: u64,
    pub seq: u32,
    pub end_seq: u32,
    pub tcp_flags: u8,
    pub len: u32,
    pub data_len: u32,
    /// Address of the first byte of the linear part.
    pub data: u64,
    /// Address of the `skb_shared_info`.
    pub shared: u64,
    /// The following buffer of a ring or frag list.
    pub next: u64,
    /// How many fragments it has, where the number in its memory is not the one, see [`super::split`].
    pub fragments: Option<u32>,
}

/// The queues of one socket, in order.
#[derive(Default)]
pub(crate) struct Queues {
    pub rtx: Vec<Skb>,
    pub write: Vec<Skb>,
    pub receive: Vec<Skb>,
    pub damage: Vec<Damage>,
}

/// A ring of buffers that is read from both ends.
struct Ring {
    owner: usize,
    part: &'static str,
    is_receive: bool,
    /// Address of the `sk_buff_head`, which closes the ring.
    head: u64,
    claimed_len: u64,
    forward: End,
    backward: End,
    done: bool,
}

struct End {
    skbs: Vec<Skb>,
    next: u64,
    open: bool,
}

/// A node of a tree that is to be read.
struct Node {
    owner: usize,
    address: u64,
    parent: u64,
}

/// Reads one skb out of its bytes, with its neighbours (next, prev).
pub(crate) fn parse(layout: &SkbLayout, address: u64, bytes: &[u8]) -> (Skb, u64) {
    let cb = layout.cb.bytes_of(bytes);
    let head = layout.head.of(bytes);
    let skb = Skb {
        address,
        seq: layout.cb_seq.of(cb) as u32,
        end_seq: layout.cb_end_seq.of(cb) as u32,
        tcp_flags: layout.cb_flags.of(cb) as u8,
        len: layout.len.of(bytes) as u32,
        data_len: layout.data_len.of(bytes) as u32,
        data: layout.data.of(bytes),
        // On 64-bit machines `end` is an offset from `head`.
        shared: head.wrapping_add(layout.end.of(bytes)),
        next: layout.next.of(bytes),
        fragments: None,
    };
    (skb, layout.prev.of(bytes))
}

/// Bytes of an skb that [`parse`] needs.
pub(crate) fn span(layout: &SkbLayout) -> usize {
    [layout.next, layout.prev, layout.parent_color, layout.right, layout.left, layout.cb, layout.len]
        .iter()
        .chain(&[layout.data_len, layout.head, layout.data, layout.end])
        .chain(&layout.sent_anchor)
        .map(|field| field.end())
        .max()
        .unwrap_or(0)
}

/// Collects the queues of `socks`, whose bytes are given beside their addresses.
pub(crate) fn collect(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    socks: &[(KernelVirt, &[u8])],
) -> Result<Vec<Queues>, LinkError> {
    let mut walk = Collector::new(&kernel.tcp.skb, socks.len());
    for (owner, (address, bytes)) in socks.iter().enumerate() {
        walk.open(kernel, owner, address.raw(), bytes);
    }
    walk.run(kernel, memory)?;
    Ok(walk.finish())
}

/// Collects the receive queues of sockets of any family.
pub(crate) fn receive_queues(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    socks: &[u64],
) -> Result<Vec<Queues>, LinkError> {
    let field = kernel.tcp.sock.receive_queue;
    let heads: Vec<_> = socks.iter().map(|sock| KernelVirt::new(sock.wrapping_add(field.offset as u64))).collect();
    let records = kernel.space.fetch_equal(memory, &heads, field.size)?;
    let mut walk = Collector::new(&kernel.tcp.skb, socks.len());
    for (owner, (head, record)) in heads.iter().zip(records.iter()).enumerate() {
        match record {
            Some(queue) => walk.open_ring(owner, head.raw(), queue, "sk_receive_queue", true),
            None => walk.report(owner, head.raw(), "sk_receive_queue", Fault::Unreadable),
        }
    }
    walk.run(kernel, memory)?;
    Ok(walk.finish())
}

struct Collector<'a> {
    layout: &'a SkbLayout,
    queues: Vec<Queues>,
    rings: Vec<Ring>,
    nodes: Vec<Node>,
    seen: HashSet<u64>,
}

impl<'a> Collector<'a> {
    fn new(layout: &'a SkbLayout, sockets: usize) -> Self {
        let queues = (0..sockets).map(|_| Queues::default()).collect();
        Self { layout, queues, rings: Vec::new(), nodes: Vec::new(), seen: HashSet::new() }
    }

    fn run(&mut self, kernel: &Kernel, memory: &mut Memory<'_>) -> Result<(), LinkError> {
        for round in 0.. {
            let wanted = self.wanted(round);
            if wanted.is_empty() {
                break;
            }
            let at: Vec<_> = wanted.iter().map(|address| KernelVirt::new(*address)).collect();
            let skbs = kernel.space.fetch_equal(memory, &at, span(self.layout))?;
            self.advance(skbs.iter());
        }
        Ok(())
    }

    fn report(&mut self, owner: usize, at: u64, part: &'static str, fault: Fault) {
        self.queues[owner].damage.push(Damage { at: KernelVirt::new(at), part, fault });
    }

    fn open(&mut self, kernel: &Kernel, owner: usize, sock: u64, bytes: &[u8]) {
        let layout = &kernel.tcp.sock;
        let root = layout.rtx_root.of(bytes);
        if root != 0 {
            self.nodes.push(Node { owner, address: root, parent: 0 });
        }
        let rings = [(layout.write_queue, "sk_write_queue", false), (layout.receive_queue, "sk_receive_queue", true)];
        for (field, part, is_receive) in rings {
            let head = sock.wrapping_add(field.offset as u64);
            self.open_ring(owner, head, field.bytes_of(bytes), part, is_receive);
        }
    }

    /// `queue` is the `sk_buff_head` at `head`.
    fn open_ring(&mut self, owner: usize, head: u64, queue: &[u8], part: &'static str, is_receive: bool) {
        let end = |next| End { skbs: Vec::new(), next, open: true };
        let (next, prev) = (self.layout.queue_next.of(queue), self.layout.queue_prev.of(queue));
        let claimed_len = self.layout.queue_len.of(queue);
        let (forward, backward) = (end(next), end(prev));
        self.rings.push(Ring { owner, part, is_receive, head, claimed_len, forward, backward, done: false });
    }

    /// The addresses to read in this round, after closing what has come to its end. The order is that of
    /// [`Collector::advance`]: trees first, then each ring's forward and backward end.
    fn wanted(&mut self, round: usize) -> Vec<u64> {
        let mut wanted = Vec::new();
        let mut reports = Vec::new();
        let nodes = std::mem::take(&mut self.nodes);
        for node in nodes {
            let fault = if round >= TREE_DEPTH_MAX {
                Fault::TooLong { limit: TREE_DEPTH_MAX as u64 }
            } else if self.seen.len() >= SKBS_MAX {
                Fault::TooLong { limit: SKBS_MAX as u64 }
            } else if !self.seen.insert(node.address) {
                Fault::Cycle
            } else {
                wanted.push(node.address);
                self.nodes.push(node);
                continue;
            };
            reports.push((node.owner, node.address, "tcp_rtx_queue", fault));
        }
        for ring in self.rings.iter_mut().filter(|ring| !ring.done) {
            if let Some(fault) = ring.close_ends(&mut self.seen) {
                reports.push((ring.owner, ring.head, ring.part, fault));
            }
            wanted.extend(ring.forward.open.then_some(ring.forward.next));
            wanted.extend(ring.backward.open.then_some(ring.backward.next));
        }
        for (owner, at, part, fault) in reports {
            self.report(owner, at, part, fault);
        }
        wanted
    }

    /// Takes the records of the addresses that [`Collector::wanted`] gave.
    fn advance<'r>(&mut self, mut records: impl Iterator<Item = Option<&'r [u8]>>) {
        let mut next_record = || records.next().flatten();
        let mut reports = Vec::new();
        for node in std::mem::take(&mut self.nodes) {
            let Some(bytes) = next_record() else {
                reports.push((node.owner, node.address, "tcp_rtx_queue", Fault::Unreadable));
                continue;
            };
            // The two low bits of the parent pointer are the colour.
            let parent = self.layout.parent_color.of(bytes) & !3;
            if parent != node.parent {
                let fault = Fault::Mismatch { expected: node.parent, found: parent };
                reports.push((node.owner, node.address, "rbnode parent", fault));
            }
            for child in [self.layout.left.of(bytes), self.layout.right.of(bytes)] {
                if child != 0 {
                    self.nodes.push(Node { owner: node.owner, address: child, parent: node.address });
                }
            }
            self.queues[node.owner].rtx.push(parse(self.layout, node.address, bytes).0);
        }
        for ring in self.rings.iter_mut().filter(|ring| !ring.done) {
            for is_forward in [true, false] {
                let end = if is_forward { &mut ring.forward } else { &mut ring.backward };
                if !end.open {
                    continue;
                }
                let Some(bytes) = next_record() else {
                    reports.push((ring.owner, end.next, ring.part, Fault::Unreadable));
                    end.open = false;
                    continue;
                };
                let (skb, prev) = parse(self.layout, end.next, bytes);
                let expected = end.skbs.last().map_or(ring.head, |skb| skb.address);
                let (back, onward) = if is_forward { (prev, skb.next) } else { (skb.next, prev) };
                if back != expected {
                    let fault = Fault::Mismatch { expected, found: back };
                    reports.push((ring.owner, skb.address, "sk_buff back-pointer", fault));
                }
                end.skbs.push(skb);
                end.next = onward;
            }
        }
        for (owner, at, part, fault) in reports {
            self.report(owner, at, part, fault);
        }
    }

    fn finish(mut self) -> Vec<Queues> {
        for ring in std::mem::take(&mut self.rings) {
            let mut skbs = ring.forward.skbs;
            skbs.extend(ring.backward.skbs.into_iter().rev());
            if skbs.len() as u64 != ring.claimed_len {
                let fault = Fault::Mismatch { expected: ring.claimed_len, found: skbs.len() as u64 };
                self.report(ring.owner, ring.head, ring.part, fault);
            }
            let queues = &mut self.queues[ring.owner];
            if ring.is_receive { queues.receive = skbs } else { queues.write = skbs }
        }
        self.queues
    }
}

impl Ring {
    /// Closes the ends that have met, come round or gone wrong; says what went wrong.
    fn close_ends(&mut self, seen: &mut HashSet<u64>) -> Option<Fault> {
        let last = |end: &End| end.skbs.last().map(|skb| skb.address);
        let met =
            self.forward.open && (self.forward.next == self.head || Some(self.forward.next) == last(&self.backward));
        let met_back =
            self.backward.open && (self.backward.next == self.head || Some(self.backward.next) == last(&self.forward));
        if met || met_back {
            (self.forward.open, self.backward.open) = (false, false);
        }
        let mut fault = None;
        let read = self.forward.skbs.len() + self.backward.skbs.len();
        for end in [&mut self.forward, &mut self.backward] {
            if !end.open {
                continue;
            }
            if read >= SKBS_PER_QUEUE_MAX || seen.len() >= SKBS_MAX {
                end.open = false;
                fault = Some(Fault::TooLong { limit: SKBS_PER_QUEUE_MAX.min(SKBS_MAX) as u64 });
            }
        }
        if self.forward.open && !seen.insert(self.forward.next) {
            self.forward.open = false;
            fault = Some(Fault::Cycle);
        }
        if self.backward.open {
            if self.forward.open && self.backward.next == self.forward.next {
                self.backward.open = false; // one buffer is left between the ends: the forward one takes it
            } else if !seen.insert(self.backward.next) {
                self.backward.open = false;
                fault = Some(Fault::Cycle);
            }
        }
        self.done = !self.forward.open && !self.backward.open;
        fault
    }
}
