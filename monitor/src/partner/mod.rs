//! Two monitors for the same targets: the first acts; the second watches as well and acts only where the first cannot.
//!
//! ```text
//!   first  ──► second     words, over one TCP connection that the second opens: "I live", and for each target its
//!                         claim, whether the path to it is lost, the fence that stands and who has the order
//! ```
//!
//! The rule of the second, for a target that it has itself found hung:
//!
//! | the first | the second |
//! |---|---|
//! | speaks, has its path | leaves the target to the first |
//! | speaks, says that its path is lost | acts, under a claim of its own: the backdoor lets one of the two fence |
//! | speaks, has fenced | leaves it to the first: orders travel another way than the target's memory |
//! | says that the sessions were taken over | takes note |
//! | has been silent for longer than agreed | finishes what the first began: its claim, its token, the spare it told |
//!
//! What keeps one incident from being healed twice is decided at the backdoor, which gives a standing fence to nobody
//! but its claim. The first tells what it is about to order before the order leaves, by a write that outlives it. What
//! remains: two monitors that cannot reach each other while both reach backdoor and spares. The second then repeats the
//! first one's order, under the same token, to the spare it was told of; only if the fence was made in the very moment
//! of the separation does it not know the spare, and asks them in the configured order.

mod deputy;
mod herald;

use std::collections::BTreeMap;

use control::backdoor::FenceToken;
use serde::{Deserialize, Serialize};

pub use deputy::Deputy;
pub use herald::Herald;

/// What the first monitor says, now and then and whenever something changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// See [`control::VERSION`].
    pub version: u32,
    /// Who speaks.
    pub monitor: String,
    /// Targets that changed; all of them in the first word of a connection.
    pub targets: Vec<TargetWord>,
}

/// What the first monitor says of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetWord {
    /// Its name.
    pub target: String,
    /// Names the first monitor's fences of it.
    pub claim: u64,
    /// Whether the first monitor has lost its path: it asks to be stood in for.
    pub is_path_lost: bool,
    /// The fence it made.
    pub incident: Option<IncidentWord>,
}

/// How far the first monitor has got with a hung target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentWord {
    /// The fence.
    pub token: FenceToken,
    /// Which spare has, or is about to have, which part of the work.
    pub holders: BTreeMap<u32, String>,
    /// Whether the evacuation has ended.
    pub is_done: bool,
}

/// The other monitor, from this one's side.
#[derive(Clone, Debug, Default)]
pub enum Partner {
    /// There is none.
    #[default]
    None,
    /// This monitor is the first; somebody may listen.
    First(Herald),
    /// This monitor is the second.
    Second(Deputy),
}

/// What the second monitor is to do about a hung target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Act as if there were no other monitor.
    Act,
    /// Leave it to the first.
    Hold {
        /// Why.
        why: String,
    },
    /// The first has brought it to its end.
    Done,
    /// Act in the first one's place.
    StandIn {
        /// Why.
        why: String,
        /// The claim to fence under, if it is to be the first one's.
        claim: Option<u64>,
        /// What the first one began.
        incident: Option<IncidentWord>,
    },
}

impl Duty {
    /// Whether the target is this monitor's to repair in place: not while the other one can, and not once it is fenced.
    pub fn lets_repair(&self) -> bool {
        matches!(self, Self::Act | Self::StandIn { incident: None, .. })
    }
}

impl Partner {
    /// What is to be done about `target`, which this monitor has found hung.
    pub fn duty(&self, target: &str) -> Duty {
        match self {
            Self::Second(deputy) => deputy.duty(target),
            Self::None | Self::First(_) => Duty::Act,
        }
    }

    /// Tells the second monitor, if this is the first and there is one.
    pub fn tell(&self, word: TargetWord) {
        if let Self::First(herald) = self {
            herald.tell(word);
        }
    }
}
