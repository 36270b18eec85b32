//! A requester on a socket: the carrier behind `remote_memory::Queue`.

use std::net::Ipv4Addr;
use std::time::Duration;

use remote_memory::{Completion, LinkError, Queue, Request};

use super::{Options, SocketError};
use crate::QpAttributes;

/// Carries our fresh attributes to the peer and returns the peer's: how a broken queue gets a new connection.
pub type Dialer = Box<dyn FnMut(QpAttributes) -> Result<QpAttributes, LinkError> + Send>;

/// A requester with its own socket.
pub struct SoftQueue {}

impl SoftQueue {
    /// Opens the sockets at `local`:`port`; returns the queue and the attributes its peer has to be told.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(local: Ipv4Addr, port: u16, options: Options) -> Result<(Self, QpAttributes), SocketError> {
        let _ = (local, port, options);
        unimplemented!()
    }

    /// Joins the queue to its peer. Until then nothing can be posted.
    ///
    /// # Errors
    /// [`LinkError::Misused`] if `remote` makes no sense.
    pub fn connect(&mut self, remote: QpAttributes) -> Result<(), LinkError> {
        let _ = remote;
        unimplemented!()
    }

    /// Sets how [`Queue::reconnect`] reaches the peer's control plane.
    pub fn set_dialer(&mut self, dialer: Dialer) {
        let _ = dialer;
        unimplemented!()
    }

    /// This end, as its peer has to know it. Changes with each reconnection.
    pub fn attributes(&self) -> QpAttributes {
        unimplemented!()
    }
}

impl Queue for SoftQueue {
    fn landing(&self) -> &[u8] {
        unimplemented!()
    }

    fn landing_mut(&mut self) -> &mut [u8] {
        unimplemented!()
    }

    fn depth(&self) -> usize {
        unimplemented!()
    }

    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
        let _ = requests;
        unimplemented!()
    }

    fn poll(&mut self, completions: &mut [Completion], wait: Duration) -> Result<usize, LinkError> {
        let _ = (completions, wait);
        unimplemented!()
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        unimplemented!()
    }

    fn is_broken(&self) -> bool {
        unimplemented!()
    }
}
