//! What a walk through a kernel's structures carries along: the kernel, its memory, and what was wrong with it.

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};

use crate::memory::{Memory, word};
use crate::{Damage, Fault, Kernel};

/// `CONFIG_NR_CPUS` of the largest kernels.
const CPUS_MAX: u64 = 8192;

pub(super) struct Walk<'a> {
    pub kernel: &'a Kernel,
    pub memory: Memory<'a>,
    pub damage: Vec<Damage>,
}

impl<'a> Walk<'a> {
    pub fn new(kernel: &'a Kernel, mem: &'a mut dyn RemoteRead, ram: RemoteKey) -> Self {
        Self { kernel, memory: Memory::new(mem, ram, &kernel.space.extents), damage: Vec::new() }
    }

    pub fn report(&mut self, at: u64, part: &'static str, fault: Fault) {
        self.damage.push(Damage { at: KernelVirt::new(at), part, fault });
    }

    /// The number behind a symbol.
    pub fn number(&mut self, symbol: &'static str, offset: u64, size: usize) -> Result<Option<u64>, LinkError> {
        let Some(at) = self.kernel.symbol(symbol).and_then(|at| at.checked_add(offset)) else { return Ok(None) };
        let bytes = self.kernel.space.fetch(&mut self.memory, at, size)?;
        if bytes.is_none() {
            self.report(at.raw(), symbol, Fault::Unreadable);
        }
        Ok(bytes.map(|bytes| word(&bytes, 0, size)))
    }

    /// Every processor that is there, with what is added to the address of a variable for its own copy.
    pub fn processors(&mut self) -> Result<Vec<(u32, u64)>, LinkError> {
        let Some(offsets) = self.kernel.symbol("__per_cpu_offset") else { return Ok(Vec::new()) };
        let cpus = self.number("nr_cpu_ids", 0, 4)?.unwrap_or(0);
        if cpus > CPUS_MAX {
            self.report(offsets.raw(), "nr_cpu_ids", Fault::TooLong { limit: CPUS_MAX });
            return Ok(Vec::new());
        }
        let at: Vec<_> = (0..cpus).map(|cpu| KernelVirt::new(offsets.raw().wrapping_add(cpu * 8))).collect();
        let bases = self.kernel.space.fetch_equal(&mut self.memory, &at, 8)?;
        // A processor without a base of its own was never there.
        let present =
            |(cpu, base): (usize, Option<&[u8]>)| Some((cpu as u32, word(base?, 0, 8))).filter(|it| it.1 != 0);
        Ok(bases.iter().enumerate().filter_map(present).collect())
    }
}
