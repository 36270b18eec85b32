//! The ways in which a guest is broken. Each is real: the guest's kernel stops for good, by its own doing or from
//! outside.

mod lockup;

use anyhow::Result;
use serde::Serialize;

pub use lockup::build as build_lockup_module;

use crate::vm::Vm;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The kernel panics (sysrq c) and stays in panic.
    Panic,
    /// The virtual CPUs are stopped from outside, between any two instructions.
    Stop,
    /// One CPU spins in the kernel with preemption off; interrupts still come.
    Softlock,
    /// Every CPU spins in the kernel with interrupts off.
    Hardlock,
}

impl Fault {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Stop => "stop",
            Self::Softlock => "softlock",
            Self::Hardlock => "hardlock",
        }
    }

    /// Whether the guest image needs the lock-up module.
    pub fn needs_module(self) -> bool {
        matches!(self, Self::Softlock | Self::Hardlock)
    }

    /// Breaks the guest. Returns when the order is out: how soon the guest is gone is the fault's own affair.
    ///
    /// # Errors
    /// When the guest cannot be reached.
    pub fn inject(self, vm: &mut Vm) -> Result<()> {
        match self {
            Self::Panic => vm.panic(),
            Self::Stop => vm.qmp().stop(),
            Self::Softlock => vm.inject_module("lockup.ko", "mode=soft all=1"),
            Self::Hardlock => vm.inject_module("lockup.ko", "mode=hard"),
        }
    }
}
