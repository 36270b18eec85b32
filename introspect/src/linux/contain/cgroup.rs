//! Cgroups in which nobody is but culprits and others of their users: theirs may be limited.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use remote_memory::LinkError;

use super::{ContainLayout, Contained, Measure, Members};
use crate::Fault;
use crate::btf::Field;
use crate::linux::kill::Edit;
use crate::linux::task::Task;
use crate::linux::walk::{Walk, distinct};

/// `PIDS_MAX` of kernel/cgroup/pids.c is `PID_MAX_LIMIT + 1`: 4 Mi and one. What is above it is no limit.
const PIDS_MAX: u64 = (4 << 20) + 1;

/// Levels of cgroups that are followed upwards; systemd makes five or six.
const DEPTH_MAX: usize = 32;

impl Walk<'_> {
    /// The limits of cgroups in which nobody is but culprits and others of their users. Where such a cgroup lies in
    /// another, the upper one holds for both.
    pub(super) fn contain_cgroups(
        &mut self,
        layout: &ContainLayout,
        tasks: &[Task],
        culprits: &[&Task],
        spared: &HashSet<u32>,
    ) -> Result<Vec<Contained>, LinkError> {
        let known = (layout.pids(), self.kernel.symbol("pids_cgrp_subsys"));
        let (Some(members), Some(pids)) = known else {
            self.report(0, "pids_cgroup", Fault::Unknown);
            return Ok(Vec::new());
        };
        let own = self.own_states(layout.members.css_set, members.own, tasks)?;
        let mut tree: HashMap<u64, State> = HashMap::new();
        let mut level = distinct(own.iter().flatten().copied());
        for _ in 0..DEPTH_MAX {
            if level.is_empty() {
                break;
            }
            let found = self.gather(&level, &members.all(), "pids_cgroup", |image| State::of(&members, image))?;
            for (address, state) in level.iter().zip(found) {
                let Some(state) = state else { continue };
                if state.controller != pids.raw() {
                    let fault = Fault::Mismatch { expected: pids.raw(), found: state.controller };
                    self.report(*address, "pids_cgroup.css.ss", fault);
                    continue;
                }
                tree.insert(*address, state);
            }
            level = distinct(tree.values().map(|state| state.parent).filter(|above| !tree.contains_key(above)));
        }
        let chosen = chosen(tasks, &own, culprits, spared, &tree);
        let edit = |(address, pids): (u64, BTreeSet<u32>)| {
            let State { limit: was, serial, .. } = *tree.get(&address)?;
            let at = self.member(address, members.limit, 0, 8)?;
            let what = format!("pids.max of the cgroup of {}", pids.first()?).into();
            let edit = Edit { at, was: was.to_le_bytes().to_vec().into(), now: vec![0; 8].into(), what };
            let (pids, limit) = (pids.into_iter().collect(), Some(was).filter(|was| *was < PIDS_MAX));
            let measure = Measure::Pids { pids, limit, state: address, serial };
            (was != 0).then_some(Contained { measure, edit })
        };
        Ok(chosen.into_iter().filter_map(edit).collect())
    }

    /// Of each task the `pids_cgroup` that counts it.
    fn own_states(&mut self, css_set: Field, own: Field, tasks: &[Task]) -> Result<Vec<Option<u64>>, LinkError> {
        let bases: Vec<u64> = tasks.iter().map(|task| task.address.raw()).collect();
        let css_sets = self.gather(&bases, &[css_set], "task_struct", |image| css_set.of(image))?;
        let sets = distinct(css_sets.iter().flatten().copied());
        let found = self.gather(&sets, &[own], "css_set", |image| own.of(image))?;
        let by_set: HashMap<u64, u64> =
            sets.into_iter().zip(found).filter_map(|(set, state)| Some((set, state?))).collect();
        Ok(css_sets.into_iter().map(|set| by_set.get(&set?).copied()).collect())
    }
}

/// Members of a `pids_cgroup`, all of which a kernel has or none; and where a `css_set` points to its own.
pub(super) struct PidsMembers {
    own: Field,
    parent: Field,
    controller: Field,
    limit: Field,
    counter: Field,
    flags: Field,
    serial: Field,
}

impl ContainLayout {
    pub(super) fn pids(&self) -> Option<PidsMembers> {
        let Members { states, parent, controller, limit, counter, flags, serial, .. } = self.members;
        let (states, at) = (states?, self.pids_controller?.checked_mul(8)?);
        let own = Field { offset: states.offset.checked_add(at)?, size: 8, bits: None };
        let members = PidsMembers {
            own,
            parent: parent?,
            controller: controller?,
            limit: limit?,
            counter: counter?,
            flags: flags?,
            serial: serial?,
        };
        (at + 8 <= states.size && members.limit.size == 8).then_some(members)
    }
}

impl PidsMembers {
    pub(super) fn all(&self) -> [Field; 6] {
        [self.parent, self.controller, self.limit, self.counter, self.flags, self.serial]
    }
}

/// Of a `pids_cgroup`.
#[derive(Default)]
pub(super) struct State {
    /// 0 of a root.
    parent: u64,
    pub(super) controller: u64,
    pub(super) limit: u64,
    /// Tasks in it and below it, as the kernel counts them.
    counter: u64,
    pub(super) flags: u64,
    pub(super) serial: u64,
}

impl State {
    pub(super) fn of(members: &PidsMembers, image: &[u8]) -> Self {
        let [parent, controller, limit, counter, flags, serial] = members.all().map(|field| field.of(image));
        Self { parent, controller, limit, counter, flags, serial }
    }
}

