//! The service address: made ours when every socket exists, announced to the neighbours, given back at the end.
//!
//! ```text
//!   prepare   which interface, its link address, a socket to announce with     nothing changes on this machine
//!   announce  gratuitous ARP, request and reply form (unsolicited neighbour advertisement for IPv6): from here on
//!             clients' packets arrive here; the address is not local, so this kernel drops them without a word
//!   take      the address, as /32 or /128, on that interface: from here on they reach the sockets
//!   give_back it goes again
//! ```
//!
//! It sits on the interface and not on `lo`: an address on `lo` is not answered for in neighbour discovery, and whether
//! ARP answers for it depends on arp_ignore. It is deprecated (IPv6) and not first (IPv4), so this machine's own
//! connections do not start from it. Whoever uses this must hold a fence: two machines must never answer for one
//! address.
//!
//! End the address's connections before [`StandBy::give_back`], see [`crate::leftovers`].

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{
    netlink::{Answer, Message, Netlink, attributes},
    packet::{internet_checksum, word_sum},
    routes::{family, octets},
    tcp_repair::raw::link_address,
};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_V6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Link address of the all-nodes group ff02::1.
const ALL_NODES_LINK: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const IFA_FLAGS: u16 = 8;
/// No duplicate address detection (the fence is our proof), no route to the address's prefix.
const ADDRESS_FLAGS: u32 = libc::IFA_F_NODAD | libc::IFA_F_NOPREFIXROUTE;
/// Preferred for 0 s, valid for ever.
const DEPRECATED: [u32; 4] = [0, u32::MAX, 0, 0];

/// Bytes of `struct rtmsg`, and where it says what kind of route it is.
const ROUTE_LEN: usize = 12;
const ROUTE_KIND: usize = 7;

/// Within this the kernel makes an IPv6 address local, and between two looks at whether it has.
const LOCAL_WITHIN: Duration = Duration::from_secs(10);
const LOCAL_LOOK: Duration = Duration::from_micros(50);

/// A network interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its link address.
    pub mac: [u8; 6],
}

fn not_found(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what)
}

impl Interface {
    /// The interface called `name`.
    ///
    /// # Errors
    /// The kernel's, or not found, or no Ethernet.
    pub fn named(netlink: &mut Netlink, name: &str) -> io::Result<Self> {
        let question = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]);
        let links = netlink.exchange(question)?;
        let mut parsed = links.iter().filter_map(|link| Self::parse(&link.body));
        parsed.find(|link| link.name == name).ok_or_else(|| not_found(format!("no Ethernet interface {name}")))
    }

    /// The interface through which `address` is reached now: the wire the target's clients are on.
    ///
    /// # Errors
    /// The kernel's, or no route.
    pub fn towards(netlink: &mut Netlink, address: IpAddr) -> io::Result<Self> {
        let route = route_to(netlink, address)?;
        let index = route
            .as_ref()
            .and_then(|route| attributes(route.body.get(ROUTE_LEN..)?).find(|(kind, _)| *kind == libc::RTA_OIF))
            .and_then(|(_, value)| value.try_into().ok().map(u32::from_ne_bytes))
            .ok_or_else(|| not_found(format!("no route to {address}")))?;
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let links = netlink.exchange(Message::new(libc::RTM_GETLINK, 0, &fixed))?;
        let found = links.first().and_then(|link| Self::parse(&link.body));
        found.ok_or_else(|| not_found(format!("{address} is not reached over Ethernet")))
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        let (mut name, mut mac) = (None, None);
        for (kind, value) in attributes(body.get(16..)?) {
            match kind {
                libc::IFLA_IFNAME => name = Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()),
                libc::IFLA_ADDRESS => mac = value.try_into().ok(),
                _ => {}
            }
        }
        Some(Self { index, name: name?, mac: mac? })
    }
}

/// One service address this machine stands by for.
#[derive(Debug)]
pub struct StandBy {
    address: IpAddr,
    interface: Interface,
    announcer: Socket,
    held: bool,
}

impl StandBy {
    /// Gets ready; changes nothing on this machine.
    ///
    /// # Errors
    /// The kernel's: usually a missing CAP_NET_RAW.
    pub fn prepare(address: IpAddr, interface: Interface) -> io::Result<Self> {
        let announcer = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        Ok(Self { address, interface, announcer, held: false })
    }

