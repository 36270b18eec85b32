//! The death of a process, written into the memory of a target that stands still: what would have to be changed where.
//!
//! ```text
//!   task->pending.signal       |= SIGKILL             the private set: no other is fatal in a page fault or a wait
//!   task->thread_info.flags    |= TIF_SIGPENDING      the task looks into the set on its way to user mode
//!   a timer that wakes it                             for one that sleeps, see `wake`
//!   task->__state               = INTERRUPTIBLE       before that for one that is stopped, see `stopped`
//! ```
//! One thread is enough: the kernel itself takes its process down once that thread has seen the signal. A marked task
//! cannot fork either: `copy_process` looks for signals when it makes a child visible. So the marks of one standstill
//! end a fork bomb, however fast it forks.
//!
//! Nothing is written here. The plan is a list of [`Edit`]s in an order in which every beginning of it is harmless; who
//! holds the target's lock carries them out. It holds for the standstill in which it was made and for no other.

mod stopped;
mod wake;

use std::collections::{BTreeMap, HashMap, HashSet};

use remote_memory::{GuestPhys, KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use stopped::is_stopped;

use super::task::Task;
use super::walk::Walk;
use crate::btf::layout;
use crate::memory::word;
use crate::{Damage, Fault, Kernel};

/// Bit of signal 9 in a set of signals.
const SIGKILL: u64 = 1 << 8;

/// `TIF_SIGPENDING` of x86.
const TIF_SIGPENDING: u64 = 1 << 2;

/// `TASK_INTERRUPTIBLE`, `TASK_UNINTERRUPTIBLE`, and `TASK_WAKEKILL`, which says that a fatal signal ends the sleep.
const INTERRUPTIBLE: u32 = 0x1;
const UNINTERRUPTIBLE: u32 = 0x2;
/// `__TASK_STOPPED`.
const STOPPED: u32 = 0x4;
const WAKEKILL: u32 = 0x100;

layout! {
    /// Members that are changed, or tell whether they may be.
    pub(crate) struct KillLayout {
        usage: "task_struct.usage.refs.counter",
        base_lock: "timer_base.lock",
        base_clk: "timer_base.clk",
        base_next: "timer_base.next_expiry",
        base_recalc: "timer_base.next_expiry_recalc",
        base_is_idle: "timer_base.is_idle",
        base_has_timers: "timer_base.timers_pending",
        base_map: "timer_base.pending_map",
        base_vectors: "timer_base.vectors",
        node: "process_timer.timer.entry",
        node_next: "process_timer.timer.entry.next",
        node_pprev: "process_timer.timer.entry.pprev",
        expires: "process_timer.timer.expires",
        function: "process_timer.timer.function",
        flags: "process_timer.timer.flags",
        sleeper: "process_timer.task",
    } optional {
        expiry_lock: "timer_base.expiry_lock",
        jobctl: "task_struct.jobctl",
    }
}

/// A place to be changed. It is so now; whoever finds it otherwise changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Edit {
    /// Guest-physical address.
    pub at: u64,
    /// What is there.
    pub was: Vec<u8>,
    /// What is to be there; as long as `was`.
    pub now: Vec<u8>,
    /// What the place is to the kernel.
    pub what: String,
}

/// What becomes of a process that is to die.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It sees the signal when it next leaves the kernel or is interrupted.
    Runs,
    /// It is woken to see the signal.
    Woken,
    /// It is marked, and sees the signal when something wakes it.
    Sleeps {
        /// Why it is not woken.
        why: String,
    },
    /// It is marked, and woken by the next repair: there is no room for more timers in this one.
    Later,
    /// It is not touched.
    Refused {
        /// Why.
        why: String,
    },
}

/// How processes are ended: the changes, and what they mean for each.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KillPlan {
    /// In this order.
    pub edits: Vec<Edit>,
    /// By process id, ascending. A list, as maps with numbers for keys do not come back out of every format.
    pub fates: Vec<(u32, Fate)>,
}

impl KillPlan {
    /// What becomes of a process; `None` if it was not to die.
    pub fn fate_of(&self, process: u32) -> Option<&Fate> {
        let found = self.fates.binary_search_by_key(&process, |(pid, _)| *pid).ok()?;
        Some(&self.fates[found].1)
    }
}

