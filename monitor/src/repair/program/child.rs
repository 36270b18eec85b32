//! The process of a module, as seen through its pipes: lines go in and come out until a deadline, bounded in length.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use healing_modules::outside::{LINE_BYTES_MAX, Unanswered};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::{Outside, murmur};

/// Pipes of this size take a question about some ten thousand processes without a switch to the module in between.
const PIPE_BYTES: i32 = 1 << 20;

/// What is read at once.
const CHUNK_BYTES: usize = 1 << 16;

/// How long a program may take to end when its input does, before it is killed.
const GRACE: Duration = Duration::from_millis(100);

/// A process with its pipes; it and its group end when this is dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: process::Child,
    /// `None` when the program has been told to end.
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// What it has said beyond the lines that were taken.
    said: Vec<u8>,
    /// How much of that has no end of a line in it.
    searched: usize,
}

impl Child {
    /// Starts the program, without the monitor's environment and real-time priority, in a group of its own, never with
    /// more rights than now.
    ///
    /// # Errors
    /// In a sentence.
    pub fn start(outside: &Outside, target: &str) -> Result<Self, String> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--no-new-privs"]);
        if let Some(user) = outside.user {
            command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
        }
        command.args(["--", "chrt", "--other", "0"]).args(&outside.command);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut process = command.spawn().map_err(|error| format!("setpriv, of util-linux, cannot be run: {error}"))?;
        let (Some(input), Some(output), Some(errors)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            unreachable!("all three are pipes")
        };
        let mut child = Self { process, input: Some(input), output, said: Vec::new(), searched: 0 };
        let ready = murmur::listen(errors, &outside.name, target)
            .and_then(|()| child.input.as_ref().map_or(Ok(()), prepared))
            .and_then(|()| prepared(&child.output));
        match ready {
            Ok(()) => Ok(child),
            Err(error) => {
                child.kill();
                Err(format!("its pipes: {error}"))
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Writes `line`.
    ///
    /// # Errors
    /// [`Unanswered::Late`] if it has not read all of it by `deadline`, [`Unanswered::Ended`].
    pub fn tell(&mut self, line: &[u8], deadline: Instant) -> Result<(), Unanswered> {
        let mut left = line;
        while !left.is_empty() {
            let Some(input) = &mut self.input else { return Err(ended("it was told to end")) };
            match input.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait(self.input.as_ref().map(AsFd::as_fd), PollFlags::POLLOUT, deadline)?;
                }
                Err(error) => return Err(ended(&self.has_ended().unwrap_or(error.to_string()))),
            }
        }
        Ok(())
    }

    /// The next line that it says.
    ///
    /// # Errors
    /// [`Unanswered::Late`] if there is none by `deadline`, [`Unanswered::Ended`], [`Unanswered::Malformed`] if it is
    /// too long.
    pub fn said(&mut self, deadline: Instant) -> Result<Vec<u8>, Unanswered> {
        loop {
            if let Some(at) = self.said[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.said.split_off(self.searched + at + 1);
                self.searched = 0;
                return Ok(std::mem::replace(&mut self.said, rest));
            }
            self.searched = self.said.len();
            if self.said.len() >= LINE_BYTES_MAX {
                let (what, said) = (format!("longer than {LINE_BYTES_MAX} bytes"), String::new());
                return Err(Unanswered::Malformed { what, said });
            }
            let mut chunk = [0; CHUNK_BYTES];
            match self.output.read(&mut chunk) {
                Ok(0) => return Err(ended(&self.has_ended().unwrap_or("it has closed its output".to_owned()))),
                Ok(count) => self.said.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait(Some(self.output.as_fd()), PollFlags::POLLIN, deadline)?;
                }
                Err(error) => return Err(ended(&error.to_string())),
            }
        }
    }

    /// How it ended, if it has; it is buried then.
    pub fn has_ended(&mut self) -> Option<String> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.group()), look) {
            Ok(WaitStatus::StillAlive) => return None,
            // Until it is buried its number is nobody else's: what it has started ends with it.
            Ok(_) => drop(killpg(self.group(), Signal::SIGKILL)),
            Err(_) => {}
        }
        match self.process.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("it has ended: {status}")),
            Err(error) => Some(format!("it cannot be waited for: {error}")),
        }
    }

    /// Ends it and its group, without waiting for that.
    pub fn kill(&mut self) {
        self.input = None;
        if self.has_ended().is_none() {
            let _ = killpg(self.group(), Signal::SIGKILL);
        }
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.pid().cast_signed())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.input = None;
        let begin = Instant::now();
        while self.has_ended().is_none() && begin.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.kill();
        let _ = self.process.wait();
    }
}

/// Makes a pipe one that nobody waits in. Its size is a wish: beyond a user's share the kernel refuses it.
fn prepared(pipe: &impl AsFd) -> std::io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok(())
}

/// Waits until something can be read or written; [`Unanswered::Late`] at `deadline`.
fn wait(pipe: Option<BorrowedFd<'_>>, wanted: PollFlags, deadline: Instant) -> Result<(), Unanswered> {
    let left = deadline.saturating_duration_since(Instant::now());
    let Some(pipe) = pipe.filter(|_| !left.is_zero()) else { return Err(Unanswered::Late(Duration::ZERO)) };
    // Rounded up: the last fraction of a millisecond is not spent turning round.
    let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pipe, wanted)], timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(ended(&error.to_string())),
    }
}

fn ended(why: &str) -> Unanswered {
    Unanswered::Ended { why: why.to_owned() }
}
