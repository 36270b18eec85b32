//! The folder in bpffs where maps and programs wait for the next agent.
//!
//! ```text
//!   PIN_DIR/sb               Sensor Box
//!   PIN_DIR/cb               pool of Continuation Boxes
//!   PIN_DIR/programs-HASH/   links of one build of the eBPF programs
//!   PIN_DIR/programs-HASH/whole/   made last: all links are there
//!   PIN_DIR/tcp              table of TCP connections
//!   PIN_DIR/tcp_socks        what mirrored sockets bear
//!   PIN_DIR/mirror-HASH/     links of one build of the programs that mirror
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where bpffs is mounted if the pin folder is in none.
const BPFFS: &str = "/sys/fs/bpf";

/// Sets of programs, each with builds of its own: sensors and hooks.
pub const PROGRAMS: &str = "programs-";
/// The mirror of connections.
pub const MIRROR: &str = "mirror-";
const WHOLE: &str = "whole";

/// The pin folder, inside a mounted bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Makes `folder`, and mounts bpffs at its usual place if that is where it belongs and nothing is mounted.
    ///
    /// # Errors
    /// If it does not lie in a bpffs in the end.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .with_context(|| format!("cannot mount bpffs at {BPFFS}"))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make the pin folder {}", folder.display()))?;
        ensure!(is_bpffs(folder), "{} is not in a bpffs: choose --pin-dir below {BPFFS}", folder.display());
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where a map of this name is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where the links of the programs of a set with this hash are pinned.
    pub fn programs(&self, set: &str, hash: u64) -> PathBuf {
        self.folder.join(format!("{set}{hash:016x}"))
    }

    /// Whether every link was pinned in `programs`.
    pub fn is_whole(programs: &Path) -> bool {
        programs.join(WHOLE).is_dir()
    }

    /// Says that every link was pinned in `programs`.
    ///
    /// # Errors
    /// Those of making a folder.
    pub fn mark_whole(programs: &Path) -> io::Result<()> {
        fs::create_dir(programs.join(WHOLE))
    }

    /// Unpins, and so detaches, the links of every build of a set but the one in `keep`.
    ///
    /// # Errors
    /// If a pin cannot be removed: two builds would then count twice.
    pub fn remove_programs_except(&self, set: &str, keep: Option<&Path>) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let programs = entry.file_name().to_string_lossy().starts_with(set);
            if programs && keep != Some(&entry.path()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
