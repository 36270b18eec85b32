//! `monitor inspect`: what a target's memory says of its state, read from outside and without touching anything.
//!
//! Made for a fenced target: its memory stands still, and the answer to "why" is in its log. A healthy one can be
//! looked at too; what moves while it is read may then be torn. Reads with the key that everybody has, which cannot
//! write. Everything here is what the target claims.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::backdoor::RegionEntry;
use introspect::linux::tcp::TcpFilter;
use introspect::linux::{log, machine, task, tcp};
use introspect::{Damage, DiscoverError, Extent, Kernel};
use link::{Link, Options};
use remote_memory::{PAGE_BYTES, Read, RemoteAddr, RemoteKey, RemoteRead};
use serde::Serialize;

use crate::config::{Config, Target};

/// Of one read of an image.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces that travel together.
const PIECES: usize = 8;

/// Damage that is told; a machine torn to pieces has more than anybody reads.
const DAMAGE_MAX: usize = 100;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Name of the target.
    pub target: String,
    /// Whether it is fenced, so that nothing moved meanwhile.
    pub fenced: bool,
    /// Kernel release.
    pub kernel: String,
    /// The newest records of the kernel's log, oldest first.
    pub log: Vec<log::Record>,
    /// Memory, and what each processor was at.
    #[serde(flatten)]
    pub machine: machine::Summary,
    /// Tasks by their numbers.
    pub tasks: Vec<TaskLine>,
    /// TCP connections.
    pub sockets: Vec<SocketLine>,
    /// What was wrong in memory.
    pub damage: Vec<String>,
}

/// One task.
#[derive(Debug, Serialize)]
pub struct TaskLine {
    /// Thread id.
    pub pid: u32,
    /// Process id.
    pub tgid: u32,
    /// Process id of the parent.
    pub parent: u32,
    /// Real user id.
    pub uid: Option<u32>,
    /// `R`, `S`, `D`, … as ps(1) has them.
    pub state: char,
    /// Whether it is a thread of the kernel.
    pub kernel_thread: bool,
    /// Command name.
    pub comm: String,
}

/// One TCP connection.
#[derive(Debug, Serialize)]
pub struct SocketLine {
    /// The target's end.
    pub local: String,
    /// The other end.
    pub peer: String,
    /// Its state.
    pub state: String,
    /// Bytes written and not acknowledged.
    pub send_queue: usize,
    /// Bytes received and not read.
    pub receive_queue: usize,
    /// Whether an application holds it.
    pub accepted: bool,
    /// Whether its queues are whole, so that it could be carried over.
    pub whole: bool,
}

/// A connection to the backdoor of `target`, for looking only.
///
/// # Errors
/// If there is none to be had.
pub fn connect(config: &Config, target: &Target) -> Result<Link> {
    connect_with(config, target, |_| ())
}

/// The same, with `memory_patience` for each answer of its memory.
///
/// # Errors
/// As [`connect`].
pub fn connect_patiently(config: &Config, target: &Target, memory_patience: Duration) -> Result<Link> {
    connect_with(config, target, |options| options.memory_patience = memory_patience)
}

fn connect_with(config: &Config, target: &Target, change: impl FnOnce(&mut Options)) -> Result<Link> {
    let mut options = Options { carrier: target.carrier.clone(), ..Options::new(format!("inspect@{}", config.name)) };
    change(&mut options);
    let link = Link::connect(target.backdoor, config.local, options)?;
    let found = link.welcome().target;
    ensure!(found == target.name, "the backdoor at {} serves {found}", target.backdoor);
    Ok(link)
}

