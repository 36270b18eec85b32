//! Containment, written into the memory of a target that stands still: what keeps a process that cannot be ended at
//! once from doing more harm until it is.
//!
//! ```text
//!   task ─► signal_struct   rlim[RLIMIT_NPROC] = 0, 0      it makes no process, nor a thread
//!                           oom_score_adj      = 1000      the kernel's own killer takes it first
//!        ─► css_set ─► pids_cgroup   limit     = 0         nobody in its cgroup makes one; given back afterwards
//! ```
//! Whose `signal_struct` is written to is proved as in `task::details`: it names the `struct pid` of the leader.
//! A `pids_cgroup` is one that names the controller of processes as its own, and is no root. Its limit holds for all
//! below it too, so it is written to only if every process there is a culprit, or of a user whose processes culprits
//! are; and if as many tasks were seen there as the kernel counts, so that nobody is there who was overlooked.
//!
//! The same kinds of process are refused here, whoever asks, as in [`super::kill`]; and root's, whom the kernel does
//! not hold to RLIMIT_NPROC and on whom everything rests.
//!
//! Nothing is written here, see [`super::kill`].

mod cgroup;

use std::collections::{BTreeSet, HashSet};

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::kill::Edit;
use super::task::{Limit, Task};
use super::walk::Walk;
use crate::btf::{Btf, Field, layout};
use crate::memory::word;
use crate::{Damage, Fault, Kernel};
use cgroup::State;

/// `RLIMIT_NPROC` of include/uapi/asm-generic/resource.h, and the bytes of a `struct rlimit`.
const RLIMIT_NPROC: usize = 6;
const RLIMIT_BYTES: usize = 16;

/// `OOM_SCORE_ADJ_MAX` and its negative of include/uapi/linux/oom.h.
const OOM_SCORE_ADJ_MAX: i16 = 1000;

/// `PIDTYPE_TGID` and `pids_cgrp_id` are told by their enumerators; no kernel has more of either.
const KINDS_MAX: usize = 64;

layout! {
    /// Members that are changed, or prove that they may be.
    pub(crate) struct Members {
        signal: "task_struct.signal",
        css_set: "task_struct.cgroups",
        thread_pid: "task_struct.thread_pid",
        limits: "signal_struct.rlim",
        signal_pids: "signal_struct.pids",
        oom_score_adj: "signal_struct.oom_score_adj",
    } optional {
        states: "css_set.subsys",
        parent: "pids_cgroup.css.parent",
        controller: "pids_cgroup.css.ss",
        limit: "pids_cgroup.limit.counter",
        counter: "pids_cgroup.counter.counter",
        flags: "pids_cgroup.css.flags",
        serial: "pids_cgroup.css.serial_nr",
    }
}

/// How one kernel keeps all that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ContainLayout {
    members: Members,
    /// Place of the thread group's pid among those of a `signal_struct`.
    pidtype_tgid: usize,
    /// Place of the controller of processes among those of a `css_set`; absent where the kernel has none.
    pids_controller: Option<usize>,
    /// `CSS_ONLINE`, of flags that say whether a cgroup has been removed.
    css_online: Option<u64>,
    /// `CSS_DYING` of the same flags: set at once, while the other is taken away some time later.
    #[serde(default)]
    css_dying: Option<u64>,
}

impl ContainLayout {
    pub(crate) fn resolve(btf: &Btf) -> Option<Self> {
        let kind = |name| btf.count_of(name).filter(|kind| *kind < KINDS_MAX);
        let members = Members::resolve(btf).ok()?;
        let is_known = members.limits.size >= (RLIMIT_NPROC + 1) * RLIMIT_BYTES && members.oom_score_adj.size == 2;
        let (pidtype_tgid, pids_controller) = (kind("PIDTYPE_TGID")?, kind("pids_cgrp_id"));
        let [css_online, css_dying] =
            ["CSS_ONLINE", "CSS_DYING"].map(|flag| btf.count_of(flag).map(|flag| flag as u64));
        is_known.then_some(Self { members, pidtype_tgid, pids_controller, css_online, css_dying })
    }
}

/// A way to contain a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// Its limit of processes, RLIMIT_NPROC, becomes 0.
    Nproc,
    /// `pids.max` of its cgroup becomes 0, and what it was when the repair is over.
    Pids,
    /// Its `oom_score_adj` becomes 1000.
    Oom,
}

/// What was found of a means, and is changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "means", rename_all = "lowercase")]
pub enum Measure {
    /// The limits of a process were these.
    Nproc {
        /// The process.
        pid: u32,
        /// What was enforced; `u64::MAX` is no limit.
        soft: u64,
        /// How far the process might raise it.
        hard: u64,
    },
    /// A cgroup might have so many processes.
    Pids {
        /// Culprits in it and below it.
        pids: Vec<u32>,
        /// `None` if any number.
        limit: Option<u64>,
        /// Its `pids_cgroup`.
        state: u64,
        /// The number by which that differs from all that were in its place, or will be.
        serial: u64,
    },
    /// The kernel's own killer was told this of a process.
    Oom {
        /// The process.
        pid: u32,
        /// From -1000, never, to 1000, first.
        score_adj: i16,
    },
}

