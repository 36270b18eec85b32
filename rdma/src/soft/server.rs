//! Many responders on one socket.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use remote_memory::LinkError;

use super::{Options, SocketError};
use crate::QpAttributes;
use crate::responder::{Counters, Memory};

/// Serves one [`Memory`] to any number of queue pairs.
pub struct Server<M> {
    memory: M,
}

/// Adds and removes queue pairs of a running [`Server`], from any thread.
#[derive(Clone)]
pub struct ServerHandle {
    _shared: Arc<()>,
}

/// What a server has done since it was bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// The work of all queue pairs, those removed included.
    pub work: Counters,
    /// Packets dropped before any queue pair saw them: malformed, wrong CRC, unknown queue pair or wrong peer.
    pub dropped: u64,
    /// Of those, packets whose invariant CRC was wrong.
    pub bad_icrc: u64,
    /// Queue pairs alive.
    pub queue_pairs: u64,
}

impl<M: Memory> Server<M> {
    /// Opens the sockets at `address`:`port`.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(address: Ipv4Addr, port: u16, memory: M, options: Options) -> Result<Self, SocketError> {
        let _ = (address, port, options);
        Ok(Self { memory })
    }

    /// The memory that is served.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ServerHandle {
        unimplemented!()
    }

    /// Serves until `stop` is set; notices within a tenth of a second.
    ///
    /// # Errors
    /// [`LinkError::Local`] if the socket fails.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<(), LinkError> {
        let _ = stop;
        unimplemented!()
    }
}

impl ServerHandle {
    /// Adds a queue pair for `remote`; returns our end of it, whose `path_mtu` is the smaller of both.
    ///
    /// # Errors
    /// [`LinkError::Misused`] if `remote` makes no sense or there are too many queue pairs.
    pub fn add(&self, remote: QpAttributes) -> Result<QpAttributes, LinkError> {
        let _ = remote;
        unimplemented!()
    }

    /// Removes our queue pair `number`; false if there is none.
    pub fn remove(&self, number: u32) -> bool {
        let _ = number;
        unimplemented!()
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
}
