//! IPv4, IPv6 and TCP headers as far as a probe needs them: build one segment, read the head of another.
//!
//! Sources: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 7323 (timestamps). Extension headers and fragments
//! are not understood: such packets are no answers to a probe.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

mod v4 {
    use super::Range;
    pub const TOTAL_LEN: Range<usize> = 2..4;
    pub const FRAGMENT: Range<usize> = 6..8;
    pub const PROTOCOL: usize = 9;
    pub const SOURCE: Range<usize> = 12..16;
    pub const DESTINATION: Range<usize> = 16..20;
    pub const LEN: usize = 20;
}

mod v6 {
    use super::Range;
    pub const PAYLOAD_LEN: Range<usize> = 4..6;
    pub const NEXT_HEADER: usize = 6;
    pub const SOURCE: Range<usize> = 8..24;
    pub const DESTINATION: Range<usize> = 24..40;
    pub const LEN: usize = 40;
}

mod tcp {
    use super::Range;
    pub const SOURCE: Range<usize> = 0..2;
    pub const DESTINATION: Range<usize> = 2..4;
    pub const SEQ: Range<usize> = 4..8;
    pub const ACK: Range<usize> = 8..12;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const WINDOW: Range<usize> = 14..16;
    pub const CHECKSUM: Range<usize> = 16..18;
    pub const LEN: usize = 20;
}

const PROTOCOL_TCP: u8 = 6;
const HOP_LIMIT: u8 = 64;
/// No-op, no-op, kind 8, length 10: the usual aligned form of the timestamp option.
const TIMESTAMP_OPTION: [u8; 4] = [1, 1, 8, 10];
/// Kind 2, length 4.
const SEGMENT_SIZE_OPTION: [u8; 2] = [2, 4];
/// No-op, no-op, kind 4, length 2.
const SACK_PERMITTED_OPTION: [u8; 4] = [1, 1, 4, 2];
/// No-op, kind 3, length 3.
const WINDOW_SCALE_OPTION: [u8; 3] = [1, 3, 3];

/// TCP flag ACK.
pub const ACK: u8 = 0x10;
/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag PSH.
pub const PSH: u8 = 0x08;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;

/// How a header tells a window of `bytes` whose owner scales it like this (RFC 7323, 2.2): at most what fits.
pub(crate) fn window_field(bytes: u32, scale: Option<u8>) -> u16 {
    let scaled = bytes.checked_shr(scale.unwrap_or(0).into()).unwrap_or(0);
    u16::try_from(scaled).unwrap_or(u16::MAX)
}

/// What a SYN or its answer says of its sender beside the timestamps (RFC 9293, 3.2; RFC 7323; RFC 2018).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The longest segment it takes.
    pub segment_bytes: u16,
    /// Its window scale.
    pub scale: Option<u8>,
    /// It takes selective acknowledgements.
    pub sack: bool,
}

impl Offer {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = SEGMENT_SIZE_OPTION.to_vec();
        bytes.extend_from_slice(&self.segment_bytes.to_be_bytes());
        if let Some(scale) = self.scale {
            bytes.extend_from_slice(&WINDOW_SCALE_OPTION);
            bytes.push(scale);
        }
        if self.sack {
            bytes.extend_from_slice(&SACK_PERMITTED_OPTION);
        }
        bytes
    }
}

/// A segment to send.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver; of the same family.
    pub destination: SocketAddr,
    /// Sequence number of the first payload byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits.
    pub flags: u8,
    /// Window as it stands in the header (scaled down).
    pub window: u16,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
    /// With SYN only.
    pub offer: Option<Offer>,
    /// Data.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// One that says nothing.
    pub fn between(source: SocketAddr, destination: SocketAddr) -> Self {
        let (seq, ack, flags, window) = (0, 0, 0, 0);
        Self { source, destination, seq, ack, flags, window, timestamps: None, offer: None, payload: &[] }
    }

    /// The whole IP packet.
    ///
    /// # Panics
    /// If the ends are of different families: a caller's mistake.
    pub fn to_packet(&self) -> Vec<u8> {
        let tcp = self.tcp_bytes();
        let mut packet = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => v4_header(source, destination, tcp.len()).to_vec(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => v6_header(source, destination, tcp.len()).to_vec(),
            _ => panic!("a segment between two address families"),
        };
        packet.extend_from_slice(&tcp);
        packet
    }

    fn tcp_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; tcp::LEN];
        bytes[tcp::SOURCE].copy_from_slice(&self.source.port().to_be_bytes());
        bytes[tcp::DESTINATION].copy_from_slice(&self.destination.port().to_be_bytes());
        bytes[tcp::SEQ].copy_from_slice(&self.seq.to_be_bytes());
        bytes[tcp::ACK].copy_from_slice(&self.ack.to_be_bytes());
        bytes[tcp::FLAGS] = self.flags;
        bytes[tcp::WINDOW].copy_from_slice(&self.window.to_be_bytes());
        if let Some((value, echo)) = self.timestamps {
            bytes.extend_from_slice(&TIMESTAMP_OPTION);
            bytes.extend_from_slice(&value.to_be_bytes());
            bytes.extend_from_slice(&echo.to_be_bytes());
        }
        bytes.extend(self.offer.into_iter().flat_map(Offer::to_bytes));
        bytes[tcp::DATA_OFFSET] = ((bytes.len() / 4) as u8) << 4;
        bytes.extend_from_slice(self.payload);
        let sum = self.checksum(&bytes);
        bytes[tcp::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn checksum(&self, tcp: &[u8]) -> u16 {
        let mut sum = u32::from(PROTOCOL_TCP) + tcp.len() as u32;
        for address in [self.source.ip(), self.destination.ip()] {
            sum += match address {
                IpAddr::V4(address) => word_sum(&address.octets()),
                IpAddr::V6(address) => word_sum(&address.octets()),
            };
        }
        internet_checksum(sum + word_sum(tcp))
    }
}