/// Looks at the target behind `link`; at most `log_records` of its log.
///
/// # Errors
/// If the path fails, or no kernel is found.
pub fn inspect(link: &mut Link, log_records: usize) -> Result<Inspection> {
    let welcome = link.welcome();
    let ram = link.region("ram")?;
    let resets = link.stats()?.resets;
    let key = RemoteKey::new(ram.key);
    let memory = link.memory();
    let kernel = discover(memory, &ram, resets)?;
    let (log, mut damage) = log::tail(&kernel, memory, key, log_records)?;
    let (machine, more) = machine::summary(&kernel, memory, key)?;
    damage.extend(more);
    let (tasks, more) = task::walk(&kernel, memory, key)?;
    damage.extend(more);
    let (sockets, more) = tcp::walk(&kernel, memory, key, &TcpFilter::default())?;
    damage.extend(more);
    Ok(Inspection {
        target: welcome.target,
        fenced: welcome.fenced,
        kernel: kernel.release.clone(),
        log,
        machine,
        tasks: tasks.iter().map(task_line).collect(),
        sockets: sockets.iter().map(socket_line).collect(),
        damage: damage.iter().take(DAMAGE_MAX).map(Damage::to_string).collect(),
    })
}

/// Finds the kernel of a target that was reset so often. The first that is found lives unless there was a reset, which
/// spares a look at all of a large memory.
///
/// # Errors
/// [`DiscoverError`]
pub(crate) fn discover(mem: &mut dyn RemoteRead, ram: &RegionEntry, resets: u64) -> Result<Kernel, DiscoverError> {
    let (key, extents) = (RemoteKey::new(ram.key), extents(ram));
    match resets {
        0 => Kernel::discover(mem, key, &extents),
        _ => Kernel::discover_living(mem, key, &extents),
    }
}

/// The stretches of a target that are RAM, as its kernel is looked for in them.
pub(crate) fn extents(ram: &RegionEntry) -> Vec<Extent> {
    ram.stretches().iter().map(|stretch| Extent { start: stretch.start, len: stretch.len }).collect()
}

fn task_line(task: &task::Task) -> TaskLine {
    TaskLine {
        pid: task.pid,
        tgid: task.tgid,
        parent: task.parent,
        uid: task.uid,
        state: state_letter(task.state),
        kernel_thread: task.is_kernel_thread(),
        comm: task.comm.to_string(),
    }
}

/// `TASK_*` of `include/linux/sched.h`, the bits that ps(1) tells apart.
fn state_letter(state: u32) -> char {
    const LETTERS: [(u32, char); 7] =
        [(0x402, 'I'), (0x1, 'S'), (0x2, 'D'), (0x4, 'T'), (0x8, 't'), (0x10, 'X'), (0x20, 'Z')];
    let found = LETTERS.iter().find(|(bits, _)| state & bits == *bits);
    found.map_or(if state == 0 { 'R' } else { '?' }, |(_, letter)| *letter)
}

fn socket_line(socket: &tcp::TcpSocket) -> SocketLine {
    SocketLine {
        local: socket.local.to_string(),
        peer: socket.peer.to_string(),
        state: format!("{:?}", socket.state),
        send_queue: socket.send_queue.iter().map(|segment| segment.bytes.len()).sum(),
        receive_queue: socket.receive_queue.len(),
        accepted: socket.accepted,
        whole: socket.usable(),
    }
}

impl Inspection {
    /// As text for people. Names come from a machine that is not trusted: they cannot steer a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let state = if self.fenced { "fenced" } else { "NOT fenced: what moves may be torn" };
        let _ = writeln!(out, "{}: Linux {}, {state}", self.target, self.kernel);
        let mib = |pages: Option<u64>| pages.map_or("?".to_owned(), |pages| ((pages * PAGE_BYTES) >> 20).to_string());
        let (free, total) = (mib(self.machine.pages_free), mib(self.machine.pages_total));
        let _ = writeln!(out, "memory: {free} MiB of {total} MiB free");
        for current in &self.machine.current {
            let _ = writeln!(out, "cpu {}: {} ({})", current.cpu, current.comm.escape_debug(), current.pid);
        }
        let _ = writeln!(out, "\nlog, the last {} records", self.log.len());
        for record in &self.log {
            let (seconds, micros) = (record.time_ns / 1_000_000_000, record.time_ns / 1_000 % 1_000_000);
            for line in record.text.lines() {
                let _ = writeln!(out, "<{}>[{seconds:>5}.{micros:06}] {line}", record.level);
            }
        }
        let _ = writeln!(out, "\n{} tasks, threads of the kernel left out", self.tasks.len());
        let _ = writeln!(out, "{:>7} {:>7} {:>7} {:>6} S comm", "pid", "tgid", "parent", "uid");
        for task in self.tasks.iter().filter(|task| !task.kernel_thread) {
            let uid = task.uid.map_or("?".to_owned(), |uid| uid.to_string());
            let (pid, tgid, parent, state) = (task.pid, task.tgid, task.parent, task.state);
            let _ = writeln!(out, "{pid:>7} {tgid:>7} {parent:>7} {uid:>6} {state} {}", task.comm.escape_debug());
        }
        let _ = writeln!(out, "\n{} TCP connections", self.sockets.len());
        for socket in &self.sockets {
            let _ = writeln!(
                out,
                "{} <- {} {} send {} receive {}{}{}",
                socket.local,
                socket.peer,
                socket.state,
                socket.send_queue,
                socket.receive_queue,
                if socket.accepted { "" } else { " not accepted" },
                if socket.whole { "" } else { " NOT WHOLE" },
            );
        }
        for damage in &self.damage {
            let _ = writeln!(out, "damage: {damage}");
        }
        out
    }
}

