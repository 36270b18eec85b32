//! A whole installation, as an operator would set it up: a guest with agent and service, its backdoor, a monitor and a
//! spare, each a real process in its machine with a configuration file of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use control::{
    Channel, Hello,
    reinstate::{Assignment, Reply, Request, Service},
};

use super::{
    configuration::{self, BACKDOOR_CONTROL, MONITOR_METRICS, SECOND_CONTROL, SPARE_CONTROL, TARGET},
    daemon::{Daemon, program},
    dying::{Died, Dying, Stage},
    incident,
    progress::Progress,
    relay::Relay,
};
use crate::{
    capture::Capture,
    fault,
    guest::{ImageSpec, Kernel},
    sandbox::SCRATCH,
    topology::{
        GUEST, PREFIX_V4, PREFIX_V6, Place, SECOND_SPARE, SERVICE, SPARE, Topology, Wire, service_v4, service_v6,
    },
    vm::{SWAP_DRIVER, Share, Tap, Vm, VmSpec},
};

/// Name of the guest's tap device in the hypervisor's namespace.
pub(super) const TAP: &str = "tap-guest";

/// What the guest swaps to, in the installation's folder.
const SWAP_FILE: &str = "swap";

/// Generous: an emulated guest on a machine that also compiles.
pub(super) const BOOT_BOUND: Duration = Duration::from_secs(180);

/// For a daemon to say that it is ready.
pub(super) const DAEMON_BOUND: Duration = Duration::from_secs(60);

/// For a guest to say how it is, if it can.
pub(super) const ANSWER_BOUND: Duration = Duration::from_secs(3);

/// What is set up.
#[derive(Clone, Debug)]
pub struct Order {
    /// Line of guest kernels: `6.1`, `6.12`, `6.1-rt`.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The monitor's deadline for the per-CPU ticks.
    pub deadline_ms: u64,
    /// Whether the guest has the lock-up module.
    pub lockup_module: bool,
    /// Whether the guest has what drowns it.
    pub rogue: bool,
    /// Whether target-agent and a service run in the guest; without them nothing of ours is in it.
    pub agent: bool,
    /// A relay serves in the guest and on the spare, instead of a file server.
    pub relay: Option<Relay>,
    /// Swap of the guest, in MiB; 0 for none. It lies in memory of the host, and is gone with the installation.
    pub swap_mib: u32,
    /// Where the spare dies, if it does, and the seed of the moment; there is a second one then.
    pub spare_dies: Option<(Stage, u64)>,
    /// Continuation Boxes in the guest's pool.
    pub pool_slots: u32,
    /// The guest's connections are mirrored, and the spare reads nothing of it but its tables.
    pub only_tables: bool,
    /// Connections that the guest's server takes at a time, if it has a limit; the spare's has none.
    pub connections_max: Option<usize>,
    /// How the clients' cable treats packets while it is bad.
    pub wire: Wire,
    /// Everything random in the installation follows from it.
    pub seed: u64,
    /// A saved guest (see [`save_guest`]) of this kernel, these vCPUs, with the lock-up module and this pool; it is
    /// booted without one.
    pub saved: Option<PathBuf>,
}

impl Order {
    /// An installation as most are.
    pub fn new(kernel: &str, vcpus: u32, deadline_ms: u64) -> Self {
        Self {
            kernel: kernel.to_owned(),
            vcpus,
            deadline_ms,
            lockup_module: false,
            rogue: false,
            agent: true,
            relay: None,
            swap_mib: 0,
            pool_slots: POOL_SLOTS,
            only_tables: false,
            connections_max: None,
            wire: Wire::Good,
            seed: 0,
            saved: None,
            spare_dies: None,
        }
    }
}

/// The agent's default, and most that its memory holds.
const POOL_SLOTS: u32 = 256;
const POOL_SLOTS_MAX: u32 = 10_900;

