//! Bridges, cables and addresses, made through rtnetlink. Every function acts in the calling thread's namespace.

use std::{
    fs,
    future::Future,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use super::{HYPERVISOR, PREFIX_V4, PREFIX_V6, rdma_v4, service_v4, service_v6};

/// Frames of the RDMA network: a path MTU of 4096 and room for headers.
pub const RDMA_MTU: u32 = 9000;

/// One of the two networks, of which the second may have a far half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Service,
    Rdma,
    FarRdma,
}

impl Network {
    /// Name of its bridge, and of the interface inside each machine.
    pub(super) fn interface(self) -> &'static str {
        match self {
            Self::Service => super::SERVICE_INTERFACE,
            Self::Rdma => super::RDMA_INTERFACE,
            Self::FarRdma => "rdma1",
        }
    }

    fn mtu(self) -> u32 {
        match self {
            Self::Service => 1500,
            Self::Rdma | Self::FarRdma => RDMA_MTU,
        }
    }

    /// Name of the bridge's end of the cable to machine `place`; at most 15 characters.
    pub(super) fn cable(self, place: &str) -> String {
        match self {
            Self::Service => format!("service-{}", &place[..place.len().min(7)]),
            Self::Rdma | Self::FarRdma => format!("rdma-{place}"),
        }
    }

    fn addresses(self, number: u8) -> Vec<(IpAddr, u8)> {
        match self {
            Self::Service => {
                vec![(service_v4(number).into(), PREFIX_V4), (service_v6(number).into(), PREFIX_V6)]
            }
            Self::Rdma => vec![(rdma_v4(number).into(), PREFIX_V4)],
            // The hypervisor has its address on the near half.
            Self::FarRdma => vec![],
        }
    }
}

/// Runs netlink work in the calling thread's namespace: the socket is opened here, so it stays here.
pub(super) fn netlink<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

fn handle() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))
}

/// New addresses are usable at once: a namespace of our own holds no stranger to ask.
pub(super) fn no_duplicate_address_detection() -> Result<()> {
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
        fs::write(&path, "0").with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

pub(super) async fn loopback_up() -> Result<()> {
    let up = LinkUnspec::new_with_index(index("lo")?).up().build();
    handle()?.link().change(up).execute().await.context("loopback up")
}

/// Makes both bridges, with the hypervisor's addresses on them.
pub(super) async fn bridges() -> Result<()> {
    for network in [Network::Service, Network::Rdma] {
        bridge(network).await?;
    }
    for network in [Network::Service, Network::Rdma] {
        configure(network, HYPERVISOR).await?;
    }
    Ok(())
}

/// Makes the bridge of `network`.
pub(super) async fn bridge(network: Network) -> Result<()> {
    let bridge = LinkBridge::new(network.interface()).mtu(network.mtu()).mcast_snooping(false).up().build();
    handle()?.link().add(bridge).execute().await.with_context(|| format!("bridge {}", network.interface()))
}

/// Lays a cable from the bridge of `network` into the namespace of `place`.
pub(super) async fn plug_in(network: Network, place: &str, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
    let handle = handle()?;
    let (near, far) = (network.cable(place), "far-end");
    handle.link().add(LinkVeth::new(&near, far).build()).execute().await.with_context(|| format!("veth {near}"))?;
    let port =
        LinkUnspec::new_with_index(index(&near)?).mtu(network.mtu()).controller(index(network.interface())?).up();
    handle.link().change(port.build()).execute().await.with_context(|| format!("plugging in {near}"))?;
    let mut moved = LinkUnspec::new_with_index(index(far)?).name(network.interface()).mtu(network.mtu());
    if let Some(namespace) = namespace {
        moved = moved.setns_by_fd(namespace.as_raw_fd());
    }
    handle.link().change(moved.build()).execute().await.with_context(|| format!("moving the far end of {near}"))
}

/// Gives the interface of `network` its addresses and brings it up.
pub(super) async fn configure(network: Network, number: u8) -> Result<()> {
    let handle = handle()?;
    let interface = index(network.interface())?;
    let up = LinkUnspec::new_with_index(interface).up().build();
    handle.link().change(up).execute().await.context("interface up")?;
    for (address, prefix) in network.addresses(number) {
        let add = handle.address().add(interface, address, prefix);
        add.execute().await.with_context(|| format!("address {address}"))?;
    }
    Ok(())
}

pub(super) async fn plug_tap(network: Network, tap: &str) -> Result<()> {
    let port = LinkUnspec::new_with_index(index(tap)?).mtu(network.mtu()).controller(index(network.interface())?).up();
    handle()?.link().change(port.build()).execute().await.context("tap up")
}

pub(super) async fn unplug_tap(tap: &str) -> Result<()> {
    let alone = LinkUnspec::new_with_index(index(tap)?).nocontroller();
    handle()?.link().change(alone.build()).execute().await.context("tap out of its bridge")
}

/// Takes cables and bridges away, those that are there.
pub(super) async fn remove(cables: &[String]) -> Result<()> {
    let handle = handle()?;
    let bridges = [Network::Service, Network::Rdma, Network::FarRdma].map(Network::interface);
    for interface in cables.iter().map(String::as_str).chain(bridges) {
        if let Ok(index) = index(interface) {
            handle.link().del(index).execute().await.with_context(|| format!("removing {interface}"))?;
        }
    }
    Ok(())
}
