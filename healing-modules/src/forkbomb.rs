//! The fork bomb: processes that make processes until nothing else runs.
//!
//! Who dies is a *group*: the processes of one user that have one command name. It is what a bomb looks like from
//! outside, whatever its shape: its processes copy themselves, and their parents may be long gone. The editor of the
//! same user is another group and lives. A bomb that changes its name is a group for each name, and the next look finds
//! those that are left.
//!
//! | policy | broken by | who dies |
//! |---|---|---|
//! | `TOO_MANY_PROCS` | a user with more processes than that | the largest groups of that user, until it is below |
//! | `RATE_TOO_HIGH` | a user whose processes multiply faster than that | the groups that grew, fastest first |
//! | `TREE_TOO_DEEP` | a process further below the first one than that | its group |
//!
//! One user at a time, the worst first: after each cure the target is looked at again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evidence::{Evidence, Process};
use crate::healer::Healer;
use crate::plan::{Culprit, Plan, Safety};

const SECOND_NS: u64 = 1_000_000_000;

/// How far two looks are apart for a rate: shorter ones count too few births, longer ones leave the bomb time.
const RATE_OVER_NS: u64 = SECOND_NS / 4;

/// See the module's text. A policy that is left out is not broken by anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForkBomb {
    /// Processes a user may have.
    pub too_many_procs: Option<usize>,
    /// Processes by which a user's may grow in a second.
    pub rate_too_high: Option<u64>,
    /// Generations a process may be below the first one.
    pub tree_too_deep: Option<u32>,
}

/// Processes of one user and one command name.
type Group<'a> = (u32, &'a str);

impl Healer for ForkBomb {
    fn name(&self) -> &str {
        "forkbomb"
    }

    fn needs_earlier_ns(&self) -> Option<u64> {
        self.rate_too_high.map(|_| RATE_OVER_NS)
    }

    fn judges_memory(&self) -> bool {
        false
    }

    fn diagnose(&self, evidence: &Evidence, earlier: Option<&Evidence>, safety: &Safety) -> Option<Plan> {
        let judged: Vec<&Process> = evidence.judged().filter(|process| !safety.spares(process)).collect();
        let by_count = self.too_many_procs.and_then(|max| too_many(&judged, evidence, safety, max));
        let by_rate = || Some((self.rate_too_high?, earlier?));
        by_count
            .or_else(|| by_rate().and_then(|(max, earlier)| too_fast(&judged, evidence, earlier, max)))
            .or_else(|| self.tree_too_deep.and_then(|max| too_deep(&judged, max)))
    }
}

fn too_many(judged: &[&Process], evidence: &Evidence, safety: &Safety, max: usize) -> Option<Plan> {
    // As the kernel counts for RLIMIT_NPROC: the dying take room too, and a bomb may be made of little else.
    let all = evidence.processes.iter().filter(|process| !process.is_kernel && !safety.spares(process));
    let (uid, count) = largest(all.filter_map(|process| process.uid))?;
    if count <= max {
        return None;
    }
    let sizes = groups(judged).into_iter().filter(|((owner, _), _)| *owner == uid);
    let chosen = worst_until(sizes.collect(), count - max);
    plan("TOO_MANY_PROCS", format!("user {uid} has {count} processes, {max} are allowed"), judged, &chosen)
}

fn too_fast(judged: &[&Process], now: &Evidence, earlier: &Evidence, max: u64) -> Option<Plan> {
    let over_ns = now.taken_ns.checked_sub(earlier.taken_ns).filter(|over| *over >= RATE_OVER_NS / 2)?;
    let known = |process: &Process| {
        let at = earlier.processes.binary_search_by_key(&process.pid, |known| known.pid);
        at.is_ok_and(|at| earlier.processes[at].start_ns == process.start_ns)
    };
    let born: Vec<&Process> = judged.iter().copied().filter(|process| !known(process)).collect();
    let (uid, count) = largest(born.iter().filter_map(|process| process.uid))?;
    let per_second = (count as u64).saturating_mul(SECOND_NS) / over_ns;
    if per_second <= max {
        return None;
    }
    let allowed = usize::try_from(max.saturating_mul(over_ns) / SECOND_NS).unwrap_or(usize::MAX);
    let grown = groups(&born).into_iter().filter(|((owner, _), _)| *owner == uid);
    let chosen = worst_until(grown.collect(), count.saturating_sub(allowed));
    let proof = format!(
        "user {uid} has {count} processes that were not there {} ms ago: {per_second} a second, {max} are allowed",
        over_ns / 1_000_000
    );
    plan("RATE_TOO_HIGH", proof, judged, &chosen)
}

fn too_deep(judged: &[&Process], max: u32) -> Option<Plan> {
    let deepest = judged.iter().filter(|process| process.depth.is_some()).max_by_key(|process| process.depth)?;
    let depth = deepest.depth.filter(|depth| *depth > max)?;
    let proof = format!("{} ({}) is {depth} generations deep, {max} are allowed", deepest.comm, deepest.pid);
    plan("TREE_TOO_DEEP", proof, judged, &[(deepest.uid?, deepest.comm.as_str())])
}

/// Who occurs most often, and how often; of several the smallest, so that the answer is always the same.
fn largest(users: impl Iterator<Item = u32>) -> Option<(u32, usize)> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    users.for_each(|uid| *counts.entry(uid).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count)
}

fn groups<'a>(processes: &[&'a Process]) -> BTreeMap<Group<'a>, usize> {
    let mut sizes = BTreeMap::new();
    for process in processes {
        if let Some(uid) = process.uid {
            *sizes.entry((uid, process.comm.as_str())).or_default() += 1;
        }
    }
    sizes
}

