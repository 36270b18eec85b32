//! Wakes clients that have something unacknowledged and wait for their own timer to say it again.
//!
//! A client that was sending when its server died repeats itself after 0.2, 0.6, 1.4, 3 … seconds; a session that is
//! live again in between waits for the next of these. TCP knows that what looks like congestion may be a broken path:
//! on an ICMP "host unreachable" that quotes its oldest unacknowledged segment, a sender takes one doubling of its
//! timer back and, when the shorter time has passed already, repeats the segment at once (RFC 6069; Linux
//! `tcp_ld_RTO_revert`). That is what happened here: the path was broken, and is not any more.
//!
//! Harmless: a client with nothing unacknowledged ignores it, and an established connection takes it for a soft error
//! (RFC 1122, 4.2.3.9). Where ICMP is filtered nothing is won and nothing lost. See docs/decisions/0007.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    packet::{internet_checksum, quoted, word_sum},
    snapshot::Snapshot,
};

const V4_UNREACHABLE: u8 = 3;
const V4_HOST: u8 = 1;
const V6_UNREACHABLE: u8 = 1;
/// The only code of IPv6 that takes doublings back (`tcp_v6_err`): "address unreachable" does not.
const V6_NO_ROUTE: u8 = 0;
/// Where Linux's timers begin.
const TIMER_MIN: Duration = Duration::from_millis(200);
/// Doublings from there to the longest timer, two minutes.
pub(crate) const DOUBLINGS_MAX: u32 = 10;

/// Sockets that speak ICMP, opened before they are needed.
#[derive(Debug)]
pub struct Nudger {
    v4: Socket,
    /// None on a machine without IPv6.
    v6: Option<Socket>,
}

impl Nudger {
    /// Opens the sockets.
    ///
    /// # Errors
    /// The kernel's: usually a missing CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let v4 = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        Ok(Self { v4, v6: Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).ok() })
    }

    /// Nudges the client of a live session whose timer may have doubled so many `times`, which only the client knows.
    /// Those too many are ignored.
    ///
    /// # Errors
    /// The kernel's: usually no route to the client.
    pub fn nudge(&self, snapshot: &Snapshot, times: u32) -> io::Result<()> {
        let mouth = if snapshot.peer.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        let mouth = mouth.ok_or(io::ErrorKind::Unsupported)?;
        let message = unreachable(snapshot);
        let to = SocketAddr::new(snapshot.peer.ip(), 0).into();
        (0..times).try_for_each(|_| mouth.send_to(&message, &to).map(drop))
    }
}

/// How often a timer can have doubled in a silence. It can have begun before.
pub fn doublings(silence: Duration) -> u32 {
    let timers = silence.as_millis() / TIMER_MIN.as_millis() + 1;
    (u128::BITS - timers.leading_zeros()).min(DOUBLINGS_MAX)
}

/// The message, quoting the segment that begins with the byte the session waits for.
fn unreachable(snapshot: &Snapshot) -> Vec<u8> {
    let v4 = snapshot.peer.is_ipv4();
    let (kind, code) = if v4 { (V4_UNREACHABLE, V4_HOST) } else { (V6_UNREACHABLE, V6_NO_ROUTE) };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted(snapshot.peer, snapshot.local, snapshot.rcv_nxt));
    if !v4 {
        return message; // the kernel fills in the checksum, which covers addresses
    }
    let sum = internet_checksum(word_sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_nudged_as_often_as_it_can_have_doubled() {
        // It fires after 0.2, 0.6, 1.4, 3.0 … seconds, and doubles each time.
        let cases = [(0, 1), (199, 1), (200, 2), (599, 2), (600, 3), (1399, 3), (1400, 4), (3000, 5), (3_600_000, 10)];
        for (silence_ms, expected) in cases {
            assert_eq!(doublings(Duration::from_millis(silence_ms)), expected, "{silence_ms}");
        }
    }
}
