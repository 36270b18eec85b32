//! A whole installation, as an operator would set it up: a guest with agent and service, its backdoor, a monitor and a
//! spare, each a real process in its machine with a configuration file of its own.

use std::{
    fs,
    net::TcpStream,
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
    configuration::{self, BACKDOOR_CONTROL, SPARE_CONTROL, TARGET},
    daemon::{Daemon, program},
    incident,
    progress::Progress,
};
use crate::{
    capture::Capture,
    fault,
    guest::{ImageSpec, Kernel},
    sandbox::SCRATCH,
    topology::{GUEST, PREFIX_V4, PREFIX_V6, SERVICE, Topology, service_v4, service_v6},
    vm::{Share, Tap, Vm, VmSpec},
};

/// Name of the guest's tap device in the hypervisor's namespace.
const TAP: &str = "tap-guest";

/// Generous: an emulated guest on a machine that also compiles.
const BOOT_BOUND: Duration = Duration::from_secs(180);

/// For a daemon to say that it is ready.
const DAEMON_BOUND: Duration = Duration::from_secs(60);

/// For a guest to say how it is, if it can.
const ANSWER_BOUND: Duration = Duration::from_secs(3);

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
}

/// Everything running; dropping it ends the processes and the guest.
#[derive(Debug)]
pub struct Installation {
    // Dropped in this order: healers before the guest, so that none sees it die at the end.
    daemons: Vec<Daemon>,
    /// The guest.
    pub vm: Vm,
    /// Its machines.
    pub topology: Topology,
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
        let folder = Path::new(SCRATCH).join("run");
        // Nothing of an earlier installation in this sandbox: its journal would be taken for this one's.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let kernel = Kernel::cached(&order.kernel)?;
        progress.step(format_args!("guest image for Linux {}", kernel.release));
        let image = image(&kernel, order)?;
        progress.step("networks");
        let topology = Topology::build()?;
        progress.step(format_args!("the guest boots: {} vCPU", order.vcpus));
        let vm = boot(&kernel, &image, order, &folder)?;
        topology.plug_tap(TAP)?;
        let mut installation = Self {
            daemons: Vec::new(),
            vm,
            topology,
            kernel: kernel.release,
            journal: folder.join("journal.jsonl"),
            folder,
        };
        // Only then the daemons: a spare that searches the memory of a booting kernel slows both down.
        installation.vm.wait_ready(BOOT_BOUND)?;
        progress.step("the guest is up; backdoor and spare start");
        installation.start_daemons()?;
        Ok(installation)
    }

    fn start_daemons(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        let boxes = folder.join("box.sock");
        let topology = &self.topology;
        let backdoor = configured(&folder, "backdoor", &configuration::backdoor(&self.vm))?;
        self.daemons.push(Daemon::start(&topology.hypervisor, "backdoor", backdoor, &folder)?);
        let reinstate = configured(&folder, "reinstate", &configuration::reinstate(&boxes))?;
        self.daemons.push(Daemon::start(&topology.spare, "reinstate", reinstate, &folder)?);
        let files = configuration::file_server(&boxes, &files(&folder));
        self.daemons.push(Daemon::start(&topology.spare, "file-server", files, &folder)?);
        Ok(())
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
        self.daemon("reinstate")?
            .wait_until("readiness of the spare", DAEMON_BOUND, || monitor.run(prepare).is_ok_and(|ready| ready))?;
        progress.step("the monitor looks for the Sensor Box");
        let text = configuration::monitor(&self.journal, order.deadline_ms) + more;
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

    /// Records the RDMA network into `file` from now on.
    ///
    /// # Errors
    /// See [`Capture::start`].
    pub fn capture(&self, file: &Path) -> Result<Capture> {
        Capture::start(&self.topology.hypervisor, file)
    }

    /// Copies logs, configurations, journal and the guest's console to `out`.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn save_logs(&mut self, out: &Path) -> Result<()> {
        for entry in fs::read_dir(&self.folder)?.flatten() {
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), out.join(entry.file_name())).context("copying a log")?;
            }
        }
        fs::copy(self.vm.console_path(), out.join("console.log")).context("copying the console")?;
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

/// Writes a daemon's configuration; returns the arguments that name it.
fn configured(folder: &Path, name: &str, text: &str) -> Result<Vec<String>> {
    let path = folder.join(format!("{name}.toml"));
    fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
    Ok(vec!["--config".to_owned(), path.display().to_string()])
}

fn image(kernel: &Kernel, order: &Order) -> Result<PathBuf> {
    let mut image = ImageSpec::new(kernel.clone())
        .program("target-agent", &program("target-agent")?)
        .program("file-server", &program("file-server")?);
    if order.lockup_module {
        image = image.extra_module(&fault::build_lockup_module(kernel)?);
    }
    for service in configuration::guest_services() {
        image = image.service(service);
    }
    image.build(&images())
}

/// Where images are kept: beside the kernels they are for.
fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/images")
}

/// What guest and spare both serve, as they would from shared storage.
fn files(folder: &Path) -> PathBuf {
    folder.join("files")
}

fn boot(kernel: &Kernel, image: &Path, order: &Order, folder: &Path) -> Result<Vm> {
    fs::create_dir_all(files(folder)).context("the folder of files")?;
    let mut spec = VmSpec::new(TARGET, &kernel.vmlinuz, image);
    spec.cpus = order.vcpus;
    spec.reboots = true; // some scenarios reset it
    spec.tap = Some(Tap::Name(TAP.to_owned()));
    spec.addresses = vec![
        format!("{}/{PREFIX_V4}", service_v4(GUEST)),
        format!("{}/{PREFIX_V6}", service_v6(GUEST)),
        format!("{}/32", service_v4(SERVICE)),
        format!("{}/128", service_v6(SERVICE)),
    ];
    spec.shares = vec![Share {
        tag: "files".to_owned(),
        on_host: files(folder),
        in_guest: configuration::GUEST_FILES.to_owned(),
        writable: true,
    }];
    Vm::start(spec)
}

/// Asks the spare to get ready, as the monitor does; false while it is not. Call it in the monitor's place.
fn prepare() -> Result<bool> {
    let stream = TcpStream::connect_timeout(&SPARE_CONTROL, Duration::from_secs(2)).context("no spare yet")?;
    stream.set_read_timeout(Some(DAEMON_BOUND))?;
    let mut channel = Channel::new(stream);
    match channel.ask(&Request::Hello(Hello::new("testbed")))? {
        Reply::Welcome { .. } => {}
        other => bail!("the spare answered {other:?}"),
    }
    let assignment = Assignment { target: TARGET.to_owned(), backdoor: BACKDOOR_CONTROL, services: services() };
    match channel.ask(&Request::Prepare(assignment))? {
        Reply::Ready { .. } => Ok(true),
        _ => Ok(false),
    }
}

fn services() -> Vec<Service> {
    let ports = vec![crate::topology::FILE_PORT];
    vec![
        Service { address: service_v4(SERVICE).into(), ports: ports.clone() },
        Service { address: service_v6(SERVICE).into(), ports },
    ]
}
