//! A child process that cannot outlive the testbed.
//!
//! `PR_SET_PDEATHSIG` is bound to the *thread* that started the child, not to its process. So every child has a
//! keeper: a thread that starts it, inherits the caller's namespaces, and lives until the child has been waited for.
//! `setpriv` sets the signal and then becomes the child, which keeps this file free of code between fork and exec.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often the keeper looks whether the child ended by itself.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A child process and its keeper.
#[derive(Debug)]
pub(super) struct Kept {
    pid: Pid,
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<Option<ExitStatus>>>,
}

impl Kept {
    /// Starts `program` in the caller's namespaces. Its complaints go to `stderr`.
    pub fn start(program: &str, arguments: &[String], stdin: Option<OwnedFd>, stderr: std::fs::File) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).args(arguments);
        command.stdin(stdin.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::null()).stderr(stderr);
        let (started, start) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let keeper = thread::Builder::new().name(format!("keeper of {program}")).spawn(move || {
            let child = command.spawn();
            // The command holds its own copy of the descriptors.
            drop(command);
            let mut child = match child {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return None;
                }
            };
            let _ = started.send(Ok(child.id()));
            keep(&mut child, &stopped)
        })?;
        let pid = start.recv().context("the keeper ended early")?.context("cannot run setpriv (of util-linux)")?;
        Ok(Self { pid: Pid::from_raw(pid.cast_signed()), stop: Some(stop), keeper: Some(keeper) })
    }

    /// The child's process id; its own once `setpriv` has become it.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| !keeper.is_finished())
    }

    /// Kills and waits. Does nothing the second time.
    pub fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            keeper.join().map_err(|_| anyhow!("the keeper of process {} panicked", self.pid))?;
        }
        Ok(())
    }

    /// Sends a signal, for tests that stop or kill the process from outside.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        anyhow::ensure!(self.runs(), "process {} has ended", self.pid);
        Ok(kill(self.pid, signal)?)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.end();
    }
}

/// Waits for the child's end or for the order to end it, which is the channel closing.
fn keep(child: &mut Child, stopped: &mpsc::Receiver<()>) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if let Err(mpsc::RecvTimeoutError::Disconnected) = stopped.recv_timeout(LOOK_EVERY) {
            let _ = child.kill();
            return child.wait().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn sleeper() -> Kept {
        let stderr = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        Kept::start("sleep", &["1000".to_owned()], None, stderr).unwrap()
    }

    #[test]
    fn a_dropped_child_is_gone_and_waited_for() {
        let child = sleeper();
        let proc = format!("/proc/{}", child.pid());
        assert!(Path::new(&proc).exists());
        drop(child);
        assert!(!Path::new(&proc).exists());
    }

    #[test]
    fn a_child_lives_on_when_the_thread_that_asked_for_it_ends() {
        let child = thread::spawn(sleeper).join().unwrap();
        assert!(child.runs());
        assert!(Path::new(&format!("/proc/{}", child.pid())).exists());
    }

    #[test]
    fn a_child_that_ends_by_itself_is_noticed() {
        let child = sleeper();
        child.signal(Signal::SIGKILL).unwrap();
        while child.runs() {
            thread::sleep(LOOK_EVERY);
        }
        assert!(child.signal(Signal::SIGKILL).is_err());
    }
}
