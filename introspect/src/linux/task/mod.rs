//! Processes and threads, from the pid table of the initial pid namespace.
//!
//! ```text
//!   init_pid_ns.idr -> xarray root -> node (64 slots) -> … -> struct pid -> tasks[PIDTYPE_PID] -> task_struct
//! ```
//! The tree is at most four levels deep, so all tasks of a machine cost about ten rounds, a thousand or ten.

mod cgroup;
mod depth;
mod detail;
mod rss;

use compact_str::CompactString;
use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};

use super::walk::Walk as Shared;
use crate::btf::{Field, layout};
use crate::keyed::{NumberMap, NumberSet};
use crate::memory::word;
use crate::{Damage, Fault, Kernel};

pub(crate) use detail::Layouts as DetailLayouts;
pub use detail::{Detail, Essentials, Limit, Namespace, details, essentials};
pub use rss::Rss;

/// A kernel allows four million; a machine with this many is beyond repair, and our own memory must hold them.
const TASKS_MAX: usize = 256 * 1024;

/// Levels of the tree that holds `PID_MAX_LIMIT` ids at 64 per node.
const XARRAY_LEVELS_MAX: usize = 4;

/// `XA_CHUNK_SIZE` of a full-size kernel.
const XARRAY_SLOTS_MAX: usize = 64;

layout! {
    /// Members that the walk reads.
    pub(crate) struct TaskLayout {
        pids: "pid_namespace.idr.idr_rt.xa_head",
        slots: "xa_node.slots",
        pid_tasks: "pid.tasks",
        pid_links: "task_struct.pid_links",
        pid: "task_struct.pid",
        tgid: "task_struct.tgid",
        comm: "task_struct.comm",
        state: "task_struct.__state" | "task_struct.state",
        flags: "task_struct.flags",
        real_cred: "task_struct.real_cred",
        real_parent: "task_struct.real_parent",
        start_time: "task_struct.start_time",
        uid: "cred.uid",
        pending: "task_struct.pending.signal",
        thread_flags: "task_struct.thread_info.flags",
    } optional {
        thread_pid: "task_struct.thread_pid",
    }
}

/// One task (a thread in the kernel's sense), as its memory claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// Its `task_struct`.
    pub address: KernelVirt,
    /// Thread id.
    pub pid: u32,
    /// Process id: equal to `pid` in the thread group's leader.
    pub tgid: u32,
    /// Process id of the real parent, 0 if it has none or it could not be read.
    pub parent: u32,
    /// Real user id; `None` if the credentials could not be read.
    pub uid: Option<u32>,
    /// Command name, without the trailing zeroes; not necessarily UTF-8 in the target, so lossy here.
    pub comm: CompactString,
    /// `__state`: 0 running, 1 interruptible sleep, 2 uninterruptible, …
    pub state: u32,
    /// `PF_*` bits.
    pub flags: u32,
    /// When it started, in nanoseconds of the target's monotonic clock.
    pub start_time_ns: u64,
    /// What a repair of it goes by besides.
    pub words: Words,
}

/// Members of a task that its end changes, as they were when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Words {
    /// Signals pending for this thread alone.
    pub(crate) pending: u64,
    /// `thread_info.flags`.
    pub(crate) thread_flags: u64,
    /// `jobctl`, where the kernel's layout is known.
    pub(crate) job_control: Option<u64>,
    /// The `struct pid` that named it.
    pub(crate) named_by: u64,
    /// References to the struct; 0 where the kernel's layout is not known.
    pub(crate) references: u32,
}

impl Task {
    /// Whether it is a kernel thread (`PF_KTHREAD`).
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }

    /// Whether it is on its way out (`PF_EXITING`).
    pub fn is_exiting(&self) -> bool {
        self.flags & 0x4 != 0
    }
}

/// Reads all tasks, in the order of their pids; the idle tasks have none and are not among them.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn walk(kernel: &Kernel, mem: &mut dyn RemoteRead, ram: RemoteKey) -> Result<(Vec<Task>, Vec<Damage>), LinkError> {
    let mut walk = Walk { shared: Shared::new(kernel, mem, ram), seen: NumberSet::default() };
    let pids = walk.pids()?;
    let (tasks, _) = walk.tasks(&pids, &[], |_| ())?;
    Ok((tasks, walk.shared.damage))
}