/// Saves the target's whole memory to `path`, each byte at its guest-physical address; pages of zeroes are holes in
/// the file. Returns the bytes that were written. What can be read of a damaged region is saved, the rest is a hole.
///
/// # Errors
/// If the path or the file fails.
pub fn save_image(link: &mut Link, path: &Path) -> Result<u64> {
    let ram = link.region("ram")?;
    let key = RemoteKey::new(ram.key);
    let mut file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
    let (mut written, mut end) = (0, 0);
    let mut buffer = vec![0; PIECE_BYTES * PIECES];
    for Extent { start, len } in extents(&ram) {
        let stop = start.saturating_add(len);
        end = end.max(stop);
        let mut at = start;
        while at < stop {
            let here = usize::try_from(stop - at).unwrap_or(usize::MAX).min(buffer.len());
            let buffer = &mut buffer[..here];
            buffer.fill(0);
            let pieces = buffer.chunks_mut(PIECE_BYTES).zip((at..).step_by(PIECE_BYTES));
            let mut batch: Vec<_> = pieces.map(|(piece, at)| Read::new(RemoteAddr::new(key, at), piece)).collect();
            link.memory().read(&mut batch)?;
            drop(batch);
            written += put(&mut file, at, buffer)?;
            at += here as u64;
        }
    }
    file.set_len(end)?;
    Ok(written)
}

/// Writes the pages of `bytes` that are not all zero.
fn put(file: &mut File, at: u64, bytes: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    let page = PAGE_BYTES as usize;
    for (page, at) in
        bytes.chunks(page).zip((at..).step_by(page)).filter(|(page, _)| page.iter().any(|byte| *byte != 0))
    {
        file.seek(SeekFrom::Start(at))?;
        file.write_all(page)?;
        written += page.len() as u64;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_the_letters_of_ps() {
        let letters: String = [0, 1, 2, 0x402, 0x4, 0x20, 0x40].map(state_letter).iter().collect();
        assert_eq!(letters, "RSDITZ?");
    }

    #[test]
    fn what_a_target_calls_itself_cannot_steer_a_terminal() {
        let current = vec![machine::Current { cpu: 0, pid: 1, comm: "\x1b[2Jgone".into() }];
        let inspection = Inspection {
            target: "web".into(),
            fenced: true,
            kernel: "6.1".into(),
            log: vec![log::Record { seq: 1, time_ns: 12_000_345_000, level: 0, text: "Kernel panic\nmore".into() }],
            machine: machine::Summary { pages_total: Some(1024), pages_free: None, current },
            tasks: Vec::new(),
            sockets: Vec::new(),
            damage: Vec::new(),
        };
        let text = inspection.text();
        assert!(text.contains("<0>[   12.000345] Kernel panic\n<0>[   12.000345] more\n"), "{text}");
        assert!(text.contains("? MiB of 4 MiB") && text.contains("cpu 0: \\u{1b}[2Jgone (1)"), "{text}");
    }
}