fn v4_header(source: Ipv4Addr, destination: Ipv4Addr, payload: usize) -> [u8; v4::LEN] {
    let mut header = [0; v4::LEN];
    header[0] = 0x45;
    header[v4::TOTAL_LEN].copy_from_slice(&((v4::LEN + payload) as u16).to_be_bytes());
    header[v4::FRAGMENT].copy_from_slice(&[0x40, 0]); // don't fragment
    header[8] = HOP_LIMIT;
    header[v4::PROTOCOL] = PROTOCOL_TCP;
    header[v4::SOURCE].copy_from_slice(&source.octets());
    header[v4::DESTINATION].copy_from_slice(&destination.octets());
    let sum = internet_checksum(word_sum(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn v6_header(source: Ipv6Addr, destination: Ipv6Addr, payload: usize) -> [u8; v6::LEN] {
    let mut header = [0; v6::LEN];
    header[0] = 0x60;
    header[v6::PAYLOAD_LEN].copy_from_slice(&(payload as u16).to_be_bytes());
    header[v6::NEXT_HEADER] = PROTOCOL_TCP;
    header[7] = HOP_LIMIT;
    header[v6::SOURCE].copy_from_slice(&source.octets());
    header[v6::DESTINATION].copy_from_slice(&destination.octets());
    header
}

/// The beginning of a segment as an ICMP error quotes it: IP header, ports and sequence number.
///
/// # Panics
/// If the ends are of different families: a caller's mistake.
pub(crate) fn quoted(source: SocketAddr, destination: SocketAddr, seq: u32) -> Vec<u8> {
    let mut packet = Segment { seq, flags: ACK, ..Segment::between(source, destination) }.to_packet();
    packet.truncate(packet.len() - tcp::LEN + tcp::SEQ.end);
    packet
}

/// Sum of big-endian 16-bit words, an odd last byte padded with zero; fits for anything a packet can hold.
pub(crate) fn word_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

/// Folds a sum of words into the Internet checksum.
pub(crate) fn internet_checksum(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The head of a segment that was overheard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits.
    pub flags: u8,
    /// Window as it stands in the header.
    pub window: u16,
    /// Whether it carries data.
    pub carries_data: bool,
}

impl Heard {
    /// Whether it resets the connection.
    pub fn is_reset(&self) -> bool {
        self.flags & RST != 0
    }

    /// Reads an IP packet (cut off after the TCP header or later). `None` if it is no unfragmented TCP segment that
    /// carries an acknowledgement or a reset.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (source, destination, tcp_at, len) = match packet.first()? >> 4 {
            4 => split_v4(packet)?,
            6 => split_v6(packet)?,
            _ => return None,
        };
        let tcp = packet.get(tcp_at..tcp_at + tcp::LEN)?;
        let data_at = tcp_at + usize::from(tcp[tcp::DATA_OFFSET] >> 4) * 4;
        let port = |range: Range<usize>| u16::from_be_bytes([tcp[range.start], tcp[range.start + 1]]);
        let number = |range: Range<usize>| tcp[range].try_into().map(u32::from_be_bytes).ok();
        let flags = tcp[tcp::FLAGS];
        (flags & (ACK | RST) != 0).then_some(())?;
        Some(Self {
            source: SocketAddr::new(source, port(tcp::SOURCE)),
            destination: SocketAddr::new(destination, port(tcp::DESTINATION)),
            seq: number(tcp::SEQ)?,
            ack: number(tcp::ACK)?,
            flags,
            window: port(tcp::WINDOW),
            carries_data: len > data_at,
        })
    }
}

/// Ends of the packet, where its TCP header begins, and its whole length, of which not all need be here.
fn split_v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize, usize)> {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let header = packet.get(..header_len).filter(|header| header.len() >= v4::LEN)?;
    let fragment = u16::from_be_bytes(header[v4::FRAGMENT].try_into().ok()?) & 0x3fff;
    (header[v4::PROTOCOL] == PROTOCOL_TCP && fragment == 0).then_some(())?;
    let address = |range| <[u8; 4]>::try_from(&header[range]).ok().map(IpAddr::from);
    let len = u16::from_be_bytes(header[v4::TOTAL_LEN].try_into().ok()?);
    Some((address(v4::SOURCE)?, address(v4::DESTINATION)?, header_len, len.into()))
}

