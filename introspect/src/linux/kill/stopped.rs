//! Stopped tasks (`SIGSTOP`, a terminal's `^Z`): made sleepers that a timer wakes.
//!
//! The kernel wakes a stopped task for `SIGKILL` by a call of its own, `wake_up_state(TASK_WAKEKILL | …)`; a timer
//! wakes only `TASK_NORMAL`. A stopped task is off every run queue and waits in `do_signal_stop()` inside of one
//! `schedule()`, whose caller asks nothing about the state that it was woken from: it looks for signals next. So its
//! state is made that of an ordinary sleep, and `JOBCTL_STOPPED`, which goes with the old one since Linux 6.0
//! ("sched,signal,ptrace: Rework TASK_TRACED, TASK_STOPPED state"), is taken away as the kernel does it for `SIGKILL`.
//! Done after the marks: whatever wakes it from here on ends it.
//!
//! A task that the freezer of its cgroup holds sleeps as others do, and would go back to that sleep: the kernel looks
//! for `JOBCTL_TRAP_FREEZE` before it looks for signals. It is marked, and ends when it is thawed. Only who may write
//! to cgroups can freeze.
//!
//! A traced task is left alone: its tracer may be in the middle of it. It ends when the tracer lets go of it or dies.

use super::{Edit, INTERRUPTIBLE, Member, STOPPED, WAKEKILL, What, place, set};
use crate::btf::Field;
use crate::linux::task::Task;
use crate::linux::walk::Walk;

/// `JOBCTL_STOPPED`.
const JOBCTL_STOPPED: u64 = 1 << 26;

/// `JOBCTL_TRAP_FREEZE`, since Linux 5.2.
const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;

/// Whether this is the state of a stopped task, and of nothing else.
pub(super) fn is_stopped(state: u32) -> bool {
    state == STOPPED | WAKEKILL
}

/// Whether the freezer of a cgroup holds a task, or is about to.
pub(super) fn is_frozen(task: &Task) -> bool {
    task.words.job_control.is_some_and(|word| word & JOBCTL_TRAP_FREEZE != 0)
}

impl Walk<'_> {
    /// The edits that make a sleeper of a task that is stopped; none for one that is not, `None` if they cannot be
    /// made.
    pub(super) fn unstop(&self, task: &Task) -> Option<Vec<Edit>> {
        if !is_stopped(task.state) {
            return Some(Vec::new());
        }
        let number = |field: Field, was: u64, now: u64, member: Member| {
            let at = self.kernel.phys(place(task.address, field.offset), field.size as u64)?;
            let (was, now) = (was.to_le_bytes(), now.to_le_bytes());
            Some(set(at, was.get(..field.size)?, now.get(..field.size)?, What::OfTask(member, task.pid)))
        };
        let state = self.kernel.task.state;
        let mut edits = vec![number(state, task.state.into(), INTERRUPTIBLE.into(), Member::State)?];
        if let Some((field, was)) = self.kernel.kill.as_ref().and_then(|kill| kill.jobctl).zip(task.words.job_control) {
            edits.push(number(field, was, was & !JOBCTL_STOPPED, Member::JobControl)?);
        }
        Some(edits)
    }
}
