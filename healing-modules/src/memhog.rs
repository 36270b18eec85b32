//! The memory hog: processes that take memory until the machine does nothing but look for more.
//!
//! | policy | broken by | who dies |
//! |---|---|---|
//! | `MAX_RSS` | a process with more resident memory than that | that process, the largest first |
//! | `MAX_RSSUID` | a user whose processes have more than that | all processes of that user |
//! | `MAX_RSSUID_SAVEUID` | the same; the user keeps what it works with | its largest processes, until it is below |
//!
//! One at a time: after each cure the target is looked at again. A controller that starts its children anew shows as
//! the same user being over its bound again; under `MAX_RSSUID` it dies with them.

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
    /// Resident memory of one process, in MiB.
    pub max_rss_mib: Option<u64>,
    /// Resident memory of all processes of a user, in MiB.
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
        judged.sort_by_key(|process| (std::cmp::Reverse(process.rss_pages), process.pid));
        let by_process = self.max_rss_mib.and_then(|max| too_large(&judged, max));
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

fn too_large(judged: &[&Process], max: u64) -> Option<Plan> {
    let largest = judged.first()?;
    let rss = largest.rss_pages.filter(|rss| *rss > pages(max))?;
    let proof = format!("{} ({}) has {} MiB, {max} are allowed", largest.comm, largest.pid, mib(rss));
    Some(Plan { policy: "MAX_RSS".to_owned(), proof, culprits: vec![Culprit::of(largest)?] })
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
        left = left.saturating_sub(process.rss_pages.unwrap_or(0));
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
    fn the_largest_process_over_the_bound_dies_alone() {
        let all = [of(10, 1000, 50), of(11, 1000, 90), of(12, 1001, 80), of(13, 0, 500)];
        let module = |max| MemHog { max_rss_mib: Some(max), ..MemHog::default() };
        assert_eq!(pids(module(60), &all), [11], "root is spared");
        assert_eq!(pids(module(90), &all), Vec::<u32>::new());
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
