//! The memory half of a link: a queue pair whose dialer speaks over the link's own conversation.
//!
//! A queue pair lives as long as the control connection it was asked for on. When a connection was dialled anew, the
//! old pair is gone at the backdoor, and [`follow`] replaces it before anybody waits for its silence.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use control::backdoor::{MemoryWindow, Reply, Request};
use rdma::soft::SoftQueue;
use rdma::verbs::{Call, Choice, VerbsQueue};
use rdma::{Dialed, QpAttributes};
use remote_memory::{Blocking, LinkError, RemoteKey, Window};

use crate::carrier::{Carried, Carrier};
use crate::conversation::Conversation;
use crate::{LinkFailure, Options, locked};

/// The target's memory at the end of a link: batched reads, and writes under a warrant.
pub type Memory = Blocking<Carried>;

/// Which connection of the conversation the queue pair was asked for on, by its number.
pub(crate) type PairedOn = Arc<AtomicU64>;

/// Opens a queue pair at `local` and joins it to the backdoor of `conversation`.
pub(crate) fn open(
    conversation: &Arc<Mutex<Conversation>>,
    local: Ipv4Addr,
    options: &Options,
) -> Result<(Memory, PairedOn), LinkFailure> {
    let paired = Arc::new(AtomicU64::new(0));
    let queue = match &options.carrier {
        Carrier::Soft => Carried::Soft(Box::new(soft(conversation, &paired, local, options)?)),
        Carrier::Verbs { device, port } => {
            let choice = Choice { local, device: device.clone(), port: *port };
            Carried::Verbs(Box::new(verbs(conversation, &paired, choice, options)?))
        }
    };
    Ok((Blocking::new(queue, options.memory_patience), paired))
}

fn soft(
    conversation: &Arc<Mutex<Conversation>>,
    paired: &PairedOn,
    local: Ipv4Addr,
    options: &Options,
) -> Result<SoftQueue, LinkFailure> {
    let Options { landing_bytes, depth, spin, .. } = *options;
    let usual = rdma::soft::Options::default();
    let settings = rdma::soft::Options { landing_bytes, depth, spin: spin.unwrap_or(usual.spin), ..usual };
    let opened = match &options.hub {
        Some(hub) => SoftQueue::open_at(hub, local, options.port, settings),
        None => SoftQueue::open(local, options.port, settings),
    };
    let (mut queue, ours) = opened.map_err(|error| LinkFailure::Local(error.to_string()))?;
    let theirs = negotiate(conversation, Some(paired), ours, vec![])?;
    let backdoor = locked(conversation).backdoor();
    queue.connect(theirs).map_err(|error| LinkFailure::of_memory(backdoor, error))?;
    let (dialed, counter) = (Arc::clone(conversation), Arc::clone(paired));
    queue.set_dialer(Box::new(move |ours| dial(&dialed, Some(&counter), ours, &[])));
    Ok(queue)
}

fn verbs(
    conversation: &Arc<Mutex<Conversation>>,
    paired: &PairedOn,
    choice: Choice,
    options: &Options,
) -> Result<VerbsQueue, LinkFailure> {
    let Options { landing_bytes, depth, spin, .. } = *options;
    // An adapter gives up by itself, within half the patience: who has more of it is to keep the connection.
    let usual = rdma::verbs::Options::default();
    let timeout = usual.timeout * u32::try_from(options.memory_patience.as_secs()).unwrap_or(1).max(1);
    let spin = spin.unwrap_or(usual.spin);
    let settings = rdma::verbs::Options { landing_bytes, depth, spin, timeout, ..usual };
    let opened = VerbsQueue::open(choice, settings);
    let (mut queue, ours) = opened.map_err(|error| LinkFailure::Local(error.to_string()))?;
    let theirs = negotiate(conversation, Some(paired), ours, vec![])?;
    let backdoor = locked(conversation).backdoor();
    queue.connect(theirs).map_err(|error| LinkFailure::of_memory(backdoor, error))?;
    let (dialed, counter) = (Arc::clone(conversation), Arc::clone(paired));
    queue.set_dialer(Box::new(move |call: Call| {
        // One that stands by says nothing about the one in use: whether that is gone shows by the connection's number.
        let counter = (!call.is_standby).then_some(&*counter);
        dial(&dialed, counter, call.ours, &call.keep)
    }));
    Ok(queue)
}

/// Replaces the queue pair if the control connection it belonged to is gone. A failure is left to the next operation,
/// which meets it again and has somebody to tell.
pub(crate) fn follow(memory: &mut Memory, paired: &AtomicU64, conversation: &Mutex<Conversation>) {
    let stale = paired.load(Ordering::Relaxed) != locked(conversation).dials();
    match stale.then(|| memory.queue_mut().replace()) {
        Some(Err(error)) => tracing::debug!(%error, "no new queue pair yet"),
        Some(Ok(())) => {}
        None => memory.queue().tend(),
    }
}

fn negotiate(
    conversation: &Mutex<Conversation>,
    paired: Option<&AtomicU64>,
    ours: QpAttributes,
    keep: Vec<u32>,
) -> Result<Dialed, LinkFailure> {
    let mut conversation = locked(conversation);
    match conversation.ask_anyone(&Request::Connect { pair: ours.into(), keep })? {
        Reply::Connected { pair, window, further } => {
            if let Some(paired) = paired {
                paired.store(conversation.dials(), Ordering::Relaxed);
            }
            Ok(Dialed { remote: pair.into(), window: window.map(to_window), further: further.into() })
        }
        other => Err(conversation.nonsense(&other)),
    }
}

/// What the queue calls for a new connection. A backdoor that was started anew is met here with a queue pair and old
/// keys: the guard refuses those, so nothing of before can be mistaken for now.
fn dial(
    conversation: &Mutex<Conversation>,
    paired: Option<&AtomicU64>,
    ours: QpAttributes,
    keep: &[u32],
) -> Result<Dialed, LinkError> {
    let outcome = match negotiate(conversation, paired, ours, keep.to_vec()) {
        // The connection had died unnoticed; this dials anew.
        Err(LinkFailure::PathLost { .. }) => negotiate(conversation, paired, ours, keep.to_vec()),
        outcome => outcome,
    };
    outcome.map_err(|failure| {
        tracing::warn!(%failure, "no new queue pair");
        if failure.is_path() { LinkError::Lost { tries: 1 } } else { LinkError::Local(failure.to_string()) }
    })
}

fn to_window(window: MemoryWindow) -> Window {
    let MemoryWindow { list, data, pieces_max } = window;
    Window { list: RemoteKey::new(list), data: RemoteKey::new(data), pieces_max }
}
