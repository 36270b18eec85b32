//! Builds a kernel socket that is in the middle of a connection (`TCP_REPAIR`), and reads one that is.
//!
//! ```text
//!   socket, transparent ── the service address is not local yet
//!   repair on ── buffers ── segment size ── bind ── queue numbers ── connect      no packet leaves
//!   options ── timestamp ── unread bytes ── window                                still silent: `Rebuilt`
//!   … the address becomes ours …
//!   repair off (one window probe) ── saved bytes, sent as new                     live: `Rebuilt::go_live`
//! ```
//!
//! Clients wait for all of this, thousands of times: a system call that would change nothing is left out.
//!
//! Saved bytes are **sent after** repair, not put into the send queue under repair: queued ones count as sent, and with
//! no round-trip time known the kernel waits one second before it sends them again. Invariants: a socket that cannot be
//! finished is closed while still under repair, so it never says a word; the low bit of the timestamp is clear (set, it
//! would ask newer kernels for microseconds); the segment size is set before connect, or it stays at 524.
//!
//! Congestion state is not restored, no kernel takes it; the route's initial window stands in ([`crate::routes`]).

mod capture;
pub(crate) mod raw;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage};

pub use capture::capture;
use socket2::SockRef;

use crate::{
    position::{Proof, Start},
    snapshot::{QUEUE_BYTES_MAX, Snapshot, WINDOW_SCALE_MAX, distance},
};
use raw::{RepairOption, RepairWindow};

const REPAIR_ON: i32 = 1;
const REPAIR_OFF: i32 = 0;
/// `TCP_REPAIR_OFF_NO_WP` (Linux 4.19): without a window probe.
const REPAIR_OFF_SILENTLY: i32 = -1;
const QUEUE_NONE: i32 = 0;
const QUEUE_RECEIVE: i32 = 1;
const QUEUE_SEND: i32 = 2;

const OPTION_MSS: u32 = 2;
const OPTION_WINDOW: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;

/// Bounds of TCP_MAXSEG: the kernel's TCP_MIN_MSS and MAX_TCP_WINDOW.
const SEGMENT_BYTES: std::ops::RangeInclusive<u16> = 88..=32767;

/// A buffer's accounting includes kernel overhead, at most about this many times the payload for small writes.
const BUFFER_OVERHEAD: usize = 2;

/// Buffers are never set below this, so that a session does not crawl until the kernel tunes them again.
const BUFFER_BYTES_MIN: usize = 1 << 20;

/// What a socket queues and promises without its buffers being set: far below the smallest defaults (`tcp_wmem`,
/// `tcp_rmem`), and no more than an unscaled window.
const SENDING_BYTES_PLAIN: usize = 4 << 10;
const PROMISED_BYTES_PLAIN: usize = u16::MAX as usize;

/// `SO_BUF_LOCK` (Linux 5.14): 0 gives both buffers back to the kernel's own tuning.
const SO_BUF_LOCK: i32 = 72;

/// Which step of a repair failed, and with what. The session is lost; others are not affected.
#[derive(Debug, thiserror::Error)]
#[error("rebuilding a socket failed at {step}: {source}")]
pub struct RepairError {
    /// The step: an option's or call's name.
    pub step: &'static str,
    /// The kernel's answer.
    pub source: io::Error,
}

trait At<T> {
    fn at(self, step: &'static str) -> Result<T, RepairError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, RepairError> {
        self.map_err(|source| RepairError { step, source: source.into() })
    }
}

/// A socket under repair: it has its connection's numbers and unread bytes, and is silent.
#[derive(Debug)]
pub struct Rebuilt {
    socket: OwnedFd,
    v6: bool,
    /// Whether its buffers were set: the kernel's own tuning is then off until it is live.
    buffers_set: bool,
}

fn storage(address: SocketAddr) -> SockaddrStorage {
    SockaddrStorage::from(address)
}

fn refuse_nonsense(snapshot: &Snapshot, start: Start) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let queues = [snapshot.queued(), snapshot.receiving.len()];
    match snapshot.scales {
        Some((theirs, ours)) if theirs.max(ours) > WINDOW_SCALE_MAX => wrong("window scale above 14"),
        _ if queues.iter().any(|len| *len > QUEUE_BYTES_MAX) => wrong("queue above its limit"),
        _ if snapshot.left_from(start.seq).is_none() => wrong("start outside of the send queue"),
        _ if snapshot.local.is_ipv4() != snapshot.peer.is_ipv4() => wrong("two address families"),
        _ => Ok(()),
    }
}

