//! All that a walk needs to know about one running kernel.

use std::collections::BTreeMap;

use remote_memory::{GuestPhys, KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use crate::btf::Field;
use crate::linux::channel::ChannelLayout;
use crate::linux::contain::ContainLayout;
use crate::linux::kill::KillLayout;
use crate::linux::log::LogLayout;
use crate::linux::task::{DetailLayouts, TaskLayout};
use crate::linux::tcp::{EndsHash, TcpLayout, TcpTable};
use crate::linux::ucounts;
use crate::living::ClockLayout;
use crate::memory::Memory;
use crate::paging::Space;
use crate::sources::Sources;

/// A stretch of guest-physical memory that is RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// First byte, guest-physical.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Why a kernel's description of itself could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The path to the memory failed; says nothing about the target. Try again over a new link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No page of RAM holds a vmcoreinfo note that leads to a kernel: the target has not booted yet, is not Linux 6.0
    /// or newer on x86-64, or was built without CONFIG_KEXEC_CORE, CONFIG_KALLSYMS_ALL or CONFIG_DEBUG_INFO_BTF. Try
    /// again when it has booted.
    #[error("{}", no_kernel(*candidates, last))]
    NoKernel {
        /// Notes looked at.
        candidates: usize,
        /// What was wrong with the last one.
        last: String,
    },
}

/// For an operator: whose fault it is, and what is to be done.
fn no_kernel(candidates: usize, last: &str) -> String {
    match candidates {
        0 => "no kernel found in the target's memory: it has not booted yet, or what runs there is not \
              Linux 6.0 or newer for x86-64 with CONFIG_KEXEC_CORE. Try again when it has booted"
            .to_owned(),
        _ => format!(
            "the target's kernel cannot be read: {last} (of {candidates} kernels' notes in its memory, the last one). \
             Until that is different, its sensors are watched, but none of its sessions can be taken over"
        ),
    }
}

/// A kernel as it described itself while it was healthy: symbols, member offsets, address-space constants. Small,
/// and valid until the target reboots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r` of the target.
    pub release: String,
    pub(crate) space: Space,
    pub(crate) symbols: BTreeMap<String, u64>,
    pub(crate) task: TaskLayout,
    pub(crate) tcp: TcpLayout,
    pub(crate) tcp_tables: Vec<TcpTable>,
    /// Absent in kernels that hash the ends of connections with something else.
    #[serde(default)]
    pub(crate) ends: Option<EndsHash>,
    /// Absent before 5.10, which has another log, and in descriptions that were saved before this was read.
    #[serde(default)]
    pub(crate) log: Option<LogLayout>,
    /// Absent where timers are kept in another way, and in descriptions that were saved before this was read.
    #[serde(default)]
    pub(crate) kill: Option<KillLayout>,
    /// Absent in descriptions that were saved before this was read.
    #[serde(default)]
    pub(crate) contain: Option<ContainLayout>,
    /// The same holds for the wall clock.
    #[serde(default)]
    pub(crate) clock: Option<ClockLayout>,
    /// Number of the bit of `page.flags` that marks a page that is nobody's.
    #[serde(default)]
    pub(crate) reserved_bit: Option<u8>,
    /// Where `pcpu_hot` has the running task; kernels before 6.2 have a variable of its own for it.
    #[serde(default)]
    pub(crate) hot_task: Option<Field>,
    /// What tasks have; absent in kernels that keep it otherwise, and in descriptions saved before this was read.
    #[serde(default)]
    pub(crate) details: Option<DetailLayouts>,
    /// The same holds for what users have.
    #[serde(default)]
    pub(crate) ucounts: Option<ucounts::Layout>,
    /// And for what waits between processes.
    #[serde(default)]
    pub(crate) channels: Option<ChannelLayout>,
    /// Where the kernel describes itself, for what is asked later.
    #[serde(default)]
    pub(crate) sources: Option<Sources>,
}

impl Kernel {
    /// Finds the kernel in the RAM behind `ram` and reads its description of itself. `extents` are the stretches of
    /// guest-physical addresses that are RAM; nothing outside them is touched, now or later. Costs 40 bytes of
    /// each page that is looked at until the kernel's note is found, some ten thousand pages whatever the memory's
    /// size, and then some ten megabytes.
    ///
    /// # Errors
    /// [`DiscoverError`]
    pub fn discover(mem: &mut dyn RemoteRead, ram: RemoteKey, extents: &[Extent]) -> Result<Self, DiscoverError> {
        Self::discover_other_than(mem, ram, extents, &[])
    }

    /// [`Kernel::discover`] of a kernel that is none of `others`: of a machine that was reset, memory may hold what is
    /// left of its earlier lives, since each has another place. Only time tells which of them lives.
    ///
    /// # Errors
    /// [`DiscoverError`]
    pub fn discover_other_than(
        mem: &mut dyn RemoteRead,
        ram: RemoteKey,
        extents: &[Extent],
        others: &[Self],
    ) -> Result<Self, DiscoverError> {
        crate::discover::discover(&mut Memory::new(mem, ram, extents), extents, others)
    }

    /// Page-table levels of the target: 4 or 5.
    pub fn paging_levels(&self) -> u8 {
        self.space.levels
    }

    /// The address of a symbol this crate looked up, see `SYMBOLS` in `discover`.
    pub fn symbol(&self, name: &str) -> Option<KernelVirt> {
        self.symbols.get(name).copied().map(KernelVirt::new)
    }

    /// The place of `len` bytes of kernel memory, if they lie in the image, the direct map (where all slab objects are)
    /// or on a page walked at discovery.
    pub fn phys(&self, virt: KernelVirt, len: u64) -> Option<GuestPhys> {
        self.space.known(virt, len)
    }

    /// Where the signals pending for `task` alone are kept: a 64-bit set, signal n is bit n - 1.
    pub fn pending_signals_of(&self, task: KernelVirt) -> Option<GuestPhys> {
        self.phys(task.checked_add(self.task.pending.offset as u64)?, 8)
    }

    /// Where `task`'s `thread_info.flags` are: a 64-bit set in which TIF_SIGPENDING is bit 2.
    pub fn thread_flags_of(&self, task: KernelVirt) -> Option<GuestPhys> {
        self.phys(task.checked_add(self.task.thread_flags.offset as u64)?, 8)
    }
}
