//! Builds the lock-up module against a guest kernel's headers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::guest::Kernel;

const SOURCE: &str = include_str!("../../modules/lockup/lockup.c");
const KBUILD: &str = include_str!("../../modules/lockup/Kbuild");

/// Builds the module for `kernel`, or finds it built, and returns its path beside the kernel.
///
/// # Errors
/// When the kernel's headers or a compiler are missing, or the compiler refuses; quotes it.
pub fn build(kernel: &Kernel) -> Result<PathBuf> {
    let beside = kernel.vmlinuz.parent().context("a kernel lies in a folder")?.canonicalize()?;
    let folder = beside.join("testmodules");
    let module = folder.join("lockup.ko");
    let built_from = folder.join("lockup.c");
    if module.is_file() && fs::read_to_string(&built_from).is_ok_and(|source| source == SOURCE) {
        return Ok(module);
    }
    // Built aside and renamed, so that another run never sees half a module. A random name: in a sandbox every
    // testbed is process 1.
    let aside = beside.join(format!("testmodules.{:08x}", rand::random::<u32>()));
    fs::create_dir_all(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
    fs::write(aside.join("lockup.c"), SOURCE)?;
    fs::write(aside.join("Kbuild"), KBUILD)?;
    let result = make(&kernel.headers, &aside);
    if result.is_ok() {
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&aside, &folder).context("naming the built module")?;
    } else {
        let _ = fs::remove_dir_all(&aside);
    }
    result.map(|()| module)
}

fn make(headers: &Path, folder: &Path) -> Result<()> {
    let output = Command::new("make")
        .arg("-C")
        .arg(headers)
        .arg(format!("M={}", folder.display()))
        // The module's own type information would need pahole, and nobody asks for it.
        .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
        .arg("modules")
        .output()
        .context("make is missing: run scripts/setup")?;
    if !output.status.success() {
        bail!(
            "the lock-up module does not build against {}:\n{}",
            headers.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
