//! The link addresses on the way to clients: known before they are needed, and asked for again when a question is lost.
//!
//! ```text
//!   target healthy   the next hop of each of its clients is asked for now and then      warm
//!   take-over        questions of the kernel that nobody has answered are repeated      ask_again
//! ```
//! A kernel repeats a lost question after a second (RFC 4861, `RETRANS_TIMER`; ARP in Linux alike), and until then all
//! that is said to the clients behind it waits in a queue of 200 kB, whose first packets then go. The sockets there
//! take that second for their round-trip time, so what was lost is repeated seconds later.
//!
//! Only the kernel decides what the next hop is and writes into its table: here it is told to look, and questions that
//! it has asked already are said once more. So routers need no care, and nothing wrong can be learned that an ordinary
//! answer could not teach.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    address::{Interface, route_to},
    netlink::{Answer, Message, Netlink, attributes},
    routes::{family, octets},
    tcp_repair::raw::link_address,
};

/// Clients' addresses whose next hop is looked up at a time, and next hops that are asked for: a kernel keeps 1024
/// neighbours, and others need theirs. Clients behind a router have one in common.
const CLIENTS_MAX: usize = 4096;
const NEXT_HOPS_MAX: usize = 256;
/// Questions repeated at a time.
const ASKED_AGAIN_MAX: usize = 256;

/// Bytes of `struct rtmsg` and `struct ndmsg`; both are as long.
const FIXED_LEN: usize = 12;
const ROUTE_KIND: usize = 7;
const RTA_VIA: u16 = 18;
const NDA_DST: u16 = 1;
const NTF_USE: u8 = 1;
const NUD_INCOMPLETE: u16 = 1;

const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST: [u8; 6] = [0xff; 6];
/// A packet that has crossed a router is no solicitation (RFC 4861, 7.1.1).
const HOPS: u32 = 255;

/// A neighbour, by the number of its interface and its address.
type Neighbour = (u32, IpAddr);

/// What it takes to ask, opened before it is needed.
#[derive(Debug)]
pub struct Neighbours {
    netlink: Netlink,
    /// Where service addresses will be.
    interfaces: Vec<Interface>,
    arp: Socket,
    /// None on a machine without IPv6.
    v6: Option<Socket>,
}

impl Neighbours {
    /// Gets ready to ask on `interfaces`.
    ///
    /// # Errors
    /// The kernel's: usually a missing CAP_NET_RAW.
    pub fn open(interfaces: Vec<Interface>) -> io::Result<Self> {
        let arp = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        let v6 = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).ok();
        v6.iter().try_for_each(|socket| socket.set_multicast_hops_v6(HOPS))?;
        Ok(Self { netlink: Netlink::open()?, interfaces, arp, v6 })
    }

    /// Has the kernel find out, or confirm, the link addresses on the way to `clients`. Returns at once; how many it
    /// was told to look for.
    ///
    /// # Errors
    /// The kernel's; a client without a route is passed over.
    pub fn warm(&mut self, clients: impl IntoIterator<Item = IpAddr>) -> io::Result<usize> {
        let clients: BTreeSet<IpAddr> = clients.into_iter().map(|client| client.to_canonical()).collect();
        let mut next_hops = BTreeSet::new();
        for client in clients.into_iter().take(CLIENTS_MAX) {
            let route = route_to(&mut self.netlink, client).ok().flatten();
            next_hops.extend(route.and_then(|route| next_hop(&route, client)));
            if next_hops.len() == NEXT_HOPS_MAX {
                break;
            }
        }
        for (interface, address) in &next_hops {
            let mut fixed = [0; FIXED_LEN];
            fixed[0] = family(*address);
            fixed[4..8].copy_from_slice(&interface.to_ne_bytes());
            fixed[10] = NTF_USE;
            let message = Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE, &fixed);
            self.netlink.request(message.with(NDA_DST, &octets(*address)))?;
        }
        Ok(next_hops.len())
    }

    /// Neighbours on our interfaces that the kernel has asked for their link address and not heard of.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unanswered(&mut self) -> io::Result<Vec<IpAddr>> {
        let ours: BTreeSet<u32> = self.interfaces.iter().map(|interface| interface.index).collect();
        let incomplete = incomplete(&mut self.netlink)?;
        let here = incomplete.into_iter().filter(|(interface, _)| ours.contains(interface));
        Ok(here.map(|(_, address)| address).collect())
    }

    /// Repeats the kernel's questions that were not answered; how many. The answers are for the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask_again(&mut self) -> io::Result<usize> {
        let known: BTreeMap<u32, &Interface> = self.interfaces.iter().map(|it| (it.index, it)).collect();
        let mut asked = 0;
        for (interface, address) in incomplete(&mut self.netlink)?.into_iter().take(ASKED_AGAIN_MAX) {
            let Some(interface) = known.get(&interface) else { continue };
            match (address, &self.v6) {
                (IpAddr::V4(address), _) => {
                    let to = link_address(interface.index, ETHERTYPE_ARP, Some(BROADCAST));
                    self.arp.send_to(&arp_question(interface.mac, address), &to)?;
                }
                (IpAddr::V6(address), Some(socket)) => {
                    let to = SocketAddrV6::new(solicited_node(address), 0, 0, interface.index);
                    socket.send_to(&solicitation(interface.mac, address), &to.into())?;
                }
                (IpAddr::V6(_), None) => continue,
            }
            asked += 1;
        }
        Ok(asked)
    }
}