    /// One that a killed daemon has taken and could not give back.
    ///
    /// # Errors
    /// The kernel's: usually a missing CAP_NET_RAW.
    pub fn left_behind(address: IpAddr, interface: Interface) -> io::Result<Self> {
        Ok(Self { held: true, ..Self::prepare(address, interface)? })
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Where it will be.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Whether it is ours now.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Tells the neighbours that the address is here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn announce(&self) -> io::Result<()> {
        let (index, mac) = (self.interface.index, self.interface.mac);
        match self.address {
            IpAddr::V4(address) => {
                for operation in [ARP_REQUEST, ARP_REPLY] {
                    let to = link_address(index, ETHERTYPE_ARP, Some(BROADCAST));
                    self.announcer.send_to(&gratuitous_arp(operation, mac, address), &to)?;
                }
            }
            IpAddr::V6(address) => {
                let to = link_address(index, ETHERTYPE_V6, Some(ALL_NODES_LINK));
                self.announcer.send_to(&neighbour_advertisement(mac, address), &to)?;
            }
        }
        Ok(())
    }

    fn change(&self, netlink: &mut Netlink, kind: u16, flags: i32) -> io::Result<()> {
        let address = octets(self.address);
        let mut fixed = vec![family(self.address), (address.len() * 8) as u8, 0, 0];
        fixed.extend_from_slice(&self.interface.index.to_ne_bytes());
        let mut message = Message::new(kind, flags, &fixed)
            .with(libc::IFA_LOCAL, &address)
            .with(libc::IFA_ADDRESS, &address)
            .with(IFA_FLAGS, &ADDRESS_FLAGS.to_ne_bytes());
        if self.address.is_ipv6() && kind == libc::RTM_NEWADDR {
            message = message.with(libc::IFA_CACHEINFO, &DEPRECATED.map(u32::to_ne_bytes).concat());
        }
        netlink.request(message)
    }

    /// Makes the address local. Every rebuilt socket must exist by now.
    ///
    /// # Errors
    /// The kernel's, or it has the address and does not make it local.
    pub fn take(&mut self, netlink: &mut Netlink) -> io::Result<()> {
        self.change(netlink, libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)?;
        self.held = true;
        if self.address.is_ipv6() { await_local(netlink, self.address) } else { Ok(()) }
    }

    /// Gives the address up, if it is ours.
    ///
    /// # Errors
    /// The kernel's.
    pub fn give_back(&mut self, netlink: &mut Netlink) -> io::Result<()> {
        if self.held {
            self.change(netlink, libc::RTM_DELADDR, 0)?;
            self.held = false;
        }
        Ok(())
    }
}

/// Waits until an address of this machine is local. Linux answers that it has an IPv6 address, and makes it local in
/// the background, when it has the lock that all changes of the network share (`addrconf_dad_work`). Until then what
/// this machine says to it goes onto the wire, and nobody is answered who asks for it. Where network namespaces are
/// taken down, that lock is held for a second and more.
///
/// # Errors
/// It takes ten seconds.
pub fn await_local(netlink: &mut Netlink, address: IpAddr) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        let route = route_to(netlink, address).ok().flatten();
        if route.is_some_and(|route| route.body.get(ROUTE_KIND) == Some(&libc::RTN_LOCAL)) {
            return Ok(());
        }
        if begin.elapsed() > LOCAL_WITHIN {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the address does not become local"));
        }
        thread::sleep(LOCAL_LOOK);
    }
}

/// The way by which this machine reaches `address`.
pub(crate) fn route_to(netlink: &mut Netlink, address: IpAddr) -> io::Result<Option<Answer>> {
    let destination = octets(address);
    let mut fixed = [0; ROUTE_LEN];
    fixed[0] = family(address);
    fixed[1] = (destination.len() * 8) as u8;
    let question = Message::new(libc::RTM_GETROUTE, 0, &fixed).with(libc::RTA_DST, &destination);
    Ok(netlink.exchange(question)?.into_iter().next())
}

/// RFC 826 packet in which sender and target are the same address.
fn gratuitous_arp(operation: u8, mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let target = if operation == ARP_REQUEST { [0; 6] } else { mac };
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&address.octets());
    packet.extend_from_slice(&target);
    packet.extend_from_slice(&address.octets());
    packet
}

/// RFC 4861, 4.4, unsolicited with the override flag, as a whole IPv6 packet.
fn neighbour_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const ICMP6: u8 = 58;
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_ADDRESS: u8 = 2;
    let mut body = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    body.extend_from_slice(&address.octets());
    body.extend_from_slice(&[TARGET_LINK_ADDRESS, 1]);
    body.extend_from_slice(&mac);
    let ends = word_sum(&address.octets()) + word_sum(&ALL_NODES.octets());
    let sum = internet_checksum(ends + u32::from(ICMP6) + body.len() as u32 + word_sum(&body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, body.len() as u8, ICMP6, 255];
    packet.extend_from_slice(&address.octets());
    packet.extend_from_slice(&ALL_NODES.octets());
    packet.extend_from_slice(&body);
    packet
}

/// The loopback interface must be up for a machine to talk to its own addresses; a fresh namespace has it down.
///
/// # Errors
/// The kernel's.
pub fn set_up(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let mut fixed = [0; 16];
    fixed[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    fixed[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    let name = [name.as_bytes(), &[0]].concat();
    netlink.request(Message::new(libc::RTM_NEWLINK, 0, &fixed).with(libc::IFLA_IFNAME, &name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn the_arp_forms_are_these_bytes() {
        let packet = gratuitous_arp(ARP_REQUEST, MAC, Ipv4Addr::new(10, 0, 0, 1));
        let expected = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1].to_vec();
        assert_eq!(packet, expected);
        assert_eq!(gratuitous_arp(ARP_REPLY, MAC, Ipv4Addr::new(10, 0, 0, 1))[18..24], MAC);
    }

    #[test]
    fn the_advertisement_carries_a_valid_checksum() {
        let packet = neighbour_advertisement(MAC, "fd77::1".parse().unwrap());
        assert_eq!((packet.len(), packet[6], packet[7], packet[40]), (72, 58, 255, 136));
        let pseudo = word_sum(&packet[8..40]) + 58 + 32;
        assert_eq!(internet_checksum(pseudo + word_sum(&packet[40..])), 0);
        assert_eq!(packet[66..], MAC);
    }
}
