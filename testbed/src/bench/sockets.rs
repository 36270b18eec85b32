//! The limit of a recovery on the spare: nothing but the system calls that put a connection into a kernel.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use reinstate::{position, snapshot::Snapshot, tcp_repair};

/// How long it takes to rebuild `count` sockets of idle connections, one after the other.
pub(super) fn rebuilt(count: usize) -> Result<Duration> {
    let snapshots: Vec<Snapshot> = (0..count).map(|number| idle(number as u16)).collect();
    let mut sockets = Vec::with_capacity(count);
    let began = Instant::now();
    for snapshot in &snapshots {
        sockets.push(tcp_repair::rebuild(snapshot, position::assumed(snapshot), snapshot.timestamp)?);
    }
    Ok(began.elapsed())
}

/// A connection that has sent and received nothing that anybody waits for.
fn idle(number: u16) -> Snapshot {
    let (seq, window) = (1_000_000, 65_535);
    Snapshot {
        local: SocketAddr::from(([127, 0, 0, 1], 8080)),
        peer: SocketAddr::from(([127, 0, 0, 2], 10_000 + number)),
        snd_una: seq,
        snd_nxt: seq,
        sending: Vec::new(),
        unread: 0,
        rcv_nxt: seq,
        receiving: Vec::new(),
        rcv_wup: seq,
        rcv_wnd: window,
        snd_wl1: seq,
        snd_wnd: window,
        max_window: window,
        scales: Some((7, 7)),
        sack: true,
        timestamp: Some(2),
        mss_clamp: 1460,
        closed: false,
        peer_closed: false,
    }
}