/// Reads tasks of an earlier look again. `None` for one that is not the same any more: it must be named by the pid that
/// named it and name that in turn, and have the number and the start that it had.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub(crate) fn again(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    tasks: &[Task],
) -> Result<(Vec<Option<Task>>, Vec<Damage>), LinkError> {
    let mut walk = Walk { shared: Shared::new(kernel, mem, ram), seen: NumberSet::default() };
    let pids: Vec<u64> = tasks.iter().map(|task| task.words.named_by).collect();
    let links = walk.words(&pids, kernel.task.pid_tasks, "pid.tasks")?;
    let bases: Vec<u64> = tasks.iter().map(|task| task.address.raw()).collect();
    let fields: Vec<Field> = changing(kernel).collect();
    let mut found = vec![None; tasks.len()];
    walk.shared.each_copy(&bases, &fields, "task_struct", |number, image| {
        let (before, link) = (&tasks[number], links[number]);
        let is_named = link.map(|link| link.wrapping_sub(kernel.task.pid_links.offset as u64)) == Some(bases[number]);
        found[number] = image.filter(|_| is_named).and_then(|image| {
            let names = kernel.task.thread_pid.is_none_or(|field| field.of(image) == pids[number]);
            let now = task(kernel, (pids[number], bases[number]), image);
            let same =
                names && (now.pid, now.tgid, now.start_time_ns) == (before.pid, before.tgid, before.start_time_ns);
            let Task { parent, uid, ref comm, .. } = *before;
            same.then(|| Task { parent, uid, comm: comm.clone(), ..now })
        });
    })?;
    Ok((found, walk.shared.damage))
}

/// Two lists that go by each other, and what was wrong in memory.
type Beside<A, B> = (Vec<A>, Vec<B>, Vec<Damage>);

/// Tasks, and of each what `of` takes out of a copy of its `task_struct` that has the members `more`, too: of the same
/// moment, as both are read at once.
fn walk_with<T>(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    more: &[Field],
    of: impl Fn(&[u8]) -> T,
) -> Result<Beside<Task, T>, LinkError> {
    let mut walk = Walk { shared: Shared::new(kernel, mem, ram), seen: NumberSet::default() };
    let pids = walk.pids()?;
    let (tasks, taken) = walk.tasks(&pids, more, of)?;
    Ok((tasks, taken, walk.shared.damage))
}

struct Walk<'a> {
    shared: Shared<'a>,
    seen: NumberSet<u64>,
}

impl Walk<'_> {
    fn report(&mut self, at: u64, part: &'static str, fault: Fault) {
        self.shared.report(at, part, fault);
    }

    /// Reads one word behind each of `pointers`.
    fn words(&mut self, pointers: &[u64], field: Field, part: &'static str) -> Result<Vec<Option<u64>>, LinkError> {
        let first = Field { size: 8, bits: None, ..field };
        self.shared.gather(pointers, &[first], part, |image| first.of(image))
    }

    /// The addresses of all `struct pid`, level by level down the tree.
    fn pids(&mut self) -> Result<Vec<u64>, LinkError> {
        let layout = &self.shared.kernel.task;
        let Some(root) = self.shared.kernel.symbol("init_pid_ns") else { return Ok(Vec::new()) };
        let head = self.words(&[root.raw()], layout.pids, "idr of init_pid_ns")?[0].unwrap_or(0);
        let mut pids = Vec::new();
        let mut nodes = Vec::new();
        self.sort_entry(head, &mut nodes, &mut pids);
        for _ in 0..XARRAY_LEVELS_MAX {
            if nodes.is_empty() {
                return Ok(pids);
            }
            let at: Vec<_> = nodes.iter().map(|node| offset(*node, layout.slots.offset)).collect();
            self.seen.reserve(nodes.len().saturating_mul(XARRAY_SLOTS_MAX));
            let slots_bytes = layout.slots.size.min(XARRAY_SLOTS_MAX * 8);
            let records = self.shared.kernel.space.fetch_equal(&mut self.shared.memory, &at, slots_bytes)?;
            let mut deeper = Vec::new();
            for (index, node) in nodes.iter().enumerate() {
                let Some(slots) = records.bytes(index) else {
                    self.report(*node, "xa_node", Fault::Unreadable);
                    continue;
                };
                for slot in slots.chunks_exact(8) {
                    self.sort_entry(word(slot, 0, 8), &mut deeper, &mut pids);
                }
            }
            nodes = deeper;
        }
        if let Some(node) = nodes.first() {
            self.report(*node, "depth of the pid tree", Fault::TooLong { limit: XARRAY_LEVELS_MAX as u64 });
        }
        Ok(pids)
    }

    /// An entry of the tree: nothing, an inner node (low bits 10), or a `struct pid`.
    fn sort_entry(&mut self, entry: u64, nodes: &mut Vec<u64>, pids: &mut Vec<u64>) {
        let target = match entry & 3 {
            0 => entry,
            // Small internal values are marks of the xarray (retry, zero entry), not nodes.
            2 if entry > 4096 => entry - 2,
            _ => return,
        };
        if target == 0 {
            return;
        }
        if !self.seen.insert(target) {
            return self.report(target, "pid tree", Fault::Cycle);
        }
        if pids.len() + nodes.len() >= TASKS_MAX {
            return self.report(target, "pid tree", Fault::TooLong { limit: TASKS_MAX as u64 });
        }
        if entry & 3 == 2 { nodes.push(target) } else { pids.push(target) }
    }

    /// The tasks that `pids` name as threads, in the order of their pids; of each what `of` takes out of its copy.
    fn tasks<T>(
        &mut self,
        pids: &[u64],
        more: &[Field],
        of: impl Fn(&[u8]) -> T,
    ) -> Result<(Vec<Task>, Vec<T>), LinkError> {
        let layout = &self.shared.kernel.task;
        let links = self.words(pids, layout.pid_tasks, "pid.tasks")?;
        // A pid without a thread is normal: it names a process group or session whose leader has gone.
        let base = |link: u64| link.wrapping_sub(layout.pid_links.offset as u64);
        let named = |(pid, link): (&u64, Option<u64>)| Some((*pid, link.filter(|link| *link != 0).map(base)?));
        let named: Vec<(u64, u64)> = pids.iter().zip(links).filter_map(named).collect();
        let mut found = Vec::with_capacity(named.len());
        let bases: Vec<u64> = named.iter().map(|(_, base)| *base).collect();
        let fields: Vec<Field> = wanted(self.shared.kernel).chain(more.iter().copied()).collect();
        let (kernel, seen, mut damage) = (self.shared.kernel, &mut self.seen, Vec::new());
        seen.reserve(named.len());
        self.shared.each_copy(&bases, &fields, "task_struct", |number, image| {
            let (Some(image), (pid, base)) = (image, named[number]) else { return };
            let mut report = |part, fault| damage.push(Damage { at: KernelVirt::new(base), part, fault });
            // A repair writes into what is taken for a task: it must name the pid that names it.
            let back = layout.thread_pid.map(|field| field.of(image));
            if let Some(found) = back.filter(|back| *back != pid) {
                return report("task_struct.thread_pid", Fault::Mismatch { expected: pid, found });
            }
            if !seen.insert(base) {
                return report("pid.tasks", Fault::Cycle);
            }
            let task = task(kernel, (pid, base), image);
            found.push((task, (layout.real_parent.of(image), layout.real_cred.of(image)), of(image)));
        })?;
        self.shared.damage.append(&mut damage);
        let uids = self.uids(found.iter().map(|(_, (_, cred), _)| *cred).collect())?;
        let tgids: NumberMap<u64, u32> = found.iter().map(|(task, ..)| (task.address.raw(), task.tgid)).collect();
        found.sort_by_key(|(task, ..)| task.pid);
        let with_others = |(mut task, (parent, cred), taken): (Task, (u64, u64), T)| {
            task.parent = tgids.get(&parent).copied().unwrap_or(0);
            task.uid = uids.get(&cred).copied();
            (task, taken)
        };
        Ok(found.into_iter().map(with_others).unzip())
    }

    /// User ids by address of the credentials; many tasks share one.
    fn uids(&mut self, creds: Vec<u64>) -> Result<NumberMap<u64, u32>, LinkError> {
        let mut distinct = creds;
        distinct.sort_unstable();
        distinct.dedup();
        let words = self.words(&distinct, self.shared.kernel.task.uid, "cred.uid")?;
        Ok(distinct.into_iter().zip(words).filter_map(|(cred, word)| Some((cred, word? as u32))).collect())
    }
}

