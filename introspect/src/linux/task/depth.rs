//! How deep a task stands in the tree of processes: what tells a bomb that goes down from one that goes wide.
//!
//! ```text
//!   idle ─► 1 init ─► 2 shell ─► 3 bomb ─► 4 bomb ─► …        generations, by real_parent
//! ```
//! Each process is passed once, whatever the tree that a target's memory claims.

use super::Task;
use crate::Fault;
use crate::keyed::NumberMap;
use crate::linux::walk::Walk;

#[derive(Clone, Copy)]
enum Depth {
    /// On the way to it: who comes by again is its own ancestor.
    Sought,
    Known(Option<u32>),
}

/// Generations above each task. Parents are processes; one that comes back to itself has no depth.
pub(super) fn depths(tasks: &[Task], walk: &mut Walk<'_>) -> Vec<Option<u32>> {
    let leaders: NumberMap<u32, &Task> =
        tasks.iter().filter(|task| task.pid == task.tgid).map(|task| (task.tgid, task)).collect();
    let mut known: NumberMap<u32, Depth> = NumberMap::default();
    known.reserve(tasks.len());
    let mut chain = Vec::new();
    let mut depth_of = |task: &Task| {
        let (mut at, mut child) = (task.tgid, task);
        chain.clear();
        let top = loop {
            match known.get(&at) {
                Some(Depth::Known(depth)) => break *depth,
                Some(Depth::Sought) => {
                    walk.report(child.address.raw(), "real_parent", Fault::Cycle);
                    break None;
                }
                None => {}
            }
            known.insert(at, Depth::Sought);
            chain.push(at);
            match leaders.get(&at) {
                // The children of the idle task, whom no pid names.
                Some(found) if found.parent == 0 => break matches!(found.tgid, 1 | 2).then_some(0),
                Some(found) => (at, child) = (found.parent, found),
                None => break None,
            }
        };
        for (above, process) in (1..).zip(chain.iter().rev()) {
            known.insert(*process, Depth::Known(top.map(|top| top + above)));
        }
        top.map(|top| top + chain.len() as u32)
    };
    tasks.iter().map(&mut depth_of).collect()
}

#[cfg(test)]
mod tests {
    use remote_memory::{KernelVirt, RemoteKey};

    use super::super::{TASKS_MAX, Words};
    use super::*;

    fn task(pid: u32, parent: u32) -> Task {
        let (comm, address, words) = ("".into(), KernelVirt::new(u64::from(pid) << 16), Words::default());
        Task { address, pid, tgid: pid, parent, uid: None, comm, state: 0, flags: 0, start_time_ns: 0, words }
    }

    fn check(processes: &[(u32, u32)], expected: &[Option<u32>], faults: usize) {
        let tasks: Vec<Task> = processes.iter().map(|(pid, parent)| task(*pid, *parent)).collect();
        check_tasks(&tasks, expected, faults);
    }

    fn check_tasks(tasks: &[Task], expected: &[Option<u32>], faults: usize) {
        let (kernel, mut image, _) = crate::discover_tests::plain_machine();
        let mut walk = Walk::new(&kernel, &mut image, RemoteKey::new(1));
        assert_eq!(depths(tasks, &mut walk), expected);
        assert_eq!(walk.damage.len(), faults, "{:?}", walk.damage);
    }

    #[test]
    fn generations_are_counted_from_the_idle_task() {
        check(&[(1, 0), (2, 0), (3, 2), (7, 1), (8, 7), (9, 8)], &[1, 1, 2, 2, 3, 4].map(Some), 0);
    }

    #[test]
    fn the_order_of_pids_is_not_that_of_generations() {
        check(&[(1, 0), (5, 9), (9, 1)], &[Some(1), Some(3), Some(2)], 0);
    }

    #[test]
    fn threads_are_as_deep_as_their_process() {
        let thread = Task { tgid: 7, ..task(9, 1) };
        // One whose leader is not there has no depth.
        let tasks = [task(1, 0), task(7, 1), task(8, 7), thread, Task { tgid: 20, ..task(21, 1) }];
        check_tasks(&tasks, &[Some(1), Some(2), Some(3), Some(2), None], 0);
    }

    /// Each is the child of the next: what is above a process is looked up once, not once for each below it.
    #[test]
    fn a_chain_as_long_as_a_target_likes_is_climbed_once() {
        let last = TASKS_MAX as u32;
        let parent = |pid: u32| match last - pid {
            _ if pid == 1 => 0,
            1 => 1,
            _ => pid + 1,
        };
        let chain = (1..last).map(|pid| (pid, parent(pid)));
        let expected: Vec<_> = (1..last).map(|pid| Some(if pid == 1 { 1 } else { last - pid + 1 })).collect();
        check(&chain.collect::<Vec<_>>(), &expected, 0);
    }

    #[test]
    fn ancestors_of_themselves_and_children_of_nobody_have_no_depth() {
        check(&[(1, 0), (5, 6), (6, 5), (7, 7), (8, 5)], &[Some(1), None, None, None, None], 2);
        check(&[(1, 0), (5, 4), (6, 0)], &[Some(1), None, None], 0);
    }
}
