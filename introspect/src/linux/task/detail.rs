//! What a task has of its machine: memory, credentials, limits, its place among others. What tells a fork bomb or a
//! memory hog from its neighbours, and what a repair has to know before it touches one.
//!
//! ```text
//!   task ─► signal_struct   threads, limits; pids[TGID] must be the leader's struct pid
//!        ─► cred            effective user, ucounts
//!        ─► struct pid      nested pid namespaces; numbers[0] must be the task's pid
//!        ─► mm_struct       resident pages (rss.rs)
//!        ─► css_set         cgroup (cgroup.rs)
//! ```
//! All tasks take each step together, so a thousand cost as many rounds as ten. Threads share most of it: each struct
//! is read once.

use std::collections::HashMap;
use std::iter;
use std::sync::Arc;

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::cgroup::CgroupLayout;
use super::depth::depths;
use super::rss::{Rss, RssLayout};
use super::{Task, walk_with};
use crate::btf::{Btf, Field, layout};
use crate::keyed::NumberMap;
use crate::linux::walk::{Walk, distinct};
use crate::memory::word;
use crate::{Damage, Fault, Kernel};

/// `RLIMIT_NPROC` of include/uapi/asm-generic/resource.h; no enumerator, and the same ever since.
const RLIMIT_NPROC: usize = 6;

/// `PIDTYPE_TGID` is told by its enumerator; a `signal_struct` has as many pids as there are kinds.
const PID_KINDS_MAX: usize = 8;

/// Levels of pid namespaces whose numbers are read with a pid; deeper ones are noted by their level alone.
const LEVELS_READ: usize = 4;

/// `MAX_PID_NS_LEVEL`.
const LEVELS_MAX: u64 = 32;

/// A thread group of as many threads is beyond what a kernel's pids allow.
const THREADS_MAX: u64 = 4 << 20;

layout! {
    /// Members that say what a task has.
    pub(crate) struct DetailLayout {
        mm: "task_struct.mm",
        signal: "task_struct.signal",
        css_set: "task_struct.cgroups",
        cred: "task_struct.real_cred",
        thread_pid: "task_struct.thread_pid",
        euid: "cred.euid",
        ucounts: "cred.ucounts",
        level: "pid.level",
        numbers: "pid.numbers",
        number: "upid.nr",
        number_end: "upid.ns",
        threads: "signal_struct.nr_threads",
        limits: "signal_struct.rlim",
        signal_pids: "signal_struct.pids",
    }
}

/// How one kernel keeps all that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Layouts {
    detail: DetailLayout,
    /// Place of the thread group's pid among those of a `signal_struct`.
    pidtype_tgid: usize,
    pub(super) rss: Option<RssLayout>,
    pub(super) cgroup: Option<CgroupLayout>,
}

impl Layouts {
    /// `None` for a kernel that keeps what a task has in a way that is not known here.
    pub(crate) fn resolve(btf: &Btf) -> Option<Self> {
        Some(Self {
            detail: DetailLayout::resolve(btf).ok()?,
            pidtype_tgid: btf.count_of("PIDTYPE_TGID").filter(|kind| *kind < PID_KINDS_MAX)?,
            rss: RssLayout::resolve(btf),
            cgroup: CgroupLayout::resolve(btf).ok(),
        })
    }
}

/// A task and what it has, as its memory claims; `None` where memory does not tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detail {
    /// The task itself.
    pub task: Task,
    /// Effective user id.
    pub euid: Option<u32>,
    /// Generations between it and the idle task that started everything: init and kthreadd have 1.
    pub depth: Option<u32>,
    /// Its pid namespace.
    pub namespace: Option<Namespace>,
    /// Its `mm_struct`; threads of one process share it, threads of the kernel have none.
    pub mm: Option<KernelVirt>,
    /// What is resident of it.
    pub rss: Option<Rss>,
    /// Its `signal_struct`, which all threads of its process share.
    pub signal: Option<KernelVirt>,
    /// Threads of its process.
    pub threads: Option<u32>,
    /// Its limit of the user's processes, RLIMIT_NPROC.
    pub processes_max: Option<Limit>,
    /// Where its user's processes are counted, see `linux::ucounts`.
    pub ucounts: Option<KernelVirt>,
    /// Its cgroup of the unified hierarchy, as a path from the root.
    pub cgroup: Option<Arc<str>>,
}

