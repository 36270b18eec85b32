//! What a target's memory says of its processes, in the words of the healing modules.

use std::time::Instant;

use healing_modules::{Evidence, Process};
use introspect::linux::machine;
use introspect::linux::task::{Essentials, Rss, Task, essentials};
use introspect::{Damage, Kernel};
use remote_memory::{LinkError, RemoteKey, RemoteRead};

use crate::clock::{Clock, Monotonic};

/// A look at a target.
#[derive(Debug)]
pub struct Findings {
    /// For the healing modules.
    pub evidence: Evidence,
    /// Every task, to find the places that are to be written.
    pub tasks: Vec<Task>,
    /// What was wrong in memory.
    pub damage: Vec<Damage>,
}

/// Reads a target's processes and its memory in numbers. Of a target that runs, parts may be of different moments.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn look(kernel: &Kernel, memory: &mut dyn RemoteRead, ram: RemoteKey) -> Result<Findings, LinkError> {
    look_for(kernel, memory, ram, true)
}

/// As [`look`]; what memory each process has only `with_memory`: a quarter of the look.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub(super) fn look_for(
    kernel: &Kernel,
    memory: &mut dyn RemoteRead,
    ram: RemoteKey,
    with_memory: bool,
) -> Result<Findings, LinkError> {
    let begin = Instant::now();
    let taken_ns = Monotonic.now_ns();
    let (found, mut damage) = essentials(kernel, memory, ram, with_memory)?;
    let (machine, more) = machine::summary(kernel, memory, ram)?;
    damage.extend(more);
    let evidence = Evidence {
        taken_ns,
        processes: processes(&found),
        pages_total: machine.pages_total,
        pages_free: machine.pages_free,
    };
    tracing::debug!(processes = evidence.processes.len(), took = ?begin.elapsed(), "processes read");
    Ok(Findings { evidence, tasks: found.tasks, damage })
}

/// Threads joined to their processes, in the order of their ids. A process lives as long as one of its threads does;
/// its leader may have gone before.
fn processes(found: &Essentials) -> Vec<Process> {
    let mut threads: Vec<usize> = (0..found.tasks.len()).collect();
    let task = |thread: &usize| &found.tasks[*thread];
    let rss = |thread: &usize| found.resident.get(*thread)?.as_ref();
    // The leader first, if it is there.
    threads.sort_by_key(|thread| (task(thread).tgid, task(thread).pid != task(thread).tgid));
    let group = |threads: &[usize]| {
        let first = task(&threads[0]);
        Process {
            pid: first.tgid,
            parent: first.parent,
            uid: first.uid,
            comm: first.comm.clone(),
            start_ns: first.start_time_ns,
            depth: found.depths.get(threads[0]).copied().flatten(),
            rss_pages: threads.iter().filter_map(rss).map(Rss::pages).max(),
            swap_pages: threads.iter().filter_map(rss).map(|rss| rss.swap_entries).max(),
            is_kernel: first.is_kernel_thread(),
            is_exiting: threads.iter().map(task).all(Task::is_exiting),
        }
    };
    threads.chunk_by(|one, next| task(one).tgid == task(next).tgid).map(group).collect()
}
