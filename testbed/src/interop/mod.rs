//! Two implementations of RoCEv2 work on each other's memory, and every byte is checked.
//!
//! ```text
//!   active end   plan.rs: which operations        conversation.rs (TCP)         passive end
//!   active.rs    a model of the memory     ◄────────────────────────────────►   passive.rs
//!       └── SoftQueue or VerbsQueue  ═══════════ RoCEv2, path of the caller's ══ Server or VerbsServer over words.rs
//! ```
//!
//! Both ends are the program `interop`, on the host or in a guest, each with the carrier it is told. The active end
//! knows what the memory has to hold after each operation: a byte that is wrong, an operation that was carried out
//! twice or in the wrong order, and a connection that ended are failures of the cell. The passive end only serves and
//! sums up what it holds. `pace.rs` measures instead, for `bench`.

pub mod active;
mod conversation;
pub mod matrix;
pub mod pace;
pub mod passive;
pub mod plan;
mod words;

use serde::{Deserialize, Serialize};

/// TCP port of the conversation.
pub const PORT: u16 = 4795;

/// What carries the packets of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// Our own RoCEv2 over UDP.
    Soft,
    /// An adapter, by libibverbs: rxe in a guest.
    Verbs,
}

impl Carrier {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Verbs => "verbs",
        }
    }
}
