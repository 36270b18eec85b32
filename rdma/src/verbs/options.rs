//! The limits of a queue pair on an adapter, each with its reason.

use std::time::Duration;

/// Settings of a [`super::VerbsQueue`] or a [`super::VerbsServer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Operations that may be posted and not yet completed; adapters have their own limit.
    pub depth: usize,
    /// Size of the landing buffer.
    pub landing_bytes: usize,
    /// WRITEs up to this many bytes travel inside the request, which saves the adapter a read of our memory.
    pub inline_bytes: u32,
    /// Wait for an answer before the first repetition. rxe counts in ticks of its kernel, 4 ms as a rule; adapters
    /// round up as well.
    pub timeout: Duration,
    /// Repetitions before the peer counts as lost, 6 at most. With the time-out, some 0.5 s in all: longer than a
    /// software adapter waits for a processor on a machine that drowns in processes (0.1 s was not: orders to end them
    /// never arrived), shorter than the patience of those who wait.
    pub retries: u8,
    /// Traffic class of the packets: the six upper bits are the DSCP by which switches know traffic that must not be
    /// lost, where they are set up for it.
    pub traffic_class: u8,
    /// How long to look for completions without sleeping before a wait blocks, at most: a queue looks for twice as long
    /// as its answers usually take. Software adapters in emulated guests answer within half a millisecond.
    pub spin: Duration,
    /// Connections that stand by, joined to the peer already: one refused access ends a connection, and the next one
    /// is there at once. Two, so that one is left while the other is made up for.
    pub standbys: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: 4096,
            landing_bytes: 4 << 20,
            inline_bytes: 64,
            timeout: Duration::from_millis(67),
            retries: 6,
            traffic_class: 0,
            spin: Duration::from_millis(1),
            standbys: 2,
        }
    }
}