fn offset(base: u64, bytes: usize) -> KernelVirt {
    KernelVirt::new(base.wrapping_add(bytes as u64))
}

/// The members that a [`Task`] is made of.
fn wanted(kernel: &Kernel) -> impl Iterator<Item = Field> {
    let layout = &kernel.task;
    [layout.comm, layout.real_cred, layout.real_parent].into_iter().chain(changing(kernel))
}

/// Those of them that say whether it is the same, and what it does.
fn changing(kernel: &Kernel) -> impl Iterator<Item = Field> {
    let layout = &kernel.task;
    let always =
        [layout.pid, layout.tgid, layout.state, layout.flags, layout.start_time, layout.pending, layout.thread_flags];
    let kill = kernel.kill.as_ref();
    always.into_iter().chain(layout.thread_pid).chain(kill.map(|kill| kill.usage)).chain(kill.and_then(|it| it.jobctl))
}

/// A task out of a copy of its struct; parent and user are to be found yet, and its name where that was not read.
fn task(kernel: &Kernel, (named_by, base): (u64, u64), image: &[u8]) -> Task {
    let (layout, kill) = (&kernel.task, kernel.kill.as_ref());
    let comm = layout.comm.bytes_of(image);
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    Task {
        address: KernelVirt::new(base),
        pid: layout.pid.of(image) as u32,
        tgid: layout.tgid.of(image) as u32,
        parent: 0,
        uid: None,
        comm: CompactString::from_utf8_lossy(&comm[..end]),
        state: layout.state.of(image) as u32,
        flags: layout.flags.of(image) as u32,
        start_time_ns: layout.start_time.of(image),
        words: Words {
            named_by,
            pending: layout.pending.of(image),
            thread_flags: layout.thread_flags.of(image),
            job_control: kill.and_then(|kill| kill.jobctl).map(|field| field.of(image)),
            references: kill.map_or(0, |kill| kill.usage.of(image) as u32),
        },
    }
}
