//! What waits between two processes: the bytes in pipes and Unix stream sockets that somebody wrote and nobody has
//! read yet, found by a process and the number of one of its descriptors.
//!
//! ```text
//!   task_struct.files ─► files_struct.fdt ─► fdtable.fd[n] ─► file ─► inode: a pipe or a socket?
//!      pipe     file.private_data ─► pipe_inode_info: bufs[tail .. head] ─► pages            (pipe.rs)
//!      socket   file.private_data ─► socket ─► sock ─► sk_receive_queue: skbs ─► payload     (unix.rs)
//! ```
//! A pipe is found by either end; of a socket pair each end has the bytes that wait for it. Bytes come as the kernel
//! keeps them, chunk by chunk: a slot of a pipe, a buffer of a socket. The kernel counts no bytes that went through,
//! as TCP does, so that where a chunk lies in its stream is for the chunk itself to say (`contbox::channel`).
//!
//! All descriptors take each step together. Who asked knows which inode he means: the number found is told.

mod pipe;
mod unix;

use std::collections::BTreeMap;

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::task::Task;
use super::walk::{Walk, distinct};
use crate::btf::{Btf, Field, layout};
use crate::{Damage, Fault, Kernel};

/// No process has more descriptors (`fs.nr_open` of common kernels).
const FD_MAX: u64 = 1 << 20;

/// Descriptors of one walk: bounds our memory together with [`QUEUE_BYTES_MAX`].
const WANTED_MAX: usize = 64 * 1024;

/// What one pipe or socket can hold: `fs.pipe-max-size` is a megabyte, and so is the largest send buffer of a socket
/// in common configurations; four are beyond both.
const QUEUE_BYTES_MAX: u64 = 4 << 20;

/// What all of a walk can hold: further chunks are reported missing.
const BYTES_MAX: u64 = 1 << 30;

const S_IFMT: u64 = 0o170_000;
const S_IFIFO: u64 = 0o010_000;
const S_IFSOCK: u64 = 0o140_000;

layout! {
    /// From a task to what one of its descriptors stands for.
    pub(crate) struct FileLayout {
        files: "task_struct.files",
        table: "files_struct.fdt",
        fds_max: "fdtable.max_fds",
        fds: "fdtable.fd",
        inode: "file.f_inode",
        private: "file.private_data",
        mode: "inode.i_mode",
        number: "inode.i_ino",
        pipe: "inode.i_pipe",
    }
}

/// What the walk needs to know of the kernel's types.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelLayout {
    file: FileLayout,
    pipe: pipe::PipeLayout,
    /// Bytes of a `pipe_buffer`.
    slot_bytes: usize,
    socket: unix::SocketLayout,
}

impl ChannelLayout {
    pub(crate) fn resolve(btf: &Btf) -> Option<Self> {
        Some(Self {
            file: FileLayout::resolve(btf).ok()?,
            pipe: pipe::PipeLayout::resolve(btf).ok()?,
            slot_bytes: btf.size("pipe_buffer").ok().filter(|bytes| *bytes > 0)?,
            socket: unix::SocketLayout::resolve(btf).ok()?,
        })
    }
}

/// A descriptor of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Descriptor {
    /// The process, as the initial pid namespace counts.
    pub pid: u32,
    /// Its number for the descriptor.
    pub fd: u32,
}

/// What a descriptor stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A pipe or FIFO.
    Pipe,
    /// A Unix stream socket.
    UnixStream,
}

/// Bytes that wait to be read through a descriptor, or through the other end of its pipe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The `pipe_inode_info` or `sock`.
    pub address: KernelVirt,
    /// Pipe or socket.
    pub kind: Kind,
    /// Number of the inode, as `fstat` gives it.
    pub inode: u64,
    /// What the kernel keeps apart, oldest first: slots of a pipe, buffers of a socket.
    pub chunks: Vec<Vec<u8>>,
    /// Whether nothing was missing or contradicted itself. A slot in which a write had just begun is no damage.
    pub complete: bool,
}

/// A file whose inode is known.
#[derive(Clone, Copy, Debug)]
struct Opened {
    private: u64,
    address: u64,
    mode: u64,
    inode: u64,
    pipe: u64,
}

/// Reads what waits behind each of `wanted`, descriptors of processes among `tasks`; `None` for what is no pipe or
/// Unix stream socket, or not there.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn walk(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    tasks: &[Task],
    wanted: &[Descriptor],
) -> Result<(Vec<Option<Waiting>>, Vec<Damage>), LinkError> {
    let mut walk = Walk::new(kernel, mem, ram);
    let Some(layout) = &kernel.channels else {
        walk.report(0, "descriptors", Fault::Unknown);
        return Ok((vec![None; wanted.len()], walk.damage));
    };
    if wanted.len() > WANTED_MAX {
        walk.report(0, "descriptors", Fault::TooLong { limit: WANTED_MAX as u64 });
    }
    let considered = &wanted[..wanted.len().min(WANTED_MAX)];
    let files = walk.files(layout, tasks, considered)?;
    let opened = walk.opened(layout, &files)?;
    let mut budget = BYTES_MAX;
    let mut pipes = pipe::read(&mut walk, layout, &opened, &mut budget)?;
    let mut sockets = unix::read(&mut walk, layout, &opened, &mut budget)?;
    let mut found: Vec<_> = (0..opened.len()).map(|number| pipes[number].take().or(sockets[number].take())).collect();
    found.resize(wanted.len(), None);
    Ok((found, walk.damage))
}

