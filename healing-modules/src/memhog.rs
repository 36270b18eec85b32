//! The memory hog: processes that take memory until the machine does nothing but look for more.
//!
//! | policy | broken by | who dies |
//! |---|---|---|
//! | `MAX_RSS` | processes with more memory than that, each | these processes, the largest first |
//! | `MAX_RSSUID` | a user whose processes have more than that | all processes of that user |
//! | `MAX_RSSUID_SAVEUID` | the same; the user keeps what it works with | its largest processes, until it is below |
//!
//! Memory of a process is what it has taken from the machine: resident pages and those that were swapped out. By the
//! resident ones alone a hog looks the smaller the more there are of it, since each pushes the others out. The
//! dissertation's names, which know no swap, stay. The kernel's own OOM killer adds the same two.
//!
//! One policy at a time, and one user: after each cure the target is looked at again. What breaks `MAX_RSS` is proven
//! of each process by itself, so all of them end in one standstill; no more than the blast cap, and where free memory
//! excuses them no more than would bring enough of it back. A controller that starts its children anew shows as the
//! same user being over its bound again; under `MAX_RSSUID` it dies with them.

use serde::{Deserialize, Serialize};

use crate::evidence::{Evidence, Process};
use crate::healer::Healer;
use crate::plan::{Culprit, Plan, Safety};

/// Bytes of a page of the target.
const PAGE_BYTES: u64 = 4096;

/// See the module's text. A policy that is left out is not broken by anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemHog {
    /// Memory of one process, in MiB.
    pub max_rss_mib: Option<u64>,
    /// Memory of all processes of a user, in MiB.
    pub max_rssuid_mib: Option<u64>,
    /// The same; only the user's largest processes die.
    pub max_rssuid_saveuid_mib: Option<u64>,
    /// Free memory, in MiB, above which nobody is too large.
    pub only_below_free_mib: Option<u64>,
}

impl Healer for MemHog {
    fn name(&self) -> &str {
        "memhog"
    }

    fn diagnose(&self, evidence: &Evidence, _: Option<&Evidence>, safety: &Safety) -> Option<Plan> {
        let is_tight = |mib| evidence.pages_free.is_none_or(|free| free < pages(mib));
        if !self.only_below_free_mib.is_none_or(is_tight) {
            return None;
        }
        let mut judged: Vec<&Process> = evidence.judged().filter(|process| !safety.spares(process)).collect();
        judged.sort_by_key(|process| (std::cmp::Reverse(process.taken_pages()), process.pid));
        let missing = self.only_below_free_mib.zip(evidence.pages_free);
        let missing = missing.map_or(u64::MAX, |(mib, free)| pages(mib).saturating_sub(free));
        let by_process = self.max_rss_mib.and_then(|max| too_large(&judged, max, missing, safety.blast_cap));
        let by_user = || self.max_rssuid_mib.and_then(|max| of_user(&judged, evidence, max, true));
        let saving = || self.max_rssuid_saveuid_mib.and_then(|max| of_user(&judged, evidence, max, false));
        by_process.or_else(by_user).or_else(saving)
    }
}

fn pages(mib: u64) -> u64 {
    mib.saturating_mul((1 << 20) / PAGE_BYTES)
}

fn mib(pages: u64) -> u64 {
    pages / ((1 << 20) / PAGE_BYTES)
}

/// The largest of those over the bound, until their resident pages are the `missing` ones; `most` of them.
fn too_large(judged: &[&Process], max: u64, missing: u64, most: usize) -> Option<Plan> {
    let mut freed = 0u64;
    let mut is_needed = |process: &Process| {
        let is_needed = freed < missing;
        freed = freed.saturating_add(process.rss_pages.unwrap_or(0));
        is_needed
    };
    let over = judged.iter().take_while(|process| process.taken_pages() > Some(pages(max)));
    // Where the cap is nought nobody may be ended, and the plan says who should be.
    let chosen: Vec<&&Process> = over.take_while(|process| is_needed(process)).take(most.max(1)).collect();
    let largest = chosen.first()?;
    let mut proof = format!("{} ({}) has {}, {max} are allowed", largest.comm, largest.pid, said(largest));
    if chosen.len() > 1 {
        proof += &format!("; with it {} more that have over {max} MiB each", chosen.len() - 1);
    }
    let mut culprits: Vec<Culprit> = chosen.into_iter().filter_map(|process| Culprit::of(process)).collect();
    culprits.sort_by_key(|culprit| culprit.pid);
    Some(Plan { policy: "MAX_RSS".to_owned(), proof, culprits })
}

/// A process's memory, in words.
fn said(process: &Process) -> String {
    let taken = mib(process.taken_pages().unwrap_or(0));
    match process.swap_pages.map_or(0, mib) {
        0 => format!("{taken} MiB"),
        swapped => format!("{taken} MiB ({swapped} of them swapped out)"),
    }
}

