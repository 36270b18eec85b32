//! What a queue sends and receives through: sockets of its own, or a place at a [`Hub`].

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::SocketError;
use super::hub::{Berth, Hub};
use super::socket::{Arrived, Bad, Socket};
use crate::PathMtu;
use crate::random;

/// Numbers tried before a hub counts as full; with thousands of queues on it, one in thousands is taken.
const NUMBERS_TRIED_MAX: usize = 64;

pub(super) enum Port {
    Own(Box<Socket>),
    Shared(Berth),
}

impl Port {
    pub(super) fn own(socket: Socket) -> Self {
        Self::Own(Box::new(socket))
    }

    pub(super) fn at(hub: &Hub) -> Self {
        Self::Shared(hub.berth())
    }

    pub(super) fn mtu(&self) -> PathMtu {
        match self {
            Self::Own(socket) => socket.mtu(),
            Self::Shared(berth) => berth.mtu(),
        }
    }

    pub(super) fn window_packets(&self, mtu: PathMtu) -> u32 {
        match self {
            Self::Own(socket) => socket.window_packets(mtu),
            Self::Shared(berth) => berth.window_packets(mtu),
        }
    }

    /// Takes packets for a fresh queue pair number only, from now on; returns the number.
    pub(super) fn renumber(&mut self) -> Result<u32, SocketError> {
        match self {
            Self::Own(socket) => {
                let number = random::queue_pair();
                socket.narrow(number)?;
                Ok(number)
            }
            Self::Shared(berth) => {
                let free = (0..NUMBERS_TRIED_MAX).map(|_| random::queue_pair()).find(|number| berth.narrow(*number));
                free.ok_or(SocketError::Kernel {
                    what: "find a free queue pair",
                    source: io::ErrorKind::AddrInUse.into(),
                })
            }
        }
    }

    /// Takes what has arrived, of sockets of its own `packets_max` packets at a time. `is_own_turn`: the caller waits,
    /// so nobody else may be receiving for it.
    pub(super) fn receive(&mut self, packets_max: usize, is_own_turn: bool) -> io::Result<usize> {
        match self {
            Self::Own(socket) => socket.receive(packets_max),
            Self::Shared(berth) => berth.receive(is_own_turn),
        }
    }

    pub(super) fn arrived(&self, index: usize) -> Result<Arrived<'_>, Bad> {
        match self {
            Self::Own(socket) => socket.arrived(index),
            Self::Shared(berth) => berth.arrived(index),
        }
    }

    pub(super) fn stage(
        &mut self,
        to: SocketAddrV4,
        make: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> io::Result<bool> {
        match self {
            Self::Own(socket) => socket.stage(to, make),
            Self::Shared(berth) => berth.stage(to, make),
        }
    }

    /// Sends what is staged; at a hub only if it is the caller's own turn to.
    pub(super) fn flush(&mut self, is_own_turn: bool) -> io::Result<()> {
        match self {
            Self::Own(socket) => socket.flush(),
            Self::Shared(berth) if is_own_turn => berth.flush(),
            Self::Shared(_) => Ok(()),
        }
    }

    pub(super) fn wait(&self, wait: Duration) -> io::Result<()> {
        match self {
            Self::Own(socket) => socket.wait(wait),
            Self::Shared(berth) => berth.wait(wait),
        }
    }

    pub(super) fn last_failure(&self) -> Option<String> {
        match self {
            Self::Own(socket) => socket.last_failure().map(ToString::to_string),
            Self::Shared(berth) => berth.last_failure(),
        }
    }
}
