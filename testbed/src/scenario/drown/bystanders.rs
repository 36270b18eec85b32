//! Those who must outlive a repair: every process that was there before the illness. Among them a spared user that has
//! more processes and more memory than the policy allows, and a user that is not spared and does nothing wrong.
//!
//! Each is known by its id and its start, as `/proc` tells them. One that is missing afterwards was killed: by a repair
//! or by the guest's own OOM killer, which says so in the kernel's log. A repair that has only *marked* one of them is
//! found in the journal, whether it died or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use monitor::journal::{Event, Line};
use serde::Serialize;

use super::{ANSWER_BOUND, Installation};

/// Processes of one user that are too many.
pub(super) const PROCESSES_MAX: u32 = 10;

/// Memory of one process, in MiB, that is too much while little is free.
pub(super) const RSS_MAX_MIB: u64 = 8;

/// A user of whom nobody may be ended, whatever it does.
pub(super) const SPARED_USER: u32 = 1001;

/// A user that is not spared, and within all limits.
const INNOCENT_USER: u32 = 1002;

/// Starts them.
const BEGIN: &str = "(/bin/rogue --uid SPARED stay --procs 12 --mib 12 & /bin/rogue --uid INNOCENT stay --procs 3 &) \
                     </dev/null >/var/log/bystanders 2>&1";

/// How many that are.
const STARTED: usize = 15;

/// How often it is looked who is there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `/proc` says of every process; what is a thread of the kernel's has no memory, and is left out.
const CENSUS: &str = "cat /proc/[0-9]*/stat 2>/dev/null; true";

/// Where the kernel's log names who was taken by its OOM killer.
const OOM_KILLS: &str = "dmesg | grep -o 'Killed process [0-9]*'; true";

/// Processes by id: when they started, and what they are called.
type Census = BTreeMap<u32, (u64, String)>;

/// Those who are watched.
#[derive(Debug)]
pub(super) struct Bystanders(Census);

/// How they fared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Spared {
    /// How many were watched.
    pub watched: usize,
    /// Ended by the repair, or by nobody knows whom: `name (pid)`.
    pub killed: Vec<String>,
    /// Ended by the guest's own OOM killer.
    pub by_oom_killer: Vec<String>,
    /// Named by a repair as somebody to be ended.
    pub judged: Vec<String>,
}

impl Bystanders {
    /// Starts them and looks who else is there: what is there twice in a row stays by itself.
    pub(super) fn begin(installation: &mut Installation) -> Result<Self> {
        let begin = BEGIN.replace("SPARED", &SPARED_USER.to_string()).replace("INNOCENT", &INNOCENT_USER.to_string());
        installation.vm.run(&begin)?;
        let begun = Instant::now();
        let mut before = census(installation)?;
        loop {
            thread::sleep(LOOK_EVERY);
            let now = census(installation)?;
            before.retain(|pid, one| now.get(pid) == Some(one));
            let started = before.values().filter(|(_, name)| name == "bystander").count();
            if started >= STARTED {
                return Ok(Self(before));
            }
            if begun.elapsed() > ANSWER_BOUND {
                let said = installation.vm.run_within("cat /var/log/bystanders", ANSWER_BOUND)?.text();
                bail!("{started} of {STARTED} bystanders live after {ANSWER_BOUND:?}: {said}");
            }
            before = now;
        }
    }

    /// How they are now, and what the journal says of them.
    pub(super) fn look(&self, installation: &mut Installation, lines: &[Line]) -> Result<Spared> {
        let now = census(installation)?;
        let taken = installation.vm.run_within(OOM_KILLS, ANSWER_BOUND)?.text();
        let taken: BTreeSet<u32> = taken.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        Ok(self.fared(&now, &taken, lines))
    }

    fn fared(&self, now: &Census, taken: &BTreeSet<u32>, lines: &[Line]) -> Spared {
        let named = |pid: &u32| format!("{} ({pid})", self.0[pid].1);
        let missing = || self.0.iter().filter(|(pid, one)| now.get(pid) != Some(one)).map(|(pid, _)| pid);
        let plans = lines.iter().filter_map(|line| match &line.event {
            Event::Repaired(repair) => repair.plan.as_ref(),
            _ => None,
        });
        // A user that is not watched may get the id of a watched one only after its end, which is told above.
        let culprits = plans.flat_map(|plan| &plan.culprits).map(|culprit| culprit.pid);
        let judged: BTreeSet<u32> = culprits.filter(|pid| self.0.contains_key(pid)).collect();
        Spared {
            watched: self.0.len(),
            killed: missing().filter(|pid| !taken.contains(pid)).map(named).collect(),
            by_oom_killer: missing().filter(|pid| taken.contains(pid)).map(named).collect(),
            judged: judged.iter().map(named).collect(),
        }
    }
}

fn census(installation: &mut Installation) -> Result<Census> {
    let said = installation.vm.run_within(CENSUS, ANSWER_BOUND)?.text();
    said.lines().map(parse).filter_map(Result::transpose).collect()
}

/// A line of `/proc/PID/stat`, see proc(5); `None` for a thread of the kernel, which has no memory, and for what has
/// ended.
fn parse(line: &str) -> Result<Option<(u32, (u64, String))>> {
    let fields = || -> Option<(u32, (u64, String), u64)> {
        let (pid, rest) = line.split_once(" (")?;
        // The name may hold anything; the fields are counted from its end.
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let (started, memory) = (fields.get(19)?.parse().ok()?, fields.get(20)?.parse().ok()?);
        Some((pid.parse().ok()?, (started, name.to_owned()), memory))
    };
    let (pid, one, memory) = fields().with_context(|| format!("/proc says {line:?}"))?;
    Ok((memory != 0).then_some((pid, one)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, name: &str, started: u64, memory: u64) -> String {
        format!(
            "{pid} ({name}) S 1 1 1 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 {started} {memory} 100 18446744073709551615"
        )
    }

    #[test]
    fn a_name_with_parentheses_is_read_and_threads_of_the_kernel_are_left_out() {
        let parsed = parse(&stat(7, "a) b (c", 55, 4096)).unwrap();
        assert_eq!(parsed, Some((7, (55, "a) b (c".to_owned()))));
        assert_eq!(parse(&stat(2, "kthreadd", 1, 0)).unwrap(), None);
        assert!(parse("7 (cut").is_err());
    }

    #[test]
    fn who_is_missing_or_another_one_was_killed_unless_the_kernel_took_it() {
        let census = |all: &[(u32, u64)]| -> Census {
            all.iter().map(|(pid, started)| (*pid, (*started, "bystander".to_owned()))).collect()
        };
        let watched = Bystanders(census(&[(1, 1), (10, 50), (11, 51), (12, 52)]));
        let fared = watched.fared(&census(&[(1, 1), (10, 99)]), &[12].into(), &[]);
        assert_eq!(
            (fared.watched, &fared.killed[..]),
            (4, &["bystander (10)".to_owned(), "bystander (11)".to_owned()][..])
        );
        assert_eq!(fared.by_oom_killer, ["bystander (12)"]);
        assert!(watched.fared(&watched.0, &[].into(), &[]).killed.is_empty());
    }
}
