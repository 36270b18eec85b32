//! The two tiers that break: where each machine is, which address moves, and how its process is started.
//!
//! ```text
//!   clients .4 ──► 10.77.0.100:8000 = fe1 (VM .10) ──► 10.77.0.110:8100 = mt1 (VM .11) ──► PostgreSQL .30
//!              └─► 10.77.0.20:8000  = fe2 (host)   ──► 10.77.0.21:8100  = mt2 (host)   ──┘
//! ```
//!
//! Each front end asks both mid tiers in turn. Only .100 and .110 move: the clients of fe1 and the front ends of mt1
//! know these and nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use auction::database::Server;
use control::reinstate::{Assignment, Service};

use crate::{
    scenario::configuration::{self, GUEST_BOXES, GUEST_DESCRIPTORS, Watched},
    topology::{HYPERVISOR, PREFIX_V4, RDMA_MTU, rdma_v4, service_v4},
    vm::Card,
};

/// Where the database is.
pub(super) const DATABASE: u8 = 30;
/// Its TCP port.
pub(super) const DATABASE_PORT: u16 = 5432;
/// Connections of each mid tier to the database.
pub(super) const CONNECTIONS: u32 = 16;

/// What a tier says in a guest.
pub(super) const GUEST_TIER_LOG: &str = "/var/log/auction";

/// A tier: a machine that breaks, and its peer, which serves at an address of its own and takes over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tier {
    /// The subcommand of `auction`, and the name in results.
    pub(super) name: &'static str,
    /// The virtual machine.
    pub(super) target: &'static str,
    /// The peer.
    pub(super) peer: &'static str,
    /// The peer's number on both networks.
    pub(super) peer_number: u8,
    /// The machine's own number, which never moves.
    own: u8,
    /// The number of the address that moves.
    service: u8,
    /// The port that is served.
    port: u16,
    /// The number of its backdoor on the RDMA network.
    pub(super) backdoor: u8,
    /// Its tap device.
    pub(super) tap: &'static str,
    /// Its hardware address.
    pub(super) mac: &'static str,
}

pub(super) const FRONT_END: Tier = Tier {
    name: "fe",
    target: "fe1",
    peer: "fe2",
    peer_number: 20,
    own: 10,
    service: 100,
    port: 8000,
    backdoor: HYPERVISOR,
    tap: "tap-fe1",
    mac: "52:54:00:bd:00:10",
};

/// If two peers share the front end's evacuation: the second of them, and a second address that moves.
const SHARING: Tier = Tier { peer: "fe3", peer_number: 22, service: 101, ..FRONT_END };

pub(super) const MID_TIER: Tier = Tier {
    name: "mt",
    target: "mt1",
    peer: "mt2",
    peer_number: 21,
    own: 11,
    service: 110,
    port: 8100,
    backdoor: 7,
    tap: "tap-mt1",
    mac: "52:54:00:bd:00:11",
};

impl Tier {
    /// Where the machine's tier is asked: the address that moves.
    pub(super) fn service(self) -> SocketAddr {
        (service_v4(self.service), self.port).into()
    }

    /// Where the peer is asked.
    fn peer_service(self) -> SocketAddr {
        (service_v4(self.peer_number), self.port).into()
    }

    /// Both, with a comma.
    fn both(self) -> String {
        format!("{},{}", self.service(), self.peer_service())
    }

    /// The tier once for each peer of its machine, with the address that this one takes if they share.
    pub(super) fn peers(self, is_shared: bool) -> Vec<Self> {
        let second = (is_shared && self.target == FRONT_END.target).then_some(SHARING);
        std::iter::once(self).chain(second).collect()
    }

    /// Where the tier is asked, of all machines, with commas.
    pub(super) fn everywhere(self, is_shared: bool) -> String {
        self.peers(is_shared).into_iter().map(Self::both).collect::<Vec<_>>().join(",")
    }

    /// The addresses of the machine's network device.
    pub(super) fn addresses(self, is_shared: bool) -> Vec<String> {
        let own = format!("{}/{PREFIX_V4}", service_v4(self.own));
        let services = self.peers(is_shared).into_iter().map(|tier| format!("{}/32", tier.service().ip()));
        std::iter::once(own).chain(services).collect()
    }

