//! Which of several kernels in one memory lives: what a reset has left of earlier ones is as whole as the one that
//! runs.
//!
//! Time tells them apart, and also of a machine that stands still: the clock of a dead kernel stopped when it was
//! reset, and that of its successor was set to a later time. A clock is one only if it agrees with itself: of what the
//! next kernel has written over, hardly anything does.
//!
//! ```text
//!   tk_core.timekeeper   xtime_sec + wall_to_monotonic.tv_sec  =  ktime_sec, or one less
//! ```

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use crate::btf::{Btf, Field};
use crate::memory::{Memory, word};
use crate::{DiscoverError, Extent, Kernel};

/// Kernels that are told apart: each reset leaves one, and memory is used again.
const LIVES_MAX: usize = 8;

/// How often a clock is looked at that does not agree with itself: it goes on between the reads of one look.
const LOOKS: usize = 3;

/// A machine that has been up longer says something else.
const UPTIME_MAX_S: u64 = 100 * 366 * 24 * 3600;

/// Where a kernel keeps its wall clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ClockLayout {
    wall_s: Field,
    to_monotonic_s: Field,
    monotonic_s: Field,
}

impl ClockLayout {
    /// From the symbol `tk_core`. `None` if it is kept otherwise.
    pub(crate) fn resolve(btf: &Btf) -> Option<Self> {
        // A struct with a name since Linux 6.13; before, a lock and then the clock.
        let named = btf.field_at("tk_data.timekeeper.xtime_sec").map(|field| field.offset);
        let wall = btf.field_at("timekeeper.xtime_sec").ok()?;
        let start = match named {
            Ok(at) => at.checked_sub(wall.offset)?,
            Err(_) => btf.size("seqcount_raw_spinlock").ok()?.next_multiple_of(8),
        };
        let at = |path: &str| {
            let field = btf.field_at(path).ok().filter(|field| field.size == 8)?;
            Some(Field { offset: start + field.offset, ..field })
        };
        Some(Self {
            wall_s: at("timekeeper.xtime_sec")?,
            to_monotonic_s: at("timekeeper.wall_to_monotonic.tv_sec")?,
            monotonic_s: at("timekeeper.ktime_sec")?,
        })
    }
}

impl Kernel {
    /// Seconds since 1970 by the clock of this kernel; `None` if it has none that agrees with itself.
    ///
    /// # Errors
    /// [`LinkError`] if the path to the memory failed.
    pub fn wall_clock_s(&self, mem: &mut dyn RemoteRead, ram: RemoteKey) -> Result<Option<u64>, LinkError> {
        let (Some(layout), Some(core)) = (&self.clock, self.symbol("tk_core")) else { return Ok(None) };
        let mut memory = Memory::new(mem, ram, &self.space.extents);
        let fields = [layout.wall_s, layout.to_monotonic_s, layout.monotonic_s];
        let at = fields.map(|field| KernelVirt::new(core.raw().wrapping_add(field.offset as u64)));
        for _ in 0..LOOKS {
            let found = self.space.fetch_equal(&mut memory, &at, 8)?;
            let [Some(wall), Some(to_monotonic), Some(monotonic)] =
                [0, 1, 2].map(|index| found.bytes(index).map(|bytes| word(bytes, 0, 8)))
            else {
                return Ok(None);
            };
            // Nanoseconds may carry.
            let carry = monotonic.wrapping_sub(wall.wrapping_add(to_monotonic));
            if wall > 0 && carry <= 1 && monotonic < UPTIME_MAX_S {
                return Ok(Some(wall));
            }
        }
        Ok(None)
    }

    /// [`Kernel::discover`] of the kernel that lives, in a machine that was reset: of those that memory holds, the one
    /// with the latest clock. Reads forty bytes of each page of all of its memory.
    ///
    /// A kernel that has not set its clock yet is passed over for one that is dead: ask again when it has.
    ///
    /// # Errors
    /// [`DiscoverError`]
    pub fn discover_living(
        mem: &mut dyn RemoteRead,
        ram: RemoteKey,
        extents: &[Extent],
    ) -> Result<Self, DiscoverError> {
        let mut lives = vec![Self::discover(mem, ram, extents)?];
        while lives.len() < LIVES_MAX {
            match Self::discover_other_than(mem, ram, extents, &lives) {
                Ok(kernel) => lives.push(kernel),
                Err(DiscoverError::NoKernel { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        let mut latest = (None, 0);
        for (index, kernel) in lives.iter().enumerate() {
            let clock = kernel.wall_clock_s(mem, ram)?;
            if clock > latest.0 {
                latest = (clock, index);
            }
        }
        Ok(lives.swap_remove(latest.1))
    }
}
