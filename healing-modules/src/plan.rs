//! What a healing module wants done, and why; and the bounds that no module can talk its way out of.

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use crate::evidence::{Evidence, Process};

/// A process that is to be ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Culprit {
    /// Process id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its command name.
    pub comm: CompactString,
    /// When it started: a process of the same id that started at another time is another one.
    pub start_ns: u64,
}

impl Culprit {
    /// `None` for a process that may not be judged.
    pub fn of(process: &Process) -> Option<Self> {
        let Process { pid, uid, comm, start_ns, .. } = process;
        process.counts().then_some(Self { pid: *pid, uid: (*uid)?, comm: comm.clone(), start_ns: *start_ns })
    }

    /// Whether `process` is this one, still alive.
    pub fn is(&self, process: &Process) -> bool {
        self.was(process) && process.counts()
    }

    /// Whether `process` is this one, alive or not.
    pub fn was(&self, process: &Process) -> bool {
        process.pid == self.pid && process.start_ns == self.start_ns
    }
}

/// A repair: who is to be ended, and the proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The policy that is broken (`TOO_MANY_PROCS`).
    pub policy: String,
    /// In a sentence: what breaks it, with the numbers.
    pub proof: String,
    /// Who is to be ended in one go, in the order of their ids.
    pub culprits: Vec<Culprit>,
}

/// What no repair touches, whatever a module thinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Safety {
    /// Users whose processes are never ended. Root is one of them unless the list is given without it.
    pub spare_uids: Vec<u32>,
    /// Command names that are never ended.
    pub spare_comms: Vec<String>,
    /// Processes that one repair may end at most. A plan that wants more is not carried out in part, but not at all.
    pub blast_cap: usize,
}

impl Default for Safety {
    fn default() -> Self {
        Self { spare_uids: vec![0], spare_comms: Vec::new(), blast_cap: 2000 }
    }
}

/// Why a plan is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "refused", rename_all = "snake_case")]
pub enum Unsafe {
    /// It would end what is spared.
    #[error("it would end {comm} ({pid}) of user {uid}, which is spared")]
    Spared {
        /// Process id.
        pid: u32,
        /// Its user.
        uid: u32,
        /// Its command name.
        comm: CompactString,
    },
    /// It would end too many.
    #[error("it would end {culprits} processes, more than the {cap} that one repair may end")]
    TooMany {
        /// How many.
        culprits: usize,
        /// The bound.
        cap: usize,
    },
    /// It would end a process that was not seen, or may not be judged.
    #[error("it would end process {pid}, which is none of those that were read, or no user's")]
    Unknown {
        /// Process id.
        pid: u32,
    },
    /// It would do nothing.
    #[error("it names no process")]
    Empty,
}

impl Safety {
    /// Whether a process is spared.
    pub fn spares(&self, process: &Process) -> bool {
        let is_spared_user = process.uid.is_none_or(|uid| self.spare_uids.contains(&uid));
        is_spared_user || self.spare_comms.iter().any(|comm| *comm == process.comm)
    }

    /// Checks a plan against what was read.
    ///
    /// # Errors
    /// [`Unsafe`], the first reason found.
    pub fn check(&self, plan: &Plan, evidence: &Evidence) -> Result<(), Unsafe> {
        if plan.culprits.is_empty() {
            return Err(Unsafe::Empty);
        }
        if plan.culprits.len() > self.blast_cap {
            return Err(Unsafe::TooMany { culprits: plan.culprits.len(), cap: self.blast_cap });
        }
        self.check_each(plan, evidence)
    }

    /// Checks each culprit of a plan, however many they are.
    ///
    /// # Errors
    /// [`Unsafe`], the first reason found.
    pub fn check_each(&self, plan: &Plan, evidence: &Evidence) -> Result<(), Unsafe> {
        // Plans are in the order of ids mostly: then each is found behind the one before it.
        let mut next = 0;
        for Culprit { pid, .. } in &plan.culprits {
            let is_next = evidence.processes.get(next).is_some_and(|process| process.pid == *pid);
            let seen = match is_next {
                true => Ok(next),
                false => evidence.processes.binary_search_by_key(pid, |process| process.pid),
            };
            next = seen.map_or(next, |at| at + 1);
            let Some(process) = seen.ok().map(|at| &evidence.processes[at]).filter(|process| process.counts()) else {
                return Err(Unsafe::Unknown { pid: *pid });
            };
            if self.spares(process) {
                let (uid, comm) = (process.uid.unwrap_or_default(), process.comm.clone());
                return Err(Unsafe::Spared { pid: *pid, uid, comm });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::{evidence, process};

    fn check(safety: &Safety, pids: &[u32], expected: Result<(), Unsafe>) {
        let mut seen = evidence((10..20).map(|pid| process(pid, 1000 + pid % 2, "p")));
        seen.processes.push(process(30, 0, "sshd"));
        let culprit = |pid: &u32| Culprit { pid: *pid, uid: 1000, comm: "p".into(), start_ns: (*pid).into() };
        let plan = Plan { policy: "P".into(), proof: String::new(), culprits: pids.iter().map(culprit).collect() };
        assert_eq!(safety.check(&plan, &seen), expected);
    }

    #[test]
    fn no_plan_talks_its_way_out_of_the_bounds() {
        let safety = Safety { blast_cap: 3, ..Safety::default() };
        check(&safety, &[10, 11, 12], Ok(()));
        check(&safety, &[10, 11, 12, 13], Err(Unsafe::TooMany { culprits: 4, cap: 3 }));
        check(&safety, &[], Err(Unsafe::Empty));
        check(&safety, &[1], Err(Unsafe::Unknown { pid: 1 }));
        check(&safety, &[99], Err(Unsafe::Unknown { pid: 99 }));
        check(&safety, &[30], Err(Unsafe::Spared { pid: 30, uid: 0, comm: "sshd".into() }));
        let named = Safety { spare_comms: vec!["p".into()], ..safety };
        check(&named, &[10], Err(Unsafe::Spared { pid: 10, uid: 1000, comm: "p".into() }));
    }

    #[test]
    fn another_process_under_an_old_number_is_not_the_culprit() {
        let culprit = Culprit::of(&process(10, 1000, "p")).unwrap();
        assert!(culprit.is(&process(10, 1000, "p")));
        assert!(!culprit.is(&Process { start_ns: 11, ..process(10, 1000, "p") }));
    }
}
