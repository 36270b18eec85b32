//! The UDP loop that carries requester and responder.

mod error;
mod options;
mod queue;
mod server;

pub use error::SocketError;
pub use options::{Options, PORT};
pub use queue::{Dialer, SoftQueue};
pub use server::{Server, ServerHandle, Stats};
