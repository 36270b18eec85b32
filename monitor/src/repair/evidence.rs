//! What a target's memory says of its processes, in the words of the healing modules.

use std::time::Instant;

use healing_modules::{Evidence, Process};
use introspect::linux::machine;
use introspect::linux::task::{Detail, Task, essentials};
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
    Ok(Findings { evidence, tasks: found.into_iter().map(|detail| detail.task).collect(), damage })
}

/// Threads joined to their processes, in the order of their ids. A process lives as long as one of its threads does;
/// its leader may have gone before.
fn processes(details: &[Detail]) -> Vec<Process> {
    let mut threads: Vec<&Detail> = details.iter().collect();
    // The leader first, if it is there.
    threads.sort_by_key(|detail| (detail.task.tgid, detail.task.pid != detail.task.tgid));
    let group = |threads: &[&Detail]| Process {
        is_exiting: threads.iter().all(|thread| thread.task.is_exiting()),
        rss_pages: threads.iter().filter_map(|thread| Some(thread.rss.as_ref()?.pages())).max(),
        swap_pages: threads.iter().filter_map(|thread| Some(thread.rss.as_ref()?.swap_entries)).max(),
        ..process(threads[0])
    };
    threads.chunk_by(|one, next| one.task.tgid == next.task.tgid).map(group).collect()
}

fn process(detail: &Detail) -> Process {
    let task = &detail.task;
    Process {
        pid: task.tgid,
        parent: task.parent,
        uid: task.uid,
        comm: task.comm.clone(),
        start_ns: task.start_time_ns,
        depth: detail.depth,
        rss_pages: detail.rss.as_ref().map(|rss| rss.pages()),
        swap_pages: detail.rss.as_ref().map(|rss| rss.swap_entries),
        is_kernel: task.is_kernel_thread(),
        is_exiting: task.is_exiting(),
    }
}