/// Which pid namespace a task is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// 0 for the initial one.
    pub level: u32,
    /// The task's number inside, if that many levels are read. The end of number 1 is the end of all in it.
    pub pid: Option<u32>,
}

/// A resource limit; `u64::MAX` is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Reads all tasks with what they have, in the order of their pids.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn details(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
) -> Result<(Vec<Detail>, Vec<Damage>), LinkError> {
    let Begun { mut walk, tasks, depths, heads } = begin(kernel, mem, ram, Head::fields)?;
    let mms = walk.mms(&tasks, &heads);
    let mut details: Vec<Detail> = tasks.into_iter().zip(depths).map(|(task, depth)| bare(task, depth)).collect();
    let Some(layouts) = &kernel.details else { return Ok((details, walk.damage)) };
    walk.credentials(&mut details, &heads, &layouts.detail)?;
    walk.groups(&mut details, &heads, layouts)?;
    walk.namespaces(&mut details, &heads, &layouts.detail)?;
    let resident = walk.resident(&mms, &cached(&heads), layouts)?;
    for (detail, (mm, rss)) in details.iter_mut().zip(mms.into_iter().zip(resident)) {
        (detail.mm, detail.rss) = (mm.map(KernelVirt::new), rss);
    }
    let css_sets: Vec<u64> = heads.iter().map(|head| head.css_set).collect();
    let paths = walk.cgroups(&css_sets, layouts)?;
    details.iter_mut().zip(paths).for_each(|(detail, path)| detail.cgroup = path);
    Ok((details, walk.damage))
}

/// What a machine that stands still is judged by: all tasks, in the order of their pids, and lists that go by them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Essentials {
    /// The tasks themselves.
    pub tasks: Vec<Task>,
    /// Generations above each, as [`Detail::depth`].
    pub depths: Vec<Option<u32>>,
    /// What is resident of each; an empty list if that was not asked for, or the kernel's layout is not known.
    pub resident: Vec<Option<Rss>>,
}

/// Reads much less than [`details`], in half the time; what is resident of each task only `with_memory`.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn essentials(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    with_memory: bool,
) -> Result<(Essentials, Vec<Damage>), LinkError> {
    let fields = if with_memory { Head::fields_of_memory } else { |_: &Layouts| Vec::new() };
    let Begun { mut walk, tasks, depths, heads } = begin(kernel, mem, ram, fields)?;
    let resident = match kernel.details.as_ref().filter(|_| with_memory) {
        Some(layouts) => {
            let mms = walk.mms(&tasks, &heads);
            walk.resident(&mms, &cached(&heads), layouts)?
        }
        None => Vec::new(),
    };
    Ok((Essentials { tasks, depths, resident }, walk.damage))
}

/// A walk that has all tasks with their place in the tree, and what their structs point to.
struct Begun<'a> {
    walk: Walk<'a>,
    tasks: Vec<Task>,
    depths: Vec<Option<u32>>,
    heads: Vec<Head>,
}

fn begin<'a>(
    kernel: &'a Kernel,
    mem: &'a mut dyn RemoteRead,
    ram: RemoteKey,
    fields: fn(&Layouts) -> Vec<Field>,
) -> Result<Begun<'a>, LinkError> {
    let layouts = kernel.details.as_ref();
    let fields = layouts.map(fields).unwrap_or_default();
    let of = |image: &[u8]| layouts.map_or_else(Head::default, |layouts| Head::of(layouts, image));
    let (tasks, mut heads, damage) = walk_with(kernel, mem, ram, &fields, of)?;
    let mut walk = Walk::new(kernel, mem, ram);
    walk.damage = damage;
    if layouts.is_none() {
        walk.report(0, "layout of what tasks have", Fault::Unknown);
    }
    for (task, head) in tasks.iter().zip(&mut heads) {
        // What a thread of the kernel uses for a while is somebody else's.
        if task.is_kernel_thread() {
            head.mm = 0;
        }
    }
    let depths = depths(&tasks, &mut walk);
    Ok(Begun { walk, tasks, depths, heads })
}

