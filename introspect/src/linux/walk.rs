//! What a walk through a kernel's structures carries along: the kernel, its memory, and what was wrong with it.

use remote_memory::{KernelVirt, RemoteKey, RemoteRead};

use crate::memory::Memory;
use crate::{Damage, Fault, Kernel};

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
}