impl Measure {
    /// The means.
    pub fn means(&self) -> Means {
        match self {
            Self::Nproc { .. } => Means::Nproc,
            Self::Pids { .. } => Means::Pids,
            Self::Oom { .. } => Means::Oom,
        }
    }

    /// For whose sake.
    pub fn culprits(&self) -> &[u32] {
        match self {
            Self::Nproc { pid, .. } | Self::Oom { pid, .. } => std::slice::from_ref(pid),
            Self::Pids { pids, .. } => pids,
        }
    }
}

/// A measure, and the place that is changed for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Contained {
    /// What was found.
    #[serde(flatten)]
    pub measure: Measure,
    /// What is written.
    pub edit: Edit,
}

impl Contained {
    /// Whether it takes from others than culprits, and is to be given back when these are gone.
    pub fn is_lent(&self) -> bool {
        self.measure.means() == Means::Pids
    }
}

/// Who is to be contained, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The culprits.
    pub processes: HashSet<u32>,
    /// Who must not suffer from it, whosever processes they are.
    pub spared: HashSet<u32>,
    /// By which means.
    pub means: BTreeSet<Means>,
}

/// How to contain processes, in the standstill in which `tasks`, which are all tasks, were read. Whom that cannot be
/// done to is left out; the damage says why, where memory is to blame.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn plan(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    tasks: &[Task],
    request: &Request,
) -> Result<(Vec<Contained>, Vec<Damage>), LinkError> {
    let Request { processes, means, .. } = request;
    let mut walk = Walk::new(kernel, mem, ram);
    let culprits: Vec<&Task> = leaders(tasks).filter(|task| processes.contains(&task.tgid)).collect();
    let mut contained = Vec::new();
    if culprits.is_empty() || means.is_empty() {
        return Ok((contained, walk.damage));
    }
    let Some(layout) = &kernel.contain else {
        walk.report(0, "limits of processes", Fault::Unknown);
        return Ok((contained, walk.damage));
    };
    let is_cgroup_s = |one: &Means| *one == Means::Pids;
    if means.iter().any(is_cgroup_s) {
        contained.extend(walk.contain_cgroups(layout, tasks, &culprits, &request.spared)?);
    }
    if !means.iter().all(is_cgroup_s) {
        contained.extend(walk.contain_processes(layout, &culprits, means)?);
    }
    Ok((contained, walk.damage))
}

/// The edits that give back what was lent, in a standstill of its own: of cgroups that are there still.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn give_back(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    contained: &[Contained],
) -> Result<Vec<Edit>, LinkError> {
    let lent = contained.iter().filter_map(|one| match one.measure {
        Measure::Pids { state, serial, .. } => Some((state, serial, &one.edit)),
        Measure::Nproc { .. } | Measure::Oom { .. } => None,
    });
    let lent: Vec<(u64, u64, &Edit)> = lent.collect();
    let layout = kernel.contain.as_ref().and_then(|layout| {
        let online = layout.css_online?;
        Some((layout.pids()?, online, online | layout.css_dying.unwrap_or(0)))
    });
    let (Some((members, online, of_life)), Some(pids)) = (layout, kernel.symbol("pids_cgrp_subsys")) else {
        return Ok(Vec::new());
    };
    let mut walk = Walk::new(kernel, mem, ram);
    let bases: Vec<u64> = lent.iter().map(|(state, ..)| *state).collect();
    let found = walk.gather(&bases, &members.all(), "pids_cgroup", |image| State::of(&members, image))?;
    let undone = lent.into_iter().zip(found).filter_map(|((_, serial, edit), found)| {
        let found = found.filter(|it| it.controller == pids.raw() && it.serial == serial)?;
        let is_there = found.flags & of_life == online;
        // What somebody has written since is theirs.
        let is_as_left = *edit.now == found.limit.to_le_bytes();
        let Edit { at, was, now, what } = edit;
        let what = format!("{what}, given back");
        (is_there && is_as_left).then(|| Edit { at: *at, was: now.clone(), now: was.clone(), what: what.into() })
    });
    Ok(undone.collect())
}

/// The leaders of processes that may be contained at all.
fn leaders(tasks: &[Task]) -> impl Iterator<Item = &Task> {
    let is_ordinary = |task: &&Task| task.tgid > 1 && !task.is_kernel_thread() && task.uid.is_some_and(|uid| uid != 0);
    tasks.iter().filter(|task| task.pid == task.tgid).filter(is_ordinary)
}

