//! The auction with its first front end and its first mid tier in virtual machines, everything as an operator would set
//! it up: agents in the guests, a backdoor each, one monitor, and peers that serve and stand by.
//!
//! ```text
//!   hypervisor                        RDMA network                           a namespace or a guest each
//!   fe1 (VM: agent, auction fe) ── backdoor .1 ──┐          ┌── fe2: auction fe, reinstate   takes over .100
//!   mt1 (VM: agent, auction mt) ── backdoor .7 ──┴─ monitor ┴── mt2: auction mt, reinstate   takes over .110
//!                                                               db:  PostgreSQL             client: users
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use auction::snapshot::Figures;

use super::{
    Machines, Run, auction,
    database::Database,
    peer::{self, Peer, Peers},
    snapshots::{self, Snapshots},
    tier::{DATABASE, FRONT_END, MID_TIER, Tier},
};
use crate::{
    fault,
    guest::{ImageSpec, Kernel},
    scenario::{
        Daemon, Progress, configuration, incident,
        installation::{ANSWER_BOUND, BOOT_BOUND, DAEMON_BOUND, configured, images, pool_for, prepare},
        make_urgent, may_be_urgent, program,
    },
    topology::{Place, Topology},
    vm::{Tap, Vm, VmSpec},
};

/// For a tier on this machine to end when it is asked to.
const END_BOUND: Duration = Duration::from_secs(20);
/// For peers that are guests to have read the kernels of others: an emulated processor parses a debug format.
const GUEST_READY_BOUND: Duration = Duration::from_secs(180);

/// A virtual machine with one tier in it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) tier: Tier,
    pub(super) vm: Vm,
}

/// All of it. Dropped from the top: healers before guests, so that none sees one die at the end.
#[derive(Debug)]
pub(super) struct Site {
    daemons: Vec<Daemon>,
    /// The front end's, then the mid tier's.
    pub(super) machines: [Machine; 2],
    pub(super) database: Database,
    /// All front ends', then the mid tier's; each with the address that it takes.
    peers: Vec<(Tier, Peer)>,
    pub(super) topology: Topology,
    /// Release of the guests' kernel.
    pub(super) kernel: String,
    /// The monitor's.
    pub(super) journal: PathBuf,
    /// Whether the daemons run ahead of everything else.
    pub(super) urgent: bool,
    folder: PathBuf,
}

impl Site {
    /// Starts everything and waits until tiers serve, peers stand by and the monitor watches.
    ///
    /// # Errors
    /// When something does not get there; quotes it.
    pub(super) fn build(run: &Run, machines: &Machines, folder: &Path, progress: Progress) -> Result<Self> {
        let kernel = Kernel::cached(&machines.kernel)?;
        progress.step(format_args!("guest image for Linux {}", kernel.release));
        let image = image(&kernel, machines, run.clients)?;
        let topology = Topology::build()?;
        topology.add_backdoor(MID_TIER.backdoor)?;
        let at_database = topology.add("db", DATABASE)?;
        progress.step(format_args!("guests boot; PostgreSQL with {} items", run.items));
        let boot = |tier: Tier| -> Result<Machine> {
            let vm = Vm::start(spec(tier, &kernel, &image, machines))?;
            topology.plug_tap(tier.tap)?;
            Ok(Machine { tier, vm })
        };
        let machines_up = [boot(FRONT_END)?, boot(MID_TIER)?];
        let peers = peers(machines, &kernel, &topology)?;
        let database = Database::start(at_database, &folder.join("database"))?;
        let (items, seed) = (run.items.to_string(), run.seed.to_string());
        auction(&["data", "--database", &database.address, "--items", &items, "--seed", &seed])?.silent()?;
        let mut site = Self {
            daemons: Vec::new(),
            machines: machines_up,
            database,
            peers,
            topology,
            kernel: kernel.release,
            journal: folder.join("journal.jsonl"),
            urgent: may_be_urgent(),
            folder: folder.to_owned(),
        };
        let outcome = site.start(machines, progress);
        outcome.inspect_err(|_| site.keep(&run.out)).map(|()| site)
    }

