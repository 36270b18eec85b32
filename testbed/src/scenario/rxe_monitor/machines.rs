//! The two machines, as operators of bare metal would set them up: the target's agent serves the boxes by the machine's
//! own adapter; monitor, spare and the service's standby are on the other machine.
//!
//! The adapters are Linux' soft-RoCE: what hardware does by itself, the target's kernel does on the processor that gets
//! the card's interrupts. Where every processor of user space is to be starved, that would starve the adapter, which
//! says something about soft-RoCE and nothing about a machine with hardware. The target has one processor more then:
//!
//! ```text
//!   processors 0, 1    user space, all of it; interrupts of the service's card
//!   processor 2        interrupts of the card with the adapter, and the adapter's work; no user space
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{Run, Stop};
use crate::{
    guest::{ImageSpec, Kernel},
    pair::{FIRST, RdmaGuest},
    sandbox::SCRATCH,
    scenario::{
        Progress,
        configuration::{self, FILES_TAG, GUEST_BOXES, GUEST_FILES, Watched, on_rdma_network},
        program,
    },
    topology::{FILE_PORT, PREFIX_V4, SERVICE, Topology, rdma_v4, service_v4},
    vm::{Share, Vm},
};

/// What the target is called.
pub(super) const TARGET: &str = "web";

/// The number of the machine that watches.
const WATCHER: u8 = FIRST + 1;

/// The one that runs amok on the target.
pub(super) const USER: u32 = 1000;

/// Where the service's processes are on the target, so that a lock stops them.
const CGROUP: &str = "/sys/fs/cgroup/web";

/// Where the watcher has its configuration and leaves what it writes, and the tag of that folder.
const OUT: &str = "/mnt/out";
const OUT_TAG: &str = "out";

/// Boxes of the target, and connections in its table. Boxes that keep their output are large.
const SLOTS: u32 = 64;
const SPARE_SLOTS: u32 = 256;

/// Memory of a machine: all programs are in it, and boxes that keep their output.
const MEMORY_MIB: u32 = 512;

/// What dropping traffic takes of the kernel.
const MODULES: [&str; 2] = ["sch_ingress", "cls_bpf"];

/// Gives programs a priority; Debian has it in util-linux.
const CHRT: &str = "/usr/bin/chrt";

/// Processes of one user that are too many, and tasks of the machine that are worth a look: it has some 90.
const PROCESSES_MAX: u32 = 30;
const TASKS_MAX: u32 = 130;

/// Memory of all processes of one user that is too much, in MiB, and free pages below which it is short: 48 MiB.
pub(super) const RSSUID_MAX_MIB: u32 = 24;
const FREE_PAGES_MIN: u32 = 12_288;

/// Processors of user space. A target whose adapter has one by itself has it behind these.
const PROCESSORS: u32 = 2;

/// Both, running; dropping them ends them.
#[derive(Debug)]
pub(super) struct Machines {
    pub(super) target: RdmaGuest,
    pub(super) watcher: RdmaGuest,
    pub(super) topology: Topology,
    pub(super) kernel: String,
    folder: PathBuf,
}

