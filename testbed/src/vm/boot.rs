//! The wait for a guest's boot, and what is done about one that stands still in it.
//!
//! QEMU before 8.1 translates code that another virtual processor is changing, and may keep the breakpoint that Linux
//! puts there in between: the processor then meets it for ever (QEMU: "accel/tcg: Always lock pages before
//! translation"). An agent that attaches to `local_timer_entry` has the kernel change its timer interrupt in this way,
//! and one of a hundred emulated guests with two processors ends its boot there, both of them at the place of the
//! change. What is left of its kernel is silent, or says again and again that a processor is stuck. It is reset once,
//! and where its processors were is said.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::Qmp;

/// A guest says something on its console many times a second while it boots.
const STANDS_STILL: Duration = Duration::from_secs(60);

/// How a kernel says that a processor is stuck, which takes it 20 s to notice; how long it is believed to be wrong.
const STUCK: [&str; 3] = ["soft lockup", "detected stall", "expedited stall"];
const STAYS_STUCK: Duration = Duration::from_secs(30);

/// Lines of QEMU's registers that say where a processor is.
const TELLING: [&str; 6] = ["CPU#", "RAX=", "RSI=", "RIP=", "CR0=", "RSP="];

/// A boot under way.
#[derive(Debug)]
pub(super) struct Boot {
    said_bytes: usize,
    said: Instant,
    stuck: Option<Instant>,
    was_reset: bool,
}

impl Boot {
    pub fn begins(now: Instant) -> Self {
        Self { said_bytes: 0, said: now, stuck: None, was_reset: false }
    }

    /// Whether the guest, which has said this on its console, has been silent or stuck for too long, and for the first
    /// time.
    pub fn stands_still(&mut self, console: &str, now: Instant) -> bool {
        if console.len() != self.said_bytes {
            (self.said_bytes, self.said) = (console.len(), now);
            if self.stuck.is_none() && STUCK.iter().any(|it| console.contains(it)) {
                self.stuck = Some(now);
            }
        }
        let is_stuck = self.stuck.is_some_and(|since| now.duration_since(since) > STAYS_STUCK);
        !self.was_reset && (is_stuck || now.duration_since(self.said) > STANDS_STILL)
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
        assert!(!boot.stands_still("", at(59)) && !boot.stands_still("[ 1]", at(61)));
        assert!(!boot.stands_still("[ 1]", at(120)));
        assert!(boot.stands_still("[ 1]", at(122)));
        boot.was_reset = true;
        assert!(!boot.stands_still("[ 1]", at(1000)));
    }

    #[test]
    fn a_guest_that_only_says_that_it_is_stuck_stands_still() {
        let begin = Instant::now();
        let mut boot = Boot::begins(begin);
        let mut console = String::new();
        for seconds in 0..60 {
            console.push_str(if seconds == 21 {
                "rcu: INFO: rcu_preempt detected stalls on CPUs\n"
            } else {
                "RSP: 1\n"
            });
            let is_still = boot.stands_still(&console, begin + Duration::from_secs(seconds));
            assert_eq!(is_still, seconds > 51, "after {seconds} s");
        }
    }
}