/// The neighbour that `client` is reached through; none if it is this machine itself.
fn next_hop(route: &Answer, client: IpAddr) -> Option<Neighbour> {
    (route.body.get(ROUTE_KIND) == Some(&libc::RTN_UNICAST)).then_some(())?;
    let (mut interface, mut address) = (None, Some(client));
    for (kind, value) in attributes(route.body.get(FIXED_LEN..)?) {
        match kind {
            libc::RTA_OIF => interface = value.try_into().ok().map(u32::from_ne_bytes),
            libc::RTA_GATEWAY => address = parsed(value),
            // Family, then the address: a gateway of IPv6 on the way to IPv4.
            RTA_VIA => address = parsed(value.get(2..)?),
            _ => {}
        }
    }
    interface.zip(address)
}

fn parsed(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

fn incomplete(netlink: &mut Netlink) -> io::Result<Vec<Neighbour>> {
    let neighbours = netlink.exchange(Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &[0; FIXED_LEN]))?;
    let unanswered = |neighbour: Answer| {
        let (fixed, more) = neighbour.body.split_at_checked(FIXED_LEN)?;
        let state = u16::from_ne_bytes([fixed[8], fixed[9]]);
        (neighbour.kind == libc::RTM_NEWNEIGH && state == NUD_INCOMPLETE).then_some(())?;
        let interface = u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        let (_, address) = attributes(more).find(|(kind, _)| *kind == NDA_DST)?;
        Some((interface, parsed(address)?))
    };
    Ok(neighbours.into_iter().filter_map(unanswered).collect())
}

/// RFC 826, in the form of RFC 5227 that names no sender: nobody learns anything from it.
fn arp_question(mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&target.octets());
    packet
}

/// RFC 4861, 4.3, with our link address. The kernel fills in the checksum.
fn solicitation(mac: [u8; 6], target: Ipv6Addr) -> Vec<u8> {
    const SOLICITATION: u8 = 135;
    const SOURCE_LINK_ADDRESS: u8 = 1;
    let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&target.octets());
    body.extend_from_slice(&[SOURCE_LINK_ADDRESS, 1]);
    body.extend_from_slice(&mac);
    body
}

/// RFC 4291, 2.7.1.
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    fn route(kind: u8, more: &[Vec<u8>]) -> Answer {
        let mut body = vec![2, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
        body.extend(more.concat());
        Answer { kind: libc::RTM_NEWROUTE, body }
    }

    #[test]
    fn behind_a_router_it_is_the_router_that_is_asked_for() {
        let client = IpAddr::from([10, 9, 0, 1]);
        let oif = attribute(libc::RTA_OIF, &7_u32.to_ne_bytes());
        let check = |more: &[Vec<u8>], expected| {
            assert_eq!(next_hop(&route(libc::RTN_UNICAST, more), client), expected);
        };
        let (gateway, via): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), "fe80::1".parse().unwrap());
        check(std::slice::from_ref(&oif), Some((7, client)));
        check(&[oif.clone(), attribute(libc::RTA_GATEWAY, &octets(gateway))], Some((7, gateway)));
        check(&[attribute(RTA_VIA, &[&[10, 0][..], &octets(via)].concat()), oif.clone()], Some((7, via)));
        check(&[oif.clone(), attribute(libc::RTA_GATEWAY, &[1, 2, 3])], None);
        check(&[], None);
        assert_eq!(next_hop(&route(libc::RTN_LOCAL, &[oif]), client), None);
    }

    #[test]
    fn questions_are_these_bytes() {
        let mac = [2, 0, 0, 0, 0, 9];
        let expected = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 4];
        assert_eq!(arp_question(mac, Ipv4Addr::new(10, 0, 0, 4)), expected);
        let target: Ipv6Addr = "fd77::12:3456".parse().unwrap();
        assert_eq!(solicited_node(target), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        let body = solicitation(mac, target);
        assert_eq!(
            (body.len(), body[0], &body[8..24], &body[24..]),
            (32, 135, &target.octets()[..], &[1, 1, 2, 0, 0, 0, 0, 9][..])
        );
    }
}
