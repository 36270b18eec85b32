//! Records the RDMA network during a run, for an independent reader to judge: did the recovery really travel as
//! RoCEv2, and is every ICRC right? tcpdump writes the file, because what judges our packets must not be ours.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::topology::{Place, RDMA_INTERFACE};

/// UDP port of RoCEv2.
const ROCE_PORT: &str = "4791";

/// A recording under way.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
}

impl Capture {
    /// Starts recording every RoCEv2 packet on the RDMA bridge of `hypervisor` into `file`; returns once it records.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses; quotes it.
    pub fn start(hypervisor: &Place, file: &Path) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        // Immediate and unbuffered: a run that is killed leaves what it saw. 64 MiB of kernel buffer: no loss.
        command.args(["-i", RDMA_INTERFACE, "-n", "-U", "-s", "0", "-B", "65536", "-Z", "root", "-w"]).arg(file);
        command.args(["udp", "port", ROCE_PORT]);
        let spawned = hypervisor.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()));
        let mut tcpdump = spawned.context("tcpdump records the path: run scripts/setup")?;
        let stderr = tcpdump.stderr.take().context("tcpdump's standard error")?;
        let mut said = String::new();
        let mut lines = BufReader::new(stderr);
        while !said.contains("listening on") {
            if lines.read_line(&mut said)? == 0 {
                let _ = tcpdump.wait();
                bail!("tcpdump does not record: {}", said.trim());
            }
        }
        tcpdump.stderr = Some(lines.into_inner());
        Ok(Self { tcpdump })
    }

    /// Ends the recording; the file is complete afterwards.
    ///
    /// # Errors
    /// When tcpdump lost packets: a capture with holes proves nothing.
    pub fn finish(self) -> Result<()> {
        kill(Pid::from_raw(self.tcpdump.id() as i32), Signal::SIGTERM).context("ending tcpdump")?;
        let output = self.tcpdump.wait_with_output().context("waiting for tcpdump")?;
        let said = String::from_utf8_lossy(&output.stderr);
        match said.lines().find(|line| line.ends_with("dropped by kernel")) {
            Some(line) if !line.starts_with("0 ") => bail!("the capture has holes: {line}"),
            _ => Ok(()),
        }
    }
}
