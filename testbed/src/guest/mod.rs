//! The guest image: an initramfs that turns Debian's stock kernel into a small target machine.
//!
//! ```text
//!   busybox + init.sh      first process; starts services, answers the testbed's control port
//!   modules in load order  out of modules.dep, unpacked where the kernel ships them as .ko.xz
//!   programs of the host   stripped, with the shared libraries they are linked to
//! ```
//!
//! Nothing is installed and nothing needs root: an image is a file. It is named after the hash of what went in, so
//! an unchanged image is never built twice, and two testbeds can share the folder.

mod archive;
mod image;
mod kernel;
mod libraries;
mod modules;
mod rdma;

pub use image::{ImageSpec, Service};
pub use kernel::Kernel;

/// Name of the virtio-serial port over which the testbed commands the guest's init.
pub const CONTROL_PORT: &str = "org.backdoors.testbed";

/// What init says on [`CONTROL_PORT`] once every service has been started and reached its readiness path.
pub const READY: &str = "ready";
