//! What a healing module is shown of a target: its processes and its memory, as read from outside.
//!
//! Complete enough to decide on, and nothing else is decided on: a journal that holds it holds the reasons of a repair.
//! Everything here is what the target's memory claims. A module must do no harm with claims that are wrong.

use std::collections::BTreeMap;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

/// One process: a thread group of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Process id of its parent, 0 if unknown.
    pub parent: u32,
    /// Real user id; `None` if it could not be read. Such a process is nobody's, and no culprit.
    pub uid: Option<u32>,
    /// Command name, cut by the kernel to 15 bytes.
    pub comm: CompactString,
    /// When it started, in nanoseconds of the target's monotonic clock.
    pub start_ns: u64,
    /// Generations below the first process; `None` if its line of parents could not be followed.
    pub depth: Option<u32>,
    /// Resident pages of 4 KiB; `None` if they could not be counted.
    pub rss_pages: Option<u64>,
    /// Pages that were swapped out; `None` if they could not be counted. Older journals have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_pages: Option<u64>,
    /// Whether it is a thread of the kernel.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_kernel: bool,
    /// Whether it is on its way out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_exiting: bool,
}

/// `serde` wants a reference.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Process {
    /// Whether it may be judged at all: a process of some user that has not ended, and not the first one.
    pub fn counts(&self) -> bool {
        self.pid > 1 && !self.is_kernel && !self.is_exiting && self.uid.is_some()
    }

    /// Pages that it has taken from the machine: those that are resident, and those that were swapped out to make room.
    /// Both come back when it ends. `None` if the resident ones could not be counted.
    pub fn taken_pages(&self) -> Option<u64> {
        Some(self.rss_pages?.saturating_add(self.swap_pages.unwrap_or(0)))
    }
}

/// A target at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When it was read, in nanoseconds of the monitor's clock.
    pub taken_ns: u64,
    /// Its processes, by their ids.
    pub processes: Vec<Process>,
    /// Pages of 4 KiB that its kernel manages.
    pub pages_total: Option<u64>,
    /// Pages that were free.
    pub pages_free: Option<u64>,
}

impl Evidence {
    /// The processes that may be judged, in the order of their ids.
    pub fn judged(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|process| process.counts())
    }

    /// How many of them each user has.
    pub fn processes_of_users(&self) -> BTreeMap<u32, usize> {
        let mut users = BTreeMap::new();
        for uid in self.judged().filter_map(|process| process.uid) {
            *users.entry(uid).or_default() += 1;
        }
        users
    }

    /// How many pages each user's processes have taken, resident and swapped out.
    pub fn pages_of_users(&self) -> BTreeMap<u32, u64> {
        let mut users: BTreeMap<u32, u64> = BTreeMap::new();
        for process in self.judged() {
            let pages = users.entry(process.uid.unwrap_or_default()).or_default();
            *pages = pages.saturating_add(process.taken_pages().unwrap_or(0));
        }
        users
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn process(pid: u32, uid: u32, comm: &str) -> Process {
        Process {
            pid,
            parent: 1,
            uid: Some(uid),
            comm: comm.into(),
            start_ns: u64::from(pid),
            depth: Some(1),
            rss_pages: Some(100),
            swap_pages: None,
            is_kernel: false,
            is_exiting: false,
        }
    }

    pub(crate) fn evidence(processes: impl IntoIterator<Item = Process>) -> Evidence {
        let mut processes: Vec<_> = processes.into_iter().collect();
        processes.sort_by_key(|process| process.pid);
        Evidence { taken_ns: 5_000_000_000, processes, pages_total: None, pages_free: None }
    }

    #[test]
    fn init_the_kernel_and_the_dying_are_not_judged_nor_are_those_of_nobody() {
        let kernel = Process { is_kernel: true, ..process(2, 0, "kthreadd") };
        let dying = Process { is_exiting: true, ..process(9, 1000, "z") };
        let nobodys = Process { uid: None, ..process(8, 0, "?") };
        let seen = evidence([process(1, 0, "init"), kernel, dying, nobodys, process(10, 1000, "a")]);
        assert_eq!(seen.judged().map(|process| process.pid).collect::<Vec<_>>(), [10]);
    }
}
