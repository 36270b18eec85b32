//! Guests that many runs begin with: booted once, saved, used so often, and booted anew. Each boot has its own places
//! for kernel and memory (KASLR), so a campaign sees many of them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};

/// A saved guest; its file goes when the last run has ended that uses it.
#[derive(Debug)]
pub(super) struct Guest {
    /// Its file.
    pub(super) file: PathBuf,
    /// Which boot of its kind, from 1.
    pub(super) boot: usize,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The boot in use and the runs that have begun with it.
type Stock = Arc<Mutex<(Option<Arc<Guest>>, usize)>>;

/// The guests of a campaign, by kernel and vCPUs.
#[derive(Debug)]
pub(super) struct Guests {
    folder: PathBuf,
    uses_max: usize,
    pool_slots: u32,
    stocks: Mutex<HashMap<(String, u32), Stock>>,
}

impl Guests {
    /// In `folder`, which goes with them; each boot serves `uses_max` runs.
    pub(super) fn new(folder: PathBuf, uses_max: usize, pool_slots: u32) -> Result<Self> {
        // What a campaign that was killed has left; its guests may be of other programs.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("{}", folder.display()))?;
        Ok(Self { folder, uses_max, pool_slots, stocks: Mutex::default() })
    }

    /// A guest for one run; boots one if there is none. `command` gives the testbed's command for that.
    pub(super) fn take(&self, kernel: &str, vcpus: u32, command: impl Fn() -> Result<Command>) -> Result<Arc<Guest>> {
        let key = (kernel.to_owned(), vcpus);
        let stock = Arc::clone(self.stocks.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        // Whoever wants the same guest waits for its boot; others do not.
        let mut stock = stock.lock().unwrap_or_else(PoisonError::into_inner);
        let (guest, uses) = &mut *stock;
        let last = guest.as_ref().map_or(0, |guest| guest.boot);
        if *uses >= self.uses_max || guest.is_none() {
            let boot = last + 1;
            let file = self.folder.join(format!("{kernel}-{vcpus}cpu-{boot}"));
            let output = command()?
                .args(["save-guest", "--kernel", kernel, "--vcpus", &vcpus.to_string()])
                .args(["--pool-slots", &self.pool_slots.to_string()])
                .arg(&file)
                .output()
                .context("starting the boot of a guest")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "no guest with Linux {kernel} and {vcpus} vCPUs: {said}");
            (*guest, *uses) = (Some(Arc::new(Guest { file, boot })), 0);
        }
        *uses += 1;
        guest.clone().context("a guest was just made")
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all::<&Path>(&self.folder);
    }
}
