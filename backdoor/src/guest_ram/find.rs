//! From a QMP socket to the file that holds the machine's memory.
//!
//! QEMU says which backend its memory has and how large it is; the process at the other end of the socket has the file
//! open. Nothing but the path of the socket needs to be configured.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::layout::{Machine, stated};
use crate::qmp::{Qmp, QmpError};
use crate::scatter::Scatter;

/// How `/proc/PID/fd` shows the file of a `memory-backend-memfd`.
const MEMFD_LINK: &str = "/memfd:memory-backend-memfd";

/// Why a machine's memory cannot be served: how it was started, as a rule.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// QEMU did not answer a question about its memory.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The memory is private to QEMU.
    #[error(
        "the machine's memory is not shared: start QEMU with \
         -object memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem"
    )]
    NotShared,
    /// The process behind the socket is not known.
    #[error("cannot tell which process QEMU is; name its pid file in the configuration")]
    NoProcess,
    /// The process does not have the file open, or more than one that fits.
    #[error("process {pid} has {found} open files that can be its memory of {ram_bytes} bytes; name the file")]
    NotOneFile {
        /// QEMU.
        pid: i32,
        /// Candidates.
        found: usize,
        /// Size of the memory.
        ram_bytes: u64,
    },
    /// A file or directory could not be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is shorter than the memory.
    #[error("{path} has {len} bytes, the machine's memory {ram_bytes}")]
    Short {
        /// Which.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// Size of the memory.
        ram_bytes: u64,
    },
    /// Neither does the machine say where its memory lies nor is there a rule for it.
    #[error("the memory map of a {0} is not known: only q35 and i440fx machines are")]
    UnknownMachine(String),
}

/// A machine's memory, found.
#[derive(Debug)]
pub struct Found {
    /// The file, open for reading and writing.
    pub file: File,
    /// Device and inode of the file: the same machine has the same.
    pub identity: (u64, u64),
    /// What lies where in it.
    pub layout: Scatter,
    /// QEMU.
    pub process: Process,
}

/// Finds the memory of the machine behind `qmp`. `path` overrides the search for the file, `pid` the question who
/// QEMU is.
///
/// # Errors
/// See [`FindError`].
pub fn find(qmp: &mut Qmp, path: Option<&Path>, pid: Option<i32>) -> Result<Found, FindError> {
    let process = pid.or_else(|| qmp.peer_pid()).and_then(Process::of).ok_or(FindError::NoProcess)?;
    let backend = property(qmp, "/machine", "memory-backend")?;
    let backend = backend.as_str().filter(|path| !path.is_empty()).ok_or(FindError::NotShared)?.to_owned();
    if property(qmp, &backend, "share")? != json!(true) {
        return Err(FindError::NotShared);
    }
    let ram_bytes = property(qmp, &backend, "size")?.as_u64().unwrap_or(0);
    let path = match path {
        Some(path) => path.to_owned(),
        None => {
            // Only the file backend has this property; it may also be a directory in which QEMU made a nameless file.
            let mem_path = property(qmp, &backend, "mem-path").ok();
            let link = mem_path.as_ref().and_then(Value::as_str).unwrap_or(MEMFD_LINK);
            open_file_of(&process, link, ram_bytes)?
        }
    };
    let broken = |source| FindError::File { path: path.clone(), source };
    let file = File::options().read(true).write(true).open(&path).map_err(broken)?;
    let about = file.metadata().map_err(broken)?;
    if about.len() < ram_bytes {
        return Err(FindError::Short { path, len: about.len(), ram_bytes });
    }
    let layout = layout_of(qmp, &backend, ram_bytes)?;
    Ok(Found { file, identity: (about.dev(), about.ino()), layout, process })
}

fn property(qmp: &mut Qmp, path: &str, name: &str) -> Result<Value, QmpError> {
    qmp.execute("qom-get", json!({ "path": path, "property": name }))
}

/// The one open file of `process` that shows as `link` and has the size of the memory.
fn open_file_of(process: &Process, link: &str, ram_bytes: u64) -> Result<PathBuf, FindError> {
    let folder = PathBuf::from(format!("/proc/{}/fd", process.pid));
    let entries = fs::read_dir(&folder).map_err(|source| FindError::File { path: folder, source })?;
    let mut found: Vec<((u64, u64), PathBuf)> = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let fits = fs::read_link(&path).is_ok_and(|shown| shown.to_string_lossy().starts_with(link));
        let Ok(about) = fs::metadata(&path) else { continue };
        let identity = (about.dev(), about.ino());
        if fits && about.is_file() && about.len() == ram_bytes && found.iter().all(|(known, _)| *known != identity) {
            found.push((identity, path));
        }
    }
    match found.pop() {
        Some((_, path)) if found.is_empty() => Ok(path),
        more => {
            let found = found.len() + usize::from(more.is_some());
            Err(FindError::NotOneFile { pid: process.pid, found, ram_bytes })
        }
    }
}

fn layout_of(qmp: &mut Qmp, backend: &str, ram_bytes: u64) -> Result<Scatter, FindError> {
    let id = backend.rsplit('/').next().unwrap_or(backend);
    if let Some(layout) = stated(&qmp.human("info mtree")?, id, ram_bytes) {
        return Ok(layout);
    }
    let kind = property(qmp, "/machine", "type")?;
    let kind = kind.as_str().unwrap_or("nameless machine");
    tracing::warn!(machine = kind, "`info mtree` does not say where the memory lies; QEMU's rule is used");
    let layout = Machine::named(kind).and_then(|machine| machine.layout(ram_bytes));
    layout.ok_or_else(|| FindError::UnknownMachine(kind.to_owned()))
}

/// A process, by number and start: the number alone is given again after its death.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The process that has the number `pid` now, if it lives.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the fields are counted from its end. See proc(5).
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(Self { pid, started })
    }

    /// Whether it has ended: its processors cannot run any more.
    pub fn is_gone(&self) -> bool {
        Self::of(self.pid) != Some(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(!process.is_gone());
        assert!(Process { started: process.started + 1, ..process }.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.is_gone());
    }
}
