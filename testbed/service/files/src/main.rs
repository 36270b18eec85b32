//! A recoverable HTTP/1.1 file server on hyper.

fn main() {}