/// Builds the socket of `snapshot`, to go on at `start`. `timestamp` is the TSval to use now, if the connection has
/// timestamps. Needs CAP_NET_ADMIN; the local address need not be local yet.
///
/// # Errors
/// [`RepairError`] names the step; nothing of the attempt remains.
pub fn rebuild(snapshot: &Snapshot, start: Start, timestamp: Option<u32>) -> Result<Rebuilt, RepairError> {
    refuse_nonsense(snapshot, start).at("checking the numbers")?;
    let v6 = snapshot.local.is_ipv6();
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Stream, flags, None).at("socket")?;
    let mut rebuilt = Rebuilt { socket, v6, buffers_set: false };
    rebuilt.connect(snapshot, start)?;
    rebuilt.negotiated(snapshot, timestamp)?;
    rebuilt.queue_received(&snapshot.receiving)?;
    rebuilt.windows(snapshot, start)?;
    Ok(rebuilt)
}

/// The windows as `tcp_repair_set_window` takes them: it refuses a `snd_wl1` beyond the window promised from `rcv_nxt`
/// on, and a `rcv_wup` after `rcv_nxt`.
///
/// A whole connection can have the former. A kernel without memory for a socket's input takes its promise back (6.12:
/// `ICSK_ACK_NOMEM` in `tcp_select_window`), when a segment that lay inside the promise and behind a dropped one has
/// updated the send window already. An earlier `snd_wl1` is always safe: the window in `start` is the newest one, and
/// the client's next segment may change it, also one that it sends again.
fn acceptable_windows(snapshot: &Snapshot, start: Start) -> RepairWindow {
    let is_after = |a: u32, b: u32| distance(b, a) as i32 > 0;
    let earlier = |seq: u32| if is_after(seq, snapshot.rcv_nxt) { snapshot.rcv_nxt } else { seq };
    let rcv_wup = earlier(snapshot.rcv_wup);
    RepairWindow {
        snd_wl1: earlier(snapshot.snd_wl1),
        snd_wnd: start.window,
        max_window: snapshot.max_window.max(start.window),
        // The right edge never moves back.
        rcv_wnd: snapshot.receive_room().saturating_add(distance(rcv_wup, snapshot.rcv_nxt)),
        rcv_wup,
    }
}

impl Rebuilt {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn tcp<T: raw::Plain>(&self, name: i32, value: &T, step: &'static str) -> Result<(), RepairError> {
        raw::set(self.fd(), libc::IPPROTO_TCP, name, value).at(step)
    }

