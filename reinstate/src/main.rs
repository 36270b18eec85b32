//! Process on a spare: extracts, admits, rebuilds sockets, takes the address over.

fn main() {}