/// Boxes of a spare by default.
const SPARE_SLOTS: u32 = 1024;

/// Memory of a guest, and how much more one has for each box beyond those of a thousand sessions: the box, sockets, and
/// what the server keeps of a connection.
const GUEST_MIB: u32 = 256;
const SLOTS_IN_GUEST: u32 = 3_000;
const KIB_FOR_SLOT: u32 = 96;

/// Boxes of a guest whose boxes keep their output: they are larger.
pub const MIRRORED_SLOTS: u32 = 64;

fn spare_configuration(order: &Order, boxes: &Path, slots: u32) -> String {
    let keys = if order.only_tables { "only_tables = true\n" } else { "" };
    keys.to_owned() + &configuration::reinstate("spare", SPARE, boxes, slots)
}

/// A pool for so many sessions: some of them connect anew all the time, and an ended connection keeps its box until the
/// server has seen its end.
pub fn pool_for(sessions: u16) -> u32 {
    (3 * u32::from(sessions)).clamp(POOL_SLOTS, POOL_SLOTS_MAX)
}

/// Boots a guest, saves it to `file` and ends it: many runs can then begin where it stopped. Must be called in a
/// sandbox.
///
/// # Errors
/// When the guest does not boot or cannot be saved.
pub fn save_guest(order: &Order, file: &Path, progress: Progress) -> Result<()> {
    let folder = Path::new(SCRATCH).join("run");
    let kernel = Kernel::cached(&order.kernel)?;
    let image = image(&kernel, order)?;
    let topology = Topology::build()?;
    progress.step(format_args!("a guest with Linux {} boots, to be saved", kernel.release));
    let mut vm = boot(&kernel, &image, order, &folder, |_, _| Ok(()))?;
    topology.plug_tap(TAP)?;
    vm.wait_ready(BOOT_BOUND)?;
    // Aside and renamed: nobody goes on from half a guest.
    let mut aside = file.as_os_str().to_owned();
    aside.push(".part");
    let aside = PathBuf::from(aside);
    vm.save(&aside)?;
    fs::rename(&aside, file).with_context(|| format!("naming {}", file.display()))
}

/// Everything running; dropping it ends the processes and the guest.
#[derive(Debug)]
pub struct Installation {
    // Dropped in this order: healers before the guest, so that none sees it die at the end.
    daemons: Vec<Daemon>,
    dying: Option<Dying>,
    /// The guest.
    pub vm: Vm,
    /// Its machines.
    pub topology: Topology,
    /// A second spare's, if there is one.
    second: Option<Place>,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// The monitor's journal.
    pub journal: PathBuf,
    folder: PathBuf,
}

impl Installation {
    /// Builds the image and starts the guest and every daemon; [`Self::ready`] waits for them.
    ///
    /// # Errors
    /// When something is missing or does not start; quotes it.
    pub fn build(order: &Order, progress: Progress) -> Result<Self> {
        Self::build_with(order, progress, |_, _| Ok(()))
    }

    /// As [`Self::build`], with a guest that `change` adds to; it may leave files in the installation's folder.
    ///
    /// # Errors
    /// See [`Self::build`], and those of `change`.
    pub fn build_with(
        order: &Order,
        progress: Progress,
        change: impl FnOnce(&mut VmSpec, &Path) -> Result<()>,
    ) -> Result<Self> {
        let folder = Path::new(SCRATCH).join("run");
        // Nothing of an earlier installation in this sandbox: its journal would be taken for this one's.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let kernel = Kernel::cached(&order.kernel)?;
        progress.step(format_args!("guest image for Linux {}", kernel.release));
        let image = image(&kernel, order)?;
        progress.step("networks");
        let topology = Topology::with_wire(order.wire, order.seed)?;
        let how = if order.saved.is_some() { "goes on from where it was saved" } else { "boots" };
        progress.step(format_args!("the guest {how}: {} vCPU", order.vcpus));
        let second = order.spare_dies.map(|_| topology.add("spare-b", SECOND_SPARE)).transpose()?;
        let vm = boot(&kernel, &image, order, &folder, change)?;
        topology.plug_tap(TAP)?;
        let mut installation = Self {
            daemons: Vec::new(),
            dying: None,
            vm,
            topology,
            second,
            kernel: kernel.release,
            journal: folder.join("journal.jsonl"),
            folder,
        };
        // Only then the daemons: a spare that searches the memory of a booting kernel slows both down.
        match order.saved {
            Some(_) => installation.vm.go_on(BOOT_BOUND)?,
            None => installation.vm.wait_ready(BOOT_BOUND)?,
        }
        installation.serve(order)?;
        progress.step("the guest is up; backdoor and spare start");
        installation.start_daemons(order)?;
        Ok(installation)
    }

