//! The peer of a tier: a spare that serves clients of its own. Either two processes on this machine, in a network
//! namespace, or a guest with the same two in it, on both networks like any machine of a machine room.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use auction::snapshot::Figures;
use serde::Serialize;

use super::{
    snapshots,
    tier::{GUEST_TIER_LOG, Tier},
};
use crate::{
    guest::{ImageSpec, Kernel},
    scenario::{
        configuration::{self, GUEST_BOXES, GUEST_DESCRIPTORS},
        program,
    },
    topology::{Place, Topology},
    vm::{Tap, Vm, VmSpec},
};

/// Where peers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peers {
    /// Processes of this machine.
    Host,
    /// Virtual machines.
    Vm,
}

/// One of them.
#[derive(Debug)]
pub(super) enum Peer {
    Host(Place),
    Vm(Box<Vm>),
}

/// Boxes of a peer: its own sessions', and those that it takes over.
pub(super) const SLOTS: u32 = 2048;
/// A pool of boxes beside both programs; a target's memory is less, since all of it is read.
const MEMORY_MIB: u32 = 512;
/// What the service network's interface is called in a guest.
const GUEST_INTERFACE: &str = "eth0";
/// What `reinstate` says in a guest.
const GUEST_SPARE_LOG: &str = "/var/log/reinstate";
/// Between two questions whether a peer is ready.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// For a tier in a guest to end when it is asked to.
const END_BOUND: Duration = Duration::from_secs(20);

/// The guests' image: both programs, and a configuration for each peer.
pub(super) fn image(kernel: &Kernel, tiers: &[Tier], images: &Path) -> Result<std::path::PathBuf> {
    let mut image = ImageSpec::new(kernel.clone());
    for name in ["reinstate", "auction"] {
        image = image.program(name, &program(name)?);
    }
    for tier in tiers {
        let boxes = Path::new(GUEST_BOXES);
        let text = configuration::reinstate_at(tier.peer, tier.peer_number, GUEST_INTERFACE, boxes, SLOTS);
        image = image.text(&configuration_of(*tier), &text);
    }
    image.build(images)
}

fn configuration_of(tier: Tier) -> String {
    format!("/etc/reinstate-{}.toml", tier.peer)
}

/// Starts the guest of a peer and plugs it into both networks; does not wait for it.
pub(super) fn boot(tier: Tier, kernel: &Kernel, image: &Path, vcpus: u32, topology: &Topology) -> Result<Vm> {
    let mut spec = VmSpec::new(tier.peer, &kernel.vmlinuz, image);
    let (tap, second) = (format!("tap-{}", tier.peer), tier.peer_rdma_card());
    let rdma_tap = second.tap.clone();
    spec.memory_mib = MEMORY_MIB;
    spec.cpus = vcpus;
    spec.tap = Some(Tap::Name(tap.clone()));
    spec.mac = tier.peer_mac(0);
    spec.addresses = vec![tier.peer_address()];
    spec.second = Some(second);
    let vm = Vm::start(spec)?;
    topology.plug_tap(&tap)?;
    topology.plug_rdma_tap(&rdma_tap)?;
    Ok(vm)
}

/// Starts `reinstate` in the guest of a peer, and its tier when there are boxes for it.
pub(super) fn serve(vm: &mut Vm, tier: Tier, recoverable: bool) -> Result<()> {
    let folder = Path::new(GUEST_BOXES).parent().context("a socket is in a folder")?.display();
    let spare = format!(
        "mkdir -p {folder}; ulimit -n {GUEST_DESCRIPTORS} || exit 1; \
         (exec /bin/reinstate --config {} >>{GUEST_SPARE_LOG} 2>&1 </dev/null) & \
         until [ -S {GUEST_BOXES} ]; do sleep 0.02; [ -d /proc/$! ] || exit 1; done",
        configuration_of(tier)
    );
    for (what, line) in [("reinstate", spare), ("its tier", tier.guest_serve(recoverable))] {
        let started = vm.run(&line)?;
        if started.status != 0 {
            let said = vm.run(&format!("tail -n 5 {GUEST_SPARE_LOG} {GUEST_TIER_LOG}"))?;
            anyhow::bail!("{what} does not start in {}: {}\n{}", tier.peer, started.text(), said.text());
        }
    }
    Ok(())
}

/// Waits until a peer in a guest stands by.
pub(super) fn await_ready(tier: Tier, bound: Duration, ready: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !ready() {
        ensure!(begun.elapsed() < bound, "{} does not stand by within {bound:?}", tier.peer);
        thread::sleep(ASK_AGAIN);
    }
    Ok(())
}

/// Ends the tier in a guest, target or peer, and hears what it says of its snapshots.
pub(super) fn end_tier(vm: &mut Vm, name: &str) -> Result<Figures> {
    let end = format!(
        "kill $(pidof auction) && while pidof auction >/dev/null; do sleep 0.05; done; tail -n 1 {GUEST_TIER_LOG}"
    );
    let ended = vm.run_within(&end, END_BOUND)?;
    ensure!(ended.status == 0, "the tier in {name} ended during the run");
    snapshots::told(&ended.text()).with_context(|| silent(name))
}

/// What is wrong when a tier ends without that.
pub(super) fn silent(name: &str) -> String {
    format!("the tier in {name} did not say what its snapshots came to")
}
