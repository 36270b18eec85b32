//! Contract: Continuation Boxes. A box holds, in memory that a spare can read when this machine is dead, what one
//! session needs to go on elsewhere: the application's light-weight snapshot (LWS), the stream offsets it stands at,
//! and the input read since.
//!
//! | module | idea |
//! |---|---|
//! | [`layout`] | the bytes of a pool of boxes |
//! | [`reader`] | a spare's side: sessions out of untrusted bytes |
//! | [`testament`] | what all boxes of a service said, also those whose sessions are lost |
//! | [`shared`] | the mapping of a pool; the only `unsafe` of this crate |
//! | [`continuation`] | the API the paper names: create, export_state, import_state |
//! | [`service`] | who leases which slot, and how a reinstated socket reaches its application |
//! | [`stream`], [`listener`] | TCP connections that survive their machine, for tokio |
//! | [`channel`] | pipes and Unix sockets between the processes of one session |
//! | [`http`] | makes a hyper server recoverable by changing its acceptor |
//!
//! Stream offsets count bytes from the start of the connection as the application sees it, never sequence numbers.

pub mod channel;
pub mod continuation;
pub mod http;
pub mod layout;
pub mod listener;
pub mod reader;
pub mod service;
pub mod shared;
pub mod stream;
pub mod testament;

pub use continuation::{ContinuationBox, Opening};
pub use layout::Geometry;
pub use listener::{Accepted, RecoverableListener};
pub use reader::{BoxImage, Snapshot};
pub use shared::Pool;
pub use stream::{RecoverableStream, Session};
pub use testament::Testament;
