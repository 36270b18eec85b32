//! Processes of users, sample by sample: how many the user that has most has, and by how many one has grown in a
//! second.
//!
//! What is read is the kernel's own count of each user ([`introspect::linux::ucounts`]). Where the counts are is found
//! by a walk once a second, beside the watch; a user of whom that walk hears first is taken to have grown by all that
//! it has, since it had nothing a second before.

use std::collections::VecDeque;

use remote_memory::KernelVirt;

/// Growth is told over so long.
const WINDOW_NS: u64 = 1_000_000_000;

/// Points kept of it.
const POINTS: u64 = 16;

/// The users that are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Users(Vec<Track>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Track {
    address: KernelVirt,
    count: u64,
    points: VecDeque<(u64, u64)>,
}

impl Users {
    /// Forgets all but those whose counts are at `addresses`.
    pub fn keep(&mut self, addresses: &[KernelVirt]) {
        self.0.retain(|track| addresses.contains(&track.address));
    }

    /// Takes in that the user at `address` had `count` processes at `now_ns`; `earlier` is how many at an earlier walk.
    pub fn observe(&mut self, now_ns: u64, address: KernelVirt, earlier: Option<u64>, count: u64) {
        let known = self.0.iter().position(|track| track.address == address).unwrap_or_else(|| {
            let points = VecDeque::from([(now_ns, earlier.unwrap_or(count))]);
            self.0.push(Track { address, count, points });
            self.0.len() - 1
        });
        let track = &mut self.0[known];
        track.count = count;
        // One point at or before the window's begin stays, so that growth is counted over the whole of it.
        while track.points.get(1).is_some_and(|(at, _)| at.saturating_add(WINDOW_NS) <= now_ns) {
            track.points.pop_front();
        }
        if track.points.back().is_none_or(|(at, _)| now_ns.saturating_sub(*at) >= WINDOW_NS / POINTS) {
            track.points.push_back((now_ns, count));
        }
    }

    /// Processes of the user that has most.
    pub fn most(&self) -> Option<u64> {
        self.0.iter().map(|track| track.count).max()
    }

    /// By how many the processes of one user have grown within the window, at most.
    pub fn growth(&self) -> Option<u64> {
        let growth = |track: &Track| track.count.saturating_sub(track.points.front().map_or(0, |(_, count)| *count));
        self.0.iter().map(growth).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    const ROOT: KernelVirt = KernelVirt::new(0xffff_8880_0000_0000);
    const USER: KernelVirt = KernelVirt::new(0xffff_8880_0000_0100);

    #[test]
    fn growth_is_of_one_user_within_a_second() {
        let mut users = Users::default();
        for step in 0..=40 {
            users.observe(step * 50 * MS, ROOT, Some(60), 60);
            users.observe(step * 50 * MS, USER, Some(3), 3 + step);
        }
        // Points are at least 62.5 ms apart: the oldest is up to two samples older than the window.
        let growth = users.growth().unwrap();
        assert!((20..=22).contains(&growth), "20 steps of 50 ms in a second, and not {growth}");
        assert_eq!(users.most(), Some(60));
        users.observe(2050 * MS, USER, None, 300);
        assert!(users.most() == Some(300) && users.growth().unwrap() > 270, "{users:?}");
        users.observe(2100 * MS, USER, None, 0);
        assert_eq!((users.most(), users.growth()), (Some(60), Some(0)));
    }

    #[test]
    fn a_user_who_was_not_there_before_has_grown_by_all_and_one_of_the_first_walk_by_nothing() {
        let mut users = Users::default();
        users.observe(0, ROOT, None, 500);
        assert_eq!(users.growth(), Some(0));
        users.observe(0, USER, Some(0), 120);
        assert_eq!(users.growth(), Some(120));
        users.keep(&[ROOT]);
        assert_eq!((users.most(), users.growth()), (Some(500), Some(0)));
        users.keep(&[]);
        assert_eq!((users.most(), users.growth()), (None, None));
    }
}