impl Walk<'_> {
    /// One word of each struct that has an address; one that is null or unreadable gives none.
    fn words_of(
        &mut self,
        bases: &[Option<u64>],
        field: Field,
        part: &'static str,
    ) -> Result<Vec<Option<u64>>, LinkError> {
        let known = self.taken_from(bases, &[field], part, |copy| field.of(copy))?;
        Ok(bases.iter().map(|base| known.get(&(*base)?).copied()).collect())
    }

    /// What `of` takes out of each distinct struct, by its address.
    fn taken_from<T>(
        &mut self,
        bases: &[Option<u64>],
        fields: &[Field],
        part: &'static str,
        of: impl Fn(&[u8]) -> T,
    ) -> Result<BTreeMap<u64, T>, LinkError> {
        let bases = distinct(bases.iter().flatten().copied());
        let taken = self.gather(&bases, fields, part, of)?;
        Ok(bases.into_iter().zip(taken).filter_map(|(base, taken)| Some((base, taken?))).collect())
    }

    /// The `struct file` of each descriptor.
    fn files(
        &mut self,
        layout: &ChannelLayout,
        tasks: &[Task],
        wanted: &[Descriptor],
    ) -> Result<Vec<Option<u64>>, LinkError> {
        let layout = &layout.file;
        let leaders: BTreeMap<u32, u64> =
            tasks.iter().filter(|task| task.pid == task.tgid).map(|task| (task.pid, task.address.raw())).collect();
        let of_process: Vec<_> = wanted.iter().map(|wanted| leaders.get(&wanted.pid).copied()).collect();
        let files = self.words_of(&of_process, layout.files, "task_struct.files")?;
        let tables = self.words_of(&files, layout.table, "files_struct.fdt")?;
        let fields = [layout.fds_max, layout.fds];
        let known = self.taken_from(&tables, &fields, "fdtable", |copy| fields.map(|field| field.of(copy)))?;
        let mut slots = Vec::with_capacity(wanted.len());
        for (wanted, table) in wanted.iter().zip(&tables) {
            let Some([fds_max, fds]) = table.and_then(|table| known.get(&table)).copied() else {
                slots.push(None);
                continue;
            };
            if fds_max > FD_MAX {
                self.report(table.unwrap_or(0), "fdtable.max_fds", Fault::TooLong { limit: FD_MAX });
            }
            let exists = u64::from(wanted.fd) < fds_max.min(FD_MAX);
            slots.push(exists.then(|| fds.wrapping_add(u64::from(wanted.fd) * 8)));
        }
        let pointer = Field { offset: 0, size: 8, bits: None };
        let files = self.words_of(&slots, pointer, "fdtable.fd")?;
        Ok(files.into_iter().map(|file| file.filter(|file| *file != 0)).collect())
    }

    /// What each file is.
    fn opened(&mut self, layout: &ChannelLayout, files: &[Option<u64>]) -> Result<Vec<Option<Opened>>, LinkError> {
        let layout = &layout.file;
        let fields = [layout.inode, layout.private];
        let known = self.taken_from(files, &fields, "file", |copy| fields.map(|field| field.of(copy)))?;
        let inodes: Vec<_> = files.iter().map(|file| Some(known.get(&(*file)?)?[0])).collect();
        let fields = [layout.mode, layout.number, layout.pipe];
        let described = self.taken_from(&inodes, &fields, "inode", |copy| fields.map(|field| field.of(copy)))?;
        let opened = |(file, inode): (&Option<u64>, Option<u64>)| {
            let address = (*file)?;
            let [mode, number, pipe] = *described.get(&inode?)?;
            Some(Opened { private: known.get(&address)?[1], address, mode: mode & S_IFMT, inode: number, pipe })
        };
        Ok(files.iter().zip(inodes).map(opened).collect())
    }

    /// Says that `found` is not what it has to be.
    fn contradiction(&mut self, at: u64, part: &'static str, expected: u64, found: u64) {
        self.report(at, part, Fault::Mismatch { expected, found });
    }
}

/// The opened files that are of one kind, each with its number in the list.
fn of_kind(opened: &[Option<Opened>], mode: u64) -> Vec<(usize, Opened)> {
    let is_kind = |(number, opened): (usize, &Option<Opened>)| Some((number, opened.filter(|it| it.mode == mode)?));
    opened.iter().enumerate().filter_map(is_kind).collect()
}

/// Takes `bytes` from what a walk may still read; false if that is too much, which is reported.
fn afford(walk: &mut Walk<'_>, budget: &mut u64, at: u64, part: &'static str, bytes: u64) -> bool {
    let limit = QUEUE_BYTES_MAX.min(*budget);
    if bytes > limit {
        walk.damage.push(Damage { at: KernelVirt::new(at), part, fault: Fault::TooLong { limit } });
        return false;
    }
    *budget -= bytes;
    true
}