    fn transparent(&self, on: bool) -> Result<(), RepairError> {
        let (level, name) = if self.v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)
        } else {
            (libc::IPPROTO_IP, libc::IP_TRANSPARENT)
        };
        raw::set(self.fd(), level, name, &i32::from(on)).at("IP_TRANSPARENT")
    }

    /// Makes room for what is put back and promised, where a new socket may have too little.
    fn buffers(&mut self, snapshot: &Snapshot) {
        let room = |payload: usize| (payload * BUFFER_OVERHEAD).max(BUFFER_BYTES_MIN).min(i32::MAX as usize / 2) as i32;
        let promised = snapshot.receiving.len() + snapshot.receive_room() as usize;
        let queued = snapshot.queued();
        for (force, plain, bytes, is_needed) in [
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, room(queued), queued > SENDING_BYTES_PLAIN),
            (
                libc::SO_RCVBUFFORCE,
                libc::SO_RCVBUF,
                room(promised.min(QUEUE_BYTES_MAX)),
                promised > PROMISED_BYTES_PLAIN,
            ),
        ] {
            if !is_needed {
                continue;
            }
            self.buffers_set = true;
            // Best effort: force needs privileges in the first user namespace; what does not fit then shows as a short
            // write, which is an error of its own.
            if raw::set(self.fd(), libc::SOL_SOCKET, force, &bytes).is_err() {
                let _ = raw::set(self.fd(), libc::SOL_SOCKET, plain, &bytes);
            }
        }
    }

    fn connect(&mut self, snapshot: &Snapshot, start: Start) -> Result<(), RepairError> {
        self.transparent(true)?;
        self.tcp(libc::TCP_REPAIR, &REPAIR_ON, "TCP_REPAIR")?;
        // Whatever happens before the application has it: the client is reset, not told that the stream is complete.
        SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).at("SO_LINGER")?;
        self.buffers(snapshot);
        let segment = snapshot.mss_clamp.clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
        self.tcp(libc::TCP_MAXSEG, &i32::from(segment), "TCP_MAXSEG")?;
        socket::bind(raw_fd(self.fd()), &storage(snapshot.local)).at("bind")?;
        self.tcp(libc::TCP_REPAIR_QUEUE, &QUEUE_RECEIVE, "choosing the receive queue")?;
        self.tcp(libc::TCP_QUEUE_SEQ, &snapshot.copied_seq(), "TCP_QUEUE_SEQ (receive)")?;
        self.tcp(libc::TCP_REPAIR_QUEUE, &QUEUE_SEND, "choosing the send queue")?;
        self.tcp(libc::TCP_QUEUE_SEQ, &start.seq, "TCP_QUEUE_SEQ (send)")?;
        socket::connect(raw_fd(self.fd()), &storage(snapshot.peer)).at("connect")
    }

    fn negotiated(&self, snapshot: &Snapshot, timestamp: Option<u32>) -> Result<(), RepairError> {
        let (theirs, ours) = snapshot.scales.unwrap_or((0, 0));
        let mut options = [RepairOption::default(); 4];
        // Without scaling, 0 and 0 say the same and undo the scale connect() chose for itself.
        options[0] = RepairOption { code: OPTION_WINDOW, value: u32::from(theirs) | u32::from(ours) << 16 };
        options[1] = RepairOption { code: OPTION_MSS, value: u32::from(snapshot.mss_clamp) };
        let mut used = 2;
        for (wanted, code) in [(snapshot.sack, OPTION_SACK), (timestamp.is_some(), OPTION_TIMESTAMP)] {
            if wanted {
                options[used] = RepairOption { code, value: 0 };
                used += 1;
            }
        }
        let len = used * size_of::<RepairOption>();
        raw::set_part(self.fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, &options, len)
            .at("TCP_REPAIR_OPTIONS")?;
        match timestamp {
            Some(value) => self.tcp(libc::TCP_TIMESTAMP, &(value & !1), "TCP_TIMESTAMP"),
            None => Ok(()),
        }
    }

    fn queue_received(&self, bytes: &[u8]) -> Result<(), RepairError> {
        if bytes.is_empty() {
            return Ok(());
        }
        // The choice ends with the repair.
        self.tcp(libc::TCP_REPAIR_QUEUE, &QUEUE_RECEIVE, "choosing the receive queue")?;
        send_all(self.fd(), bytes).at("putting unread bytes back")
    }

    fn windows(&self, snapshot: &Snapshot, start: Start) -> Result<(), RepairError> {
        match self.tcp(libc::TCP_REPAIR_WINDOW, &acceptable_windows(snapshot, start), "TCP_REPAIR_WINDOW") {
            // Left out, both windows are what connect() chose, and the client's next segment tells its own.
            Err(error) if error.source.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(peer = %snapshot.peer, "this kernel does not take the windows of a connection");
                Ok(())
            }
            result => result,
        }
    }

    /// Ends repair and sends the saved bytes from `start` on. The address must be local by now. The socket is
    /// non-blocking; a zero window does not hinder: bytes wait in the kernel's queue. It lingers for no time until its
    /// application has taken it.
    ///
    /// # Errors
    /// [`RepairError`]; the client has then been reset, since a plain close would make a cut stream look complete.
    pub fn go_live(self, snapshot: &Snapshot, start: Start) -> Result<OwnedFd, RepairError> {
        let bytes = snapshot.sending_from(start.seq).ok_or(io::ErrorKind::InvalidData);
        let bytes = bytes.at("looking for the saved bytes")?;
        self.transparent(false)?;
        self.end_repair(start, bytes.len())?;
        send_all(self.fd(), bytes).at("sending the saved bytes")?;
        if self.buffers_set {
            // Kernels before 5.14 do not know it: buffers then stay as they are, which works too.
            let _ = raw::set(self.fd(), libc::SOL_SOCKET, SO_BUF_LOCK, &0_i32);
        }
        Ok(self.socket)
    }

    /// Ends repair. The window probe that comes with it asks the client for its window: one that has just told a window
    /// with room for all there is to send need not be asked.
    fn end_repair(&self, start: Start, bytes: usize) -> Result<(), RepairError> {
        let is_known = start.proof == Proof::Client && start.window as usize > bytes;
        if is_known && self.tcp(libc::TCP_REPAIR, &REPAIR_OFF_SILENTLY, "ending TCP_REPAIR silently").is_ok() {
            return Ok(());
        }
        self.tcp(libc::TCP_REPAIR, &REPAIR_OFF, "ending TCP_REPAIR")
    }
}