    fn serve(&mut self, order: &Order) -> Result<()> {
        if !order.agent {
            return Ok(());
        }
        let line = match order.relay {
            Some(relay) => configuration::guest_relay(relay),
            None => configuration::guest_serve(order.connections_max),
        };
        let served = self.vm.run(&line)?;
        ensure!(served.status == 0, "the guest does not serve: {}", served.text());
        Ok(())
    }

    /// Has a guest serve that was reset, once it says within `bound` that it is up.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn serve_again(&mut self, order: &Order, bound: Duration) -> Result<()> {
        self.vm.wait_ready(bound)?;
        self.serve(order)
    }

    fn start_daemons(&mut self, order: &Order) -> Result<()> {
        let folder = self.folder.clone();
        let boxes = folder.join("box.sock");
        let topology = &self.topology;
        let backdoor = configured(&folder, "backdoor", &configuration::backdoor(&self.vm))?;
        self.daemons.push(Daemon::start(&topology.hypervisor, "backdoor", backdoor, &folder)?);
        // A spare has more boxes than any of its targets: those that its application has in stock are nobody's.
        let slots = order.pool_slots.max(SPARE_SLOTS);
        let reinstate = configured(&folder, "reinstate", &spare_configuration(order, &boxes, slots))?;
        let level = self.second.as_ref().map(|_| "debug");
        let spare = Daemon::start_logging(&topology.spare, "reinstate", "reinstate", reinstate, &folder, level)?;
        self.daemons.push(spare);
        if let Some(relay) = order.relay {
            ensure!(self.second.is_none(), "no relay was tried with a second spare");
            let [serving, standby] = configuration::relay(relay, &boxes.display().to_string());
            for (name, arguments) in [("relay", serving), ("relay-standby", standby)] {
                self.daemons.push(Daemon::start_logging(&topology.spare, name, "relay", arguments, &folder, None)?);
            }
            return Ok(());
        }
        let files = configuration::file_server(&boxes, &files_of(&folder));
        self.daemons.push(Daemon::start(&topology.spare, "file-server", files, &folder)?);
        let Some(second) = &self.second else { return Ok(()) };
        let boxes = folder.join("box-b.sock");
        let text = configuration::reinstate("spare-b", SECOND_SPARE, &boxes, slots);
        let reinstate = configured(&folder, "reinstate-b", &text)?;
        let spare = Daemon::start_logging(second, "reinstate-b", "reinstate", reinstate, &folder, None)?;
        let arguments = configuration::file_server(&boxes, &files_of(&folder));
        let files = Daemon::start_logging(second, "file-server-b", "file-server", arguments, &folder, None)?;
        self.daemons.extend([spare, files]);
        Ok(())
    }

    /// Lets the first spare die at `stage` of what comes.
    fn doom(&mut self, (stage, seed): (Stage, u64)) -> Result<()> {
        let found = self.daemons.iter().position(|daemon| daemon.name() == "reinstate");
        let spare = self.daemons.swap_remove(found.context("there is no spare")?);
        let arguments = vec!["--config".to_owned(), self.folder.join("reinstate.toml").display().to_string()];
        let place = self.topology.spare.try_clone()?;
        self.dying = Some(Dying::begin(spare, place, arguments, &self.folder, stage, seed));
        Ok(())
    }

    /// Whether a spare that was to die may have spoken to clients before, if one was; it has died then.
    ///
    /// # Errors
    /// When it did not get to where it was to die, or did not come back.
    pub fn reborn(&mut self) -> Result<bool> {
        let Some(dying) = self.dying.take() else { return Ok(false) };
        let Died { next_life, may_have_spoken } = dying.over()?;
        self.daemons.push(next_life);
        Ok(may_have_spoken)
    }

    /// Waits until the spare has learnt the guest's kernel, starts the monitor and waits until it watches.
    ///
    /// In this order, because learning a kernel keeps a small machine's processors busy: a guest that gets none looks
    /// like one that hangs.
    ///
    /// # Errors
    /// When one of them does not get there; quotes its log.
    pub fn ready(&mut self, order: &Order, progress: Progress) -> Result<()> {
        self.ready_with(order, "", progress)
    }

    /// The same with `more` at the end of the monitor's configuration, where its target is.
    ///
    /// # Errors
    /// See [`Self::ready`].
    pub fn ready_with(&mut self, order: &Order, more: &str, progress: Progress) -> Result<()> {
        progress.step("the spare learns the guest's kernel");
        let monitor = self.topology.monitor.try_clone()?;
        self.daemon("reinstate")?.wait_until("readiness of the spare", DAEMON_BOUND, || {
            monitor.run(|| prepare(SPARE_CONTROL, assignment())).is_ok_and(|ready| ready)
        })?;
        let mut second = String::new();
        if self.second.is_some() {
            self.daemon("reinstate-b")?.wait_until("readiness of the second spare", DAEMON_BOUND, || {
                monitor.run(|| prepare(SECOND_CONTROL, assignment())).is_ok_and(|ready| ready)
            })?;
            second = configuration::second_spare();
        }
        if let Some(death) = order.spare_dies {
            self.doom(death)?;
        }
        let what = if order.agent { "the Sensor Box" } else { "the variables of the guest's kernel" };
        progress.step(format_args!("the monitor looks for {what}"));
        let text = configuration::monitor(&self.journal, order.deadline_ms, order.agent) + &second + more;
        let arguments = configured(&self.folder, "monitor", &text)?;
        self.daemons.push(Daemon::start(&monitor, "monitor", arguments, &self.folder)?);
        let journal = self.journal.clone();
        self.daemon("monitor")?.wait_until("watching the guest", DAEMON_BOUND, || {
            incident::read(&journal).is_ok_and(|lines| incident::watches(&lines))
        })
    }

    /// Runs the monitor's program as an operator does, with the running monitor's configuration; returns what it said.
    ///
    /// # Errors
    /// When it fails; quotes it.
    pub fn operate(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("monitor")?);
        command.args(arguments).arg("--config").arg(self.folder.join("monitor.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let said = self.topology.monitor.spawn(&mut command)?.wait_with_output().context("waiting for an operator")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(said.status.success(), "monitor {}: {}{}", arguments.join(" "), text(&said.stdout), text(&said.stderr));
        Ok(text(&said.stdout))
    }

    /// How many frames the guest has sent so far.
    ///
    /// # Errors
    /// When its network device is gone.
    pub fn frames_from_guest(&self) -> Result<u64> {
        frames_from(TAP)
    }

    /// Records the RDMA network into `file` from now on.
    ///
    /// # Errors
    /// See [`Capture::start`].
    pub fn capture(&self, file: &Path) -> Result<Capture> {
        Capture::start(&self.topology.hypervisor, file)
    }

    /// Records every sensor of the guest beside the monitor: a sample each `period_ms`, for `seconds`, then it ends.
    ///
    /// # Errors
    /// When it does not start.
    pub fn record(&self, period_ms: f64, seconds: u64) -> Result<(Daemon, PathBuf)> {
        // A folder of its own: it is the same program, and the monitor's log has the same name.
        let folder = self.folder.join("recorder");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let out = folder.join("recording.jsonl");
        let words = [
            ("--config", self.folder.join("monitor.toml").display().to_string()),
            ("--target", TARGET.to_owned()),
            ("--period-ms", period_ms.to_string()),
            ("--seconds", seconds.to_string()),
            ("--out", out.display().to_string()),
        ];
        let words = words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let arguments = std::iter::once("record".to_owned()).chain(words);
        Ok((Daemon::start(&self.topology.monitor, "monitor", arguments, &folder)?, out))
    }

    /// What the monitor has counted, as Prometheus reads it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.topology.monitor.run(|| {
            let mut stream = TcpStream::connect_timeout(&MONITOR_METRICS, ANSWER_BOUND).context("the metrics")?;
            stream.set_read_timeout(Some(ANSWER_BOUND))?;
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: monitor\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).context("the metrics")?;
            Ok(text)
        })
    }

    /// Copies logs, configurations, journal and the guest's console to `out`.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn save_logs(&mut self, out: &Path) -> Result<()> {
        for entry in fs::read_dir(&self.folder)?.flatten() {
            if entry.file_type()?.is_file() && entry.file_name() != SWAP_FILE {
                fs::copy(entry.path(), out.join(entry.file_name())).context("copying a log")?;
            }
        }
        fs::copy(self.vm.console_path(), out.join("console.log")).context("copying the console")?;
        for (name, place) in [("spare", &self.topology.spare), ("client", &self.topology.client)] {
            let mut sockets = Command::new("ss");
            sockets.arg("-tinmoe").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            let said = place.spawn(&mut sockets).and_then(|child| Ok(child.wait_with_output()?));
            if let Ok(said) = said {
                fs::write(out.join(format!("sockets-{name}.log")), said.stdout).context("sockets")?;
            }
        }
        // A guest that still answers tells more; a broken one cannot.
        if let Ok(said) = self.vm.run_within("tail -n 50 /var/log/*; ip addr; netstat -tan; dmesg | tail", ANSWER_BOUND)
        {
            fs::write(out.join("guest.log"), said.bytes).context("guest.log")?;
        }
        Ok(())
    }

    /// The ends of all logs, for a failure.
    pub fn tails(&self) -> String {
        let tail = |daemon: &Daemon| format!("--- {}\n{}\n", daemon.name(), daemon.tail());
        self.daemons.iter().map(tail).collect()
    }

    fn daemon(&mut self, name: &str) -> Result<&mut Daemon> {
        self.daemons.iter_mut().find(|daemon| daemon.name() == name).with_context(|| format!("{name} was not started"))
    }
}

