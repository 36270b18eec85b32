//! TCP connections with everything that rebuilding them elsewhere needs: sequence numbers, options, queued bytes.
//!
//! ```text
//!   send:     bytes_acked         snd_una         snd_nxt               write_seq
//!             ....acknowledged....|===== sent =====|===== not sent ======|
//!                                 `-- Segment{sent} `-- Segment{!sent}     (+ 1 for a queued FIN)
//!   receive:  ....read by the application....|====== receive_queue =======|
//!                                        copied_seq                     rcv_nxt  (+ 1 for a received FIN)
//! ```
//! Stages, each a few rounds for all connections together: table and chains (`tables`), sockets (`fields`), packet
//! buffers (`skb`), the SYN each began with (`anchor`), where the buffers' bytes lie and the bytes (`payload`), cut and
//! checked by `queue`; last the handshakes in progress (`request`).

mod anchor;
#[cfg(test)]
mod corruption_tests;
#[cfg(test)]
mod damage_tests;
mod ends;
mod fields;
mod layout;
pub(crate) mod payload;
mod queue;
mod request;
mod rescue;
#[cfg(test)]
mod scale_tests;
mod skb;
mod socket;
mod split;
mod survey;
pub(crate) mod tables;

pub(crate) use ends::EndsHash;
pub(crate) use layout::TcpLayout;
#[cfg(test)]
pub(crate) use layout::{HeadLayout, RequestLayout, SavedSynLayout, SharedLayout, SkbLayout, SockLayout};
pub use socket::{Segment, State, TcpFilter, TcpSocket};
pub use survey::Survey;
pub(crate) use tables::TcpTable;

use remote_memory::{LinkError, RemoteKey, RemoteRead};

use crate::memory::Memory;
use crate::{Damage, Fault, Kernel};
use payload::PAYLOAD_BYTES_MAX;
pub(crate) use payload::{Runs, Slice};
use queue::{Cut, Plan};
use skb::Queues;
pub(crate) use skb::{Skb, receive_queues};
use survey::Stretch;

/// Reads the connections that `filter` lets through, with their queued bytes. The damage returned beside them is that
/// of the table; each socket carries its own.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn walk(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    filter: &TcpFilter,
) -> Result<(Vec<TcpSocket>, Vec<Damage>), LinkError> {
    let mut survey = survey(kernel, mem, ram, filter)?;
    let mut sockets = std::mem::take(&mut survey.sockets);
    let all: Vec<usize> = (0..sockets.len()).collect();
    for (socket, (bytes, whole)) in sockets.iter_mut().zip(survey.fetch(kernel, mem, ram, &all)?) {
        let mut rest = bytes.as_slice();
        for segment in &mut socket.send_queue {
            let (these, later) = rest.split_at(segment.len());
            segment.bytes = these.to_vec();
            rest = later;
        }
        if !whole {
            socket.damage.push(Damage { at: socket.address, part: "send queue", fault: Fault::Unreadable });
            socket.send_queue_complete = false;
        }
    }
    Ok((sockets, survey.damage))
}