fn bare(task: Task, depth: Option<u32>) -> Detail {
    Detail {
        task,
        depth,
        euid: None,
        namespace: None,
        mm: None,
        rss: None,
        signal: None,
        threads: None,
        processes_max: None,
        ucounts: None,
        cgroup: None,
    }
}

/// The pointers of a task; null where it has none or could not be read.
#[derive(Clone, Copy, Default)]
struct Head {
    signal: u64,
    css_set: u64,
    cred: u64,
    pid: u64,
    mm: u64,
    /// Resident pages that the thread has not added to its mm yet.
    cached: [i64; 4],
}

/// What each thread keeps of its counters for itself.
fn cached(heads: &[Head]) -> Vec<[i64; 4]> {
    heads.iter().map(|head| head.cached).collect()
}

/// Of a `signal_struct`.
struct Signal {
    pid: u64,
    threads: u64,
    processes_max: Limit,
}

impl Head {
    fn fields(layouts: &Layouts) -> Vec<Field> {
        let layout = &layouts.detail;
        let others = [layout.signal, layout.css_set, layout.cred, layout.thread_pid];
        Self::fields_of_memory(layouts).into_iter().chain(others).collect()
    }

    /// Those that say what memory a task has; the others are then null.
    fn fields_of_memory(layouts: &Layouts) -> Vec<Field> {
        iter::once(layouts.detail.mm).chain(layouts.rss.as_ref().and_then(RssLayout::cached)).collect()
    }

    fn of(layouts: &Layouts, image: &[u8]) -> Self {
        let layout = &layouts.detail;
        let cached = layouts.rss.as_ref().and_then(RssLayout::cached);
        Self {
            signal: layout.signal.of(image),
            css_set: layout.css_set.of(image),
            cred: layout.cred.of(image),
            pid: layout.thread_pid.of(image),
            mm: layout.mm.of(image),
            cached: cached.map_or([0; 4], |field| RssLayout::cached_of(field, image)),
        }
    }
}