/// How to end `processes`, whose tasks are among `tasks`, in the standstill in which `tasks` was read. The first
/// process, threads of the kernel and what is already on its way out are refused.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn plan(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    tasks: &[Task],
    processes: &HashSet<u32>,
) -> Result<(KillPlan, Vec<Damage>), LinkError> {
    let mut walk = Walk::new(kernel, mem, ram);
    let (mut edits, mut fates) = (Vec::new(), BTreeMap::new());
    let mut chosen: Vec<&Task> = Vec::new();
    let mut threads: HashMap<u32, Vec<&Task>> = HashMap::with_capacity(processes.len());
    for task in tasks.iter().filter(|task| processes.contains(&task.tgid)) {
        threads.entry(task.tgid).or_default().push(task);
    }
    for process in processes {
        match thread_of(*process, threads.get(process).map_or(&[][..], Vec::as_slice)) {
            Ok(task) => chosen.push(task),
            Err(why) => drop(fates.insert(*process, Fate::Refused { why: why.to_owned() })),
        }
    }
    chosen.sort_by_key(|task| task.pid);
    let mut sleepers = Vec::new();
    for (task, marks) in chosen.iter().zip(walk.marks(&chosen)?) {
        let Some(marks) = marks else {
            fates.insert(task.tgid, Fate::Refused { why: "its memory cannot be read".to_owned() });
            continue;
        };
        edits.extend(marks);
        let fate = fate_of(task);
        if fate == Fate::Woken {
            sleepers.push(*task);
        }
        fates.insert(task.tgid, fate);
    }
    walk.leave_frozen(&mut sleepers, &mut fates)?;
    let unstopped = walk.unstop_all(&mut sleepers, &mut fates)?;
    match walk.wake(&sleepers)? {
        Ok((more, woken)) => {
            edits.extend(unstopped.into_iter().chain(more));
            fates.extend(sleepers[woken..].iter().map(|task| (task.tgid, Fate::Later)));
        }
        Err(why) => {
            for task in sleepers {
                fates.insert(task.tgid, Fate::Sleeps { why: why.clone() });
            }
        }
    }
    Ok((KillPlan { edits, fates: fates.into_iter().collect() }, walk.damage))
}

/// The thread of a process that will see the signal first: one that runs, then one that can be woken.
fn thread_of<'a>(process: u32, threads: &[&'a Task]) -> Result<&'a Task, &'static str> {
    if process <= 1 {
        return Err("the first process: the kernel panics without it");
    }
    if threads.iter().any(|task| task.is_kernel_thread()) {
        return Err("a thread of the kernel");
    }
    if threads.is_empty() {
        return Err("no such process");
    }
    let living = threads.iter().copied().filter(|task| !task.is_exiting());
    living.min_by_key(|task| rank(task.state)).ok_or("on its way out")
}

fn rank(state: u32) -> u8 {
    match state {
        0 => 0,
        state if state & INTERRUPTIBLE != 0 => 1,
        state if is_woken_by_death(state) => 2,
        _ => 3,
    }
}

/// Whether the kernel would wake a sleeper of this state for a fatal signal, by the call that a timer makes, or one
/// that is stopped once it has been made such a sleeper.
fn is_woken_by_death(state: u32) -> bool {
    is_stopped(state)
        || state & INTERRUPTIBLE != 0
        || state & (UNINTERRUPTIBLE | WAKEKILL) == UNINTERRUPTIBLE | WAKEKILL
}

fn fate_of(task: &Task) -> Fate {
    match task.state {
        0 => Fate::Runs,
        state if is_woken_by_death(state) => Fate::Woken,
        state if state & UNINTERRUPTIBLE != 0 => {
            Fate::Sleeps { why: "it waits in the kernel for what no signal ends, such as a disk".to_owned() }
        }
        state => Fate::Sleeps { why: format!("it is traced or frozen (state {state:#x})") },
    }
}