/// As [`walk`], but send queues are only measured and located. They are most of the bytes, and the last that are
/// needed.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn survey(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    filter: &TcpFilter,
) -> Result<Survey, LinkError> {
    let mut memory = Memory::new(mem, ram, &kernel.space.extents);
    let mut damage = Vec::new();
    let members = tables::members(kernel, &mut memory, filter, &mut damage)?;
    let wanted: Vec<_> =
        members.iter().filter_map(|member| Some((State::from_kernel(member.state)?, member))).collect();
    let addresses: Vec<_> = wanted.iter().map(|(_, member)| member.address).collect();
    let bytes = kernel.space.fetch_equal(&mut memory, &addresses, kernel.tcp.sock.span())?;
    let init_net = kernel.symbols.get("init_net").copied();
    let (mut sockets, mut socks) = (Vec::new(), Vec::new());
    for (index, (state, member)) in wanted.iter().enumerate() {
        let Some(bytes) = bytes.bytes(index) else {
            damage.push(Damage { at: member.address, part: "tcp_sock", fault: Fault::Unreadable });
            continue;
        };
        if let Some(socket) = fields::socket(&kernel.tcp.sock, member, *state, init_net, bytes) {
            sockets.push(socket);
            socks.push((member.address, bytes));
        }
    }
    let mut queues = skb::collect(kernel, &mut memory, &socks)?;
    let torn = |(index, socket): (usize, &TcpSocket)| (!Draft::send_is_whole(socket, &queues[index])).then_some(index);
    let torn: Vec<usize> = sockets.iter().enumerate().filter_map(torn).collect();
    rescue::from_sent_ring(kernel, &mut memory, &socks, &torn, &mut queues)?;
    split::rejoin(kernel, &mut memory, &sockets, &mut queues)?;
    for ((socket, (_, bytes)), queues) in sockets.iter_mut().zip(&socks).zip(&queues) {
        fields::settle_acknowledged(&kernel.tcp.sock, socket, bytes, queues);
    }
    anchor::settle_all(kernel, &mut memory, &socks, &mut sockets)?;
    let mut queued = fill(kernel, &mut memory, &mut sockets, queues)?;
    request::collect(kernel, &mut memory, &members, init_net, &mut sockets, &mut damage)?;
    // A connection whose handshake was under way has sent nothing.
    queued.resize_with(sockets.len(), Vec::new);
    Ok(Survey { sockets, damage, queued })
}

/// Both queues of one socket on their way from buffers to bytes.
struct Draft {
    /// Send buffers (the first `sent` of them from the retransmission queue), then receive buffers.
    skbs: Vec<Skb>,
    sent: usize,
    sending: usize,
    send: Plan,
    receive: Plan,
}

impl Draft {
    fn new(socket: &mut TcpSocket, queues: Queues) -> Self {
        let sent = queues.rtx.len();
        let mut skbs = Self::sending(socket, &queues);
        let sending = skbs.len();
        skbs.extend(queues.receive);
        let mut send = queue::cut(&skbs[..sending], socket.snd_una, socket.write_seq, "send queue", socket.address);
        send.complete &= socket.damage.iter().all(|damage| damage.part != fields::UNSETTLED);
        let mut receive =
            queue::cut(&skbs[sending..], socket.copied_seq, socket.rcv_nxt, "sk_receive_queue", socket.address);
        receive.cuts.iter_mut().for_each(|cut| cut.skb += sending);
        fields::take_back_unqueued(socket, &mut receive);
        fields::cut_off_uncounted(socket, &mut receive);
        Self { skbs, sent, sending, send, receive }
    }

    /// The send buffers in order: those of the retransmission queue, then those of the write queue.
    fn sending(socket: &TcpSocket, queues: &Queues) -> Vec<Skb> {
        let mut skbs = queues.rtx.clone();
        skbs.sort_by_key(|skb| skb.seq.wrapping_sub(socket.snd_una) as i32);
        skbs.extend_from_slice(&queues.write);
        skbs
    }

    fn send_is_whole(socket: &TcpSocket, queues: &Queues) -> bool {
        let skbs = Self::sending(socket, queues);
        queue::cut(&skbs, socket.snd_una, socket.write_seq, "send queue", socket.address).complete
    }

    fn bytes(&self) -> usize {
        self.send.cuts.iter().chain(&self.receive.cuts).map(|cut| cut.take as usize).sum()
    }
}

