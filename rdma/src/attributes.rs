//! What two ends tell each other before the first packet: carried by a control connection, not by RDMA.

use std::fmt;
use std::net::Ipv4Addr;

use control::backdoor::QueuePair;
use remote_memory::{LinkError, Window};

use crate::random;

/// One end of a reliable connection, as its peer has to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QpAttributes {
    /// Queue pair number, 24 bits, never 0 or 1 (those are reserved for management).
    pub number: u32,
    /// First packet sequence number this end sends, 24 bits.
    pub first_psn: u32,
    /// Address this end's packets come from.
    pub address: Ipv4Addr,
    /// UDP port this end listens on (4791 unless configured).
    pub port: u16,
    /// Largest payload per packet this end takes, in bytes: 256, 512, 1024, 2048 or 4096.
    pub path_mtu: u16,
    /// READs and atomics this end answers at the same time.
    pub reads_in_flight: u16,
}

impl From<QueuePair> for QpAttributes {
    fn from(pair: QueuePair) -> Self {
        let QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight } = pair;
        Self { number, first_psn, address, port, path_mtu, reads_in_flight }
    }
}

impl From<QpAttributes> for QueuePair {
    fn from(pair: QpAttributes) -> Self {
        let QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight } = pair;
        Self { number, first_psn, address, port, path_mtu, reads_in_flight }
    }
}

impl QpAttributes {
    /// Refuses attributes of a peer that no packet could be sent to.
    pub(crate) fn check(&self) -> Result<(), LinkError> {
        if !random::is_queue_pair(self.number) || self.first_psn >> 24 != 0 {
            return Err(LinkError::Misused("the peer's queue pair number or first PSN is out of range"));
        }
        let address = self.address;
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() || self.port == 0 {
            return Err(LinkError::Misused("the peer's address is not one that can be sent to"));
        }
        if self.path_mtu < PathMtu::MIN.raw() {
            return Err(LinkError::Misused("the peer's path MTU is below 256 bytes"));
        }
        Ok(())
    }
}

/// The other end of a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Dialed {
    /// The peer, as it wants to be reached.
    pub remote: QpAttributes,
    /// The window it offers, if it does.
    pub window: Option<Window>,
    /// Connections that it keeps for us beside this one.
    pub further: usize,
}

impl From<QpAttributes> for Dialed {
    fn from(remote: QpAttributes) -> Self {
        Self { remote, window: None, further: 0 }
    }
}

/// A payload size that the InfiniBand specification allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathMtu(u16);

impl PathMtu {
    /// The smallest, 256 bytes.
    pub const MIN: Self = Self(256);
    /// The largest, 4096 bytes.
    pub const MAX: Self = Self(4096);

    /// IP, UDP and the largest set of transport headers, as Linux' rxe reckons them, in bytes.
    const HEADROOM_BYTES: u32 = 80;

    /// The largest permitted size that is at most `bytes`, and at least [`PathMtu::MIN`].
    pub const fn at_most(bytes: u16) -> Self {
        let mut size = Self::MAX.0;
        while size > bytes && size > Self::MIN.0 {
            size /= 2;
        }
        Self(size)
    }

    /// The largest size whose packets fit an interface with an MTU of `interface_mtu` bytes.
    pub const fn fitting(interface_mtu: u32) -> Self {
        let room = interface_mtu.saturating_sub(Self::HEADROOM_BYTES);
        Self::at_most(if room > Self::MAX.0 as u32 { Self::MAX.0 } else { room as u16 })
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// In bytes, as [`QpAttributes`] carries it.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Packets that `len` bytes take; an empty message still takes one.
    pub const fn packets(self, len: u32) -> u32 {
        let packets = len.div_ceil(self.0 as u32);
        if packets == 0 { 1 } else { packets }
    }
}

impl fmt::Debug for PathMtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathMtu({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_specification() {
        let check = |bytes, expected| assert_eq!(PathMtu::at_most(bytes).raw(), expected, "at most {bytes}");
        check(0, 256);
        check(256, 256);
        check(1023, 512);
        check(1024, 1024);
        check(u16::MAX, 4096);
    }

    #[test]
    fn ethernet_carries_1024_and_loopback_4096() {
        assert_eq!(PathMtu::fitting(1500).raw(), 1024);
        assert_eq!(PathMtu::fitting(4176).raw(), 4096);
        assert_eq!(PathMtu::fitting(4175).raw(), 2048);
        assert_eq!(PathMtu::fitting(65_536).raw(), 4096);
        assert_eq!(PathMtu::fitting(0), PathMtu::MIN);
    }

    #[test]
    fn an_empty_message_takes_one_packet() {
        assert_eq!(PathMtu::at_most(1024).packets(0), 1);
        assert_eq!(PathMtu::at_most(1024).packets(1024), 1);
        assert_eq!(PathMtu::at_most(1024).packets(1025), 2);
    }
}