/// The states to be limited, each with the culprits in it: of each culprit's line upwards the highest that is no root
/// and has nobody else.
fn chosen(
    tasks: &[Task],
    own: &[Option<u64>],
    culprits: &[&Task],
    spared: &HashSet<u32>,
    tree: &HashMap<u64, State>,
) -> BTreeMap<u64, BTreeSet<u32>> {
    let users: HashSet<u32> = culprits.iter().filter_map(|task| task.uid).collect();
    let named: HashSet<u32> = culprits.iter().map(|task| task.tgid).collect();
    let mut foreign: HashSet<u64> = HashSet::new();
    let mut seen: HashMap<u64, u64> = HashMap::new();
    for (task, own) in tasks.iter().zip(own) {
        let Some(line) = own.and_then(|own| line(own, tree)) else { continue };
        line.iter().for_each(|state| *seen.entry(*state).or_default() += 1);
        // Who is ending makes no process any more.
        if task.is_exiting() {
            continue;
        }
        let is_of_them = task.uid.is_some_and(|uid| users.contains(&uid)) && !spared.contains(&task.tgid);
        if !named.contains(&task.tgid) && !is_of_them {
            foreign.extend(line);
        }
    }
    let mut chosen: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for (task, own) in tasks.iter().zip(own).filter(|(task, _)| named.contains(&task.tgid)) {
        let line = own.and_then(|own| line(own, tree)).unwrap_or_default();
        let is_all = |state: &u64| seen.get(state).is_some_and(|seen| *seen == tree[state].counter);
        let alone = line.into_iter().take_while(|state| !foreign.contains(state));
        if let Some(state) = alone.filter(|it| tree[it].parent != 0 && is_all(it)).last() {
            chosen.entry(state).or_default().insert(task.tgid);
        }
    }
    chosen
}

/// From a state up to its root; `None` if that is not reached.
fn line(from: u64, tree: &HashMap<u64, State>) -> Option<Vec<u64>> {
    let (mut line, mut at) = (Vec::new(), from);
    while at != 0 {
        line.push(at);
        if line.len() > DEPTH_MAX {
            return None;
        }
        at = tree.get(&at)?.parent;
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::super::tests::task;
    use super::*;

    /// A process that is spared, whatever its user.
    const SPARED: u32 = 77;

    /// Cgroups: 1 is the root, 2 and 4 are below it, 3 is below 2. In each are as many as `own` says.
    fn tree(own: &[Option<u64>]) -> HashMap<u64, State> {
        let parents = [(1, 0), (2, 1), (3, 2), (4, 1)];
        let state = |(at, parent)| (at, State { parent, limit: PIDS_MAX, ..State::default() });
        let mut tree: HashMap<u64, State> = parents.map(state).into();
        for mut at in own.iter().flatten().copied() {
            while let Some(state) = tree.get_mut(&at) {
                state.counter += 1;
                at = state.parent;
            }
        }
        tree
    }

    fn check(tasks: &[(u32, u32, u64)], culprits: &[u32], expected: &[(u64, &[u32])]) {
        let own: Vec<Option<u64>> = tasks.iter().map(|(.., own)| Some(*own)).collect();
        let tasks: Vec<Task> = tasks.iter().map(|(pid, uid, _)| task(*pid, *uid)).collect();
        let culprits: Vec<&Task> = tasks.iter().filter(|task| culprits.contains(&task.tgid)).collect();
        let spared = HashSet::from([SPARED]);
        let found = chosen(&tasks, &own, &culprits, &spared, &tree(&own));
        let found: Vec<(u64, Vec<u32>)> =
            found.into_iter().map(|(at, pids)| (at, pids.into_iter().collect())).collect();
        let expected: Vec<(u64, Vec<u32>)> = expected.iter().map(|(at, pids)| (*at, pids.to_vec())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_cgroup_is_limited_if_nobody_is_in_it_but_culprits_and_their_users() {
        let init = (1, 0, 1);
        check(&[init, (10, 1000, 3), (11, 1000, 3)], &[10], &[(2, &[10])]);
        check(&[init, (10, 1000, 3), (11, 1001, 2)], &[10], &[(3, &[10])]);
        check(&[init, (10, 1000, 3), (11, 1001, 3)], &[10], &[]);
        check(&[init, (10, 1000, 3), (11, 1001, 3)], &[10, 11], &[(2, &[10, 11])]);
        check(&[init, (10, 1000, 3), (11, 0, 3)], &[10], &[]);
        check(&[init, (10, 1000, 3), (11, 1000, 4)], &[10, 11], &[(2, &[10]), (4, &[11])]);
        check(&[init, (10, 1000, 1)], &[10], &[]);
        check(&[init, (10, 1000, 3), (SPARED, 1000, 2)], &[10], &[(3, &[10])]);
    }

    #[test]
    fn a_cgroup_in_which_somebody_was_overlooked_is_left_alone() {
        let (tasks, own) = ([task(10, 1000)], [Some(3)]);
        let culprits: Vec<&Task> = tasks.iter().collect();
        let mut tree = tree(&own);
        let chosen = |tree: &_| chosen(&tasks, &own, &culprits, &HashSet::new(), tree).into_keys().collect::<Vec<_>>();
        assert_eq!(chosen(&tree), [2]);
        tree.get_mut(&2).unwrap().counter = 2;
        assert_eq!(chosen(&tree), [3], "beside it, and not in it");
        tree.get_mut(&3).unwrap().counter = 2;
        assert!(chosen(&tree).is_empty());
        tree.insert(2, State { parent: 3, ..State::default() });
        assert!(chosen(&tree).is_empty(), "its own ancestor");
    }
}
