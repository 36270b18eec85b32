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

mod edit;
mod slots;
mod stopped;
mod wake;

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

pub use edit::{Bytes, Edit, Member, What};
use edit::{set, set_word};
pub use slots::room;
use stopped::is_stopped;

use super::task::{self, Task};
use super::walk::Walk;
use crate::btf::layout;
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
    /// It is marked, and woken by the next standstill (see [`wake_marked`]): there is no room for more timers in this
    /// one.
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
    /// The threads of those that are to be woken later, for [`wake_marked`]. Not kept with the plan.
    #[serde(skip)]
    pub waiting: Vec<Task>,
}

impl KillPlan {
    /// What becomes of a process; `None` if it was not to die.
    pub fn fate_of(&self, process: u32) -> Option<&Fate> {
        let found = self.fates.binary_search_by_key(&process, |(pid, _)| *pid).ok()?;
        Some(&self.fates[found].1)
    }

    /// Another fate for one that has some.
    fn decide(&mut self, task: &Task, fate: Fate) {
        if let Ok(found) = self.fates.binary_search_by_key(&task.tgid, |(pid, _)| *pid) {
            self.fates[found].1 = fate;
        }
    }

    fn leave(&mut self, task: &Task) {
        self.decide(task, Fate::Later);
        self.waiting.push(task.clone());
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
    processes: &[u32],
) -> Result<(KillPlan, Vec<Damage>), LinkError> {
    let mut walk = Walk::new(kernel, mem, ram);
    let mut wanted = processes.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut threads: Vec<&Task> = tasks.iter().filter(|task| wanted.binary_search(&task.tgid).is_ok()).collect();
    threads.sort_by_key(|task| task.tgid);
    // Two marks each, and for most a reference: of thirty thousand no list is moved while it grows.
    let mut edits = Vec::with_capacity(3 * wanted.len());
    let (mut fates, mut sleepers) = (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len()));
    let mut rest = threads.as_slice();
    for process in wanted {
        let (own, others) = rest.split_at(rest.iter().take_while(|task| task.tgid == process).count());
        rest = others;
        let fate = match thread_of(process, own) {
            Ok(task) if walk.mark(task, &mut edits) => {
                let fate = walk.fate_of(task);
                sleepers.extend((fate == Fate::Woken).then_some(task));
                fate
            }
            Ok(_) => Fate::Refused { why: "its memory cannot be read".to_owned() },
            Err(why) => Fate::Refused { why: why.to_owned() },
        };
        fates.push((process, fate));
    }
    let mut plan = KillPlan { edits, fates, waiting: Vec::new() };
    if let Err((why, sleepers)) = walk.wake_up(sleepers, &mut plan)? {
        sleepers.into_iter().for_each(|task| plan.decide(task, Fate::Sleeps { why: why.clone() }));
    }
    Ok((plan, walk.damage))
}

/// How to wake `marked`, whom an earlier standstill has marked and left for want of room ([`KillPlan::waiting`]): the
/// machine ran since then, so each is read again. Who is not the task it was, or has woken up by itself, is passed
/// over.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn wake_marked(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    marked: &[Task],
) -> Result<(KillPlan, Vec<Damage>), LinkError> {
    let (found, damage) = task::again(kernel, mem, ram, marked)?;
    let mut walk = Walk::new(kernel, mem, ram);
    walk.damage = damage;
    let (mut plan, mut sleepers) = (KillPlan::default(), Vec::new());
    for task in found.iter().flatten().filter(|task| !task.is_exiting()) {
        let fate = match task.words.pending & SIGKILL {
            0 => Fate::Refused { why: "its mark is gone".to_owned() },
            _ => walk.fate_of(task),
        };
        sleepers.extend((fate == Fate::Woken).then_some(task));
        plan.fates.push((task.tgid, fate));
    }
    plan.fates.sort_by_key(|(process, _)| *process);
    if let Err((_, sleepers)) = walk.wake_up(sleepers, &mut plan)? {
        sleepers.into_iter().for_each(|task| plan.leave(task));
    }
    Ok((plan, walk.damage))
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
    /// As [`fate_of`]; those that are frozen are not woken: it would not help.
    fn fate_of(&self, task: &Task) -> Fate {
        match fate_of(task) {
            Fate::Woken if stopped::is_frozen(task) => {
                Fate::Sleeps { why: "its cgroup is frozen; it ends when that is thawed".to_owned() }
            }
            fate => fate,
        }
    }

    /// The two marks of a task, what of them it does not have yet; `false` where they cannot be written.
    fn mark(&mut self, task: &Task, edits: &mut Vec<Edit>) -> bool {
        let places = [self.kernel.pending_signals_of(task.address), self.kernel.thread_flags_of(task.address)];
        let [Some(pending), Some(flags)] = places else {
            self.report(task.address.raw(), "marks of a task", Fault::Unreadable);
            return false;
        };
        let marks = [
            (pending, task.words.pending, SIGKILL, Member::PendingSignals),
            (flags, task.words.thread_flags, TIF_SIGPENDING, Member::ThreadFlags),
        ];
        let missing = marks.into_iter().filter(|(_, was, bit, _)| was & bit == 0);
        edits
            .extend(missing.map(|(at, was, bit, member)| set_word(at, was, was | bit, What::OfTask(member, task.pid))));
        true
    }

    /// Adds what wakes `sleepers` to the plan, and says of whom it does not; or why nobody can be woken, with those who
    /// are not.
    #[allow(clippy::type_complexity, reason = "a reason, and whom it concerns")]
    fn wake_up<'t>(
        &mut self,
        mut sleepers: Vec<&'t Task>,
        plan: &mut KillPlan,
    ) -> Result<Result<(), (String, Vec<&'t Task>)>, LinkError> {
        let mut unstopped = Vec::new();
        sleepers.retain(|task| {
            let edits = self.unstop(task);
            if edits.is_none() {
                plan.decide(task, Fate::Sleeps { why: "it is stopped, and its state cannot be written".to_owned() });
            }
            edits.map(|edits| unstopped.extend(edits)).is_some()
        });
        Ok(match self.wake(&sleepers)? {
            Ok((more, woken)) => {
                plan.edits.extend(unstopped.into_iter().chain(more));
                plan.waiting.reserve(sleepers.len() - woken);
                sleepers[woken..].iter().for_each(|task| plan.leave(task));
                Ok(())
            }
            Err(why) => Err((why, sleepers)),
        })
    }
}

fn place(base: KernelVirt, offset: usize) -> KernelVirt {
    KernelVirt::new(base.raw().wrapping_add(offset as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::task::Words;

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
            words: Words::default(),
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
