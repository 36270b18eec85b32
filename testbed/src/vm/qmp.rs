//! The QEMU Monitor Protocol, as far as the testbed needs it: one JSON object on each line, events skipped.
//! Source: QEMU, docs/interop/qmp-spec.txt.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::NETDEV;

/// QEMU answers at once unless the host is starved.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line is a short object; anything longer is not QEMU.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A connection to a machine's monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves capabilities negotiation.
    ///
    /// # Errors
    /// If nobody answers there.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("no QMP at {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "{} does not speak QMP", socket.display());
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes one command and returns its result.
    ///
    /// # Errors
    /// If QEMU refuses it or the connection fails.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).context("QMP connection")?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        use std::io::Read;
        let mut line = Vec::new();
        let taken = (&mut self.stream).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
        ensure!(taken.context("QMP connection")? > 0, "QEMU closed the QMP connection");
        serde_json::from_slice(&line).context("QEMU sent what is not JSON")
    }

    /// Stops every virtual processor.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub fn stop(&mut self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub fn cont(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Plugs or unplugs the network cable.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub fn set_link(&mut self, up: bool) -> Result<()> {
        self.execute("set_link", json!({ "name": NETDEV, "up": up })).map(drop)
    }

    /// What QEMU says the machine does: `running`, `paused`, …
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }
}
