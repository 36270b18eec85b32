//! Why a link does not work, and whose fault that is: the next step of a monitor follows from the variant.

use std::io;
use std::net::SocketAddr;

use control::FrameError;
use remote_memory::{AccessError, LinkError};

/// Which half of a link went silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// The control connection (TCP).
    Control,
    /// The memory connection (RoCEv2).
    Memory,
}

/// Why a call on a link failed. No variant says that the *target* is dead: a link only knows its own path and the
/// backdoor at its end.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailure {
    /// No conversation could be opened: the host of the backdoor is down, unreachable, or runs no backdoor.
    #[error("no backdoor answers at {backdoor}: {source}")]
    Unreachable {
        /// Where it was looked for.
        backdoor: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A conversation that worked has gone silent, half of it or all. Try again; the target may be well.
    #[error("the path to the backdoor at {backdoor} is lost ({half:?}): {why}")]
    PathLost {
        /// Where it was.
        backdoor: SocketAddr,
        /// What went silent.
        half: Half,
        /// What was seen.
        why: String,
    },
    /// The backdoor understood and said no.
    #[error("the backdoor refused: {why}")]
    Refused {
        /// Its sentence.
        why: String,
    },
    /// The guard refused a memory access that a ping or a region lookup needed.
    #[error("the backdoor's guard refused: {0}")]
    Access(#[from] AccessError),
    /// The backdoor speaks another version of the messages: one of the two sides needs an update.
    #[error("the backdoor speaks version {theirs} of the messages, this side speaks {}", control::VERSION)]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// The backdoor, or the machine behind it, was started anew since this link was made: every key and every fence
    /// of before is gone. The link itself works again from the next call on.
    #[error("the backdoor or its target was started anew: keys and fences of before are gone")]
    Restarted,
    /// The backdoor behind this address serves another target than the one this link was made for.
    #[error("the backdoor serves {found}, not {expected}")]
    OtherTarget {
        /// The target the link was made for.
        expected: String,
        /// The target the backdoor names.
        found: String,
    },
    /// The backdoor answered something that is no answer: a defect, or no backdoor at all.
    #[error("the peer at {backdoor} is no proper backdoor: {why}")]
    Nonsense {
        /// Who it was.
        backdoor: SocketAddr,
        /// What was wrong.
        why: String,
    },
    /// There is no region of this name (yet): the agent in the target has not registered it.
    #[error("the target has not registered a region named {0}")]
    NoRegion(String),
    /// This machine could not do its part: no socket, no address, no permission.
    #[error("this machine: {0}")]
    Local(String),
}

impl LinkFailure {
    /// Whether the path is at fault, so that nothing follows for the target or its backdoor.
    pub fn is_path(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::PathLost { .. })
    }

    /// A failed exchange of control messages with `backdoor`.
    pub(crate) fn of_frame(backdoor: SocketAddr, error: FrameError) -> Self {
        match error {
            FrameError::Closed | FrameError::Stream(_) => {
                Self::PathLost { backdoor, half: Half::Control, why: error.to_string() }
            }
            FrameError::TooLong(_) | FrameError::Unknown(_) => Self::Nonsense { backdoor, why: error.to_string() },
        }
    }

    /// A failed memory operation over the queue pair to `backdoor`.
    pub fn of_memory(backdoor: SocketAddr, error: LinkError) -> Self {
        match error {
            LinkError::Lost { .. } => Self::PathLost { backdoor, half: Half::Memory, why: error.to_string() },
            LinkError::Local(_) | LinkError::Misused(_) => Self::Local(error.to_string()),
        }
    }
}