    fn start(&mut self, machines: &Machines, progress: Progress) -> Result<()> {
        for machine in &mut self.machines {
            machine.vm.wait_ready(BOOT_BOUND)?;
            if self.urgent {
                make_urgent(machine.vm.pid())?;
            }
        }
        for (_, peer) in &mut self.peers {
            if let Peer::Vm(vm) = peer {
                vm.wait_ready(BOOT_BOUND)?;
            }
        }
        progress.step("the guests are up; peers and tiers start, from the database on");
        // From the last to the first: mid tiers are asked by front ends.
        for place in (0..self.peers.len()).rev() {
            self.start_peer(place, machines.recoverable)?;
        }
        for (place, tier) in [(1, MID_TIER), (0, FRONT_END)] {
            let served = self.machines[place].vm.run(&tier.guest_serve(machines.recoverable))?;
            ensure!(served.status == 0, "{} does not serve: {}", tier.target, served.text());
        }
        for place in 0..self.machines.len() {
            let machine = &self.machines[place];
            let (tier, text) =
                (machine.tier, configuration::backdoor_of(machine.tier.target, machine.tier.backdoor, &machine.vm));
            let name = format!("backdoor-{}", tier.target);
            let arguments = configured(&self.folder, &name, &text)?;
            self.start_daemon(&self.topology.hypervisor.try_clone()?, &name, "backdoor", arguments)?;
        }
        self.watch(machines, progress)
    }

    /// The peer of a tier: a spare that also serves.
    fn start_peer(&mut self, place: usize, recoverable: bool) -> Result<()> {
        let (tier, at) = match &mut self.peers[place] {
            (tier, Peer::Vm(vm)) => return peer::serve(vm, *tier, recoverable),
            (tier, Peer::Host(at)) => (*tier, at.try_clone()?),
        };
        let boxes = self.folder.join(format!("{}.sock", tier.peer));
        let text = configuration::reinstate(tier.peer, tier.peer_number, &boxes, peer::SLOTS);
        let name = format!("reinstate-{}", tier.peer);
        let arguments = configured(&self.folder, &name, &text)?;
        self.start_daemon(&at, &name, "reinstate", arguments)?;
        let socket = boxes.display().to_string();
        self.daemon(&name)?.wait_until("a socket for boxes", DAEMON_BOUND, || boxes.exists())?;
        let arguments = tier.arguments(recoverable.then_some(&socket));
        self.start_daemon(&at, tier.peer, "auction", arguments)?;
        let daemon = self.daemon(tier.peer)?;
        let log = daemon.log_path().to_owned();
        let serves = || fs::read_to_string(&log).is_ok_and(|log| log.contains("serving"));
        daemon.wait_until("serving", DAEMON_BOUND, serves)
    }

    /// Waits until the peers stand by, and starts the monitor.
    fn watch(&mut self, machines: &Machines, progress: Progress) -> Result<()> {
        let monitor = self.topology.monitor.try_clone()?;
        if machines.recoverable {
            progress.step("the peers learn the guests' kernels");
            for place in 0..self.peers.len() {
                let (tier, peer) = &self.peers[place];
                let (tier, asked) = (*tier, tier.assignment(machines.is_shared));
                let ready = || {
                    let asked = asked.clone();
                    monitor.run(|| prepare(tier.peer_control(), asked)).is_ok_and(|ready| ready)
                };
                match peer {
                    Peer::Vm(_) => peer::await_ready(tier, GUEST_READY_BOUND, ready)?,
                    Peer::Host(_) => {
                        let daemon = self.daemon(&format!("reinstate-{}", tier.peer))?;
                        daemon.wait_until("readiness", DAEMON_BOUND, ready)?;
                    }
                }
            }
        }
        progress.step("the monitor looks for the Sensor Boxes");
        let rules = configuration::rules(&self.journal, machines.deadline_ms, true);
        let text = rules + &FRONT_END.watched(machines.is_shared) + &MID_TIER.watched(machines.is_shared);
        let arguments = configured(&self.folder, "monitor", &text)?;
        self.start_daemon(&monitor, "monitor", "monitor", arguments)?;
        let journal = self.journal.clone();
        let watched = |target: &str| {
            let lines = incident::read(&journal).unwrap_or_default();
            incident::watches(&lines.into_iter().filter(|line| line.target == target).collect::<Vec<_>>())
        };
        let daemon = self.daemon("monitor")?;
        daemon.wait_until("watching both guests", DAEMON_BOUND, || watched("fe1") && watched("mt1"))
    }

    fn start_daemon(&mut self, at: &Place, name: &str, of: &str, arguments: Vec<String>) -> Result<()> {
        // Tiers are the user's programs, and as urgent as those of other users.
        let daemon = if self.urgent && of != "auction" {
            Daemon::start_urgent(at, name, of, arguments, &self.folder)
        } else {
            Daemon::start_logging(at, name, of, arguments, &self.folder, None)
        };
        self.daemons.push(daemon?);
        Ok(())
    }

    fn daemon(&mut self, name: &str) -> Result<&mut Daemon> {
        self.daemons.iter_mut().find(|daemon| daemon.name() == name).with_context(|| format!("{name} was not started"))
    }

