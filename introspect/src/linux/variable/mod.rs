//! Kernel variables as sensors: from a name to the places in memory that a sampler reads beside the Sensor Box.
//!
//! ```text
//!   runqueues.nr_switches            per CPU: one place for each processor
//!   vm_event_states.event[OOM_KILL]  an enumerator as index
//!   vm_zone_stat[NR_FREE_PAGES]      a global array, whose type is listed in `KNOWN`
//!   (unsigned long)total_forks       or stated; type information of kernels describes per-CPU variables only
//! ```
//! Resolved once, while the target is healthy: symbol table and type information are read anew, some ten megabytes, and
//! forgotten. What is left is a physical address, a width and a sign. Everything is valid until the target reboots;
//! pointers (`->`) are followed once, at that time.
//!
//! A counter that stands still need not be a hang: an idle processor without ticks counts nothing, for seconds. Who
//! watches per-CPU counters has to look whether the tick was stopped (`tick_cpu_sched.tick_stopped`; in newer kernels a
//! bit of `tick_cpu_sched.flags`) and when the processor is next due (`tick_cpu_sched.idle_expires`), or at the agent's
//! sensors, which tick when idle, too.

mod error;
mod expression;
mod find;
#[cfg(test)]
mod tests;

use remote_memory::{GuestPhys, LinkError, RemoteKey, RemoteRead};

pub use error::VariableError;
use expression::Expression;
use find::Finder;

use crate::Kernel;
use crate::linux::walk::Walk;
use crate::memory::word;

/// Variables that are resolved at a time.
const VARIABLES_MAX: usize = 1024;

/// A number in the kernel's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variable {
    /// As it was asked for.
    pub text: String,
    /// Where it is; one place for each processor if it is per-CPU.
    pub places: Vec<Place>,
    /// How many bytes to read at each place, at most 8.
    pub bytes: u8,
    /// Whether it can be below zero.
    pub signed: bool,
    /// Of a bit field: its first bit and how many.
    pub bits: Option<(u8, u8)>,
    /// Whether pointers were followed on the way: then the place is that of an object that may end before the kernel.
    pub followed: bool,
}

/// One place of a variable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Of a per-CPU variable, whose.
    pub cpu: Option<u32>,
    /// Where to read.
    pub at: GuestPhys,
}

impl Variable {
    /// The number in the bytes that were read at one of its places.
    pub fn value(&self, read: &[u8]) -> i128 {
        let raw = word(read, 0, self.bytes.min(8).into());
        let (raw, width) = match self.bits {
            Some((first, count)) if count < 64 => (raw >> first.min(63) & ((1 << count) - 1), u32::from(count)),
            _ => (raw, u32::from(self.bytes) * 8),
        };
        if self.signed && (1..64).contains(&width) {
            return i128::from((raw << (64 - width)).cast_signed() >> (64 - width));
        }
        if self.signed { raw.cast_signed().into() } else { raw.into() }
    }
}

/// Whether `text` can be read as a variable, in any kernel.
///
/// # Errors
/// [`VariableError::Syntax`].
pub fn check(text: &str) -> Result<(), VariableError> {
    Expression::parse(text).map(drop)
}

/// Finds each of `texts` in the target, while it is healthy.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed; what is wrong with one variable is its own result.
pub fn resolve(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    texts: &[&str],
) -> Result<Vec<Result<Variable, VariableError>>, LinkError> {
    if texts.len() > VARIABLES_MAX {
        return Ok(vec![Err(VariableError::TooMany { limit: VARIABLES_MAX }); texts.len()]);
    }
    let mut walk = Walk::new(kernel, mem, ram);
    match Finder::read(&mut walk, texts)? {
        Ok(finder) => finder.find(&mut walk),
        Err(wrong) => Ok(vec![Err(VariableError::NoDescription { why: wrong }); texts.len()]),
    }
}