impl Walk<'_> {
    /// Those that are frozen are not woken: it would not help.
    fn leave_frozen(&mut self, sleepers: &mut Vec<&Task>, fates: &mut BTreeMap<u32, Fate>) -> Result<(), LinkError> {
        let mut frozen = self.are_frozen(sleepers)?.into_iter();
        sleepers.retain(|task| {
            let is_frozen = frozen.next().unwrap_or(false);
            if is_frozen {
                let why = "its cgroup is frozen; it ends when that is thawed".to_owned();
                fates.insert(task.tgid, Fate::Sleeps { why });
            }
            !is_frozen
        });
        Ok(())
    }

    /// The edits that make sleepers of those that are stopped; one that is not as it was found is not woken.
    fn unstop_all(
        &mut self,
        sleepers: &mut Vec<&Task>,
        fates: &mut BTreeMap<u32, Fate>,
    ) -> Result<Vec<Edit>, LinkError> {
        let stopped: Vec<&Task> = sleepers.iter().copied().filter(|task| is_stopped(task.state)).collect();
        let mut all = Vec::new();
        for (task, edits) in stopped.iter().zip(self.unstop(&stopped)?) {
            let Some(edits) = edits else {
                sleepers.retain(|sleeper| sleeper.address != task.address);
                let why = "it is stopped, and its state cannot be read".to_owned();
                fates.insert(task.tgid, Fate::Sleeps { why });
                continue;
            };
            all.extend(edits);
        }
        Ok(all)
    }

    /// The two marks of each task; `None` where they cannot be read.
    fn marks(&mut self, tasks: &[&Task]) -> Result<Vec<Option<[Edit; 2]>>, LinkError> {
        let pending: Vec<_> = tasks.iter().map(|task| self.kernel.pending_signals_of(task.address)).collect();
        let flags: Vec<_> = tasks.iter().map(|task| self.kernel.thread_flags_of(task.address)).collect();
        let were_pending = self.memory.fetch_equal(&pending, 8)?;
        let flags_were = self.memory.fetch_equal(&flags, 8)?;
        let mut marks = Vec::with_capacity(tasks.len());
        for (index, task) in tasks.iter().enumerate() {
            let edit = |at: Option<GuestPhys>, bytes: Option<&[u8]>, bit: u64, what: &str| {
                let was = word(bytes?, 0, 8);
                Some(set_word(at?, was, was | bit, format!("{what} of {}", task.pid)))
            };
            let signal = edit(pending[index], were_pending.bytes(index), SIGKILL, "pending signals");
            let both = signal.zip(edit(flags[index], flags_were.bytes(index), TIF_SIGPENDING, "thread flags"));
            if both.is_none() {
                self.report(task.address.raw(), "marks of a task", Fault::Unreadable);
            }
            marks.push(both.map(|(pending, flags)| [pending, flags]));
        }
        Ok(marks)
    }
}

fn place(base: KernelVirt, offset: usize) -> KernelVirt {
    KernelVirt::new(base.raw().wrapping_add(offset as u64))
}

fn set_word(at: GuestPhys, was: u64, now: u64, what: impl Into<String>) -> Edit {
    set(at, was.to_le_bytes().to_vec(), now.to_le_bytes().to_vec(), what)
}

fn set(at: GuestPhys, was: Vec<u8>, now: Vec<u8>, what: impl Into<String>) -> Edit {
    Edit { at: at.raw(), was, now, what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32, tgid: u32, state: u32, flags: u32) -> Task {
        Task {
            address: KernelVirt::new(0xffff_8880_0000_0000 + u64::from(pid) * 0x4000),
            pid,
            tgid,
            parent: 1,
            uid: Some(1000),
            comm: "t".into(),
            state,
            flags,
            start_time_ns: 0,
        }
    }

    #[test]
    fn one_thread_is_chosen_the_one_that_sees_the_signal_first() {
        let tasks = [task(20, 20, 0, 0x4), task(21, 20, 2, 0), task(22, 20, 1, 0), task(23, 20, 0x102, 0)];
        let tasks: Vec<&Task> = tasks.iter().collect();
        assert_eq!(thread_of(20, &tasks).unwrap().pid, 22, "the leader is a zombie already");
        assert_eq!(thread_of(20, &tasks[..2]).unwrap().pid, 21);
        assert_eq!(thread_of(20, &tasks[..1]), Err("on its way out"));
    }

    #[test]
    fn the_first_process_and_the_kernel_s_own_threads_are_refused() {
        let tasks = [task(1, 1, 1, 0), task(2, 2, 1, 0x0020_0000)];
        assert!(thread_of(1, &[&tasks[0]]).is_err() && thread_of(2, &[&tasks[1]]).is_err());
        assert!(thread_of(3, &[]).is_err());
    }

    #[test]
    fn only_a_sleep_that_death_would_end_is_ended() {
        let woken = [1, 0x102, 0x2001, 0x104].map(|state| fate_of(&task(9, 9, state, 0)));
        assert!(woken.iter().all(|fate| *fate == Fate::Woken), "{woken:?}");
        for state in [2, 4, 0x108, 0x8000, 0x1000] {
            assert!(matches!(fate_of(&task(9, 9, state, 0)), Fate::Sleeps { .. }), "{state:#x}");
        }
        assert_eq!(fate_of(&task(9, 9, 0, 0)), Fate::Runs);
    }
}
