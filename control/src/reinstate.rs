//! What a monitor says to the `reinstate` daemon of a spare, over TCP. One request, one reply, in order.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{Hello, backdoor::FenceToken};

/// The default TCP port of a spare's control plane.
pub const PORT: u16 = 4792;

/// A request to a spare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Opens the conversation; answered by [`Reply::Welcome`].
    Hello(Hello),
    /// Asks the spare to get ready for a target while it is healthy: connect to its backdoor, learn its kernel, check
    /// that the service runs here. Idempotent; answered by [`Reply::Ready`] or [`Reply::NotReady`].
    Prepare(Assignment),
    /// Hands over a fenced target; answered by [`Reply::Evacuated`] when every session is live or given up.
    Evacuate(Evacuation),
}

/// A target a spare stands by for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Name of the target.
    pub target: String,
    /// Control address of the target's backdoor.
    pub backdoor: SocketAddr,
    /// The addresses that move, with the ports that are served there.
    pub services: Vec<Service>,
}

/// One address and its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The address clients connect to.
    pub address: IpAddr,
    /// The TCP ports to carry over.
    pub ports: Vec<u16>,
}

/// Orders a spare to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuation {
    /// Proof that the target is fenced.
    pub token: FenceToken,
    /// Upper bound of the time since the target last showed life, in milliseconds.
    pub silent_ms: u64,
    /// What was assigned (again, so that a restarted spare can act).
    pub assignment: Assignment,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The conversation is open.
    Welcome {
        /// See [`crate::VERSION`].
        version: u32,
    },
    /// Everything that can be done beforehand is done.
    Ready {
        /// The target's kernel release, as its memory says.
        kernel: String,
    },
    /// What stands in the way.
    NotReady {
        /// A sentence for people.
        why: String,
    },
    /// The evacuation has ended.
    Evacuated(Report),
    /// Nothing was taken over, and why.
    Refused {
        /// A sentence for people.
        why: String,
    },
}

/// How an evacuation went. Times are counted from the moment the order arrived, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Every session that was found, live or not.
    pub sessions: Vec<Session>,
    /// Stages in the order in which they began.
    pub stages: Vec<Stage>,
    /// What was wrong in the target's memory, in words; bounded.
    pub damage: Vec<String>,
}

/// A stretch of an evacuation: `extract`, `probe`, `rebuild`, `address`, `resume`, ….
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Begin, in microseconds since the order.
    pub begin_us: u64,
    /// End, in microseconds since the order.
    pub end_us: u64,
}

/// One client connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The service's end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// What became of it.
    pub outcome: Outcome,
    /// Bytes put back into the receive log and the send queue.
    pub bytes: u64,
    /// When it was live again, in microseconds since the order.
    pub live_us: Option<u64>,
}

/// What became of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The application has it and the client will not notice.
    Resumed,
    /// It cannot be resumed; the client was reset.
    Lost {
        /// Why, in a sentence for people.
        why: String,
    },
}