/// How many frames a guest has sent so far through its device `tap`, which is in this namespace.
pub(super) fn frames_from(tap: &str) -> Result<u64> {
    // Not from sysfs, which shows the namespace in which it was mounted.
    let table = fs::read_to_string("/proc/thread-self/net/dev").context("/proc/net/dev")?;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(tap)?.strip_prefix(':'));
    let received = line.and_then(|counters| counters.split_whitespace().nth(1)?.parse().ok());
    received.with_context(|| format!("no counters of {tap}"))
}

/// Writes a daemon's configuration; returns the arguments that name it.
pub(super) fn configured(folder: &Path, name: &str, text: &str) -> Result<Vec<String>> {
    let path = folder.join(format!("{name}.toml"));
    fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
    Ok(vec!["--config".to_owned(), path.display().to_string()])
}

fn image(kernel: &Kernel, order: &Order) -> Result<PathBuf> {
    let mut image = ImageSpec::new(kernel.clone());
    if order.agent {
        for name in ["target-agent", if order.relay.is_some() { "relay" } else { "file-server" }] {
            image = image.program(name, &program(name)?);
        }
        for service in configuration::guest_services(order.pool_slots, order.only_tables) {
            image = image.service(service);
        }
    }
    if order.rogue {
        image = image.program("rogue", &program("rogue")?);
    }
    if order.swap_mib > 0 {
        image = image.module(SWAP_DRIVER);
    }
    if order.lockup_module {
        image = image.extra_module(&fault::build_lockup_module(kernel)?);
    }
    image.build(&images())
}