fn of_user(judged: &[&Process], evidence: &Evidence, max: u64, is_all: bool) -> Option<Plan> {
    let users = evidence.pages_of_users().into_iter();
    let judged_user = |uid: u32| judged.iter().any(|process| process.uid == Some(uid));
    let (uid, taken) = users.filter(|(uid, _)| judged_user(*uid)).max_by_key(|(_, taken)| *taken)?;
    if taken <= pages(max) {
        return None;
    }
    let mut left = taken;
    let mut is_over = |process: &Process| {
        let over = left > pages(max);
        left = left.saturating_sub(process.taken_pages().unwrap_or(0));
        is_all || over
    };
    let of_them = judged.iter().filter(|process| process.uid == Some(uid));
    let chosen = of_them.take_while(|process| is_over(process));
    let mut culprits: Vec<Culprit> = chosen.filter_map(|process| Culprit::of(process)).collect();
    culprits.sort_by_key(|culprit| culprit.pid);
    let policy = if is_all { "MAX_RSSUID" } else { "MAX_RSSUID_SAVEUID" };
    let proof = format!("user {uid} has {} MiB, {max} are allowed", mib(taken));
    Some(Plan { policy: policy.to_owned(), proof, culprits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::{evidence, process};

    fn of(pid: u32, uid: u32, mib: u64) -> Process {
        Process { rss_pages: Some(pages(mib)), ..process(pid, uid, "p") }
    }

    fn pids(module: MemHog, processes: &[Process]) -> Vec<u32> {
        let plan = module.diagnose(&evidence(processes.iter().cloned()), None, &Safety::default());
        plan.map_or(Vec::new(), |plan| plan.culprits.iter().map(|culprit| culprit.pid).collect())
    }

    #[test]
    fn all_processes_over_the_bound_die_together_and_nobody_below_it() {
        let all = [of(10, 1000, 50), of(11, 1000, 90), of(12, 1001, 80), of(13, 0, 500)];
        let module = |max| MemHog { max_rss_mib: Some(max), ..MemHog::default() };
        assert_eq!(pids(module(60), &all), [11, 12], "root is spared");
        assert_eq!(pids(module(80), &all), [11]);
        assert_eq!(pids(module(90), &all), Vec::<u32>::new());
    }

    #[test]
    fn no_more_die_at_once_than_one_repair_may_end_and_the_largest_are_first() {
        let seen = evidence([of(10, 1000, 70), of(11, 1000, 90), of(12, 1001, 80)]);
        let module = MemHog { max_rss_mib: Some(60), ..MemHog::default() };
        let safety = |blast_cap| Safety { blast_cap, ..Safety::default() };
        let plan = |cap| module.diagnose(&seen, None, &safety(cap)).unwrap();
        let pids = |plan: &Plan| plan.culprits.iter().map(|culprit| culprit.pid).collect::<Vec<_>>();
        assert_eq!(pids(&plan(2)), [11, 12]);
        assert_eq!(safety(2).check(&plan(2), &seen), Ok(()));
        assert_eq!(pids(&plan(0)), [11], "and is refused");
        assert!(safety(0).check(&plan(0), &seen).is_err());
    }

    #[test]
    fn what_was_swapped_out_is_as_much_taken_as_what_is_resident() {
        let hog = |pid, swapped| Process { swap_pages: Some(pages(swapped)), ..of(pid, 1000, 5) };
        let all = [hog(10, 40), hog(11, 20), of(12, 1000, 30)];
        let by_process = |max| MemHog { max_rss_mib: Some(max), ..MemHog::default() };
        assert_eq!(pids(by_process(28), &all), [10, 12]);
        let plan = by_process(28).diagnose(&evidence(all.clone()), None, &Safety::default()).unwrap();
        assert!(plan.proof.contains("45 MiB (40 of them swapped out), 28 are allowed; with it 1 more"), "{plan:?}");
        let saving = MemHog { max_rssuid_saveuid_mib: Some(60), ..MemHog::default() };
        assert_eq!(pids(saving, &all), [10], "100, then 55");
        let all_of = |max| MemHog { max_rssuid_mib: Some(max), ..MemHog::default() };
        assert_eq!((pids(all_of(99), &all).len(), pids(all_of(100), &all).len()), (3, 0));
    }

    #[test]
    fn no_more_die_than_bring_enough_memory_back() {
        let module = MemHog { max_rss_mib: Some(60), only_below_free_mib: Some(100), ..MemHog::default() };
        let mut seen = evidence([of(10, 1000, 70), of(11, 1000, 90), of(12, 1001, 80)]);
        let mut dead = |free| {
            seen.pages_free = Some(pages(free));
            let plan = module.diagnose(&seen, None, &Safety::default());
            plan.map_or(Vec::new(), |plan| plan.culprits.iter().map(|culprit| culprit.pid).collect())
        };
        assert_eq!(dead(10), [11]);
        assert_eq!(dead(9), [11, 12], "with 90 it would still be one short");
        assert_eq!(dead(100), Vec::<u32>::new());
    }

    #[test]
    fn a_user_over_its_bound_loses_all_or_as_much_as_is_needed() {
        let all = [of(10, 1000, 50), of(11, 1000, 60), of(12, 1000, 5), of(13, 1001, 80)];
        let all_of = MemHog { max_rssuid_mib: Some(100), ..MemHog::default() };
        assert_eq!(pids(all_of, &all), [10, 11, 12]);
        let saving = |max| MemHog { max_rssuid_saveuid_mib: Some(max), ..MemHog::default() };
        assert_eq!(pids(saving(100), &all), [11]);
        assert_eq!(pids(saving(50), &all[..3]), [10, 11], "115, 55, then 5");
        assert_eq!(pids(saving(115), &all), Vec::<u32>::new());
    }

    #[test]
    fn with_memory_to_spare_nobody_is_too_large() {
        let module = MemHog { max_rss_mib: Some(60), only_below_free_mib: Some(10), ..MemHog::default() };
        let mut seen = evidence([of(11, 1000, 90)]);
        seen.pages_free = Some(pages(11));
        assert_eq!(module.diagnose(&seen, None, &Safety::default()), None);
        seen.pages_free = Some(pages(9));
        assert!(module.diagnose(&seen, None, &Safety::default()).is_some());
    }
}
