//! A running machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::Qmp;
use super::boot::{Boot, whereabouts};
use super::control::{Control, Output};
use super::process::Kept;
use super::spec::{Accel, Places, Ram, Tap, VmSpec, arguments};

const QEMU: &str = "qemu-system-x86_64";

/// QEMU makes its sockets within a fraction of a second; a starved host needs longer.
const SOCKETS_WITHIN: Duration = Duration::from_secs(60);

/// A command that was not given its own bound.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

/// A machine is as large as its RAM in use.
const SAVED_WITHIN: Duration = Duration::from_secs(60);

/// As fast as it goes: QEMU's default is for networks.
const SAVE_BYTES_PER_SECOND: u64 = 10 << 30;

const POLL: Duration = Duration::from_millis(20);

/// Console lines that an error quotes.
const TAIL_LINES: usize = 30;

/// A virtual machine; ends when dropped.
#[derive(Debug)]
pub struct Vm {
    name: String,
    process: Kept,
    control: Control,
    qmp: Qmp,
    ram: PathBuf,
    reboots: bool,
    was_ready: bool,
    places: Places,
    _folder: Folder,
}

impl Vm {
    /// Starts the machine and connects to it; does not wait for the guest, see [`Vm::wait_ready`].
    ///
    /// # Errors
    /// If QEMU does not start; the error quotes what it said.
    pub fn start(mut spec: VmSpec) -> Result<Self> {
        let folder = Folder::make()?;
        let places = Places::below(folder.0.clone());
        let accel = spec.accel.map_or_else(Accel::choose, Ok)?;
        let line = arguments(&spec, &places, accel);
        let tap = match spec.tap.take() {
            Some(Tap::Fd(fd)) => Some(fd),
            _ => None,
        };
        let complaints = folder.0.join("stderr");
        let process = Kept::start(QEMU, &line, tap, File::create(&complaints)?)?;
        let said = || fs::read_to_string(&complaints).unwrap_or_default();
        let connected = connect(&process, &places);
        let (control, qmp) = connected.with_context(|| format!("{QEMU} did not start: {}", said().trim()))?;
        // Only after QEMU's first answer: sockets are made before RAM, and answered after it.
        let ram = match &spec.ram {
            Ram::Memfd => memfd_of(process.pid())?,
            Ram::File(path) => path.clone(),
        };
        let (name, reboots) = (spec.name, spec.reboots);
        Ok(Self { name, process, control, qmp, ram, reboots, was_ready: false, places, _folder: folder })
    }

    /// Waits until init has started every service. A guest that stands still in its first boot is reset once.
    ///
    /// # Errors
    /// If the guest is not ready within `bound` or QEMU ends; quotes the end of the console.
    pub fn wait_ready(&mut self, bound: Duration) -> Result<()> {
        let (mut boot, mut deadline) = (Boot::begins(Instant::now()), Instant::now() + bound);
        while !self.control.heard_ready().with_context(|| self.tail())? {
            if !self.was_ready && boot.stands_still(&self.console(), Instant::now()) {
                eprintln!("{} stands still in its boot, and is reset\n{}", self.name, self.tail());
                eprintln!("{}", whereabouts(&mut self.qmp));
                boot.again(&mut self.qmp)?;
                deadline = Instant::now() + bound;
            }
            ensure!(self.process.runs(), "{} ended while the guest booted\n{}", self.name, self.tail());
            ensure!(Instant::now() < deadline, "{} is not ready after {bound:?}\n{}", self.name, self.tail());
        }
        self.was_ready = true;
        boot.done(&mut self.qmp, self.reboots)
    }

