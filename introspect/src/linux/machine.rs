//! The machine as a whole: what each processor was at, and how much memory was free.
//!
//! ```text
//!   __per_cpu_offset[cpu] + current_task -> task_struct       (from 6.2 on a member of pcpu_hot)
//!   _totalram_pages, vm_zone_stat[NR_FREE_PAGES]              counters of the whole machine
//! ```

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::walk::Walk;
use crate::memory::word;
use crate::{Damage, Fault, Kernel};

/// `NR_FREE_PAGES` is the first of the zone counters in every version.
const FREE_PAGES: u64 = 0;

/// A machine's state in a few numbers; `None` where memory does not tell.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Pages of 4 KiB that the kernel manages.
    pub pages_total: Option<u64>,
    /// Pages that were free.
    pub pages_free: Option<u64>,
    /// What each processor was at.
    pub current: Vec<Current>,
}

/// A processor and the task it was at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Current {
    /// The processor.
    pub cpu: u32,
    /// Thread id; 0 for an idle task.
    pub pid: u32,
    /// Command name.
    pub comm: String,
}

/// Reads the summary.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn summary(kernel: &Kernel, mem: &mut dyn RemoteRead, ram: RemoteKey) -> Result<(Summary, Vec<Damage>), LinkError> {
    let mut walk = Walk::new(kernel, mem, ram);
    let pages_total = walk.number("_totalram_pages", 0, 8)?;
    let pages_free = walk.number("vm_zone_stat", FREE_PAGES * 8, 8)?;
    let current = walk.current()?;
    Ok((Summary { pages_total, pages_free, current }, walk.damage))
}

impl Walk<'_> {
    fn current(&mut self) -> Result<Vec<Current>, LinkError> {
        let hot = self.kernel.symbol("pcpu_hot").zip(self.kernel.hot_task).map(|(at, field)| (at, field.offset));
        let Some((current, offset)) = hot.or(self.kernel.symbol("current_task").map(|at| (at, 0))) else {
            self.report(0, "current_task", Fault::Unsupported);
            return Ok(Vec::new());
        };
        let bases = self.cpu_bases()?;
        let space = &self.kernel.space;
        let of = |base: u64| KernelVirt::new(base.wrapping_add(current.raw()).wrapping_add(offset as u64));
        let at: Vec<_> = bases.iter().map(|(_, base)| of(*base)).collect();
        let pointers = space.fetch_equal(&mut self.memory, &at, 8)?;
        let tasks: Vec<u64> = pointers.iter().map(|bytes| bytes.map_or(0, |bytes| word(bytes, 0, 8))).collect();
        let (pid, comm) = (self.kernel.task.pid, self.kernel.task.comm);
        let at = |offset: usize| -> Vec<_> {
            tasks.iter().map(|task| KernelVirt::new(task.wrapping_add(offset as u64))).collect()
        };
        let pids = space.fetch_equal(&mut self.memory, &at(pid.offset), pid.size)?;
        let comms = space.fetch_equal(&mut self.memory, &at(comm.offset), comm.size)?;
        let mut found = Vec::with_capacity(bases.len());
        for (index, (cpu, base)) in bases.into_iter().enumerate() {
            match (pids.bytes(index), comms.bytes(index)) {
                (Some(id), Some(name)) => {
                    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                    let comm = String::from_utf8_lossy(&name[..end]).into_owned();
                    found.push(Current { cpu, pid: word(id, 0, pid.size) as u32, comm });
                }
                _ => self.report(base, "current_task", Fault::Unreadable),
            }
        }
        Ok(found)
    }
}
