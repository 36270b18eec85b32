//! A private corner of the machine: everything the testbed makes lives in it and vanishes with it.
//!
//! ```text
//!   testbed ──unshare──► (user), network, mount and PID namespaces ──re-exec──► testbed as process 1 in there
//!      │                                                                           │
//!      └── waits; when it dies, however it dies, process 1 is killed ──────────────┴─► VMs, daemons, bridges, files
//! ```
//!
//! As root the user namespace is left out. Without root the caller becomes root in a user namespace of its own, which
//! is all that bridges, taps and TCP repair ask for. Process 1 gets a fresh `/proc`, loopback, and a private tmpfs at
//! [`SCRATCH`]; the kernel kills every process of the corner when process 1 ends, so not even SIGKILL leaves a virtual
//! machine behind.
//!
//! What it does not do: confine. Files outside [`SCRATCH`] are the machine's own.

use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, exit},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{prctl, signal::Signal},
    unistd::{Uid, getgid, getpid, getuid},
};

/// Set for the process that is re-executed inside.
const INSIDE: &str = "BACKDOORS_TESTBED_INSIDE";

/// Guest RAM, sockets, configurations and logs of a run: memory, private, gone with the run.
pub const SCRATCH: &str = "/dev/shm";

/// Enters the sandbox: returns only inside it. Call it first in `main`, before any thread exists.
///
/// # Errors
/// When the host does not allow one of the namespaces; the message says which, and how to allow it.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() && getpid().as_raw() == 1 {
        return furnish();
    }
    let privileged = Uid::effective().is_root();
    separate()?;
    let program = env::current_exe().context("the path of this program")?;
    let mut inside = if privileged { ahead_of_others(&program) } else { Command::new(program) };
    let mut inside = inside
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .spawn()
        .context("cannot start again inside the sandbox")?;
    let status = inside.wait().context("waiting for the sandbox")?;
    exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Runs `program` ahead of whatever else the machine does: a guest that waits for a processor looks like one that
/// hangs. Only root may ask for it.
fn ahead_of_others(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "-10"]).arg(program);
    command
}

/// Whether this process is the root of a sandbox.
pub fn entered() -> bool {
    env::var_os(INSIDE).is_some() && getpid().as_raw() == 1
}

/// Leaves the host's namespaces; the next child is process 1 of the new ones.
fn separate() -> Result<()> {
    if !Uid::effective().is_root() {
        become_root_of_own_users()?;
    }
    let kinds = [
        (CloneFlags::CLONE_NEWNET, "network"),
        (CloneFlags::CLONE_NEWNS, "mount"),
        (CloneFlags::CLONE_NEWIPC, "IPC"),
        (CloneFlags::CLONE_NEWPID, "PID"),
    ];
    for (flag, name) in kinds {
        unshare(flag).with_context(|| {
            format!(
                "this host does not permit a {name} namespace: run as root; inside a container, the container needs \
                 CAP_SYS_ADMIN and a seccomp profile that lets unshare(2) and mount(2) through"
            )
        })?;
    }
    Ok(())
}

fn become_root_of_own_users() -> Result<()> {
    let (user, group) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "this host does not permit user namespaces to ordinary users: run as root, or allow them with \
         `sysctl kernel.unprivileged_userns_clone=1` (Debian), `sysctl kernel.apparmor_restrict_unprivileged_userns=0` \
         (Ubuntu), and user.max_user_namespaces above 0",
    )?;
    fs::write("/proc/self/setgroups", "deny").context("/proc/self/setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("mapping the user to root of the namespace")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("mapping the group to root of the namespace")?;
    Ok(())
}

/// What process 1 does before anything else.
fn furnish() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking to die with the process outside")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)
        .context("cannot mount /proc of the new PID namespace: a container must not mask parts of /proc for this")?;
    if !Path::new(SCRATCH).is_dir() {
        bail!("{SCRATCH} is missing: the testbed mounts its private files there");
    }
    mount(Some("testbed"), SCRATCH, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755,size=75%"))
        .with_context(|| format!("cannot mount a private tmpfs at {SCRATCH}"))?;
    fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").context(
        "/dev/net/tun cannot be opened, and the guests' network cards are made with it: run as root, or make the \
         device accessible (chmod 0666 /dev/net/tun is Debian's default)",
    )?;
    Ok(())
}
