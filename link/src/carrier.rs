//! What carries the memory half of a link: RoCEv2 over UDP, or an RDMA adapter of this machine.
//!
//! Both speak the same on the wire and need the same few numbers of the peer, so either reaches a `backdoor` as well as
//! an adapter of a target.

use std::time::Duration;

use rdma::soft::SoftQueue;
use rdma::verbs::VerbsQueue;
use remote_memory::{Completion, LinkError, Queue, Request, Window};

/// Which carrier, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// RoCEv2 of our own over UDP.
    #[default]
    Soft,
    /// The RDMA adapter that has the local address.
    Verbs {
        /// Its name, where several have the address.
        device: Option<String>,
        /// Its port, where it has several.
        port: Option<u8>,
    },
}

/// A queue on one of the carriers.
#[derive(Debug)]
pub enum Carried {
    /// On UDP.
    Soft(Box<SoftQueue>),
    /// On an adapter.
    Verbs(Box<VerbsQueue>),
}

/// The same call on whichever it is.
macro_rules! each {
    ($self:ident, $queue:ident => $call:expr) => {
        match $self {
            Carried::Soft($queue) => $call,
            Carried::Verbs($queue) => $call,
        }
    };
}

impl Carried {
    /// Dials anew: the peer has given up what it had for us.
    pub(crate) fn replace(&mut self) -> Result<(), LinkError> {
        match self {
            Self::Soft(queue) => queue.reconnect(),
            Self::Verbs(queue) => queue.replace(),
        }
    }

    /// The peer's control plane has answered: what needs it may be made up for. Returns at once.
    pub(crate) fn tend(&self) {
        if let Self::Verbs(queue) = self {
            queue.tend();
        }
    }

    /// How often requests had to be sent again. Adapters do not say.
    pub(crate) fn repetitions(&self) -> u64 {
        match self {
            Self::Soft(queue) => queue.counters().go_backs,
            Self::Verbs(_) => 0,
        }
    }
}

impl Queue for Carried {
    fn landing(&self) -> &[u8] {
        each!(self, queue => queue.landing())
    }

    fn landing_mut(&mut self) -> &mut [u8] {
        each!(self, queue => queue.landing_mut())
    }

    fn depth(&self) -> usize {
        each!(self, queue => queue.depth())
    }

    fn packet_bytes(&self) -> usize {
        each!(self, queue => queue.packet_bytes())
    }

    fn window(&self) -> Option<Window> {
        each!(self, queue => queue.window())
    }

    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
        each!(self, queue => queue.post(requests))
    }

    fn poll(&mut self, completions: &mut [Completion], wait: Duration) -> Result<usize, LinkError> {
        each!(self, queue => queue.poll(completions, wait))
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        each!(self, queue => queue.reconnect())
    }

    fn is_broken(&self) -> bool {
        each!(self, queue => queue.is_broken())
    }
}
