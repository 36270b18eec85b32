//! Target machines: a QEMU process, its monitor protocol and the command line of the guest's init.
//!
//! ```text
//!            RAM (memfd, shared)      ◄── backdoor maps Vm::ram_path()
//!            virtio-serial agent      ◄── backdoor connects to Vm::agent_socket()
//!   QEMU ──  QMP, two sockets         ◄── backdoor: Vm::backdoor_qmp_socket(); testbed: Vm::qmp()
//!            virtio-serial testbed    ◄── Vm::run(), Vm::inject()
//!            ttyS0                    ──► Vm::console_path()
//! ```
//!
//! Invariants: the process ends with its [`Vm`], also when the testbed itself is killed; its folder goes with it.
//! Nothing here needs root: without a tap device of the caller's there is no network.

mod boot;
mod control;
mod gdb;
mod process;
mod qmp;
mod running;
mod spec;

pub use control::Output;
pub use gdb::{Gdb, Registers};
pub use qmp::Qmp;
pub use running::Vm;
pub use spec::{Accel, Card, MAC, Ram, SWAP_DRIVER, Share, Tap, VmSpec};

/// Name of the network back end in QEMU: what `set_link` takes.
pub const NETDEV: &str = "net0";