    /// Ends all tiers, front ends first: the mid tiers then have nobody who asks. The `fenced` machines have stopped.
    /// Returns what the others say of their snapshots.
    ///
    /// # Errors
    /// When one does not end, or has ended before.
    pub(super) fn end_tiers(&mut self, fenced: &[&str]) -> Result<Snapshots> {
        let mut snapshots = Snapshots::default();
        for (place, tier, sizes) in [(0, FRONT_END, &mut snapshots.fe), (1, MID_TIER, &mut snapshots.mt)] {
            for peer in 0..self.peers.len() {
                if self.peers[peer].0.target != tier.target {
                    continue;
                }
                sizes.add(&self.end_peer(peer)?);
            }
            if !fenced.contains(&tier.target) {
                sizes.add(&peer::end_tier(&mut self.machines[place].vm, tier.target)?);
            }
        }
        Ok(snapshots)
    }

    fn end_peer(&mut self, place: usize) -> Result<Figures> {
        let tier = match &mut self.peers[place] {
            (tier, Peer::Vm(vm)) => return peer::end_tier(vm, tier.peer),
            (tier, Peer::Host(_)) => *tier,
        };
        let started = self.daemons.iter().position(|daemon| daemon.name() == tier.peer);
        let mut daemon = self.daemons.remove(started.with_context(|| format!("{} was not started", tier.peer))?);
        ensure!(daemon.ended()?.is_none(), "{} ended during the run:\n{}", tier.peer, daemon.tail());
        daemon.terminate_within(END_BOUND)?;
        snapshots::told(&daemon.log()).with_context(|| peer::silent(tier.peer))
    }

    /// Leaves logs, configurations, journal and consoles in `out`, as far as they can be had: for a failure.
    pub(super) fn keep(&mut self, out: &Path) {
        let folders = [self.folder.clone(), self.database.folder().to_owned()];
        for file in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
            let is_file = file.file_type().is_ok_and(|kind| kind.is_file());
            let _ = if is_file { fs::copy(file.path(), out.join(file.file_name())) } else { Ok(0) };
        }
        let targets = self.machines.iter_mut().map(|Machine { tier, vm }| (tier.target, vm));
        let peers = self.peers.iter_mut().filter_map(|(tier, peer)| match peer {
            Peer::Vm(vm) => Some((tier.peer, vm.as_mut())),
            Peer::Host(_) => None,
        });
        for (name, vm) in targets.chain(peers) {
            let _ = fs::copy(vm.console_path(), out.join(format!("console-{name}.log")));
            // One that still answers tells more.
            let asked = "tail -n 50 /var/log/*; netstat -tan; free; dmesg | tail";
            if let Ok(said) = vm.run_within(asked, ANSWER_BOUND) {
                let _ = fs::write(out.join(format!("guest-{name}.log")), said.bytes);
            }
        }
    }

    /// The ends of all logs, for a failure.
    pub(super) fn tails(&self) -> String {
        self.daemons.iter().map(|daemon| format!("--- {}\n{}\n", daemon.name(), daemon.tail())).collect()
    }
}

/// All peers, where they shall be; guests are still booting.
fn peers(machines: &Machines, kernel: &Kernel, topology: &Topology) -> Result<Vec<(Tier, Peer)>> {
    let tiers: Vec<Tier> = [FRONT_END, MID_TIER].iter().flat_map(|tier| tier.peers(machines.is_shared)).collect();
    let image = match machines.peers {
        Peers::Host => None,
        Peers::Vm => Some(peer::image(kernel, &tiers, &images())?),
    };
    let one = |tier: Tier| {
        let peer = match &image {
            None => Peer::Host(topology.add(tier.peer, tier.peer_number)?),
            Some(image) => Peer::Vm(Box::new(peer::boot(tier, kernel, image, machines.vcpus, topology)?)),
        };
        Ok((tier, peer))
    };
    tiers.into_iter().map(one).collect()
}

fn image(kernel: &Kernel, machines: &Machines, clients: u32) -> Result<PathBuf> {
    let mut image = ImageSpec::new(kernel.clone());
    for name in ["target-agent", "auction"] {
        image = image.program(name, &program(name)?);
    }
    for service in configuration::guest_services(pool_for(u16::try_from(clients).unwrap_or(u16::MAX)), false) {
        image = image.service(service);
    }
    if machines.crash.needs_module() {
        image = image.extra_module(&fault::build_lockup_module(kernel)?);
    }
    image.build(&images())
}

fn spec(tier: Tier, kernel: &Kernel, image: &Path, machines: &Machines) -> VmSpec {
    let mut spec = VmSpec::new(tier.target, &kernel.vmlinuz, image);
    spec.cpus = machines.vcpus;
    spec.tap = Some(Tap::Name(tier.tap.to_owned()));
    spec.mac = tier.mac.to_owned();
    spec.addresses = tier.addresses(machines.is_shared);
    spec
}
