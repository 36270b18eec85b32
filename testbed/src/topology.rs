//! The machines of a scenario and the wires between them.
//!
//! ```text
//!                     service network, MTU 1500                     RDMA network, MTU 9000
//!   guest  ──tap──┐                                      ┌── 10.78.0.3 monitor
//!   10.77.0.10    ├── bridge `service0` in the           │
//!   client .4 ────┤   hypervisor's namespace,     bridge `rdma0` = 10.78.0.1, the backdoor
//!   spare  .2 ────┤   10.77.0.1                          │
//!   monitor .3 ───┘                                      └── 10.78.0.2 spare
//!                   fd77::/64 with the same last numbers
//! ```
//!
//! Two networks, as in a machine room: clients and services on one; RoCEv2 and the control planes on the other, where
//! 9000-byte frames carry a path MTU of 4096. A bridge has the smallest MTU of its ports, so one bridge for both would
//! cut every READ response into quarters. The service address (10.77.0.100, fd77::100) belongs to the guest at first.
//!
//! Spare, monitor and client are network namespaces held by file descriptors: no name, no `ip` program, nothing to
//! clean up. The hypervisor is the namespace the testbed itself runs in.

mod addresses;
mod place;
mod rough;
mod wires;

use std::sync::Arc;

use anyhow::{Context, Result};

pub use addresses::*;
pub use place::Place;
use rough::RoughCable;
pub use rough::{Harm, Weather, Wire};
use wires::Network;
pub use wires::RDMA_MTU;

/// The machines. Dropping it takes the wires away, so that another can be built; namespaces go with their processes.
#[derive(Debug)]
pub struct Topology {
    /// Holds the bridges, the guest's tap, QEMU and the backdoor.
    pub hypervisor: Place,
    /// Where sessions move to.
    pub spare: Place,
    /// Where the monitor runs.
    pub monitor: Place,
    /// Where clients run.
    pub client: Place,
    /// The clients' cable, if it is one that can be bad.
    rough: Option<RoughCable>,
    /// The cable between the halves of the RDMA network, if it has two.
    between_halves: Option<RoughCable>,
}

/// The ends of that cable, in the near half and in the far one.
const BETWEEN_HALVES: [&str; 2] = ["rough-near", "rough-far"];

/// Brings up the loopback of the namespace that the caller is in; a new one has it down.
///
/// # Errors
/// When the kernel refuses.
pub fn loopback_up() -> Result<()> {
    wires::netlink(wires::loopback_up())
}

impl Topology {
    /// Builds everything but the guest's end. The caller must be in a network namespace of its own, see
    /// [`crate::sandbox`].
    ///
    /// # Errors
    /// When the kernel refuses an interface; names it.
    pub fn build() -> Result<Self> {
        Self::with_wire(Wire::Good, 0)
    }

    /// As [`Self::build`], with a cable to the clients that can be turned bad, see [`Self::weather`].
    ///
    /// # Errors
    /// See [`Self::build`].
    pub fn with_wire(wire: Wire, seed: u64) -> Result<Self> {
        let mut topology = Self {
            hypervisor: Place::here("hypervisor"),
            spare: Place::new("spare")?,
            monitor: Place::new("monitor")?,
            client: Place::new("client")?,
            rough: None,
            between_halves: None,
        };
        for place in [&topology.hypervisor, &topology.spare, &topology.monitor, &topology.client] {
            place.run(wires::no_duplicate_address_detection).with_context(|| format!("sysctl of {}", place.name()))?;
            place.run(|| wires::netlink(wires::loopback_up()))?;
        }
        topology.hypervisor.run(|| wires::netlink(wires::bridges()))?;
        if wire != Wire::Good {
            topology.rough = Some(RoughCable::lay(Network::Service, &topology.client, wire, seed)?);
        }
        for (place, number, network) in topology.ends() {
            let plug = if topology.rough.is_some() && (number, network) == (CLIENT, Network::Service) {
                wires::netlink(wires::plug_tap(network, &network.cable(place.name())))
            } else {
                wires::netlink(wires::plug_in(network, place.name(), place.namespace()))
            };
            plug.with_context(|| format!("wiring {} to {network:?}", place.name()))?;
            place
                .run(|| wires::netlink(wires::configure(network, number)))
                .with_context(|| format!("addresses of {}", place.name()))?;
        }
        Ok(topology)
    }

