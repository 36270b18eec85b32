//! What arrives at an application: sessions, ends of channels, testaments.

use super::message::{Resume, ResumeEnd};
use crate::channel::{ChannelEnd, Descriptors, EndImage};
use crate::shared::Slot;
use crate::testament::Testament;
use std::os::fd::OwnedFd;
use tokio::sync::mpsc::UnboundedSender;

/// A reinstated session that has arrived here.
#[derive(Debug)]
pub struct Handed {
    /// The order, to be answered with [`BoxClient::answer`](super::BoxClient::answer).
    pub order: Resume,
    /// Where its box lies.
    pub slot: Slot,
    /// Its live socket. A spare lets it linger for no time: whoever takes the session clears SO_LINGER, or its end
    /// will be a reset.
    pub socket: OwnedFd,
    /// Its ends of the session's channels.
    pub ends: Vec<HandedEnd>,
}

/// An end of a channel that has arrived here.
#[derive(Debug)]
pub struct HandedEnd {
    /// The order: a far end's is to be answered by itself.
    pub order: ResumeEnd,
    /// Where its record lies.
    pub slot: Slot,
    /// Its socket.
    pub socket: OwnedFd,
}

impl HandedEnd {
    /// The end, going on, and what its snapshot says.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn take(self) -> Result<(ChannelEnd<Descriptors>, EndImage), String> {
        let output = self.socket.try_clone().map_err(|why| why.to_string())?;
        let wire = Descriptors::adopt(self.socket, output).map_err(|why| why.to_string())?;
        ChannelEnd::import(self.slot, wire, self.order.discard).map_err(|why| why.to_string())
    }
}

/// Where what is handed over goes to.
#[derive(Debug)]
pub(super) struct Takers {
    pub(super) sessions: UnboundedSender<Handed>,
    pub(super) ends: UnboundedSender<HandedEnd>,
}

/// Who is told the testament of a machine whose sessions come here, before the first of them does. Called on the thread
/// that talks to the service: it must not wait for long.
pub struct Heir(Box<dyn Fn(Testament) + Send + Sync>);

impl Heir {
    /// Tells `told`.
    pub fn new(told: impl Fn(Testament) + Send + Sync + 'static) -> Self {
        Self(Box::new(told))
    }

    pub(super) fn tell(&self, testament: Testament) {
        (self.0)(testament);
    }
}

impl std::fmt::Debug for Heir {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Heir")
    }
}