fn raw_fd(fd: BorrowedFd<'_>) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

fn send_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket::send(raw_fd(fd), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}

/// Closes our direction, as the application had: a FIN follows what is queued.
///
/// # Errors
/// The kernel's: usually that the client has reset the connection.
pub fn close_output(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(socket::shutdown(raw_fd(socket), socket::Shutdown::Write)?)
}

/// Leaves a closed connection to the kernel, which brings it to its end.
pub fn leave_to_kernel(socket: OwnedFd) {
    let _ = SockRef::from(&socket).set_linger(None);
}

/// Resets the client. An application that has the socket too, perhaps unread in its queue, finds it dead.
///
/// # Errors
/// The kernel's; the connection is closed in any case.
pub fn reset(socket: &OwnedFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
    raw::disconnect(socket.as_fd())
}

/// Closes a connection without a word: the client learns nothing from it.
///
/// # Errors
/// The kernel's answer to `TCP_REPAIR`; the socket is closed in any case, then with a FIN.
pub fn drop_silently(socket: OwnedFd) -> io::Result<()> {
    raw::set(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, &REPAIR_ON)
}

/// The kernel's number for the connection's state (`include/net/tcp_states.h`).
///
/// # Errors
/// The kernel's answer to `TCP_INFO`.
pub fn state(socket: BorrowedFd<'_>) -> io::Result<u8> {
    raw::fetch(socket, libc::IPPROTO_TCP, libc::TCP_INFO).map(|info: raw::Info| info.state)
}

/// Segments in flight or lost, and how often the oldest was sent again: 0 and 0 once the client has everything.
///
/// # Errors
/// The kernel's answer to `TCP_INFO`.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<(u32, u8)> {
    let info: raw::Info = raw::fetch(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok((info.unacked, info.retransmits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{snapshot, tests::socket};

    #[test]
    fn windows_that_the_kernel_would_refuse_are_told_so_that_it_takes_them() {
        let check = |rcv_wup: i32, rcv_wnd: u32, snd_wl1: i32, expected: (i32, u32, i32)| {
            for received in [8, u32::MAX - 3, 1 << 31] {
                let dead = socket(0, 0, 0, received, received);
                let at = |offset: i32| received.wrapping_add_signed(offset);
                let known =
                    Snapshot { rcv_wup: at(rcv_wup), rcv_wnd, snd_wl1: at(snd_wl1), ..snapshot(dead, Duration::ZERO) };
                let told = acceptable_windows(&known, crate::position::assumed(&known));
                let (rcv_wup, rcv_wnd, snd_wl1) = expected;
                assert_eq!((told.rcv_wup, told.rcv_wnd, told.snd_wl1), (at(rcv_wup), rcv_wnd, at(snd_wl1)));
                assert!(told.max_window >= told.snd_wnd);
            }
        };
        check(0, 70_000, 0, (0, 70_000, 0));
        check(-700, 70_000, -1448, (-700, 70_000, -1448));
        check(-700, 1000, 0, (-700, 66_235, 0));
        // Seen on 6.12 in an upload to a slow reader: no memory, so the window was taken back, though a segment behind
        // the dropped one had updated the send window.
        check(0, 0, 7240, (0, 65_535, 0));
        check(5, 70_000, 0, (0, 70_005, 0));
    }
}
