//! Reliable connections of an RDMA adapter, by libibverbs: hardware that speaks RoCEv2, or Linux' rxe.
//!
//! * [`VerbsQueue`] is the asking end, a [`remote_memory::Queue`] driven by the thread that uses it.
//! * [`VerbsServer`] is the answering end: memory registered with the least rights, and queue pairs that reach it. Once
//!   a queue pair is joined, no process of the answering machine takes part in anything.
//!
//! libibverbs is loaded when it is first needed (docs/decisions/0019-verbs.md); a machine without it, or without an
//! adapter, gets an error that says what is missing and what there is. Which adapter is meant follows from the address
//! to speak from ([`Choice`]). IPv4 only, as everything here.
//!
//! What is deliberately absent: SEND and receive queues, unreliable transports, the connection manager of librdmacm
//! (a control conversation carries the few numbers), extended completion queues (broken for rxe in rdma-core 44).
//!
//! Invariants: values close themselves in the order that libibverbs asks for, so that nothing is left behind by what
//! went out of scope; memory is never written by an adapter after the value that owned it is gone; nothing a peer
//! sends is more than a number to us; every wait ends; no repetition is without end. All of this crate's unsafe code
//! towards libibverbs is in this folder.
//!
#![allow(unsafe_code)]

mod adapter;
mod domain;
mod engine;
mod error;
#[doc(hidden)]
pub mod ffi;
mod landing;
mod library;
mod manners;
mod options;
mod pair;
mod patience;
mod ports;
mod queue;
mod server;
mod slots;
mod work;

pub use adapter::{Adapter, Event, Limits};
pub use domain::Registered;
pub use engine::{Call, Dialer};
pub use error::VerbsError;
pub use options::Options;
pub use ports::{CLASS, Choice, Port, choose, describe, list};
pub use queue::VerbsQueue;
pub use server::{PAIRS_MAX, VerbsServer};
