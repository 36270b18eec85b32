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

use remote_memory::{GuestPhys, LinkError};

use super::{Edit, INTERRUPTIBLE, STOPPED, WAKEKILL, place, set};
use crate::btf::Field;
use crate::linux::task::Task;
use crate::linux::walk::Walk;
use crate::memory::word;

/// `JOBCTL_STOPPED`.
const JOBCTL_STOPPED: u64 = 1 << 26;

/// `JOBCTL_TRAP_FREEZE`, since Linux 5.2.
const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;

/// Whether this is the state of a stopped task, and of nothing else.
pub(super) fn is_stopped(state: u32) -> bool {
    state == STOPPED | WAKEKILL
}

impl Walk<'_> {
    /// Which of `tasks` the freezer of a cgroup holds, or is about to.
    pub(super) fn are_frozen(&mut self, tasks: &[&Task]) -> Result<Vec<bool>, LinkError> {
        let Some(jobctl) = self.kernel.kill.as_ref().and_then(|layout| layout.jobctl) else {
            return Ok(vec![false; tasks.len()]);
        };
        let is_trapped = |control: Option<(_, u64)>| control.is_some_and(|(_, word)| word & JOBCTL_TRAP_FREEZE != 0);
        Ok(self.field_of(tasks, jobctl)?.into_iter().map(is_trapped).collect())
    }

    /// The edits that make sleepers of those of `tasks` that are stopped; `None` for one that is not as it was found.
    pub(super) fn unstop(&mut self, tasks: &[&Task]) -> Result<Vec<Option<Vec<Edit>>>, LinkError> {
        let state = self.kernel.task.state;
        let jobctl = self.kernel.kill.as_ref().and_then(|layout| layout.jobctl);
        let states = self.field_of(tasks, state)?;
        let controls = match jobctl {
            Some(jobctl) => self.field_of(tasks, jobctl)?,
            None => vec![None; tasks.len()],
        };
        let edits = tasks.iter().zip(states.into_iter().zip(controls)).map(|(task, (was, control))| {
            let (at, was) = was.filter(|(_, was)| *was == u64::from(STOPPED | WAKEKILL))?;
            let mut edits = vec![number(at, state, was, INTERRUPTIBLE.into(), format!("state of {}", task.pid))];
            if let Some(jobctl) = jobctl {
                let (at, was) = control?;
                edits.push(number(at, jobctl, was, was & !JOBCTL_STOPPED, format!("job control of {}", task.pid)));
            }
            Some(edits)
        });
        Ok(edits.collect())
    }

    /// Where a member of each task is, and its value; `None` where it cannot be read.
    fn field_of(&mut self, tasks: &[&Task], field: Field) -> Result<Vec<Option<(GuestPhys, u64)>>, LinkError> {
        let places: Vec<_> =
            tasks.iter().map(|task| self.kernel.phys(place(task.address, field.offset), field.size as u64)).collect();
        let found = self.memory.fetch_equal(&places, field.size)?;
        let read = |(index, at): (usize, &Option<GuestPhys>)| Some(((*at)?, word(found.bytes(index)?, 0, field.size)));
        Ok(places.iter().enumerate().map(read).collect())
    }
}

fn number(at: GuestPhys, field: Field, was: u64, now: u64, what: String) -> Edit {
    let bytes = |value: u64| value.to_le_bytes()[..field.size].to_vec();
    set(at, bytes(was), bytes(now), what)
}
