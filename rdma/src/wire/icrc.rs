//! Invariant CRC: the last four bytes of every RoCEv2 packet, least significant byte first.
//! Source: annex A17 "RoCEv2 ICRC"; Linux drivers/infiniband/sw/rxe/rxe_icrc.c.
//!
//! The CRC-32 of Ethernet over eight bytes of ones (for the absent LRH) and the packet from the IP header on, with the
//! fields that may change on the way replaced by ones:
//!
//! ```text
//!   IPv4  TOS, TTL, header checksum        (not: id and flags. Hence the raw socket on the receiving side)
//!   IPv6  traffic class, flow label, hop limit
//!   UDP   checksum
//!   BTH   byte 4 (FECN, BECN, reserved)
//! ```

use super::{bth, ipv4, udp};

/// Length in bytes.
pub const LEN: usize = 4;

/// Length of an IPv6 header in bytes.
pub const IPV6_LEN: usize = 40;

/// Stands for the local route header of InfiniBand, which RoCEv2 lacks.
const ABSENT_LRH: [u8; 8] = [0xff; 8];

/// The CRC of a packet of InfiniBand bytes `ib` (BTH to padding) behind these two headers. A packet shorter than a BTH
/// has no CRC; what is returned for it means nothing.
pub fn over_ipv4(ip: &[u8; ipv4::LEN], udp: &[u8; udp::LEN], ib: &[u8]) -> [u8; LEN] {
    let mut ip = *ip;
    ipv4::mask_variant(&mut ip);
    finish(&ip, udp, ib)
}

/// The same behind an IPv6 header.
pub fn over_ipv6(ip: &[u8; IPV6_LEN], udp: &[u8; udp::LEN], ib: &[u8]) -> [u8; LEN] {
    const HOP_LIMIT: usize = 7;
    let mut ip = *ip;
    ip[0] |= 0x0f; // the version stays
    ip[1..4].fill(0xff);
    ip[HOP_LIMIT] = 0xff;
    finish(&ip, udp, ib)
}

/// Room for the absent LRH, the larger IP header, UDP and BTH: hashed in one go, as short pieces are slow.
const HEAD_MAX: usize = ABSENT_LRH.len() + IPV6_LEN + udp::LEN + bth::LEN;

fn finish(masked_ip: &[u8], udp: &[u8; udp::LEN], ib: &[u8]) -> [u8; LEN] {
    let (bth, body) = ib.split_at(ib.len().min(bth::LEN));
    let mut head = [0xff; HEAD_MAX];
    let mut len = ABSENT_LRH.len();
    for part in [masked_ip, udp, bth] {
        head[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    let udp_at = ABSENT_LRH.len() + masked_ip.len();
    head[udp_at + udp::CHECKSUM.start..udp_at + udp::CHECKSUM.end].fill(0xff);
    head[udp_at + udp::LEN + bth::CONGESTION_BYTE] = 0xff;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..len]);
    crc.update(body);
    crc.finalize().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        assert_eq!(hex.len(), 2 * N);
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn a_read_request_has_the_known_crc() {
        let ip = bytes("4500003c0000400040110000c0000201c0000202");
        let udp = bytes("c0de12b700280000");
        let ib: [u8; 28] = bytes("0c00ffff000000118012345611223344556677880000013500001000");
        assert_eq!(over_ipv4(&ip, &udp, &ib), bytes("ca80c7bc"));
    }

    #[test]
    fn an_ack_has_the_known_crc() {
        let ip = bytes("450000300000400040110000c0000202c0000201");
        let udp = bytes("c0de12b7001c0000");
        let ib: [u8; 16] = bytes("1100ffff00000012001234561f000007");
        assert_eq!(over_ipv4(&ip, &udp, &ib), bytes("ef8542da"));
    }

    #[test]
    fn only_what_may_change_on_the_way_is_left_out() {
        let ip: [u8; 20] = bytes("450000300000400040110000c0000202c0000201");
        let udp: [u8; 8] = bytes("c0de12b7001c0000");
        let ib: [u8; 16] = bytes("1100ffff00000012001234561f000007");
        let whole: Vec<u8> = [&ip[..], &udp, &ib].concat();
        let crc = over_ipv4(&ip, &udp, &ib);
        let variant: Vec<usize> = (0..whole.len())
            .filter(|at| {
                let mut changed = whole.clone();
                changed[*at] ^= 0xa5;
                let (ip, rest) = changed.split_first_chunk().unwrap();
                let (udp, ib) = rest.split_first_chunk().unwrap();
                over_ipv4(ip, udp, ib) == crc
            })
            .collect();
        assert_eq!(variant, [1, 8, 10, 11, 26, 27, 32]);
    }

    #[test]
    fn ipv6_leaves_out_class_flow_and_hop_limit() {
        let ip: [u8; 40] = std::array::from_fn(|i| if i == 0 { 0x60 } else { i as u8 });
        let udp = [0; 8];
        let ib = [0; 16];
        let crc = over_ipv6(&ip, &udp, &ib);
        let variant: Vec<usize> = (0..ip.len())
            .filter(|at| {
                let mut changed = ip;
                changed[*at] ^= 0x0f;
                over_ipv6(&changed, &udp, &ib) == crc
            })
            .collect();
        assert_eq!(variant, [0, 1, 2, 3, 7]);
        let mut version = ip;
        version[0] = 0x40;
        assert_ne!(over_ipv6(&version, &udp, &ib), crc);
    }

    #[test]
    fn a_packet_without_a_whole_header_does_no_harm() {
        for len in 0..16 {
            over_ipv4(&[0; 20], &[0; 8], &[0; 16][..len]);
        }
    }
}
