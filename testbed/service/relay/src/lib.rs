//! A front end that hands request bodies to a separate worker process, as one session: what `contbox::channel` is
//! exercised with.
//!
//! ```text
//!   client ─ requests ─► front end ─── bodies ──► worker      a pipe each way, or one Unix socket
//!   client ◄─ answers ──    │      ◄── replies ──    │
//!                        its box                  its box     each exports at its own moments
//! ```
//! As a service ([`Served`]) it has clients over TCP, and goes on elsewhere with them. Otherwise the client is played,
//! for looks at memory from outside: request n has a body that follows from n, as a client repeats what it sent, and
//! what the client has of the answers is kept in a box's log ([`Outside`]), as a kernel keeps what a socket has sent.
//! Each reply depends on all bodies before it, so that a byte that is lost or comes twice changes everything after it.

mod front;
pub mod hold;
pub mod outside;
pub mod served;
mod worker;

pub use front::Front;
pub(crate) use front::reply;
pub use outside::{ANSWER_BYTES, Answer, Outside};
pub use served::Served;
pub use worker::Worker;

/// Requests on their way at once.
pub const DEPTH: u64 = 4;

/// The role of a worker.
pub const ROLE: &str = "relay-worker";

/// Replies between two exports of a front end.
const EXPORT_EVERY: u64 = 4;

/// Bodies and replies are shorter, so that three of them fit into a log together with half-read frames.
const BODY_BYTES_MAX: u64 = 3000;
const PADDING_BYTES_MAX: u64 = 700;

/// The body of request `number`: mostly some hundred bytes, never none.
pub fn body(number: u64) -> Vec<u8> {
    let length = 1 + mix(number, 1) % if number.is_multiple_of(5) { BODY_BYTES_MAX } else { 300 };
    (0..length).map(|at| mix(number, at) as u8).collect()
}

/// The worker's state after one more body.
pub fn digest(sum: u64, body: &[u8]) -> u64 {
    mix(sum, u64::from(crc32fast::hash(body)))
}

/// What the worker has after the first `requests`.
pub fn digest_after(requests: u64) -> u64 {
    (0..requests).fold(0, |sum, number| digest(sum, &body(number)))
}

/// Bytes that make replies of different lengths.
fn padding(sum: u64) -> usize {
    (sum % PADDING_BYTES_MAX) as usize
}

fn mix(sum: u64, more: u64) -> u64 {
    (sum ^ more.wrapping_add(0x632b_e59b_d9b4_e019)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// Numbers as a box keeps them.
fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn number(bytes: &[u8], index: usize) -> u64 {
    let word = bytes.get(8 * index..8 * index + 8).and_then(|bytes| bytes.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}
