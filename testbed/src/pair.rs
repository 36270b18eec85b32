//! Guests with soft-RoCE that reach each other and the hypervisor's backdoors: machines with RDMA adapters, as far as
//! anything above libibverbs can tell.
//!
//! ```text
//!   guest 11   eth0 ──tap── service0                 ┌── 10.78.0.1 backdoor, soft queues of the host
//!              eth1 ──tap── rdma0, MTU 9000 ─────────┤
//!               └ rxe1, path MTU up to 4096          └── eth1 of guest 12, ...
//! ```
//!
//! The device is on the second card, because the first one's frames of 1500 bytes carry a path MTU of 1024. Guests are
//! equal: which is target and which is monitor is the caller's matter.

use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{
    guest::ImageSpec,
    topology::{PREFIX_V4, RDMA_MTU, Topology, rdma_v4, service_v4},
    vm::{Card, Tap, Vm, VmSpec},
};

/// Number of the first guest on both networks; those of the others follow.
pub const FIRST: u8 = 11;

/// The card that has the device.
const CARD: &str = "eth1";

/// The device.
pub const DEVICE: &str = "rxe1";

/// Generous: emulated guests that boot at the same time, on a machine that also compiles.
const BOOT_BOUND: Duration = Duration::from_secs(180);

/// One guest with soft-RoCE.
#[derive(Debug)]
pub struct RdmaGuest {
    vm: Vm,
    number: u8,
}

impl RdmaGuest {
    /// Boots `COUNT` guests from `image`, to which soft-RoCE is added, and waits until they can be used. The caller is
    /// in a sandbox and has built `topology`. The image is made below `folder`; `change` sees what each guest is made
    /// of before it starts.
    ///
    /// # Errors
    /// When a guest does not boot or has no device; quotes its console.
    pub fn boot<const COUNT: usize>(
        topology: &Topology,
        image: ImageSpec,
        folder: &Path,
        change: impl Fn(&mut VmSpec),
    ) -> Result<[Self; COUNT]> {
        Self::boot_apart(topology, image, folder, |_| false, change)
    }

    /// The same, with the guests that `is_far` names by their numbers in the far half of the RDMA network.
    ///
    /// # Errors
    /// See [`Self::boot`].
    pub fn boot_apart<const COUNT: usize>(
        topology: &Topology,
        image: ImageSpec,
        folder: &Path,
        is_far: impl Fn(u8) -> bool,
        change: impl Fn(&mut VmSpec),
    ) -> Result<[Self; COUNT]> {
        let image = image.soft_roce()?;
        let built = image.build(folder)?;
        let mut guests = Vec::new();
        for number in (FIRST..).take(COUNT) {
            let mut spec = VmSpec::new(&format!("rdma-{number}"), &image.kernel().vmlinuz, &built);
            wire(&mut spec, number);
            change(&mut spec);
            guests.push(Self { vm: Vm::start(spec)?, number });
            topology.plug_tap(&tap(number))?;
            if is_far(number) {
                topology.plug_far_tap(&rdma_tap(number))?;
            } else {
                topology.plug_rdma_tap(&rdma_tap(number))?;
            }
        }
        for guest in &mut guests {
            guest.vm.wait_ready(BOOT_BOUND)?;
            let devices = guest.vm.run("rdma link")?.text();
            ensure!(devices.contains(DEVICE), "guest {} has no soft-RoCE device: {devices:?}", guest.number);
        }
        guests.try_into().ok().context("as many guests as were asked for")
    }

    /// Its address on the RDMA network.
    pub fn address(&self) -> Ipv4Addr {
        rdma_v4(self.number)
    }

    /// What is in use of its devices: queue pairs, memory regions and the rest, without the devices' numbers.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn resources(&mut self) -> Result<String> {
        Ok(self.run("rdma resource show | cut -d: -f2-")?.text())
    }

    /// Its address on the service network, where nothing is lost.
    pub fn service_address(&self) -> Ipv4Addr {
        service_v4(self.number)
    }
}

/// Gives a machine both cards and the device.
fn wire(spec: &mut VmSpec, number: u8) {
    spec.tap = Some(Tap::Name(tap(number)));
    spec.mac = mac(number, 0);
    spec.addresses = vec![format!("{}/{PREFIX_V4}", service_v4(number))];
    let (mac, address) = (mac(number, 1), format!("{}/{PREFIX_V4}", rdma_v4(number)));
    spec.second = Some(Card { tap: rdma_tap(number), mac, address, mtu: RDMA_MTU });
    spec.soft_roce = vec![CARD.to_owned()];
}

fn tap(number: u8) -> String {
    format!("tap-{number}")
}

fn rdma_tap(number: u8) -> String {
    format!("tap-{number}-rdma")
}

/// Apart from those of other guests: the third byte from the end says which card.
fn mac(number: u8, card: u8) -> String {
    format!("52:54:00:be:{card:02x}:{number:02x}")
}

impl Deref for RdmaGuest {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl DerefMut for RdmaGuest {
    fn deref_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }
}
