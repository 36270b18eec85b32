//! `torn`: the processor is stopped at every instruction of a kernel path, and each time the dead memory is read as a
//! spare would read it.
//!
//! ```text
//!   breakpoint at tcp_sendmsg ── hit ── walk ── step ── walk ── step ── … ── return ── next hit, next path
//!                                        │
//!                                        └── against what the clients' kernel has received and got acknowledged
//! ```
//!
//! A hang stops a processor between two instructions. Where the kernel's state is torn there, and what a walk then
//! makes of it, is not left to the luck of crash runs: this visits the places one by one. One virtual processor, no
//! interrupts while it steps. It does not look at places outside of the given paths, nor at two processors in the same
//! socket: the socket's lock lets only one of them change it.

mod clients;
mod comer;
mod judge;

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use introspect::{
    Extent,
    linux::tcp::{self, TcpFilter},
};
use remote_memory::{AccessError, LinkError, Read, RemoteKey, RemoteRead};
use serde::Serialize;

use crate::{
    guest::{ImageSpec, Kernel, Service},
    scenario::{Progress, program},
    topology::{FILE_PORT, GUEST, PREFIX_V4, Topology, service_v4},
    vm::{Gdb, Tap, Vm, VmSpec},
};
use clients::Client;
use comer::Comer;
pub use judge::Seen;

/// The kernel's ways into a TCP socket: the application's two calls, and what the network brings.
pub const PATHS: [&str; 3] = ["tcp_sendmsg", "tcp_recvmsg", "tcp_v4_rcv"];

/// Paths that the guest only comes by when nobody acknowledges what it sends.
const UNHEARD: [&str; 3] = ["tcp_write_timer", "tcp_write_timer_handler", "tcp_retransmit_timer"];

/// Instructions of one visit: a path that goes on longer has left for other work (a softirq of other sockets).
const STEPS_MAX: usize = 25_000;

/// Generous: software emulation on a loaded machine.
const BOOT_BOUND: Duration = Duration::from_secs(180);

/// For the guest to come by a path again.
const HIT_BOUND: Duration = Duration::from_secs(60);

/// Between two looks at the clients while the guest runs.
const PUMP_EVERY: Duration = Duration::from_millis(2);

/// Bytes per second of the download: a few pieces in flight, and a write every 10 ms.
const DOWN_RATE: u64 = 300_000;

/// Memory may be as before and the clients may have got something all the same: after so many they are asked again.
const IDLE_LOOKS: usize = 50;

/// A connection that has moved this much has left its beginning.
const WARM_BYTES: u64 = 200_000;

const TAP: &str = "tap-torn";
const KEY: RemoteKey = RemoteKey::new(1);

/// What is explored.
#[derive(Clone, Debug)]
pub struct Order {
    /// Line of guest kernels.
    pub kernel: String,
    /// Functions to go through.
    pub paths: Vec<String>,
    /// How often each is gone through.
    pub visits: usize,
    /// Every how many instructions the memory is read; 1 for each.
    pub stride: usize,
    /// Whether the download's client has so small a window that the guest's kernel splits buffers.
    pub narrow: bool,
    /// The first instruction read, below `stride`: with other values, other instructions.
    pub phase: usize,
}

/// What was seen on one path.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PathReport {
    /// Times it was gone through.
    pub visits: usize,
    /// Instructions executed one by one.
    pub instructions: usize,
    /// Judgements: one per instruction looked at and connection.
    pub looks: usize,
    /// … in which the socket was locked.
    pub locked: usize,
    /// … in which the walk reported something and was right all the same.
    pub reported: usize,
    /// … in which `bytes_received` and `rcv_nxt` did not fit each other and the client's SYN settled it, by function.
    pub recounted: BTreeMap<String, usize>,
    /// … in which the client had more than the kernel's `snd_nxt` says was sent, by function.
    pub snd_nxt_behind_client: BTreeMap<String, usize>,
    /// What would have gone wrong, by function and kind, with an example.
    pub wrong: BTreeMap<String, Wrong>,
}

/// A kind of mistake.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Wrong {
    /// How often.
    pub times: usize,
    /// The first one.
    pub example: String,
}

/// The result of an exploration.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Whether nothing would have gone wrong.
    pub pass: bool,
    /// By path.
    pub paths: BTreeMap<String, PathReport>,
}

