//! The limits of a software queue pair, each with its reason.

use std::time::Duration;

use crate::PathMtu;
use crate::responder::Resumption;

/// The UDP port that IANA assigned to RoCEv2.
pub const PORT: u16 = 4791;

/// Settings of a [`super::SoftQueue`] or a [`super::Server`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Upper limit of the payload per packet; the interface's own MTU lowers it further.
    pub path_mtu: PathMtu,
    /// READs and atomics this end answers, or asks for, at the same time: enough to keep both ends busy for one
    /// batch of packets while the next one is on its way.
    pub reads_in_flight: u16,
    /// Operations that may be posted and not yet completed.
    pub depth: usize,
    /// Size of the landing buffer.
    pub landing_bytes: usize,
    /// Wait for an answer before the first repetition; doubles with each one, and adapts upwards to the measured
    /// round trip.
    pub timeout: Duration,
    /// Transmissions without any progress before the peer counts as lost.
    pub tries: u32,
    /// How long to poll the socket without sleeping before a wait blocks: a sleeping process wakes some 50 µs late,
    /// a spinning one costs a core.
    pub spin: Duration,
    /// Receive and send buffer asked of the kernel. What is granted bounds the packets in flight.
    pub socket_buffer_bytes: usize,
    /// How a server answers READs that are repeated from their middle: a matter of the adapters that ask.
    pub resumption: Resumption,
    /// Of a million packets made, how many are not sent, and of a million received, how many are dropped: a path that
    /// is bad in both directions if one end has this, for tests where the kernel cannot make one.
    #[doc(hidden)]
    pub loss_ppm: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path_mtu: PathMtu::MAX,
            reads_in_flight: 128,
            depth: 4096,
            landing_bytes: 4 << 20,
            timeout: Duration::from_millis(2),
            tries: 9,
            spin: Duration::from_micros(50),
            socket_buffer_bytes: 8 << 20,
            resumption: Resumption::default(),
            loss_ppm: 0,
        }
    }
}
