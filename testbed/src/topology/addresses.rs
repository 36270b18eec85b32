//! Who has which address. The last number is the same on every network, in both families.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The hypervisor, where the backdoor runs.
pub const HYPERVISOR: u8 = 1;
/// The spare.
pub const SPARE: u8 = 2;
/// The monitor.
pub const MONITOR: u8 = 3;
/// The clients.
pub const CLIENT: u8 = 4;
/// A second spare, where there is one.
pub const SECOND_SPARE: u8 = 5;
/// The guest's own address, which never moves.
pub const GUEST: u8 = 10;
/// The address of the service, which moves.
pub const SERVICE: u8 = 100;

/// Prefix length of the IPv4 networks.
pub const PREFIX_V4: u8 = 24;
/// Prefix length of the IPv6 network.
pub const PREFIX_V6: u8 = 64;

/// Name of the service network's interface in every machine, and of its bridge.
pub const SERVICE_INTERFACE: &str = "service0";
/// Name of the RDMA network's interface in every machine, and of its bridge.
pub const RDMA_INTERFACE: &str = "rdma0";

/// Port of the file server.
pub const FILE_PORT: u16 = 8080;

/// An address on the service network.
pub fn service_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// An address on the service network; its last group reads as the IPv4 address's last number does.
pub fn service_v6(number: u8) -> Ipv6Addr {
    let (hundreds, tens, ones) = (u16::from(number) / 100, u16::from(number) / 10 % 10, u16::from(number) % 10);
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, hundreds << 8 | tens << 4 | ones)
}

/// An address on the RDMA network.
pub fn rdma_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_read_alike() {
        assert_eq!(service_v4(SERVICE).to_string(), "10.77.0.100");
        assert_eq!(service_v6(SERVICE).to_string(), "fd77::100");
        assert_eq!(service_v6(GUEST).to_string(), "fd77::10");
    }
}
