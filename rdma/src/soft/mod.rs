//! RoCEv2 over the kernel's IP stack: the loops that carry requester and responder over an ordinary interface.
//!
//! * [`SoftQueue`] is the asking end, a [`remote_memory::Queue`] driven by the thread that uses it.
//! * [`Hub`] holds the sockets of many such queues, for a thread that asks many peers at once.
//! * [`Server`] is the serving end, one thread for any number of queue pairs, told about them by a [`ServerHandle`].
//!
//! Needs `CAP_NET_RAW` in its network namespace and nothing more (`CAP_NET_ADMIN` buys larger buffers). IPv4 only; no
//! TLS here or below: who may connect at all is the control connection's decision, and a sender on the path could
//! forge packets as with any RoCE.
//!
//! Invariants: a packet with a wrong invariant CRC, from another address or for another queue pair changes nothing but
//! a counter; no thread is started; every wait ends.

mod error;
mod filter;
mod hub;
mod options;
mod port;
mod queue;
mod server;
mod socket;
mod sys;

pub use error::SocketError;
pub use hub::Hub;
pub use options::{Options, PORT};
pub use queue::{Dialer, SoftQueue};
pub use server::{Server, ServerHandle, Stats};