impl Machines {
    /// Boots both, and starts everything on them but the monitor.
    pub(super) fn build(run: &Run, progress: Progress) -> Result<Self> {
        let has_apart = run.stop == Stop::Starved;
        let folder = Path::new(SCRATCH).join("run");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join(FILES_TAG)).with_context(|| format!("cannot make {}", folder.display()))?;
        let kernel = Kernel::cached(&run.kernel)?;
        let mut image = MODULES.into_iter().fold(ImageSpec::new(kernel.clone()), ImageSpec::module);
        for name in ["target-agent", "file-server", "rogue", "monitor", "reinstate"] {
            image = image.program(name, &program(name)?);
        }
        let image = image.program("chrt", Path::new(CHRT));
        progress.step(format_args!("two machines with soft-RoCE boot Linux {}", kernel.release));
        let topology = Topology::build()?;
        let target = format!("{}/{PREFIX_V4}", service_v4(FIRST));
        let [target, watcher] = RdmaGuest::boot(&topology, image, &Path::new(SCRATCH).join("images"), |spec| {
            spec.memory_mib = MEMORY_MIB;
            spec.cpus = PROCESSORS + u32::from(has_apart && spec.addresses.contains(&target));
            spec.shares.push(share(FILES_TAG, folder.join(FILES_TAG), GUEST_FILES, false));
            spec.shares.push(share(OUT_TAG, folder.clone(), OUT, true));
        })?;
        let mut machines = Self { target, watcher, topology, kernel: kernel.release, folder };
        fs::write(machines.folder.join("monitor.toml"), monitor(&machines, run.deadline_ms))?;
        fs::write(machines.folder.join("reinstate.toml"), reinstate())?;
        progress.step("the target's agent and service, the watcher's spare and standby start");
        if has_apart {
            told(&mut machines.target, &apart(), "")?;
        }
        machines.start_target()?;
        machines.start_spare()?;
        Ok(machines)
    }

    fn start_target(&mut self) -> Result<()> {
        let (own, service) = (self.target.address(), service_v4(SERVICE));
        let prepare = format!(
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup; mkdir -p {CGROUP} && \
             ip addr add {service}/32 dev eth0 && echo 'u{USER}:x:{USER}:{USER}::/tmp:/bin/sh' >>/etc/passwd && \
             chmod 1777 /tmp"
        );
        let agent = format!(
            "mkdir -p /run/backdoors; (exec /bin/target-agent --box-socket {GUEST_BOXES} --pool-slots {SLOTS} \
             --send-log-kib 256 --mirror-port {FILE_PORT} --mirror-slots {SLOTS} \
             --nic verbs --listen {own} --target {TARGET} \
             --service-address {service} --service-interface eth0 --service-cgroup {CGROUP} --guard-xdp generic \
             >>/var/log/target-agent 2>&1 </dev/null) & \
             until [ -S {GUEST_BOXES} ]; do sleep 0.05; [ -d /proc/$! ] || exit 1; done"
        );
        let service = format!("echo $$ >{CGROUP}/cgroup.procs && {}", configuration::guest_serve(None));
        for line in [prepare, agent, service] {
            told(&mut self.target, &line, "/var/log/target-agent /var/log/file-server")?;
        }
        Ok(())
    }

    fn start_spare(&mut self) -> Result<()> {
        let spare = format!(
            "mkdir -p /run/backdoors; (exec /bin/reinstate --config {OUT}/reinstate.toml \
             >>/var/log/reinstate 2>&1 </dev/null) & \
             until [ -S {GUEST_BOXES} ]; do sleep 0.05; [ -d /proc/$! ] || exit 1; done"
        );
        for line in [spare, configuration::guest_serve(None)] {
            told(&mut self.watcher, &line, "/var/log/reinstate /var/log/file-server")?;
        }
        Ok(())
    }

    /// Starts the monitor; what it sees is in [`Self::journal`].
    pub(super) fn start_monitor(&mut self) -> Result<()> {
        let line = format!("(exec /bin/monitor --config {OUT}/monitor.toml >>/var/log/monitor 2>&1 </dev/null) &");
        told(&mut self.watcher, &line, "/var/log/monitor")
    }

    /// Ends the monitor as a crash of its process does.
    pub(super) fn kill_monitor(&mut self) -> Result<()> {
        told(&mut self.watcher, "kill -9 $(pidof monitor) && while pidof monitor; do sleep 0.01; done", "")
    }

    /// What is in use of both machines' adapters.
    pub(super) fn resources(&mut self) -> Result<[String; 2]> {
        Ok([self.target.resources()?, self.watcher.resources()?])
    }

    /// What an operator on the watcher does with the program `monitor`.
    pub(super) fn operate(&mut self, arguments: &str) -> Result<String> {
        let done = self.watcher.run(&format!("/bin/monitor {arguments} --config {OUT}/monitor.toml"))?;
        ensure!(done.status == 0, "monitor {arguments}: {}", done.text());
        Ok(done.text())
    }

    /// The monitor's journal. Its clock is the watcher's.
    pub(super) fn journal(&self) -> PathBuf {
        self.folder.join("journal.jsonl")
    }

    /// Where the watcher leaves `name` that it writes to [`left`].
    pub(super) fn found(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The logs of the watcher; the target may not answer any more.
    pub(super) fn logs(&mut self) -> String {
        let said = self.watcher.run("tail -n 40 /var/log/monitor /var/log/reinstate /var/log/file-server");
        said.map_or_else(|error| format!("{error:#}"), |said| said.text())
    }
}

