//! The wait for a guest's boot, and what is done about one that stands still in it.
//!
//! QEMU before 8.1 translates code that another virtual processor is changing, and may keep the breakpoint that Linux
//! puts there in between: the processor then meets it for ever (QEMU: "accel/tcg: Always lock pages before
//! translation"). An agent that attaches to `local_timer_entry` has the kernel change its timer interrupt in this way,
//! and one of a hundred emulated guests with two processors ends its boot there, both of them at the place of the
//! change. It is reset once, and where its processors were is said.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::Qmp;

/// A guest says something on its console many times a second while it boots.
const STANDS_STILL: Duration = Duration::from_secs(60);

/// Lines of QEMU's registers that say where a processor is.
const TELLING: [&str; 6] = ["CPU#", "RAX=", "RSI=", "RIP=", "CR0=", "RSP="];

/// A boot under way.
#[derive(Debug)]
pub(super) struct Boot {
    said_bytes: u64,
    said: Instant,
    was_reset: bool,
}

impl Boot {
    pub fn new() -> Self {
        Self { said_bytes: 0, said: Instant::now(), was_reset: false }
    }

    /// Whether the guest has been silent for too long, for the first time.
    pub fn stands_still(&mut self, console: &Path) -> bool {
        let bytes = console.metadata().map_or(0, |file| file.len());
        if bytes != self.said_bytes {
            (self.said_bytes, self.said) = (bytes, Instant::now());
        }
        !self.was_reset && self.said.elapsed() > STANDS_STILL
    }

    /// Boots it anew, also where a guest that reboots is to end: firmware that is interrupted does so by itself.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn again(&mut self, qmp: &mut Qmp) -> Result<()> {
        (self.was_reset, self.said) = (true, Instant::now());
        qmp.execute("set-action", json!({ "reboot": "reset" }))?;
        qmp.execute("system_reset", json!({})).map(drop)
    }

    /// Ends the wait: from here on a guest that reboots ends, unless it `reboots`.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn done(self, qmp: &mut Qmp, reboots: bool) -> Result<()> {
        if self.was_reset && !reboots {
            qmp.execute("set-action", json!({ "reboot": "shutdown" }))?;
        }
        Ok(())
    }
}

/// What the processors are at, twice: whether one moves.
pub(super) fn whereabouts(qmp: &mut Qmp) -> String {
    let mut look = |line: &str| {
        let said = qmp.execute("human-monitor-command", json!({ "command-line": line })).unwrap_or_default();
        said.as_str().unwrap_or_default().to_owned()
    };
    let mut told = String::new();
    for command in ["info registers -a", "info registers -a", "info lapic 0", "info lapic 1"] {
        let said = look(command);
        let is_telling = |line: &&str| !command.contains("registers") || TELLING.iter().any(|it| line.contains(it));
        said.lines().filter(is_telling).for_each(|line| {
            told.push_str(line.trim_end());
            told.push('\n');
        });
    }
    told
}