/// The largest groups that together have `wanted` processes or more.
fn worst_until<'a>(mut sizes: Vec<(Group<'a>, usize)>, wanted: usize) -> Vec<Group<'a>> {
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let mut found = 0;
    let mut is_enough = |size: usize| {
        let before = found;
        found += size;
        before < wanted
    };
    sizes.into_iter().take_while(|(_, size)| is_enough(*size)).map(|(group, _)| group).collect()
}

fn plan(policy: &str, proof: String, judged: &[&Process], groups: &[Group<'_>]) -> Option<Plan> {
    let belongs =
        |process: &&&Process| groups.iter().any(|(uid, comm)| (Some(*uid), *comm) == (process.uid, &process.comm));
    let mut culprits: Vec<Culprit> = Vec::with_capacity(judged.len());
    culprits.extend(judged.iter().filter(belongs).filter_map(|process| Culprit::of(process)));
    (!culprits.is_empty()).then(|| Plan { policy: policy.to_owned(), proof, culprits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::{evidence, process};

    fn pids(plan: Option<Plan>) -> Vec<u32> {
        plan.map_or(Vec::new(), |plan| plan.culprits.iter().map(|culprit| culprit.pid).collect())
    }

    #[test]
    fn the_largest_group_of_the_worst_user_dies_and_its_neighbours_live() {
        let bomb = (100..130).map(|pid| process(pid, 1000, "bomb"));
        let others = [process(50, 1000, "editor"), process(60, 1001, "bomb"), process(70, 0, "sshd")];
        let evidence = evidence(bomb.chain(others));
        let module = ForkBomb { too_many_procs: Some(20), ..ForkBomb::default() };
        assert_eq!(pids(module.diagnose(&evidence, None, &Safety::default())), (100..130).collect::<Vec<_>>());
        let lenient = ForkBomb { too_many_procs: Some(31), ..ForkBomb::default() };
        assert_eq!(lenient.diagnose(&evidence, None, &Safety::default()), None);
    }

    #[test]
    fn a_bomb_of_many_names_dies_group_by_group_until_its_user_is_below() {
        let names = ["a", "b", "c"];
        let evidence = evidence((100..160).map(|pid| process(pid, 1000, names[pid as usize % 3])));
        let module = ForkBomb { too_many_procs: Some(30), ..ForkBomb::default() };
        assert_eq!(pids(module.diagnose(&evidence, None, &Safety::default())).len(), 40, "two of three groups");
    }

    #[test]
    fn the_dying_count_as_the_kernel_counts_them_and_are_not_ended_again() {
        let dying = (100..125).map(|pid| Process { is_exiting: true, ..process(pid, 1000, "bomb") });
        let evidence = evidence(dying.chain([process(130, 1000, "bomb"), process(131, 1000, "editor")]));
        let module = ForkBomb { too_many_procs: Some(20), ..ForkBomb::default() };
        assert_eq!(pids(module.diagnose(&evidence, None, &Safety::default())), [130, 131]);
    }

    #[test]
    fn spared_users_are_not_even_suspected() {
        let evidence = evidence((100..130).map(|pid| process(pid, 0, "make")));
        let module = ForkBomb { too_many_procs: Some(20), ..ForkBomb::default() };
        assert_eq!(module.diagnose(&evidence, None, &Safety::default()), None);
    }

    #[test]
    fn births_between_two_looks_are_a_rate_and_what_was_there_before_lives_if_its_group_did_not_grow() {
        let old = (10..40).map(|pid| process(pid, 1000, "worker"));
        let earlier = evidence(old.clone());
        let mut now = evidence(old.chain((100..200).map(|pid| process(pid, 1000, "bomb"))));
        now.taken_ns = earlier.taken_ns + SECOND_NS / 2;
        let module = ForkBomb { rate_too_high: Some(150), ..ForkBomb::default() };
        let plan = module.diagnose(&now, Some(&earlier), &Safety::default()).unwrap();
        assert!(plan.proof.contains("200 a second"), "{}", plan.proof);
        assert_eq!(pids(Some(plan)), (100..200).collect::<Vec<_>>());
        assert_eq!(module.diagnose(&now, None, &Safety::default()), None, "one look is no rate");
        let lenient = ForkBomb { rate_too_high: Some(200), ..ForkBomb::default() };
        assert_eq!(lenient.diagnose(&now, Some(&earlier), &Safety::default()), None);
    }

    #[test]
    fn a_number_that_somebody_else_has_now_is_a_birth() {
        let earlier = evidence((100..200).map(|pid| process(pid, 1000, "a")));
        let reborn = (100..200).map(|pid| Process { start_ns: 9, ..process(pid, 1000, "a") });
        let now = Evidence { taken_ns: earlier.taken_ns + SECOND_NS, ..evidence(reborn) };
        let module = ForkBomb { rate_too_high: Some(99), ..ForkBomb::default() };
        assert_eq!(pids(module.diagnose(&now, Some(&earlier), &Safety::default())).len(), 100);
    }

    #[test]
    fn a_tree_that_is_too_deep_dies_with_its_group() {
        let chain = (100..140).map(|pid| Process { depth: Some(pid - 90), ..process(pid, 1000, "deep") });
        let evidence = evidence(chain.chain([process(50, 1000, "editor")]));
        let module = ForkBomb { tree_too_deep: Some(48), ..ForkBomb::default() };
        assert_eq!(pids(module.diagnose(&evidence, None, &Safety::default())).len(), 40);
        let lenient = ForkBomb { tree_too_deep: Some(49), ..ForkBomb::default() };
        assert_eq!(lenient.diagnose(&evidence, None, &Safety::default()), None);
    }
}
