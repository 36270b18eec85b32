//! The process on a target's host that gives its memory to others: serves it by RDMA, guards it, and fences it.
pub mod fence;
pub mod guard;
pub mod guest_ram;
pub mod qmp;
pub mod scatter;
