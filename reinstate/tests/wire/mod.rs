//! A client, a server that will fall silent and a spare: three network namespaces on one bridge in a fourth.
//!
//! Namespaces live as long as a file descriptor names them; nothing has a name that could stay behind.

#![allow(dead_code)] // of what the tests share, each uses a part

pub mod pair;

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use reinstate::{
    address::{await_local, set_up},
    netlink::{Message, Netlink, attribute, attributes},
};

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_F_NODAD: u8 = 2;

/// A network namespace.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let make = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let file = thread::spawn(make).join().unwrap().expect("a network namespace needs root, or `unshare -Urn`");
        let namespace = Self(file);
        namespace.run(|| set_up(&mut Netlink::open().unwrap(), "lo").unwrap());
        namespace
    }

    /// Runs `work` inside, on a thread of its own. Sockets made there stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub fn sysctl(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn link_info(kind: &str, data: &[u8]) -> Vec<u8> {
    [attribute(IFLA_INFO_KIND, kind.as_bytes()), attribute(IFLA_INFO_DATA, data)].concat()
}

fn link_index(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

fn master(port: &str, master: u32) {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&link_index(port).to_ne_bytes());
    let message = Message::new(libc::RTM_NEWLINK, 0, &fixed).with(libc::IFLA_MASTER, &master.to_ne_bytes());
    Netlink::open().unwrap().request(message).unwrap();
}

pub struct Wire {
    bridge: Namespace,
    pub client: Namespace,
    pub server: Namespace,
    pub spare: Namespace,
}

/// Last parts of the addresses: 10.77.0.N and fd77::N.
pub const SPARE: u8 = 2;
pub const CLIENT: u8 = 4;
pub const SERVICE: u8 = 100;

pub fn address(v6: bool, host: u8) -> IpAddr {
    if v6 { format!("fd77::{host:x}").parse().unwrap() } else { IpAddr::from([10, 77, 0, host]) }
}

impl Wire {
    pub fn new() -> Self {
        let [bridge, client, server, spare] = std::array::from_fn(|_| Namespace::new());
        bridge.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            let message = Message::new(libc::RTM_NEWLINK, create, &[0; 16])
                .with(libc::IFLA_IFNAME, &name("br"))
                .with(libc::IFLA_LINKINFO, &link_info("bridge", &[]));
            netlink.request(message).unwrap();
            set_up(&mut netlink, "br").unwrap();
            for (port, end) in [("client", &client), ("server", &server), ("spare", &spare)] {
                let peer = [
                    vec![0; 16],
                    attribute(libc::IFLA_IFNAME, &name("eth0")),
                    attribute(libc::IFLA_NET_NS_FD, &(end.0.as_raw_fd() as u32).to_ne_bytes()),
                ]
                .concat();
                let veth = link_info("veth", &attribute(VETH_INFO_PEER, &peer));
                let message = Message::new(libc::RTM_NEWLINK, create, &[0; 16])
                    .with(libc::IFLA_IFNAME, &name(port))
                    .with(libc::IFLA_MASTER, &link_index("br").to_ne_bytes())
                    .with(libc::IFLA_LINKINFO, &veth);
                netlink.request(message).unwrap();
                set_up(&mut netlink, port).unwrap();
            }
        });
        let wire = Self { bridge, client, server, spare };
        for (end, host) in [(&wire.client, CLIENT), (&wire.server, SERVICE), (&wire.spare, SPARE)] {
            // Link-local addresses count at once: a machine without one asks nobody for a link address.
            end.sysctl("ipv6/conf/eth0/accept_dad", "0");
            end.run(|| {
                let mut netlink = Netlink::open().unwrap();
                set_up(&mut netlink, "eth0").unwrap();
                for v6 in [false, true] {
                    add_address(&mut netlink, address(v6, host));
                }
                wait_until_up(&mut netlink, "eth0");
            });
        }
        // The bridge forwards for a port when it has noticed its carrier, too.
        wire.bridge.run(|| {
            let mut netlink = Netlink::open().unwrap();
            ["client", "server", "spare"].iter().for_each(|port| wait_until_up(&mut netlink, port));
        });
        wire
    }

    /// From here on nothing the server sends or is sent arrives.
    pub fn silence_server(&self) {
        self.unplug("server");
    }

    /// From here on the switch loses what is said to everybody, on its way to the client: questions for its link
    /// address among it.
    pub fn lose_questions_to_client(&self, lost: bool) {
        const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
        const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
        self.bridge.run(|| {
            let mut fixed = [0; 16];
            fixed[0] = libc::AF_BRIDGE as u8;
            fixed[4..8].copy_from_slice(&link_index("client").to_ne_bytes());
            let flood =
                [IFLA_BRPORT_MCAST_FLOOD, IFLA_BRPORT_BCAST_FLOOD].map(|kind| attribute(kind, &[u8::from(!lost)]));
            let nested = libc::IFLA_PROTINFO | libc::NLA_F_NESTED as u16;
            let message = Message::new(libc::RTM_SETLINK, 0, &fixed).with(nested, &flood.concat());
            Netlink::open().unwrap().request(message).unwrap();
        });
    }

    pub fn unplug(&self, port: &str) {
        self.bridge.run(|| master(port, 0));
    }

    pub fn plug(&self, port: &str) {
        self.bridge.run(|| {
            master(port, link_index("br"));
            wait_until_up(&mut Netlink::open().unwrap(), port);
        });
    }
}

/// A new link may drop what is sent for up to a second: its queue starts when the kernel has noticed its carrier.
fn wait_until_up(netlink: &mut Netlink, interface: &str) {
    const IFLA_OPERSTATE: u16 = 16;
    const UP: &[u8] = &[6];
    let begin = Instant::now();
    loop {
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&link_index(interface).to_ne_bytes());
        let links = netlink.exchange(Message::new(libc::RTM_GETLINK, 0, &fixed)).unwrap();
        if attributes(&links[0].body[16..]).any(|found| found == (IFLA_OPERSTATE, UP)) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "the link never came up");
        thread::sleep(Duration::from_millis(1));
    }
}

fn add_address(netlink: &mut Netlink, address: IpAddr) {
    let (family, prefix, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, 24, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 64, address.octets().to_vec()),
    };
    let mut fixed = vec![family as u8, prefix, IFA_F_NODAD, 0];
    fixed.extend_from_slice(&link_index("eth0").to_ne_bytes());
    let message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE, &fixed)
        .with(libc::IFA_LOCAL, &octets)
        .with(libc::IFA_ADDRESS, &octets);
    netlink.request(message).unwrap();
    await_local(netlink, address).unwrap();
}

pub fn service(v6: bool) -> SocketAddr {
    SocketAddr::new(address(v6, SERVICE), 8080)
}
