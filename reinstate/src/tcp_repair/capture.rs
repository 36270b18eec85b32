//! Reads a live socket of this machine into a [`Snapshot`]: what extraction does to dead memory, done by asking.
//!
//! Used to prove the rebuilding side against the kernel's own account of a connection. Not used in an evacuation: a
//! target that could answer these questions would not need one.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::sys::socket::{self, MsgFlags, SockaddrStorage};

use super::{QUEUE_NONE, QUEUE_RECEIVE, QUEUE_SEND, REPAIR_ON, raw};
use crate::snapshot::Snapshot;

/// `TCPI_OPT_*` bits of `tcp_info`.
const INFO_TIMESTAMPS: u8 = 1;
const INFO_SACK: u8 = 2;
const INFO_SCALES: u8 = 4;

/// The kernel's numbers for states in which a FIN has its place (`include/net/tcp_states.h`).
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

fn address(storage: &SockaddrStorage) -> io::Result<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| SocketAddr::from((address.ip(), address.port())));
    let v6 = storage.as_sockaddr_in6().map(|address| SocketAddr::from((address.ip(), address.port())));
    v4.or(v6).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn option<T: raw::Plain>(fd: BorrowedFd<'_>, name: i32) -> io::Result<T> {
    raw::fetch(fd, libc::IPPROTO_TCP, name)
}

fn queue(fd: BorrowedFd<'_>, which: i32, ioctl_len: usize) -> io::Result<(u32, Vec<u8>)> {
    raw::set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &which)?;
    let seq = option(fd, libc::TCP_QUEUE_SEQ)?;
    let mut bytes = vec![0; ioctl_len];
    let taken = match socket::recv(fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(taken) => taken,
        Err(nix::errno::Errno::EAGAIN) => 0,
        Err(error) => return Err(error.into()),
    };
    bytes.truncate(taken);
    Ok((seq, bytes))
}

/// Puts `socket` under repair (it stays so: close it and the client hears nothing) and reads it. Queues of up to
/// `queue_bytes_max` are read whole.
///
/// # Errors
/// The kernel's answer to the first question that failed.
pub fn capture(socket: impl AsFd, queue_bytes_max: usize) -> io::Result<Snapshot> {
    let fd = socket.as_fd();
    let info: raw::Info = option(fd, libc::TCP_INFO)?;
    raw::set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, &REPAIR_ON)?;
    let window: raw::RepairWindow = option(fd, libc::TCP_REPAIR_WINDOW)?;
    let (rcv_nxt, receiving) = queue(fd, QUEUE_RECEIVE, queue_bytes_max)?;
    let (write_seq, sending) = queue(fd, QUEUE_SEND, queue_bytes_max)?;
    raw::set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &QUEUE_NONE)?;
    let mss: i32 = option(fd, libc::TCP_MAXSEG)?;
    let timestamp: u32 = option(fd, libc::TCP_TIMESTAMP)?;
    let closed = matches!(info.state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
    let peer_closed = matches!(info.state, CLOSE_WAIT | LAST_ACK | CLOSING);
    let snd_una = write_seq.wrapping_sub(sending.len() as u32 + u32::from(closed));
    let end_of_input = rcv_nxt.wrapping_sub(peer_closed.into());
    let acknowledged_fin = window.rcv_wup == rcv_nxt && peer_closed;
    Ok(Snapshot {
        local: address(&socket::getsockname(fd.as_raw_fd())?)?,
        peer: address(&socket::getpeername(fd.as_raw_fd())?)?,
        snd_una,
        snd_nxt: write_seq.wrapping_sub(closed.into()),
        sending,
        unread: 0,
        rcv_nxt: end_of_input,
        receiving,
        rcv_wup: window.rcv_wup.wrapping_sub(acknowledged_fin.into()),
        rcv_wnd: window.rcv_wnd + u32::from(acknowledged_fin),
        snd_wl1: window.snd_wl1,
        snd_wnd: window.snd_wnd,
        max_window: window.max_window,
        scales: (info.options & INFO_SCALES != 0).then_some((info.scales & 0xf, info.scales >> 4)),
        sack: info.options & INFO_SACK != 0,
        timestamp: (info.options & INFO_TIMESTAMPS != 0).then_some(timestamp),
        mss_clamp: u16::try_from(mss).unwrap_or(u16::MAX),
        closed,
        peer_closed,
    })
}