/// Explores. Must be called in a sandbox.
///
/// # Errors
/// When it cannot be carried out. A wrong walk is in the report.
pub fn explore(order: &Order, progress: Progress) -> Result<Report> {
    let kernel = Kernel::cached(&order.kernel)?;
    let topology = Topology::build()?;
    progress.step(format_args!("a guest with Linux {} boots", kernel.release));
    let mut vm = boot(&kernel)?;
    topology.plug_tap(TAP)?;
    vm.wait_ready(BOOT_BOUND)?;
    let symbols = Symbols::read(&mut vm)?;
    progress.step("learning its kernel");
    let mut ram = RamFile::open(vm.ram_path())?;
    let extents = [ram.extent()?];
    let known = introspect::Kernel::discover(&mut ram, KEY, &extents)?;
    ram.touched = Vec::new();
    let server = SocketAddr::from((service_v4(GUEST), FILE_PORT));
    let (mut clients, table) = topology.client.run(|| {
        let download = if order.narrow { Client::narrow(server) } else { Client::download(server, DOWN_RATE) };
        let clients = [download?, Client::upload(server)?];
        Ok((clients, File::open("/proc/thread-self/net/tcp").context("/proc/net/tcp")?))
    })?;
    warm_up(&mut clients, &table)?;
    let gdb = Gdb::attach(&mut vm)?;
    let comer = Comer::new(server);
    let mut stop = Stopped { gdb, ram, known, clients, comer, topology: &topology, table, symbols, idle_looks: 0 };
    let mut report = Report { kernel: kernel.release.clone(), ..Report::default() };
    for _ in 0..order.visits {
        for path in &order.paths {
            let entry = report.paths.entry(path.clone()).or_default();
            stop.visit(path, order, entry).with_context(|| format!("in {path}"))?;
            progress.step(format_args!("{path}: {} instructions, {} looks", entry.instructions, entry.looks));
        }
    }
    report.pass = report.paths.values().all(|path| path.wrong.is_empty());
    Ok(report)
}

/// Lets both connections get going.
fn warm_up(clients: &mut [Client], table: &File) -> Result<()> {
    let deadline = Instant::now() + HIT_BOUND;
    for client in 0..clients.len() {
        loop {
            clients.iter_mut().try_for_each(Client::pump)?;
            let position = clients[client].position(table)?;
            if position.received.max(position.acknowledged) > WARM_BYTES {
                break;
            }
            ensure!(Instant::now() < deadline, "a client does not get going: {position:?}");
            std::thread::sleep(PUMP_EVERY);
        }
    }
    Ok(())
}

fn boot(kernel: &Kernel) -> Result<Vm> {
    let image = ImageSpec::new(kernel.clone()).program("file-server", &program("file-server")?).service(Service {
        name: "file-server".to_owned(),
        command: format!("/bin/file-server --quiet --listen [::]:{FILE_PORT} --root /tmp"),
        ready_path: None,
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/images");
    let mut spec = VmSpec::new("torn", &kernel.vmlinuz, &image.build(&folder)?);
    spec.cpus = 1;
    spec.tap = Some(Tap::Name(TAP.to_owned()));
    spec.addresses = vec![format!("{}/{PREFIX_V4}", service_v4(GUEST))];
    Vm::start(spec)
}

/// A guest between two instructions, and those who talk to it.
struct Stopped<'t> {
    gdb: Gdb,
    ram: RamFile,
    known: introspect::Kernel,
    clients: [Client; 2],
    comer: Comer,
    topology: &'t Topology,
    table: File,
    symbols: Symbols,
    /// Looks left out in a row, because memory was as before.
    idle_looks: usize,
}

impl Stopped<'_> {
    /// Runs to the beginning of `path`, and then through it.
    fn visit(&mut self, path: &str, order: &Order, report: &mut PathReport) -> Result<()> {
        let entry = self.symbols.address(path)?;
        let unheard = UNHEARD.contains(&path);
        if unheard {
            self.topology.unplug_tap(TAP)?;
        }
        let mut at = self.run_to(entry)?;
        let stack = at.rsp;
        let back = u64::from_le_bytes(self.gdb.memory(stack, 8)?.try_into().unwrap_or_default());
        report.visits += 1;
        for step in 0..STEPS_MAX {
            if step % order.stride == order.phase % order.stride {
                self.look(at.rip, report)?;
            }
            if at.rip == back && at.rsp > stack {
                break;
            }
            at = self.gdb.step(at.rip)?;
            report.instructions += 1;
        }
        if unheard { self.topology.plug_tap(TAP) } else { Ok(()) }
    }

    fn run_to(&mut self, address: u64) -> Result<crate::vm::Registers> {
        self.gdb.break_at(address)?;
        self.gdb.resume()?;
        let deadline = Instant::now() + HIT_BOUND;
        while !self.gdb.stopped_within(PUMP_EVERY)? {
            ensure!(Instant::now() < deadline, "the guest does not come by in {HIT_BOUND:?}");
            for client in &mut self.clients {
                client.pump()?;
            }
            match self.comer.is_idle() {
                true => self.topology.client.run(|| self.comer.pump())?,
                false => self.comer.pump()?,
            }
        }
        self.gdb.clear(address)?;
        let registers = self.gdb.registers()?;
        ensure!(registers.rip == address, "stopped at {:#x} instead of {address:#x}", registers.rip);
        Ok(registers)
    }

    /// Reads the memory and judges every connection, unless nothing has changed since the last look.
    fn look(&mut self, rip: u64, report: &mut PathReport) -> Result<()> {
        if self.ram.unchanged() && self.idle_looks < IDLE_LOOKS {
            self.idle_looks += 1;
            return Ok(());
        }
        self.idle_looks = 0;
        self.ram.touched.clear();
        let filter = TcpFilter { ports: vec![FILE_PORT], ..TcpFilter::default() };
        let (sockets, damage) = tcp::walk(&self.known, &mut self.ram, KEY, &filter)?;
        for client in &mut self.clients {
            let position = client.position(&self.table)?;
            report.looks += 1;
            let socket = sockets.iter().find(|socket| socket.peer == client.address);
            let judged = match socket {
                Some(socket) => judge::judge(socket, client, position),
                None => Err(format!("not found: {damage:?}")),
            };
            match judged {
                Ok(seen) => {
                    report.locked += usize::from(seen.lock_held);
                    report.reported += usize::from(seen.reported);
                    let (behind, recounted) = (&mut report.snd_nxt_behind_client, &mut report.recounted);
                    for (counts, found) in [(behind, seen.snd_nxt_behind_client), (recounted, seen.recounted)] {
                        if found {
                            *counts.entry(self.symbols.name(rip)).or_default() += 1;
                        }
                    }
                }
                Err(what) => note_wrong(&self.symbols, rip, &what, report),
            }
        }
        if let Some(judged) = self.comer.judge(&sockets, &self.table) {
            report.looks += 1;
            match judged {
                Ok(lock_held) => report.locked += usize::from(lock_held),
                Err(what) => note_wrong(&self.symbols, rip, &what, report),
            }
        }
        Ok(())
    }
}

