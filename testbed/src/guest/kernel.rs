//! Where a guest kernel lies on this machine, as `scripts/setup` left it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Overrides the folder that holds one folder for each kernel line.
const KERNELS_VARIABLE: &str = "BACKDOORS_KERNELS";

/// A kernel that guests can boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The compressed kernel image that QEMU loads.
    pub vmlinuz: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The content of `/lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// The tree that out-of-tree modules are built against.
    pub headers: PathBuf,
}

impl Kernel {
    /// The kernel of a line (`6.1`, `6.12`, `6.1-rt`) below the repository's cache, or below `BACKDOORS_KERNELS`.
    ///
    /// # Errors
    /// If `scripts/setup` has not fetched it.
    pub fn cached(line: &str) -> Result<Self> {
        Self::at(&cache().join(line))
    }

    /// The lines that have been fetched, sorted.
    ///
    /// # Errors
    /// If the folder of kernels cannot be read.
    pub fn lines() -> Result<Vec<String>> {
        let place = cache();
        let entries = fs::read_dir(&place)
            .with_context(|| format!("no guest kernels in {}: run scripts/setup", place.display()))?;
        let mut lines: Vec<String> = entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.path().join("vmlinuz").is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        lines.sort();
        Ok(lines)
    }

    /// The kernel that lies in `place`.
    ///
    /// # Errors
    /// If one of its parts is missing.
    pub fn at(place: &Path) -> Result<Self> {
        let release = fs::read_to_string(place.join("release"))
            .with_context(|| format!("no guest kernel in {}: run scripts/setup", place.display()))?;
        let kernel = Self {
            vmlinuz: place.join("vmlinuz"),
            release: release.trim().to_owned(),
            modules: place.join("modules"),
            headers: place.join("headers/build"),
        };
        ensure!(
            kernel.vmlinuz.is_file() && kernel.modules.join("modules.dep").is_file(),
            "the guest kernel in {} is incomplete: remove the folder and run scripts/setup",
            place.display()
        );
        Ok(kernel)
    }
}

fn cache() -> PathBuf {
    match std::env::var_os(KERNELS_VARIABLE) {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels"),
    }
}