/// The shell line that gives the adapter the last processor: its card's interrupts, with them the softirqs in which
/// rxe of 6.1 works, and the queue of work in which later ones do. User space, this shell with all that it starts, gets
/// the others.
fn apart() -> String {
    let (others, own) = ((1 << PROCESSORS) - 1, 1 << PROCESSORS);
    format!(
        "for process in /proc/[0-9]*; do \
         readlink $process/exe >/dev/null && taskset -p {others:x} ${{process#/proc/}} >/dev/null; done; \
         taskset -p {others:x} $$ >/dev/null && echo {own:x} >/sys/devices/virtual/workqueue/cpumask && \
         for number in $(sed -n 's/^ *\\([0-9]*\\):.*virtio.*-\\(input\\|output\\|config\\).*/\\1/p' \
         /proc/interrupts); do \
         echo {others:x} >/proc/irq/$number/smp_affinity; done; \
         device=$(basename $(readlink -f /sys/class/net/eth1/device)) && \
         for number in $(sed -n \"s/^ *\\([0-9]*\\):.* $device-.*/\\1/p\" /proc/interrupts); do \
         echo {own:x} >/proc/irq/$number/smp_affinity || exit 1; done; \
         grep -qx {own:x} /proc/irq/*/smp_affinity && [ $(nproc) = {PROCESSORS} ]"
    )
}

/// A file that the watcher writes and [`Machines::found`] finds.
pub(super) fn left(name: &str) -> String {
    format!("{OUT}/{name}")
}

fn told(vm: &mut Vm, line: &str, logs: &str) -> Result<()> {
    let done = vm.run(line)?;
    if done.status != 0 {
        let log = vm.run(&format!("tail -n 15 {logs}"))?;
        anyhow::bail!("{line}: {}\n{}", done.text(), log.text());
    }
    Ok(())
}

fn share(tag: &str, on_host: PathBuf, in_guest: &str, at_boot: bool) -> Share {
    Share { tag: tag.to_owned(), on_host, in_guest: in_guest.to_owned(), at_boot, writable: true }
}

/// The agent's own heartbeat tells of its machine's user space; the timers of its processors of its kernel.
fn monitor(machines: &Machines, deadline_ms: u64) -> String {
    let rules = format!(
        r#"[monitor]
name = "monitor"
local = "{local}"
journal = "{journal}"

[sampling]
period_ms = 10

[[rule]]
sensors = "agent"
deadline_ms = {deadline_ms}
raises = "hang"
"#,
        local = machines.watcher.address(),
        journal = left("journal.jsonl"),
    );
    let watched = Watched {
        target: TARGET,
        backdoor: on_rdma_network(FIRST, control::backdoor::PORT),
        spare: ("spare", on_rdma_network(WATCHER, control::reinstate::PORT)),
        services: vec![(service_v4(SERVICE).into(), FILE_PORT)],
    };
    let repair = format!(
        r#"
[[target.rule]]
sensors = "tasks"
limit = {TASKS_MAX}
window_ms = 300

[target.repair]
act = true
hook = "table"
look = "table"

[[target.rule]]
sensors = "free-pages"
limit = {FREE_PAGES_MIN}
window_ms = 300

[[target.repair.module]]
sensors = ["tasks"]
use = "forkbomb"
too_many_procs = {PROCESSES_MAX}

[[target.repair.module]]
sensors = ["free-pages"]
use = "memhog"
max_rssuid_mib = {RSSUID_MAX_MIB}
"#
    );
    rules + &watched.table("carrier = \"verbs\"\n") + &repair
}

fn reinstate() -> String {
    let spare = configuration::reinstate_at("spare", WATCHER, "eth0", Path::new(GUEST_BOXES), SPARE_SLOTS);
    debug_assert!(spare.contains(&rdma_v4(WATCHER).to_string()));
    format!("{spare}\n[[target]]\nname = \"{TARGET}\"\ncarrier = \"verbs\"\n")
}
