//! A channel out of a dead machine: both its ends and what each of them is given, and how it is laid down elsewhere.
//!
//! ```text
//!   near: its process has the session's connection       far: a process that has no connection, under a role
//!     to_near  input of the near end  ─┬─ as much as its log holds: in its record
//!     to_far   input of the far end   ─┘  the rest: as frames in a new Unix socket, which both ends get
//! ```
//! The new channel is a Unix socket, whatever the old one was: frames are the same, and one descriptor is enough.

use std::io;
use std::os::fd::OwnedFd;

use super::end::lay_down;
use super::plan::{Loss, Plan};
use super::record::{EndImage, Identity, Place};
use super::wire::Descriptors;
use crate::continuation::ExportError;
use crate::shared::Slot;

/// Both ends of a channel, and the plans for its two directions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundChannel {
    /// The end of the process with the connection, as the connection's snapshot says that it stood.
    pub near: EndImage,
    /// The other.
    pub far: EndImage,
    /// What is done about the direction from far to near.
    pub to_near: Plan,
    /// What is done about the direction from near to far.
    pub to_far: Plan,
}

impl FoundChannel {
    /// Plans for both directions; `near_waiting` and `far_waiting` are what the kernel had for the input of each.
    ///
    /// # Errors
    /// [`Loss`]: the session cannot be resumed.
    pub fn of(near: EndImage, far: EndImage, near_waiting: &[Vec<u8>], far_waiting: &[Vec<u8>]) -> Result<Self, Loss> {
        let to_near = Plan::of(&near, &far, near_waiting)?;
        let to_far = Plan::of(&far, &near, far_waiting)?;
        Ok(Self { near, far, to_near, to_far })
    }

    /// Bytes that are given to readers again.
    pub fn bytes(&self) -> u64 {
        (self.to_near.give_reader.len() + self.to_far.give_reader.len()) as u64
    }

    /// Makes the new socket, with what does not fit into logs of `log_bytes`.
    ///
    /// # Errors
    /// Those of the operating system; `WouldBlock` if the socket does not hold what the old one held.
    pub fn lay(self, log_bytes: u32) -> io::Result<LaidChannel> {
        let [mut near, mut far] = Descriptors::sockets()?;
        let rest = |plan: &Plan, reader: &Identity| plan.split(log_bytes, reader.input()).1;
        far.send_now(&rest(&self.to_near, &self.near.identity))?;
        near.send_now(&rest(&self.to_far, &self.far.identity))?;
        Ok(LaidChannel { found: self, near: near.into_files().0, far: far.into_files().0 })
    }
}

/// A channel that is ready to be taken by both its ends.
#[derive(Debug)]
pub struct LaidChannel {
    /// What it was.
    pub found: FoundChannel,
    /// The near end's socket.
    pub near: OwnedFd,
    /// The far end's.
    pub far: OwnedFd,
}

impl LaidChannel {
    /// Writes the near end's record into a slot of `owner`, as one of the connection at `place`. Who takes it fills in
    /// itself.
    ///
    /// # Errors
    /// [`ExportError::TooLong`] if boxes here are smaller than those were.
    pub fn record_near(&self, slot: &Slot, owner: u32, place: Place) -> Result<(), ExportError> {
        let identity = Identity { role: 0, connection: Some(place), ..self.found.near.identity };
        lay_down(slot, owner, nobody(identity), &self.found.near, &self.found.to_near).map(drop)
    }

    /// The same for the far end.
    ///
    /// # Errors
    /// [`ExportError::TooLong`]
    pub fn record_far(&self, slot: &Slot, owner: u32) -> Result<(), ExportError> {
        lay_down(slot, owner, nobody(self.found.far.identity), &self.found.far, &self.found.to_far).map(drop)
    }
}

/// Nobody's process and no files: those of the dead machine mean others here.
fn nobody(identity: Identity) -> Identity {
    Identity { pid: 0, input: super::File::default(), output: super::File::default(), ..identity }
}
