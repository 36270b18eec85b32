//! How deep a task stands in the tree of processes: what tells a bomb that goes down from one that goes wide.
//!
//! ```text
//!   idle ─► 1 init ─► 2 shell ─► 3 bomb ─► 4 bomb ─► …        generations, by real_parent
//! ```
//! Each process is passed once, whatever the tree that a target's memory claims.

use super::Task;
use crate::Fault;
use crate::keyed::{NumberMap, NumberSet};
use crate::linux::walk::Walk;

/// Generations above each task. Parents are processes; one that comes back to itself has no depth.
pub(super) fn depths(tasks: &[Task], walk: &mut Walk<'_>) -> Vec<Option<u32>> {
    let mut tree = Tree::of(tasks);
    tasks.iter().map(|task| tree.depth_of(task, walk)).collect()
}

/// The processes behind whom others stand, children or threads of their own: one, of a crowd of siblings.
struct Tree<'a> {
    leaders: NumberMap<u32, &'a Task>,
    known: NumberMap<u32, Depth>,
    chain: Vec<u32>,
}

#[derive(Clone, Copy)]
enum Depth {
    /// On the way to it: who comes by again is its own ancestor.
    Sought,
    Known(Option<u32>),
}

impl<'a> Tree<'a> {
    fn of(tasks: &'a [Task]) -> Self {
        let mut named: NumberSet<u32> = NumberSet::default();
        for task in tasks {
            named.insert(task.parent);
            if task.pid != task.tgid {
                named.insert(task.tgid);
            }
        }
        let leaders = tasks.iter().filter(|task| task.pid == task.tgid && named.contains(&task.tgid));
        let leaders = leaders.map(|task| (task.tgid, task)).collect();
        Self { leaders, known: NumberMap::default(), chain: Vec::new() }
    }

    fn depth_of(&mut self, task: &Task, walk: &mut Walk<'_>) -> Option<u32> {
        if task.pid != task.tgid || self.leaders.contains_key(&task.tgid) {
            return self.depth(task.tgid, walk);
        }
        // Nobody's ancestor, not even its own.
        let above = if task.parent == 0 { generations_above_first(task) } else { self.depth(task.parent, walk) };
        above.map(|above| above + 1)
    }

    fn depth(&mut self, process: u32, walk: &mut Walk<'_>) -> Option<u32> {
        self.chain.clear();
        let (mut at, mut child) = (process, None);
        let top = loop {
            match (self.known.get(&at), child) {
                (Some(Depth::Known(depth)), _) => break *depth,
                (Some(Depth::Sought), child) => {
                    walk.report(child.map_or(0, |child: &Task| child.address.raw()), "real_parent", Fault::Cycle);
                    break None;
                }
                (None, _) => {}
            }
            self.known.insert(at, Depth::Sought);
            self.chain.push(at);
            let Some(found) = self.leaders.get(&at).copied() else { break None };
            if found.parent == 0 {
                break generations_above_first(found);
            }
            (at, child) = (found.parent, Some(found));
        };
        for (above, process) in (1..).zip(self.chain.iter().rev()) {
            self.known.insert(*process, Depth::Known(top.map(|top| top + above)));
        }
        match self.known.get(&process) {
            Some(Depth::Known(depth)) => *depth,
            _ => None,
        }
    }
}

/// Of a process without a parent: the children of the idle task, whom no pid names, are the first generation.
fn generations_above_first(task: &Task) -> Option<u32> {
    matches!(task.tgid, 1 | 2).then_some(0)
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

    fn check(tasks: &[(u32, u32)], expected: &[Option<u32>], faults: usize) {
        let (kernel, mut image, _) = crate::discover_tests::plain_machine();
        let mut walk = Walk::new(&kernel, &mut image, RemoteKey::new(1));
        let tasks: Vec<Task> = tasks.iter().map(|(pid, parent)| task(*pid, *parent)).collect();
        assert_eq!(depths(&tasks, &mut walk), expected);
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
        let tasks = [task(1, 0), task(7, 1), task(8, 7), thread, Task { tgid: 20, ..task(21, 1) }];
        let (kernel, mut image, _) = crate::discover_tests::plain_machine();
        let mut walk = Walk::new(&kernel, &mut image, RemoteKey::new(1));
        assert_eq!(depths(&tasks, &mut walk), [Some(1), Some(2), Some(3), Some(2), None], "no leader, no depth");
    }

    /// Each is the child of the next: what is above a process is looked up once, not once for each below it.
    #[test]
    fn a_chain_as_long_as_a_target_likes_is_climbed_once() {
        let last = TASKS_MAX as u32;
        let chain =
            (1..last).map(|pid| if pid == 1 { (1, 0) } else { (pid, if pid + 1 == last { 1 } else { pid + 1 }) });
        let expected: Vec<_> = (1..last).map(|pid| Some(if pid == 1 { 1 } else { last - pid + 1 })).collect();
        check(&chain.collect::<Vec<_>>(), &expected, 0);
    }

    #[test]
    fn ancestors_of_themselves_and_children_of_nobody_have_no_depth() {
        check(&[(1, 0), (5, 6), (6, 5), (7, 7), (8, 5)], &[Some(1), None, None, None, None], 2);
        check(&[(1, 0), (5, 4), (6, 0)], &[Some(1), None, None], 0);
    }
}