    /// Writes the machine as it is to `file` and leaves it stopped. Another [`Vm`] of the same make can go on from
    /// there ([`VmSpec::saved`]); no shared folder may be mounted.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn save(&mut self, file: &Path) -> Result<()> {
        self.qmp.stop()?;
        self.qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": SAVE_BYTES_PER_SECOND }))?;
        self.qmp.execute("migrate", json!({ "uri": format!("exec:cat > {}", file.display()) }))?;
        let deadline = Instant::now() + SAVED_WITHIN;
        loop {
            let answer = self.qmp.execute("query-migrate", json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("{} could not be saved: {answer}", self.name),
                _ => ensure!(Instant::now() < deadline, "{} is not saved after {SAVED_WITHIN:?}", self.name),
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until a saved machine is read, and lets it go on.
    ///
    /// # Errors
    /// If QEMU ends or does not get there within `bound`.
    pub fn go_on(&mut self, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        while self.qmp.status()? == "inmigrate" {
            ensure!(self.process.runs(), "{} ended while it was read", self.name);
            ensure!(Instant::now() < deadline, "{} is not read after {bound:?}", self.name);
            thread::sleep(POLL);
        }
        self.qmp.cont()
    }

    /// Runs a shell line in the guest and waits for its end, two minutes at most.
    ///
    /// # Errors
    /// If the guest does not answer. A command that fails is not an error: look at the status.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.run_within(command, COMMAND_WITHIN)
    }

    /// As [`Vm::run`] with another bound.
    ///
    /// # Errors
    /// See [`Vm::run`].
    pub fn run_within(&mut self, command: &str, bound: Duration) -> Result<Output> {
        let number = self.control.send(command)?;
        let deadline = Instant::now() + bound;
        loop {
            if let Some(output) = self.control.heard_output(number)? {
                return Ok(output);
            }
            ensure!(self.process.runs(), "{} ended during `{command}`\n{}", self.name, self.tail());
            if Instant::now() >= deadline {
                bail!("{}: `{command}` has not ended after {bound:?}\n{}", self.name, self.tail());
            }
        }
    }

    /// Sends a shell line and does not wait: for faults, which never answer. Keeps later commands waiting while it
    /// runs; start what shall run beside them with `&`.
    ///
    /// # Errors
    /// If the machine is gone.
    pub fn inject(&mut self, command: &str) -> Result<()> {
        self.control.send(command).map(drop)
    }

    /// Panics the guest's kernel. Its memory stays.
    ///
    /// # Errors
    /// See [`Vm::inject`].
    pub fn panic(&mut self) -> Result<()> {
        self.inject("echo c >/proc/sysrq-trigger")
    }

    /// Loads `/lib/extra/FILE` with parameters and does not wait: the module may be a fault.
    ///
    /// # Errors
    /// See [`Vm::inject`].
    pub fn inject_module(&mut self, file: &str, parameters: &str) -> Result<()> {
        self.inject(&format!("insmod /lib/extra/{file} {parameters}"))
    }

    /// The machine's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether QEMU still runs.
    pub fn runs(&self) -> bool {
        self.process.runs()
    }

    /// Kills QEMU from outside, as a host's failure would; the folder stays until drop.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.end()
    }

    /// The guest's RAM as a file that another process of the same user maps.
    pub fn ram_path(&self) -> &Path {
        &self.ram
    }

    /// The host's end of the agent's port; one peer at a time.
    pub fn agent_socket(&self) -> &Path {
        &self.places.agent
    }

    /// A monitor socket of its own for the backdoor.
    pub fn backdoor_qmp_socket(&self) -> &Path {
        &self.places.backdoor_qmp
    }

    /// What the guest's console said.
    pub fn console_path(&self) -> &Path {
        &self.places.console
    }

    /// The machine's private folder, gone when the machine is.
    pub fn folder(&self) -> &Path {
        &self.places.folder
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.places.console).unwrap_or_default()).into_owned()
    }

    fn tail(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        format!("the console of {} ends with:\n{}", self.name, lines[from..].join("\n"))
    }
}

/// Connects as soon as QEMU listens, which is a moment after a socket's file is there.
fn connect(process: &Kept, places: &Places) -> Result<(Control, Qmp)> {
    let deadline = Instant::now() + SOCKETS_WITHIN;
    let control = soon(process, deadline, || Control::connect(&places.control))?;
    let qmp = soon(process, deadline, || Qmp::connect(&places.qmp))?;
    Ok((control, qmp))
}

fn soon<T>(process: &Kept, deadline: Instant, attempt: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(_) if process.runs() && Instant::now() < deadline => thread::sleep(POLL),
            done => return done,
        }
    }
}

/// The descriptor through which QEMU holds guest RAM.
fn memfd_of(pid: u32) -> Result<PathBuf> {
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot look into {}", folder.display()))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:memory-backend-memfd")) {
            return Ok(path);
        }
    }
    bail!("process {pid} holds no memory-backend-memfd")
}

/// A private folder for sockets, short because a socket's path is bounded by 108 bytes.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self> {
        // A random name: in a sandbox every testbed may be process 1.
        let path = std::env::temp_dir().join(format!("backdoors-vm-{:08x}", rand::random::<u32>()));
        fs::create_dir(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Sockets and a console nobody will read any more; nobody is left to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}
