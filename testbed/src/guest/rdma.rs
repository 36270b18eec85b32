//! What a guest needs for RDMA: the kernel's soft-RoCE, libibverbs with its driver of it, and perftest to compare with.
//!
//! Programs of ours load libibverbs when they want it, so `ldd` does not name it and it is added here; perftest and the
//! driver are not installed on the host but unpacked by `scripts/setup`. Which card has a device is the machine's
//! matter, see [`VmSpec::soft_roce`](crate::vm::VmSpec::soft_roce).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::ImageSpec;

/// rxe asks the kernel for `crc32` by name when a device is made, and in a guest nobody answers by loading a module.
const MODULES: [&str; 2] = ["crc32_generic", "rdma_rxe"];

/// Below the folder of the unpacked packages. The driver's version is that of the host's libibverbs.
const DRIVER: &str = "usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so";
const DRIVER_NAME: &str = "etc/libibverbs.d/rxe.driver";
const PERFTEST: [&str; 2] = ["usr/bin/ib_read_lat", "usr/bin/ib_read_bw"];

/// Makes and shows devices; Debian has it in iproute2.
const RDMA_TOOL: [&str; 2] = ["/usr/bin/rdma", "/sbin/rdma"];

impl ImageSpec {
    /// Adds soft-RoCE: modules, libibverbs, the `rdma` tool, `ib_read_lat` and `ib_read_bw`.
    ///
    /// # Errors
    /// If `scripts/setup` has not fetched a part of it.
    pub fn soft_roce(self) -> Result<Self> {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/rdma");
        let unpacked = unpacked.canonicalize().context("no perftest and no driver of soft-RoCE: run scripts/setup")?;
        let tool = RDMA_TOOL.map(PathBuf::from).into_iter().find(|path| path.is_file());
        let tool = tool.context("no `rdma` tool: run scripts/setup, or install iproute2")?;
        let mut image = MODULES.into_iter().fold(self, ImageSpec::module).program("rdma", &tool);
        // Linked with libibverbs, so it comes with them.
        for path in PERFTEST.into_iter().chain([DRIVER]) {
            image = image.unpacked(&unpacked, path);
        }
        Ok(image.file(DRIVER_NAME, 0o644, &unpacked.join(DRIVER_NAME)))
    }
}
