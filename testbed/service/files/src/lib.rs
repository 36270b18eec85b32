//! A recoverable HTTP/1.1 file server on hyper, and the content its clients can check without a copy.
//!
//! GET and HEAD with ranges, PUT with continuation, keep-alive, pipelining. Everything a response says depends on
//! the request and on content that target and spare share, so that a spare regenerates the same bytes: no inode, no
//! modification time, no clock but the session's own.

pub mod conditions;
pub mod content;
pub mod download;
pub mod pieces;
pub mod server;
pub mod synthetic;
pub mod upload;
