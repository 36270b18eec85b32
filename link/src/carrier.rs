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

/// Longest name of an adapter, in bytes. Source: IB_DEVICE_NAME_MAX.
const DEVICE_BYTES_MAX: usize = 63;

impl Carrier {
    /// What the keys `carrier`, `device` and `device_port` of a configuration mean together.
    ///
    /// # Errors
    /// The key at fault, and what is wrong with it.
    pub fn configured(
        is_verbs: bool,
        device: Option<String>,
        port: Option<u8>,
    ) -> Result<Self, (&'static str, &'static str)> {
        if device.as_ref().is_some_and(|name| name.is_empty() || name.len() > DEVICE_BYTES_MAX) {
            return Err(("device", "no name of an RDMA adapter; `rdma link` shows them"));
        }
        match (is_verbs, device, port) {
            (true, _, Some(0)) => Err(("device_port", "ports of adapters are counted from 1")),
            (true, device, port) => Ok(Self::Verbs { device, port }),
            (false, None, None) => Ok(Self::Soft),
            (false, Some(_), _) => Err(("device", ADAPTERS_ONLY)),
            (false, None, Some(_)) => Err(("device_port", ADAPTERS_ONLY)),
        }
    }
}

const ADAPTERS_ONLY: &str = "has a meaning with carrier = \"verbs\" only; set that or leave this out";

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
    /// The queue on UDP, if it is one: it counts its packets.
    pub fn soft(&self) -> Option<&SoftQueue> {
        match self {
            Self::Soft(queue) => Some(queue),
            Self::Verbs(_) => None,
        }
    }

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
        self.soft().map_or(0, |queue| queue.counters().go_backs)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_of_an_adapter_and_ports_begin_with_1() {
        let configured = |is_verbs, device: Option<&str>, port| {
            Carrier::configured(is_verbs, device.map(str::to_owned), port).map_err(|(key, _)| key)
        };
        assert_eq!(configured(false, None, None), Ok(Carrier::Soft));
        assert_eq!(configured(true, None, None), Ok(Carrier::Verbs { device: None, port: None }));
        let whole = Carrier::Verbs { device: Some("mlx5_0".into()), port: Some(2) };
        assert_eq!(configured(true, Some("mlx5_0"), Some(2)), Ok(whole));
        assert_eq!(configured(true, Some(""), None), Err("device"));
        assert_eq!(configured(true, Some(&"x".repeat(64)), None), Err("device"));
        assert_eq!(configured(true, None, Some(0)), Err("device_port"));
        assert_eq!(configured(false, Some("rxe0"), Some(1)), Err("device"));
        assert_eq!(configured(false, None, Some(1)), Err("device_port"));
    }
}