fn split_v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize, usize)> {
    let header = packet.get(..v6::LEN)?;
    (header[v6::NEXT_HEADER] == PROTOCOL_TCP).then_some(())?;
    let address = |range| <[u8; 16]>::try_from(&header[range]).ok().map(IpAddr::from);
    let len = u16::from_be_bytes(header[v6::PAYLOAD_LEN].try_into().ok()?);
    Some((address(v6::SOURCE)?, address(v6::DESTINATION)?, v6::LEN, v6::LEN + usize::from(len)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(source: &str, destination: &str) -> Segment<'static> {
        Segment {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            seq: 0x0102_0304,
            ack: 0x0506_0708,
            flags: ACK,
            window: 0x0910,
            timestamps: Some((0x1112_1314, 0)),
            offer: None,
            payload: &[0xaa],
        }
    }

    /// The same segment made by scapy:
    /// `IP(src="10.0.0.1", dst="10.0.0.2", ttl=64, flags="DF", id=0)`
    /// `/ TCP(sport=80, dport=4000, …, options=[NOP, NOP, TS]) / b"\xaa"`.
    const LITERAL: [u8; 53] = [
        0x45, 0, 0, 53, 0, 0, 0x40, 0, 64, 6, 0x26, 0xc1, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
        0, 80, 0x0f, 0xa0, 1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0x10, 9, 0x10, 0x6b, 0x7f, 0, 0, // TCP
        1, 1, 8, 10, 0x11, 0x12, 0x13, 0x14, 0, 0, 0, 0, // timestamps
        0xaa,
    ];

    #[test]
    fn a_segment_is_these_bytes() {
        assert_eq!(segment("10.0.0.1:80", "10.0.0.2:4000").to_packet(), LITERAL);
    }

    #[test]
    fn an_offer_is_these_bytes() {
        let offer = Offer { segment_bytes: 1460, scale: Some(7), sack: true };
        let packet =
            Segment { offer: Some(offer), payload: &[], ..segment("10.0.0.1:80", "10.0.0.2:4000") }.to_packet();
        assert_eq!(packet[32] >> 4, 11, "its length in words");
        assert_eq!(packet[52..], [2, 4, 0x05, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2]);
        let bare = Offer { segment_bytes: 536, scale: None, sack: false };
        assert_eq!(bare.to_bytes(), [2, 4, 0x02, 0x18]);
    }

    #[test]
    fn what_is_sent_can_be_heard_in_both_families() {
        for (source, destination) in [("10.0.0.1:80", "10.0.0.2:4000"), ("[fd77::1]:80", "[fd77::2]:4000")] {
            let sent = segment(source, destination);
            let heard = Heard::parse(&sent.to_packet()).unwrap();
            assert_eq!((heard.source, heard.destination), (sent.source, sent.destination));
            assert_eq!((heard.seq, heard.ack, heard.window), (sent.seq, sent.ack, sent.window));
            assert!(heard.carries_data);
            let bare = Heard::parse(&Segment { payload: &[], ..sent }.to_packet()).unwrap();
            assert!(!bare.carries_data);
        }
    }

    #[test]
    fn other_packets_are_not_heard() {
        let with = |at: usize, value: u8| {
            let mut packet = LITERAL;
            packet[at] = value;
            Heard::parse(&packet)
        };
        assert!(with(9, 17).is_none(), "UDP");
        assert!(with(7, 1).is_none(), "a later fragment");
        assert!(with(0, 0x44).is_none(), "a header that is too short");
        assert!(with(33, 0x02).is_none(), "a SYN without acknowledgement");
        assert!(Heard::parse(&LITERAL[..39]).is_none(), "cut inside TCP");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Heard::parse(&bytes);
        }
    }
}
