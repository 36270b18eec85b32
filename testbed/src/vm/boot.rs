//! The wait for a guest's boot, and what is done about one that stands still in it.
//!
//! QEMU before 8.1 translates code that another virtual processor is changing, and may keep the breakpoint that Linux
//! puts there in between: the processor then meets it for ever (QEMU: "accel/tcg: Always lock pages before
//! translation"). An agent that attaches to `local_timer_entry` has the kernel change its timer interrupt in this way,
//! and one of a hundred emulated guests with two processors ends its boot there, both of them at the place of the
//! change. It is reset once, and where its processors were is said.

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
    pub fn begins(now: Instant) -> Self {
        Self { said_bytes: 0, said: now, was_reset: false }
    }

    /// Whether the guest, of whose console there are so many bytes, has been silent for too long, for the first time.
    pub fn stands_still(&mut self, said_bytes: u64, now: Instant) -> bool {
        if said_bytes != self.said_bytes {
            (self.said_bytes, self.said) = (said_bytes, now);
        }
        !self.was_reset && now.duration_since(self.said) > STANDS_STILL
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_goes_on_talking_does_not_stand_still_and_one_is_reset_once() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut boot = Boot::begins(begin);
        assert!(!boot.stands_still(0, at(59)) && !boot.stands_still(10, at(61)) && !boot.stands_still(10, at(120)));
        assert!(boot.stands_still(10, at(122)));
        boot.was_reset = true;
        assert!(!boot.stands_still(10, at(1000)));
    }
}
