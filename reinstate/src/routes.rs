//! A second routing table for the moment of take-over: the machine's own routes with a raised initial window.
//!
//! A rebuilt socket starts with the initial congestion window of its route. Ten segments, the usual value, would not
//! let a flight of 100 kB leave at once, and a client that is ahead of us acknowledges what we have not sent yet:
//! ignored by TCP, for ever. So while sockets are rebuilt, packets **from the service address** are routed by a copy of
//! the main table whose routes say `initcwnd` [`INITIAL_WINDOW`]. Nothing else uses that table; the rule goes as soon
//! as sockets are rebuilt (a socket keeps its window), so that new connections are polite again.

use std::{io, net::IpAddr};

use crate::netlink::{Answer, Message, Netlink, attribute, attributes};

/// Segments a rebuilt socket may send at once: 1.4 MB at the usual segment size, more than windows usually allow.
pub const INITIAL_WINDOW: u32 = 1000;

/// Number of the table unless configured: that of our TCP port, to be recognised.
pub const TABLE: u32 = 4792;

/// Routes copied per family. A spare is an end system; one with more is a router, whose table is none of our business.
const ROUTES_MAX: usize = 1000;

/// Rules are asked in ascending order: after `local` (0), before `main` (32766).
const RULE_PRIORITY: u32 = 4792;

/// Bytes of `struct rtmsg` and `struct fib_rule_hdr`.
const FIXED_LEN: usize = 12;
const RTAX_INITCWND: u16 = 11;
const RT_TABLE_MAIN: u8 = libc::RT_TABLE_MAIN;
const RTN_UNICAST: u8 = libc::RTN_UNICAST;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;

pub(crate) fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The raised routes for one service address. Undone by [`RaisedRoutes::remove`].
#[derive(Debug)]
pub struct RaisedRoutes {
    address: IpAddr,
    table: u32,
    copied: Vec<Vec<u8>>,
    ruled: bool,
}

impl RaisedRoutes {
    /// Copies the main table's routes of `address`'s family and adds the rule.
    ///
    /// # Errors
    /// The kernel's, for the first route or the rule that was refused.
    pub fn install(netlink: &mut Netlink, address: IpAddr, table: u32) -> io::Result<Self> {
        let mut raised = Self { address, table, copied: Vec::new(), ruled: false };
        let question = [family(address), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let routes = netlink.exchange(Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &question))?;
        let main: Vec<_> = routes.iter().filter_map(|route| copy_of(route, table)).take(ROUTES_MAX).collect();
        let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        // Routes through a gateway need the gateway's own route first: shorter prefixes last.
        for route in longest_prefix_first(main) {
            netlink.request(message(libc::RTM_NEWROUTE, create, &route))?;
            raised.copied.push(route);
        }
        // One that a killed daemon left behind would outlive ours.
        let _ = raised.rule(netlink, false);
        raised.rule(netlink, true)?;
        Ok(raised)
    }

    /// Those that a killed daemon could not remove, as far as they are in anybody's way: the rule.
    pub fn left_behind(address: IpAddr, table: u32) -> Self {
        Self { address, table, copied: Vec::new(), ruled: true }
    }

    fn rule(&mut self, netlink: &mut Netlink, wanted: bool) -> io::Result<()> {
        let address = octets(self.address);
        let mut fixed = [0; FIXED_LEN];
        fixed[0] = family(self.address);
        fixed[2] = (address.len() * 8) as u8;
        fixed[7] = FR_ACT_TO_TBL;
        let (kind, flags) = if wanted { (libc::RTM_NEWRULE, libc::NLM_F_CREATE) } else { (libc::RTM_DELRULE, 0) };
        let rule = Message::new(kind, flags, &fixed)
            .with(FRA_SRC, &address)
            .with(FRA_PRIORITY, &RULE_PRIORITY.to_ne_bytes())
            .with(FRA_TABLE, &self.table.to_ne_bytes());
        netlink.request(rule)?;
        self.ruled = wanted;
        Ok(())
    }

