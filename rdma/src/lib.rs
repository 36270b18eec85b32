//! Mechanism: RoCEv2 reliable connections, pure state machines and a UDP loop.
//!
//! What is here, from the bytes up:
//!
//! * [`wire`]: the formats. Views over bytes, small owned representations, the invariant CRC.
//! * [`requester`] and [`responder`]: the two halves of a reliable connection as functions of bytes, state and a
//!   passed-in `now`. Neither knows a socket or a clock, so that a simulation can drive them through any weather.
//! * [`soft`]: the UDP loop that carries them over an ordinary network interface. Needs `CAP_NET_RAW` to see the IP
//!   header (the invariant CRC covers it), nothing more.
//! * `verbs`: the same two ends on an RDMA adapter, by libibverbs (feature `verbs`, on by default).
//!
//! What is deliberately absent: SEND and receive queues (nothing here passes messages; a control connection does),
//! unreliable transports, and everything about the kernel whose memory is read.
//!
//! Invariants: nothing a peer sends can panic us or touch memory that [`responder::Memory`] did not grant; an atomic
//! is executed exactly once however often its packets are lost or doubled; every wait and every retry is bounded.

mod attributes;
mod random;
pub mod requester;
pub mod responder;
pub mod soft;
#[cfg(feature = "verbs")]
pub mod verbs;
pub mod wire;

pub use attributes::{Dialed, PathMtu, QpAttributes};
