//! Containment: what is done in a repair's standstill about culprits that their marks do not end at once.
//!
//! | means | for | until |
//! |---|---|---|
//! | `nproc` | who is marked and not woken; where the plan is beyond the blast cap, every culprit | they die |
//! | `oom` | the same | they die |
//! | `pids` | the cgroups of culprits, where nobody else is | the treatment's end, whatever came of it |
//!
//! A marked thread cannot fork, and one that was woken dies within a tick: for these nothing would be won. But only one
//! thread of a process is marked, and those that wait for a disk, a tracer or the freezer may be let go before it is.
//!
//! Invariants: nobody is contained but culprits of the plan, and of these no process of root or of whom the bounds
//! spare; what is lent is given back in a standstill of its own, only where it is still what was written.

use std::collections::{BTreeSet, HashSet};

use healing_modules::{Evidence, Plan, Safety};
use introspect::linux::contain::{self, Contained, Means, Request};
use introspect::linux::kill::{Edit, Fate, KillPlan};
use introspect::linux::task::Task;
use introspect::{Damage, Kernel};
use remote_memory::{LinkError, RemoteKey, RemoteRead};

use super::{LEASE_MS, RepairError, Table, carry_out};
use crate::config::Hook;

/// How a target is repaired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// By what processes are ended.
    pub hook: Hook,
    /// How culprits are contained that do not end at once.
    pub contain: BTreeSet<Means>,
}

impl From<Hook> for Ways {
    fn from(hook: Hook) -> Self {
        Self { hook, contain: BTreeSet::new() }
    }
}

/// What is contained unless configured: means that touch nobody but culprits, and cost nothing where all die at once.
pub fn standard() -> BTreeSet<Means> {
    [Means::Nproc, Means::Oom].into()
}

/// What was decided, of what, and what becomes of it.
pub(super) struct Case<'a> {
    pub kernel: &'a Kernel,
    pub tasks: &'a [Task],
    pub evidence: &'a Evidence,
    pub safety: &'a Safety,
    pub plan: &'a Plan,
    /// `None` if nobody may be ended.
    pub kill: Option<&'a KillPlan>,
}

impl Case<'_> {
    /// Who is to be contained by `means` of their own, and whose cgroups are.
    fn culprits(&self, means: &BTreeSet<Means>) -> (HashSet<u32>, HashSet<u32>) {
        let all = || self.plan.culprits.iter().map(|culprit| culprit.pid);
        let Some(kill) = self.kill else { return (all().collect(), HashSet::new()) };
        let stays = |pid: &u32| matches!(kill.fate_of(*pid), Some(Fate::Sleeps { .. }));
        (all().filter(stays).collect(), if means.contains(&Means::Pids) { all().collect() } else { HashSet::new() })
    }

    /// What is to be written for it.
    pub(super) fn contained(
        &self,
        mem: &mut dyn RemoteRead,
        ram: RemoteKey,
        means: &BTreeSet<Means>,
    ) -> Result<(Vec<Contained>, Vec<Damage>), LinkError> {
        let (themselves, in_cgroups) = self.culprits(means);
        // Most repairs, also of thirty thousand, which stand still meanwhile.
        if themselves.is_empty() && in_cgroups.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let spared = self.evidence.processes.iter().filter(|process| self.safety.spares(process));
        let spared: HashSet<u32> = spared.map(|process| process.pid).collect();
        let (of_cgroups, own): (BTreeSet<Means>, BTreeSet<Means>) = means.iter().partition(|one| **one == Means::Pids);
        let (mut contained, mut damage) = (Vec::new(), Vec::new());
        for (processes, means) in [(themselves, own), (in_cgroups, of_cgroups)] {
            let request = Request { processes, spared: spared.clone(), means };
            let (more, wrong) = contain::plan(self.kernel, mem, ram, self.tasks, &request)?;
            contained.extend(more);
            damage.extend(wrong);
        }
        Ok((contained, damage))
    }
}

/// What is written for `contained`.
pub(super) fn edits(contained: &[Contained]) -> Vec<Edit> {
    contained.iter().map(|one| one.edit.clone()).collect()
}

/// Gives back what was lent, in a standstill; how many limits that were.
///
/// # Errors
/// See [`RepairError`].
pub fn give_back(table: &mut dyn Table, kernel: &Kernel, contained: &[Contained]) -> Result<usize, RepairError> {
    if !contained.iter().any(Contained::is_lent) {
        return Ok(0);
    }
    let ram = RemoteKey::new(table.ram().map_err(RepairError::Region)?.key);
    let token = table.lock("limits are given back", LEASE_MS).map_err(RepairError::NotLocked)?;
    let mut in_the_standstill = || -> Result<usize, RepairError> {
        let edits = contain::give_back(kernel, table.memory(), ram, contained)?;
        carry_out(table.memory(), &token.fenced(), &edits)?;
        Ok(edits.len())
    };
    let outcome = in_the_standstill();
    let unlocked = table.unlock(&token).map_err(RepairError::NotUnlocked);
    let given = outcome?;
    unlocked?;
    Ok(given)
}

/// Whether what was contained is what may be: the contained are culprits of `plan`, by configured means.
pub fn is_of(contained: &[Contained], plan: Option<&Plan>, safety: &Safety, means: &BTreeSet<Means>) -> bool {
    let is_culprit = |pid: &u32| {
        let found = plan.and_then(|plan| plan.culprits.iter().find(|culprit| culprit.pid == *pid));
        found.is_some_and(|culprit| culprit.uid != 0 && !safety.spare_uids.contains(&culprit.uid))
    };
    let is_fine = |one: &Contained| {
        let culprits = one.measure.culprits();
        means.contains(&one.measure.means()) && !culprits.is_empty() && culprits.iter().all(is_culprit)
    };
    contained.iter().all(is_fine)
}
