//! All that a walk needs to know about one running kernel.

use remote_memory::{LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

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
    /// No page of RAM holds a vmcoreinfo note that leads to a kernel: not booted yet, not Linux, or no CONFIG_KEXEC_CORE.
    #[error("no kernel found: {candidates} vmcoreinfo notes in RAM, none leads to a kernel (last: {last})")]
    NoKernel {
        /// Notes looked at.
        candidates: usize,
        /// What was wrong with the last one.
        last: String,
    },
}

/// A kernel as it described itself while it was healthy: symbols, member offsets, address-space constants.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r` of the target.
    pub release: String,
}

impl Kernel {
    /// Finds the kernel in the RAM behind `ram` and reads its description of itself. `extents` are the stretches of
    /// guest-physical addresses that are RAM; nothing outside them is touched, now or later.
    ///
    /// # Errors
    /// [`DiscoverError`]
    pub fn discover(_mem: &mut dyn RemoteRead, _ram: RemoteKey, _extents: &[Extent]) -> Result<Self, DiscoverError> {
        Err(DiscoverError::NoKernel { candidates: 0, last: String::new() })
    }
}