    /// The words after `auction`, with the box socket if the tier shall be recoverable.
    pub(super) fn arguments(self, boxes: Option<&str>) -> Vec<String> {
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port)).to_string();
        let mut words = vec![self.name.to_owned(), "--listen".to_owned(), listen];
        if self.target == FRONT_END.target {
            words.extend(["--mid-tier".to_owned(), MID_TIER.everywhere(false)]);
        } else {
            words.extend(["--database".to_owned(), database_address()]);
            words.extend(["--connections".to_owned(), CONNECTIONS.to_string()]);
        }
        words.extend(boxes.into_iter().flat_map(|socket| ["--box-socket".to_owned(), socket.to_owned()]));
        words
    }

    /// The shell line by which the machine begins to serve; it ends when the tier listens.
    pub(super) fn guest_serve(self, recoverable: bool) -> String {
        let words = self.arguments(recoverable.then_some(GUEST_BOXES));
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let log = GUEST_TIER_LOG;
        format!(
            "ulimit -n {GUEST_DESCRIPTORS} || exit 1; \
             (exec /bin/auction {} >>{log} 2>&1 </dev/null) & \
             until grep -q serving {log} 2>/dev/null; do sleep 0.02; [ -d /proc/$! ] || exit 1; done",
            quoted.join(" ")
        )
    }

    /// The peer's own address, for a guest.
    pub(super) fn peer_address(self) -> String {
        format!("{}/{PREFIX_V4}", service_v4(self.peer_number))
    }

    /// Hardware addresses of the peer, for a guest.
    pub(super) fn peer_mac(self, card: u8) -> String {
        format!("52:54:00:bd:{card:02}:{}", self.peer_number)
    }

    /// How the peer is on the RDMA network, for a guest.
    pub(super) fn peer_rdma_card(self) -> Card {
        let address = format!("{}/{PREFIX_V4}", rdma_v4(self.peer_number));
        Card { tap: format!("tap-{}-rdma", self.peer), mac: self.peer_mac(1), address, mtu: RDMA_MTU }
    }

    /// The control plane of the peer's `reinstate`.
    pub(super) fn peer_control(self) -> SocketAddr {
        configuration::on_rdma_network(self.peer_number, control::reinstate::PORT)
    }

    fn backdoor_control(self) -> SocketAddr {
        (rdma_v4(self.backdoor), control::backdoor::PORT).into()
    }

    /// What the monitor will ask each peer to stand by for.
    pub(super) fn assignment(self, is_shared: bool) -> Assignment {
        let service = |tier: Self| Service { address: tier.service().ip(), ports: vec![tier.port] };
        let services = self.peers(is_shared).into_iter().map(service).collect();
        Assignment { target: self.target.to_owned(), backdoor: self.backdoor_control(), services }
    }

    /// Its table in the monitor's configuration.
    pub(super) fn watched(self, is_shared: bool) -> String {
        let peers = self.peers(is_shared);
        let watched = Watched {
            target: self.target,
            backdoor: self.backdoor_control(),
            spare: (self.peer, self.peer_control()),
            services: peers.iter().map(|tier| (tier.service().ip(), tier.port)).collect(),
        };
        let others = peers[1..].iter().map(|tier| configuration::another_spare(tier.peer, tier.peer_control()));
        let addresses = format!("addresses = [\"{}\"]\n", service_v4(self.own));
        let share = if peers.len() > 1 { "share = true\n" } else { "" };
        watched.table(&(addresses + share)) + &others.collect::<String>()
    }
}

/// Whether an address is that of one of these machines and went down with it.
pub(super) fn is_of(address: IpAddr, targets: &[&str]) -> bool {
    let dead = [FRONT_END, MID_TIER].into_iter().filter(|tier| targets.contains(&tier.target));
    dead.map(|tier| IpAddr::V4(service_v4(tier.own))).any(|own| own == address)
}

/// The database by TCP, as PostgreSQL's clients write it.
fn database_address() -> String {
    Server::tcp_address((service_v4(DATABASE), DATABASE_PORT).into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_monitor_s_configuration_is_one_and_says_who_takes_over_for_whom() {
        let config = |is_shared: bool| {
            let targets = FRONT_END.watched(is_shared) + &MID_TIER.watched(is_shared);
            let text = configuration::rules(Path::new("j"), 500, true) + &targets;
            monitor::config::parse(Path::new("monitor.toml"), &text).unwrap()
        };
        let alone = config(false);
        let who = alone.targets.iter().map(|target| (target.name.as_str(), target.spares[0].name.as_str()));
        assert_eq!(who.collect::<Vec<_>>(), [("fe1", "fe2"), ("mt1", "mt2")]);
        assert_eq!(alone.targets[1].services[0].address.to_string(), "10.77.0.110");
        assert!(alone.targets.iter().all(|target| !target.share && target.spares.len() == 1));
        let [front, mid] = &config(true).targets[..] else { panic!("two targets") };
        assert_eq!(front.spares.iter().map(|spare| spare.name.as_str()).collect::<Vec<_>>(), ["fe2", "fe3"]);
        let services = front.services.iter().map(|service| service.address.to_string());
        assert_eq!(services.collect::<Vec<_>>(), ["10.77.0.100", "10.77.0.101"]);
        assert!(front.share && !mid.share && mid.spares.len() == 1);
    }

    #[test]
    fn a_peer_in_a_guest_has_the_addresses_of_one_that_is_not() {
        assert_eq!(FRONT_END.peer_address(), "10.77.0.20/24");
        let card = MID_TIER.peer_rdma_card();
        assert_eq!(card.address, format!("{}/24", MID_TIER.peer_control().ip()));
        let devices = [FRONT_END, MID_TIER].map(|tier| [tier.peer_mac(0), tier.peer_mac(1), tier.mac.to_owned()]);
        let distinct: std::collections::HashSet<_> = devices.iter().flatten().collect();
        assert_eq!(distinct.len(), 6, "{devices:?}");
        // The kernel's own limit.
        assert!(card.tap.len() < 16, "{}", card.tap);
    }

    #[test]
    fn a_tier_is_told_who_is_behind_it() {
        let everywhere = FRONT_END.everywhere(true);
        assert_eq!(everywhere, "10.77.0.100:8000,10.77.0.20:8000,10.77.0.101:8000,10.77.0.22:8000");
        let words = FRONT_END.arguments(None).join(" ");
        assert_eq!(words, "fe --listen 0.0.0.0:8000 --mid-tier 10.77.0.110:8100,10.77.0.21:8100");
        let words = MID_TIER.arguments(Some("box")).join(" ");
        assert!(words.contains("host=10.77.0.30 port=5432") && words.ends_with("--box-socket box"), "{words}");
    }
}
