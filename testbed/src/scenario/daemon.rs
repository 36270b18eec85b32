//! A daemon of the project as a real process: started in its machine with a generated configuration, its log in a
//! file, ended with SIGTERM as an administrator would.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::topology::Place;

/// How long a daemon may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Between two looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Log lines quoted when a daemon fails.
const TAIL_LINES: usize = 15;

/// Path of a program of this workspace: beside the testbed, where cargo puts them all.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("the path of this program")?;
    let path = here.with_file_name(name);
    ensure!(path.is_file(), "{} is not built: cargo build --workspace --bins", path.display());
    Ok(path)
}

/// The priority of those units.
const URGENCY: &str = "10";

/// `chrt`, for what is to be scheduled as the units in `packaging/systemd` are (`CPUSchedulingPolicy=rr`).
fn urgent() -> Command {
    let mut command = Command::new("chrt");
    command.arg("--rr");
    command
}

/// Whether this machine lets a process be scheduled as those units want: root with CAP_SYS_NICE, and a control group
/// with real-time budget.
pub fn may_be_urgent() -> bool {
    let tried = urgent().args([URGENCY, "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Lets the first thread of a running process be as urgent: of QEMU that is the one which moves packets and obeys
/// orders, and not its virtual CPUs (`emulatorsched` of libvirt).
///
/// # Errors
/// If the kernel refuses; see [`may_be_urgent`].
pub fn make_urgent(pid: u32) -> Result<()> {
    let output =
        urgent().args(["--pid", URGENCY, &pid.to_string()]).output().context("cannot run chrt (of util-linux)")?;
    ensure!(output.status.success(), "chrt: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A running daemon; dropping it kills the process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` (see [`program`]) in `place`; its log goes to `folder/NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        place: &Place,
        name: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        folder: &Path,
    ) -> Result<Self> {
        Self::start_logging(place, name, name, arguments, folder, None)
    }

    /// The same, of `program` under another name, with logs of this level.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_logging(
        place: &Place,
        name: &str,
        of: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        folder: &Path,
        level: Option<&str>,
    ) -> Result<Self> {
        Self::launch(Command::new(program(of)?), place, name, arguments, folder, level)
    }

    /// The same, scheduled as the units in `packaging/systemd` say, if [`may_be_urgent`] says so.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn start_urgent(
        place: &Place,
        name: &str,
        of: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        folder: &Path,
    ) -> Result<Self> {
        let mut command = urgent();
        command.arg(URGENCY).arg(program(of)?);
        Self::launch(command, place, name, arguments, folder, None)
    }

    fn launch(
        mut command: Command,
        place: &Place,
        name: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        folder: &Path,
        level: Option<&str>,
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        command.env("NO_COLOR", "1").envs(level.map(|level| ("BACKDOORS_LOG", level)));
        command.args(arguments.into_iter().map(Into::into)).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let child = place.spawn(&mut command)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When the daemon ends, or nothing happens within `bound`; quotes the end of its log.
    pub fn wait_until(&mut self, what: &str, bound: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
        let begin = Instant::now();
        while !condition() {
            if let Some(status) = self.ended()? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.tail());
            }
            if begin.elapsed() > bound {
                bail!("{}: no {what} within {bound:?}:\n{}", self.name, self.tail());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// How the process ended, if it did.
    ///
    /// # Errors
    /// When the kernel does not know the process.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("asking after {}", self.name))
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where the log is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// The daemon's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends it as an administrator would.
    ///
    /// # Errors
    /// When it does not end gracefully.
    pub fn terminate(mut self) -> Result<()> {
        self.terminate_within(GRACE).map(drop)
    }

    /// The same, with a bound of its own; returns how it ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate_within(&mut self, bound: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)
            .with_context(|| format!("ending {}", self.name))?;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(begin.elapsed() < bound, "{} ignores SIGTERM:\n{}", self.name, self.tail());
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
