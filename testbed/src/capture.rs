//! Records the RDMA network during a run, for an independent reader to judge: did the recovery really travel as
//! RoCEv2, and is every ICRC right? A small script writes the file (`check/record.py`), because what judges our packets
//! must not be ours.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::topology::{Place, RDMA_INTERFACE};

/// A recording under way; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    recorder: Child,
    says: BufReader<ChildStdout>,
}

impl Capture {
    /// Starts recording every RoCEv2 packet on the RDMA bridge of `hypervisor` into `file`; returns once it records.
    ///
    /// # Errors
    /// When python3 is missing or the recorder refuses; its reason is on standard error.
    pub fn start(hypervisor: &Place, file: &Path) -> Result<Self> {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script()).arg(RDMA_INTERFACE).arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut recorder =
            hypervisor.spawn(&mut command).context("the path is recorded by python3: run scripts/setup")?;
        let mut says = BufReader::new(recorder.stdout.take().context("the recorder's standard output")?);
        let mut said = String::new();
        says.read_line(&mut said).context("listening to the recorder")?;
        ensure!(said == "recording\n", "the recorder does not record");
        Ok(Self { recorder, says })
    }

    /// Ends the recording; the file is complete afterwards.
    ///
    /// # Errors
    /// When packets were dropped: a capture with holes proves nothing.
    pub fn finish(mut self) -> Result<()> {
        kill(Pid::from_raw(self.recorder.id() as i32), Signal::SIGTERM).context("ending the recorder")?;
        let mut said = String::new();
        self.says.read_to_string(&mut said).context("listening to the recorder")?;
        let status = self.recorder.wait().context("waiting for the recorder")?;
        ensure!(status.success(), "the capture has holes: {}", said.trim());
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.recorder.kill();
        let _ = self.recorder.wait();
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("check/record.py")
}
