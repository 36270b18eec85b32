//! What was wrong with memory that a walk passed: reported beside what was found, never instead of it.

use std::fmt;

use remote_memory::KernelVirt;

/// One thing that was not as a healthy kernel would have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The kernel object concerned.
    pub at: KernelVirt,
    /// Which of its parts, in the kernel's words: `sk_write_queue`, `ehash chain`, …
    pub part: &'static str,
    /// What was wrong.
    pub fault: Fault,
}

/// The ways in which memory disappoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The address is not mapped, or lies outside the machine's RAM, or the server could not read it.
    Unreadable,
    /// A list came back to an object it had passed, or two lists share one.
    Cycle,
    /// A list, tree or number went past the limit this crate sets itself.
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// A value contradicts another one.
    Mismatch {
        /// What the other value says.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// Bytes exist but this crate cannot reach them (device memory behind a fragment).
    Unsupported,
    /// This kernel keeps it in a place or a way that this crate does not know.
    Unknown,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}: ", self.part, self.at)?;
        match self.fault {
            Fault::Unreadable => write!(f, "unreadable"),
            Fault::Cycle => write!(f, "comes back to an object already seen"),
            Fault::TooLong { limit } => write!(f, "longer than {limit}"),
            Fault::Mismatch { expected, found } => write!(f, "expected {expected:#x}, found {found:#x}"),
            Fault::Unknown => write!(f, "not known of this kernel: not checked"),
            Fault::Unsupported => write!(f, "in memory that cannot be read from outside"),
        }
    }
}