    /// The service address they are for.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Takes the rule away: from here on the main table decides. Sockets keep the window they got.
    ///
    /// # Errors
    /// The kernel's.
    pub fn retire(&mut self, netlink: &mut Netlink) -> io::Result<()> {
        if self.ruled { self.rule(netlink, false) } else { Ok(()) }
    }

    /// Takes rule and routes away. Best effort: a route that went with its interface is gone already.
    pub fn remove(&mut self, netlink: &mut Netlink) {
        let _ = self.retire(netlink);
        for route in self.copied.drain(..) {
            let _ = netlink.request(message(libc::RTM_DELROUTE, 0, &route));
        }
    }
}

/// Fixed part and attributes of a route, as one message.
fn message(kind: u16, flags: i32, route: &[u8]) -> Message {
    Message::new(kind, flags, route)
}

/// What a route of the main table looks like in `table`; `None` for what is no ordinary route there.
fn copy_of(route: &Answer, table: u32) -> Option<Vec<u8>> {
    let fixed = route.body.get(..FIXED_LEN)?;
    (route.kind == libc::RTM_NEWROUTE && fixed[4] == RT_TABLE_MAIN && fixed[7] == RTN_UNICAST).then_some(())?;
    let mut copy = fixed.to_vec();
    copy[4] = 0; // the table's number is in an attribute, it need not fit a byte
    copy[8..12].fill(0); // flags such as "link down" are the kernel's to set
    let mut metrics = attribute(RTAX_INITCWND, &INITIAL_WINDOW.to_ne_bytes());
    for (kind, value) in attributes(&route.body[FIXED_LEN..]) {
        match kind {
            libc::RTA_TABLE | libc::RTA_CACHEINFO | libc::RTA_PREF => {}
            libc::RTA_METRICS => {
                for (metric, value) in attributes(value).filter(|(metric, _)| *metric != RTAX_INITCWND) {
                    metrics.extend(attribute(metric, value));
                }
            }
            _ => copy.extend(attribute(kind, value)),
        }
    }
    copy.extend(attribute(libc::RTA_TABLE, &table.to_ne_bytes()));
    copy.extend(attribute(libc::RTA_METRICS, &metrics));
    Some(copy)
}

fn longest_prefix_first(mut routes: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    routes.sort_by_key(|route| std::cmp::Reverse(route[1]));
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_the_route_and_raises_the_window() {
        let mut body = vec![2, 24, 0, 0, RT_TABLE_MAIN, 2, 253, RTN_UNICAST, 0x10, 0, 0, 0];
        body.extend(attribute(libc::RTA_TABLE, &254_u32.to_ne_bytes()));
        body.extend(attribute(libc::RTA_DST, &[10, 0, 0, 0]));
        body.extend(attribute(libc::RTA_METRICS, &attribute(2, &1400_u32.to_ne_bytes())));
        let copy = copy_of(&Answer { kind: libc::RTM_NEWROUTE, body }, 4792).unwrap();
        assert_eq!(copy[..12], [2, 24, 0, 0, 0, 2, 253, RTN_UNICAST, 0, 0, 0, 0]);
        let found: Vec<_> = attributes(&copy[12..]).collect();
        assert_eq!(found[0], (libc::RTA_DST, &[10, 0, 0, 0][..]));
        assert_eq!(found[1], (libc::RTA_TABLE, &4792_u32.to_ne_bytes()[..]));
        let metrics: Vec<_> = attributes(found[2].1).collect();
        assert_eq!(metrics, [(11, &1000_u32.to_ne_bytes()[..]), (2, &1400_u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn local_routes_and_other_tables_are_left_alone() {
        let with = |table, kind| {
            let body = vec![2, 24, 0, 0, table, 2, 253, kind, 0, 0, 0, 0];
            copy_of(&Answer { kind: libc::RTM_NEWROUTE, body }, 4792)
        };
        assert!(with(255, RTN_UNICAST).is_none());
        assert!(with(RT_TABLE_MAIN, libc::RTN_LOCAL).is_none());
        assert!(copy_of(&Answer { kind: libc::RTM_NEWROUTE, body: vec![2] }, 1).is_none());
    }
}
