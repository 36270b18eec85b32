//! The agent: the one process that a target machine runs for its own healing.
//!
//! ```text
//!   pins      ── bpffs ──►  maps `sb`, `cb`   kernel memory that outlives the agent
//!   census    ── sb ──►     which sensors this machine has, and their limits
//!   ebpf      ── links ──►  programs that move them inside the kernel
//!   contbox::service ──►    hands boxes of `cb` to applications
//!   sweep     ── iter ──►   ends those that an order of the kill table names and that never run
//!   registration ── virtio-serial ──► backdoor: the physical pages of sb, cb and the kill table; in a virtual machine
//!   nic       ── libibverbs ──►  RDMA adapter: the same regions, served by this machine itself; on bare metal
//! ```
//!
//! The agent is needed to set things up and for nothing after: sensors move, boxes fill and the backdoor reads when
//! the agent is dead. A restarted or upgraded agent finds maps and programs by their pins, keeps every box and every
//! sensor, and registers again.
//!
//! What it does not do: judge. In a virtual machine it has no address, unless it is asked to show `metrics`.

pub mod census;
pub mod ebpf;
pub mod maps;
pub mod metrics;
pub mod nic;
pub mod pages;
pub mod pins;
pub mod port;
pub mod records;
pub mod registration;
pub mod shared;
pub mod sweep;

use std::fs::File;
use std::io::{self, Read};

/// A number that nobody can guess.
///
/// # Errors
/// The kernel gives none.
pub fn random_number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