    /// Adds a machine with this number on both networks. Its wires go with its namespace.
    ///
    /// # Errors
    /// When the kernel refuses a namespace or an interface; names it.
    pub fn add(&self, name: &'static str, number: u8) -> Result<Place> {
        let place = Place::new(name)?;
        place.run(wires::no_duplicate_address_detection).with_context(|| format!("sysctl of {name}"))?;
        place.run(|| wires::netlink(wires::loopback_up()))?;
        for network in [Network::Service, Network::Rdma] {
            let plug = wires::netlink(wires::plug_in(network, name, place.namespace()));
            plug.with_context(|| format!("wiring {name} to {network:?}"))?;
            place.run(|| wires::netlink(wires::configure(network, number)))?;
        }
        Ok(place)
    }

    /// Gives the hypervisor another address on the RDMA network, with this number: for the backdoor of another guest.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add_backdoor(&self, number: u8) -> Result<()> {
        self.hypervisor.run(|| wires::netlink(wires::configure(Network::Rdma, number)))
    }

    /// Turns the clients' cable bad and good, if it can be bad.
    pub fn weather(&self) -> Option<Arc<Weather>> {
        self.rough.as_ref().map(RoughCable::weather)
    }

    /// Gives the RDMA network a far half, at the end of a cable that can be made to treat packets badly; the
    /// generator of their fates has this seed. [`Self::plug_far_tap`] plugs machines in.
    ///
    /// # Errors
    /// When the kernel refuses an interface; names it.
    pub fn add_far_half(&mut self, seed: u64) -> Result<Arc<Weather>> {
        wires::netlink(wires::bridge(Network::FarRdma))?;
        let cable = self.between_halves.insert(RoughCable::lay_here(BETWEEN_HALVES, seed)?);
        let weather = cable.weather();
        for (network, end) in [Network::Rdma, Network::FarRdma].into_iter().zip(BETWEEN_HALVES) {
            wires::netlink(wires::plug_tap(network, end)).with_context(|| format!("plugging in {end}"))?;
        }
        Ok(weather)
    }

    /// Plugs a tap device that exists in the hypervisor's namespace into the far half of the RDMA network.
    ///
    /// # Errors
    /// When there is no such device or no such half.
    pub fn plug_far_tap(&self, tap: &str) -> Result<()> {
        let plug = wires::netlink(wires::plug_tap(Network::FarRdma, tap));
        plug.with_context(|| format!("plugging {tap} into the far half of the RDMA network"))
    }

    /// Plugs a tap device that exists in the hypervisor's namespace into the service network.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn plug_tap(&self, tap: &str) -> Result<()> {
        let plug = wires::netlink(wires::plug_tap(Network::Service, tap));
        plug.with_context(|| format!("plugging {tap} into the service network"))
    }

    /// Plugs such a device into the RDMA network, whose frames are larger.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn plug_rdma_tap(&self, tap: &str) -> Result<()> {
        let plug = wires::netlink(wires::plug_tap(Network::Rdma, tap));
        plug.with_context(|| format!("plugging {tap} into the RDMA network"))
    }

    /// Takes it out again: what is sent through it is lost.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn unplug_tap(&self, tap: &str) -> Result<()> {
        wires::netlink(wires::unplug_tap(tap)).with_context(|| format!("taking {tap} out of the service network"))
    }

    /// Who is on which network, with its number.
    fn ends(&self) -> [(&Place, u8, Network); 5] {
        [
            (&self.spare, SPARE, Network::Service),
            (&self.spare, SPARE, Network::Rdma),
            (&self.monitor, MONITOR, Network::Service),
            (&self.monitor, MONITOR, Network::Rdma),
            (&self.client, CLIENT, Network::Service),
        ]
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        drop(self.rough.take());
        drop(self.between_halves.take());
        let cables = self.ends().map(|(place, _, network)| network.cable(place.name()));
        // What cannot be removed goes with the sandbox.
        let _ = wires::netlink(wires::remove(&cables));
    }
}
