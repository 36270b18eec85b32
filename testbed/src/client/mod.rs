//! Clients that check. Each session is one TCP connection of an unmodified client's kind: it knows nothing of
//! recovery, never reconnects, and compares every byte it gets with the byte that belongs at that offset.
//!
//! Sessions are blocking threads: what a client sees is when `read` returns, and nothing here may blur that. Only those
//! that are silent while it counts share threads, because there may be thousands of them: see [`silent_crowd`].

pub mod content;
mod crowd;
pub(crate) mod http;
mod plan;
mod session;

pub use crowd::{SILENT_ALONE_MAX, silent_crowd};
pub use plan::{Kind, Plan, mix};
pub use session::{Arrival, Outcome, Session, Signals};