/// Where images are kept: beside the kernels they are for.
pub(super) fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/images")
}

/// What guest and spare both serve, as they would from shared storage.
fn files_of(folder: &Path) -> PathBuf {
    folder.join("files")
}

fn boot(
    kernel: &Kernel,
    image: &Path,
    order: &Order,
    folder: &Path,
    change: impl FnOnce(&mut VmSpec, &Path) -> Result<()>,
) -> Result<Vm> {
    fs::create_dir_all(files_of(folder)).context("the folder of files")?;
    let mut spec = VmSpec::new(TARGET, &kernel.vmlinuz, image);
    spec.cpus = order.vcpus;
    spec.memory_mib = GUEST_MIB + order.pool_slots.saturating_sub(SLOTS_IN_GUEST) * KIB_FOR_SLOT / 1024;
    spec.reboots = true; // some scenarios reset it
    spec.tap = Some(Tap::Name(TAP.to_owned()));
    spec.addresses = vec![
        format!("{}/{PREFIX_V4}", service_v4(GUEST)),
        format!("{}/{PREFIX_V6}", service_v6(GUEST)),
        format!("{}/32", service_v4(SERVICE)),
        format!("{}/128", service_v6(SERVICE)),
    ];
    spec.saved.clone_from(&order.saved);
    spec.shares = vec![Share {
        tag: configuration::FILES_TAG.to_owned(),
        on_host: files_of(folder),
        in_guest: configuration::GUEST_FILES.to_owned(),
        at_boot: false,
        writable: true,
    }];
    spec.swap = swap_file(order.swap_mib, folder)?;
    change(&mut spec, folder)?;
    Vm::start(spec)
}