fn note_wrong(symbols: &Symbols, rip: u64, what: &str, report: &mut PathReport) {
    let kind: String = what.split([':', ';']).take(1).collect();
    let wrong = report.wrong.entry(format!("{}: {kind}", symbols.name(rip))).or_default();
    wrong.times += 1;
    if wrong.example.is_empty() {
        wrong.example = format!("at {}: {what}", symbols.place(rip));
    }
}

/// Names of the running kernel's functions.
struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    fn read(vm: &mut Vm) -> Result<Self> {
        let said = vm.run("grep -i ' t ' /proc/kallsyms | grep -v '\\['")?;
        let text = String::from_utf8_lossy(&said.bytes).into_owned();
        let symbols = text.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let address = u64::from_str_radix(fields.next()?, 16).ok()?;
            Some((address, fields.nth(1)?.to_owned()))
        });
        let symbols: BTreeMap<u64, String> = symbols.collect();
        if symbols.keys().all(|address| *address == 0) {
            bail!("the guest hides its symbols");
        }
        Ok(Self(symbols))
    }

    fn address(&self, name: &str) -> Result<u64> {
        let found = self.0.iter().find(|(_, known)| *known == name);
        found.map(|(address, _)| *address).with_context(|| format!("the guest's kernel has no function {name}"))
    }

    fn name(&self, address: u64) -> String {
        self.0.range(..=address).next_back().map_or_else(String::new, |(_, name)| name.clone())
    }

    fn place(&self, address: u64) -> String {
        let start = self.0.range(..=address).next_back().map_or(0, |(start, _)| *start);
        format!("{}+{:#x}", self.name(address), address - start)
    }
}

/// Guest RAM as QEMU holds it: below 2 GiB, offset and guest-physical address are the same on q35. Remembers what was
/// read: a walk is a function of that, so while it has not changed, neither has the walk's result.
struct RamFile {
    file: File,
    touched: Vec<(u64, Vec<u8>)>,
}

impl RamFile {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file, touched: Vec::new() })
    }

    fn extent(&self) -> Result<Extent> {
        Ok(Extent { start: 0, len: self.file.metadata()?.len() })
    }

    fn unchanged(&self) -> bool {
        let mut now = Vec::new();
        !self.touched.is_empty()
            && self.touched.iter().all(|(at, then)| {
                now.resize(then.len(), 0);
                self.file.read_exact_at(&mut now, *at).is_ok() && now == *then
            })
    }
}

impl RemoteRead for RamFile {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            read.outcome = self.file.read_exact_at(read.into, read.at.addr).map_err(|_| AccessError::Refused);
            self.touched.push((read.at.addr, read.into.to_vec()));
        }
        Ok(())
    }
}