/// What a `signal_struct` says.
struct Signal {
    pid: u64,
    limit: Limit,
    score_adj: i16,
}

impl Walk<'_> {
    /// Limits and scores of the culprits themselves.
    fn contain_processes(
        &mut self,
        layout: &ContainLayout,
        culprits: &[&Task],
        means: &BTreeSet<Means>,
    ) -> Result<Vec<Contained>, LinkError> {
        let members = &layout.members;
        let bases: Vec<u64> = culprits.iter().map(|task| task.address.raw()).collect();
        let fields = [members.signal, members.thread_pid];
        let heads = self.gather(&bases, &fields, "task_struct", |image| fields.map(|field| field.of(image)))?;
        let signals: Vec<u64> = heads.iter().map(|head| head.map_or(0, |[signal, _]| signal)).collect();
        let fields = [members.limits, members.signal_pids, members.oom_score_adj];
        let of = |image: &[u8]| Signal {
            pid: word(members.signal_pids.bytes_of(image), layout.pidtype_tgid * 8, 8),
            limit: Limit {
                soft: word(members.limits.bytes_of(image), RLIMIT_NPROC * RLIMIT_BYTES, 8),
                hard: word(members.limits.bytes_of(image), RLIMIT_NPROC * RLIMIT_BYTES + 8, 8),
            },
            score_adj: members.oom_score_adj.of(image) as u16 as i16,
        };
        let found = self.gather(&signals, &fields, "signal_struct", of)?;
        let mut contained = Vec::new();
        for ((task, head), (address, signal)) in culprits.iter().zip(heads).zip(signals.iter().zip(found)) {
            let (Some([_, expected]), Some(signal)) = (head, signal) else { continue };
            if signal.pid != expected {
                let fault = Fault::Mismatch { expected, found: signal.pid };
                self.report(*address, "signal_struct.pids", fault);
                continue;
            }
            let both = [
                (Means::Nproc, self.limited(members, *address, task, &signal)),
                (Means::Oom, self.scored(members, *address, task, &signal)),
            ];
            contained.extend(both.into_iter().filter(|(one, _)| means.contains(one)).filter_map(|(_, edit)| edit));
        }
        Ok(contained)
    }

    /// `None` if it is so already.
    fn limited(&self, members: &Members, signal: u64, task: &Task, found: &Signal) -> Option<Contained> {
        let Limit { soft, hard } = found.limit;
        let at = self.member(signal, members.limits, RLIMIT_NPROC * RLIMIT_BYTES, RLIMIT_BYTES)?;
        let was = [soft.to_le_bytes(), hard.to_le_bytes()].concat();
        let what = format!("limit of processes of {}", task.pid);
        let edit = Edit { at, was: was.into(), now: vec![0; RLIMIT_BYTES].into(), what: what.into() };
        ((soft, hard) != (0, 0)).then_some(Contained { measure: Measure::Nproc { pid: task.tgid, soft, hard }, edit })
    }

    fn scored(&self, members: &Members, signal: u64, task: &Task, found: &Signal) -> Option<Contained> {
        let score_adj = found.score_adj;
        let at = self.member(signal, members.oom_score_adj, 0, 2)?;
        let (was, now) = (score_adj.to_le_bytes().to_vec(), OOM_SCORE_ADJ_MAX.to_le_bytes().to_vec());
        let what = format!("oom_score_adj of {}", task.pid).into();
        let edit = Edit { at, was: was.into(), now: now.into(), what };
        let measure = Measure::Oom { pid: task.tgid, score_adj };
        (score_adj != OOM_SCORE_ADJ_MAX).then_some(Contained { measure, edit })
    }

    /// The guest-physical address of `len` bytes of a member.
    pub(super) fn member(&self, base: u64, field: Field, from: usize, len: usize) -> Option<u64> {
        let at = KernelVirt::new(base.wrapping_add((field.offset + from) as u64));
        Some(self.kernel.phys(at, len as u64)?.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn task(pid: u32, uid: u32) -> Task {
        Task {
            address: KernelVirt::new(u64::from(pid) << 16),
            pid,
            tgid: pid,
            parent: 1,
            uid: Some(uid),
            comm: "".into(),
            state: 0,
            flags: 0,
            start_time_ns: 0,
            words: crate::linux::task::Words::default(),
        }
    }

    #[test]
    fn init_the_kernel_root_and_nobody_are_never_contained() {
        let kernel = Task { flags: 0x0020_0000, ..task(2, 1000) };
        let nobodys = Task { uid: None, ..task(9, 1000) };
        let thread = Task { pid: 11, ..task(10, 1000) };
        let tasks = [task(1, 1000), kernel, task(8, 0), nobodys, task(10, 1000), thread];
        assert_eq!(leaders(&tasks).map(|task| task.pid).collect::<Vec<_>>(), [10]);
    }
}