/// What a guest swaps to: only what it writes there takes room.
fn swap_file(mib: u32, folder: &Path) -> Result<Option<PathBuf>> {
    if mib == 0 {
        return Ok(None);
    }
    let path = folder.join(SWAP_FILE);
    let file = fs::File::create(&path).and_then(|file| file.set_len(u64::from(mib) << 20));
    file.with_context(|| format!("cannot make the guest's swap {}", path.display()))?;
    Ok(Some(path))
}

/// Asks the spare to get ready, as the monitor does; false while it is not. Call it in the monitor's place.
pub(super) fn prepare(spare: SocketAddr, assignment: Assignment) -> Result<bool> {
    let stream = TcpStream::connect_timeout(&spare, Duration::from_secs(2)).context("no spare yet")?;
    stream.set_read_timeout(Some(DAEMON_BOUND))?;
    let mut channel = Channel::new(stream);
    match channel.ask(&Request::Hello(Hello::new("testbed")))? {
        Reply::Welcome { .. } => {}
        other => bail!("the spare answered {other:?}"),
    }
    match channel.ask(&Request::Prepare(assignment))? {
        Reply::Ready { .. } => Ok(true),
        _ => Ok(false),
    }
}

fn assignment() -> Assignment {
    Assignment { target: TARGET.to_owned(), backdoor: BACKDOOR_CONTROL, services: services() }
}

fn services() -> Vec<Service> {
    let ports = vec![crate::topology::FILE_PORT];
    vec![
        Service { address: service_v4(SERVICE).into(), ports: ports.clone() },
        Service { address: service_v6(SERVICE).into(), ports },
    ]
}