/// Gives each socket its receive queue and the measures of its send queue; says where the latter lies.
fn fill(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    sockets: &mut [TcpSocket],
    queues: Vec<Queues>,
) -> Result<Vec<Vec<Stretch>>, LinkError> {
    let mut drafts = Vec::with_capacity(sockets.len());
    let mut budget = PAYLOAD_BYTES_MAX;
    for (socket, mut queues) in sockets.iter_mut().zip(queues) {
        socket.damage.append(&mut queues.damage);
        let mut draft = Draft::new(socket, queues);
        match budget.checked_sub(draft.bytes()) {
            Some(left) => budget = left,
            None => {
                let fault = Fault::TooLong { limit: PAYLOAD_BYTES_MAX as u64 };
                socket.damage.push(Damage { at: socket.address, part: "queued bytes", fault });
                (draft.send, draft.receive) = (Plan::default(), Plan::default());
            }
        }
        drafts.push(draft);
    }
    let skbs: Vec<Skb> = drafts.iter().flat_map(|draft| &draft.skbs).copied().collect();
    let mut runs = payload::locate(kernel, memory, &skbs)?;
    let mut base = 0;
    for (socket, draft) in sockets.iter_mut().zip(&drafts) {
        prepare(socket, draft);
        for runs in &mut runs[base..base + draft.skbs.len()] {
            socket.damage.append(&mut runs.damage);
        }
        let contradicts = |cuts: &[Cut]| cuts.iter().any(|cut| runs[base + cut.skb].contradicts);
        if !socket.lock_held {
            socket.send_queue_complete &= !contradicts(&draft.send.cuts);
            socket.receive_queue_complete &= !contradicts(&draft.receive.cuts);
        }
        base += draft.skbs.len();
    }
    let mut slices = Vec::new();
    let mut owners = Vec::new();
    let mut base = 0;
    for (index, (socket, draft)) in sockets.iter_mut().zip(&drafts).enumerate() {
        let mut rest = socket.receive_queue.as_mut_slice();
        for cut in &draft.receive.cuts {
            let (into, later) = rest.split_at_mut(cut.take as usize);
            slices.push(Slice { runs: &runs[base + cut.skb], skip: cut.skip, into });
            owners.push(index);
            rest = later;
        }
        base += draft.skbs.len();
    }
    for slice in payload::fetch(kernel, memory, slices)? {
        let socket = &mut sockets[owners[slice]];
        socket.damage.push(Damage { at: socket.address, part: "sk_receive_queue", fault: Fault::Unreadable });
        socket.receive_queue_complete = false;
    }
    Ok(located(&drafts, &mut runs))
}

/// Where the send queue of each socket lies.
fn located(drafts: &[Draft], runs: &mut [Runs]) -> Vec<Vec<Stretch>> {
    let mut base = 0;
    let mut queued = Vec::with_capacity(drafts.len());
    for draft in drafts {
        // A buffer is cut once.
        let stretch = |cut: &Cut| {
            let runs = std::mem::take(&mut runs[base + cut.skb]);
            Stretch { runs, skip: cut.skip, take: cut.take as usize }
        };
        queued.push(draft.send.cuts.iter().map(stretch).collect());
        base += draft.skbs.len();
    }
    queued
}

/// Makes room for the bytes and takes over what is known without them.
fn prepare(socket: &mut TcpSocket, draft: &Draft) {
    debug_assert!(draft.sent <= draft.sending && draft.sending <= draft.skbs.len());
    socket.send_queue = draft
        .send
        .cuts
        .iter()
        .map(|cut| Segment {
            seq: cut.seq,
            end_seq: cut.seq.wrapping_add(cut.take).wrapping_add(cut.fin.into()),
            bytes: Vec::new(),
            sent: cut.skb < draft.sent,
            fin: cut.fin,
        })
        .collect();
    socket.receive_queue = vec![0; draft.receive.cuts.iter().map(|cut| cut.take as usize).sum()];
    socket.fin_queued |= draft.send.fin;
    socket.fin_received |= draft.receive.fin;
    socket.send_queue_complete = draft.send.complete;
    socket.receive_queue_complete = draft.receive.complete;
    socket.damage.extend_from_slice(&draft.send.damage);
    socket.damage.extend_from_slice(&draft.receive.damage);
}