impl Walk<'_> {
    /// Each task's mm, if it is that of its leader. A task that has ended already has given up its own.
    fn mms(&mut self, tasks: &[Task], heads: &[Head]) -> Vec<Option<u64>> {
        let is_leader = |(task, _): &(&Task, &Head)| task.pid == task.tgid;
        let leaders = tasks.iter().zip(heads).filter(is_leader);
        let leaders: NumberMap<u32, u64> = leaders.map(|(task, head)| (task.tgid, head.mm)).collect();
        let mm_of = |(task, head): (&Task, &Head)| {
            let found = Some(head.mm).filter(|mm| *mm != 0)?;
            if let Some(expected) = leaders.get(&task.tgid).copied().filter(|mm| *mm != found && *mm != 0) {
                self.report(found, "task_struct.mm", Fault::Mismatch { expected, found });
                return None;
            }
            Some(found)
        };
        tasks.iter().zip(heads).map(mm_of).collect()
    }

    fn credentials(&mut self, details: &mut [Detail], heads: &[Head], layout: &DetailLayout) -> Result<(), LinkError> {
        let creds = distinct(heads.iter().map(|head| head.cred));
        let of = |image: &[u8]| (layout.euid.of(image) as u32, layout.ucounts.of(image));
        let found = self.by_address(creds, &[layout.euid, layout.ucounts], "cred", of)?;
        for (detail, head) in details.iter_mut().zip(heads) {
            let Some((euid, ucounts)) = found.get(&head.cred) else { continue };
            detail.euid = Some(*euid);
            detail.ucounts = Some(*ucounts).filter(|at| *at != 0).map(KernelVirt::new);
        }
        Ok(())
    }

    /// As [`Walk::gather`], by the addresses of the structs.
    fn by_address<T>(
        &mut self,
        bases: Vec<u64>,
        fields: &[Field],
        part: &'static str,
        of: impl Fn(&[u8]) -> T,
    ) -> Result<HashMap<u64, T>, LinkError> {
        let found = self.gather(&bases, fields, part, of)?;
        Ok(bases.into_iter().zip(found).filter_map(|(base, found)| Some((base, found?))).collect())
    }

    /// What the threads of a process share. A `signal_struct` that is not that of the leader's pid tells nothing.
    fn groups(&mut self, details: &mut [Detail], heads: &[Head], layouts: &Layouts) -> Result<(), LinkError> {
        let layout = &layouts.detail;
        let is_leader = |(detail, _): &(&Detail, &Head)| detail.task.pid == detail.task.tgid;
        let leaders = details.iter().zip(heads).filter(is_leader);
        let leaders: NumberMap<u32, u64> = leaders.map(|(detail, head)| (detail.task.tgid, head.pid)).collect();
        let signals = distinct(heads.iter().map(|head| head.signal));
        let limit = |image: &[u8], at: usize| word(layout.limits.bytes_of(image), RLIMIT_NPROC * 16 + at, 8);
        let fields = [layout.threads, layout.limits, layout.signal_pids];
        let found = self.by_address(signals, &fields, "signal_struct", |image| Signal {
            pid: word(layout.signal_pids.bytes_of(image), layouts.pidtype_tgid * 8, 8),
            threads: layout.threads.of(image),
            processes_max: Limit { soft: limit(image, 0), hard: limit(image, 8) },
        })?;
        for (detail, head) in details.iter_mut().zip(heads) {
            let Some(signal) = found.get(&head.signal) else { continue };
            // A leader that has been reaped leaves its threads for a moment: nothing to compare with.
            if let Some(expected) = leaders.get(&detail.task.tgid).copied().filter(|pid| *pid != signal.pid) {
                let fault = Fault::Mismatch { expected, found: signal.pid };
                self.report(head.signal, "signal_struct.pids", fault);
                continue;
            }
            if signal.threads > THREADS_MAX {
                self.report(head.signal, "signal_struct.nr_threads", Fault::TooLong { limit: THREADS_MAX });
                continue;
            }
            detail.signal = Some(KernelVirt::new(head.signal));
            detail.threads = Some(signal.threads as u32);
            detail.processes_max = Some(signal.processes_max);
        }
        Ok(())
    }

    fn namespaces(&mut self, details: &mut [Detail], heads: &[Head], layout: &DetailLayout) -> Result<(), LinkError> {
        let pids: Vec<u64> = heads.iter().map(|head| head.pid).collect();
        let present = distinct(pids.iter().copied());
        let step = layout.number_end.end();
        let numbers = Field { size: step.saturating_mul(LEVELS_READ), bits: None, ..layout.numbers };
        let of = |image: &[u8]| {
            let number = |level: usize| word(numbers.bytes_of(image), level * step + layout.number.offset, 4);
            (layout.level.of(image), std::array::from_fn::<u64, LEVELS_READ, _>(number))
        };
        let found = self.by_address(present, &[layout.level, numbers], "struct pid", of)?;
        for (detail, pid) in details.iter_mut().zip(pids) {
            let Some((level, numbers)) = found.get(&pid).copied() else { continue };
            let (expected, found) = (detail.task.pid.into(), numbers[0]);
            if expected != found {
                self.report(pid, "pid.numbers", Fault::Mismatch { expected, found });
                continue;
            }
            if level > LEVELS_MAX {
                self.report(pid, "pid.level", Fault::TooLong { limit: LEVELS_MAX });
                continue;
            }
            let inside = numbers.get(level as usize).map(|number| *number as u32);
            detail.namespace = Some(Namespace { level: level as u32, pid: inside });
        }
        Ok(())
    }
}
