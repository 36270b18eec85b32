//! `interop`: our RoCEv2 and Linux' rxe work on each other's memory, and two rxe as what that is compared with.
//!
//! ```text
//!   monitor's machine: soft ends ──┐                                        ┌── guest 12: rxe
//!   guest 11: rxe ─────────────────┴─ rdma0 ══ loses, doubles, delays ══ rdma1 ┘
//! ```
//! All packets between two ends cross the cable that is made bad; what they say to each other goes over the service
//! network, where nothing is lost.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path as File, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{Daemon, Progress, program};
use crate::{
    guest::{ImageSpec, Kernel},
    interop::{
        Carrier,
        active::Outcome,
        matrix::{self, Direction, MTUS, Path},
        plan::Cell,
    },
    pair::{FIRST, RdmaGuest},
    sandbox::SCRATCH,
    topology::{MONITOR, Topology, Weather, rdma_v4, service_v4},
};

/// What is run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Line of guest kernels.
    pub kernel: String,
    /// Who asks whom.
    pub directions: Vec<Direction>,
    /// Over which paths.
    pub paths: Vec<Path>,
    /// Path MTUs; all if empty.
    pub mtus: Vec<u16>,
    /// A part of the matrix that takes moments, drawn by the seed.
    pub slice: bool,
    /// Everything random follows from it.
    pub seed: u64,
    /// Where the cells' lines are left.
    pub out: PathBuf,
}

/// A cell's line.
#[derive(Clone, Debug, Serialize)]
struct Line<'a> {
    kernel: &'a str,
    direction: Direction,
    path: Path,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What came of all.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether every cell was as it has to be.
    pub pass: bool,
    /// Linux in the guests.
    pub kernel: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// Cells, and of those the ones that failed.
    pub cells: usize,
    /// Of those, the ones that failed.
    pub failed: usize,
    /// Operations that were checked.
    pub operations: u64,
    /// Packets that the cable lost, delayed or doubled.
    pub harmed_packets: u64,
    /// From the start.
    pub seconds: f64,
}

/// Memory of a guest: both ends' regions, and the longest messages twice.
const GUEST_MIB: u32 = 320;

/// For the cells of one path and MTU.
const GROUP_BOUND: Duration = Duration::from_secs(1800);

/// Runs it; every cell's line goes to standard output and to `order.out`.
///
/// # Errors
/// When the guests cannot be had or an end does not run; a cell that fails is part of the verdict.
pub fn run(order: &Order, progress: Progress) -> Result<(Verdict, String)> {
    let begun = Instant::now();
    let mut ground = Ground::build(order, progress)?;
    fs::create_dir_all(&order.out).with_context(|| format!("making {}", order.out.display()))?;
    let mut file = fs::File::create(order.out.join("cells.jsonl")).context("cells.jsonl")?;
    let (mut table, mut operations) = (Table::default(), 0);
    for &direction in &order.directions {
        for &path in &order.paths {
            ground.weather.set(path.harm());
            for cells in groups(order, direction, path) {
                progress.step(format_args!("{direction:?} {path:?}, path MTU {}", cells[0].mtu));
                for outcome in ground.carry_out(direction, &cells)? {
                    operations += u64::from(outcome.done);
                    table.note(direction, path, outcome.pass);
                    let line = Line { kernel: &ground.kernel, direction, path, outcome };
                    let line = serde_json::to_string(&line)?;
                    println!("{line}");
                    writeln!(file, "{line}").context("cells.jsonl")?;
                }
            }
        }
    }
    let (cells, failed) = table.totals();
    let verdict = Verdict {
        pass: failed == 0,
        kernel: ground.kernel.clone(),
        seed: order.seed,
        cells,
        failed,
        operations,
        harmed_packets: ground.weather.harmed.load(std::sync::atomic::Ordering::Relaxed),
        seconds: begun.elapsed().as_secs_f64().round(),
    };
    Ok((verdict, table.text()))
}

/// The cells of a direction and a path, those of one MTU together.
fn groups(order: &Order, direction: Direction, path: Path) -> Vec<Vec<Cell>> {
    if order.slice {
        return vec![matrix::slice(direction, path, order.seed)];
    }
    let mtus = if order.mtus.is_empty() { MTUS.to_vec() } else { order.mtus.clone() };
    mtus.into_iter().map(|mtu| matrix::cells(path, mtu, order.seed)).collect()
}

/// Both guests and the host's passive end, all serving.
struct Ground {
    near: RdmaGuest,
    far: RdmaGuest,
    _passive: Daemon,
    weather: Arc<Weather>,
    topology: Topology,
    kernel: String,
}

impl Ground {
    fn build(order: &Order, progress: Progress) -> Result<Self> {
        let kernel = Kernel::cached(&order.kernel)?;
        let mut topology = Topology::build()?;
        let weather = topology.add_far_half(order.seed)?;
        progress.step(format_args!("two guests with soft-RoCE boot, Linux {}", kernel.release));
        let image = ImageSpec::new(kernel.clone()).program("interop", &program("interop")?);
        let folder = File::new(SCRATCH).join("run");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let boot = RdmaGuest::boot_apart(
            &topology,
            image,
            &folder,
            |number| number != FIRST,
            |spec| {
                spec.memory_mib = GUEST_MIB;
                spec.cpus = 1;
            },
        );
        let [near, mut far] = boot?;
        let serve = serve(Carrier::Verbs, far.address(), far.service_address()).join(" ");
        let started = far.run(&format!("(interop {serve} >/var/log/interop 2>&1 </dev/null &)"))?;
        ensure!(started.status == 0, "no passive end in the guest: {}", started.text());
        let host = serve_on_host();
        let passive = Daemon::start_logging(&topology.monitor, "interop", "interop", host, &folder, None)?;
        Ok(Self { near, far, _passive: passive, weather, topology, kernel: kernel.release })
    }

    /// Has the active end of `direction` carry out `cells`.
    fn carry_out(&mut self, direction: Direction, cells: &[Cell]) -> Result<Vec<Outcome>> {
        let cells = serde_json::to_string(cells)?;
        let far = self.far.service_address();
        let said = match direction {
            Direction::RxeToSoft => {
                let ask = ask(Carrier::Verbs, self.far.address(), service_v4(MONITOR)).join(" ");
                in_guest(&mut self.far, &format!("interop {ask} '{cells}'"))?
            }
            Direction::RxeToRxe => {
                let ask = ask(Carrier::Verbs, self.near.address(), far).join(" ");
                in_guest(&mut self.near, &format!("interop {ask} '{cells}'"))?
            }
            Direction::SoftToRxe => {
                let mut command = Command::new(program("interop")?);
                command.args(ask(Carrier::Soft, rdma_v4(MONITOR), far)).arg(cells);
                let output = self.topology.monitor.run(|| command.output().context("starting the active end"))?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8_lossy(&output.stdout).into_owned()
            }
        };
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("the active end said {line:?}"));
        said.lines().map(parse).collect()
    }
}

fn in_guest(guest: &mut RdmaGuest, command: &str) -> Result<String> {
    let output = guest.run_within(command, GROUP_BOUND)?;
    ensure!(output.status == 0, "the active end in a guest: {}", output.text());
    Ok(output.text())
}

fn serve(carrier: Carrier, local: Ipv4Addr, talk: Ipv4Addr) -> Vec<String> {
    words(&["serve", "--carrier", carrier.name(), "--local", &local.to_string(), "--talk", &talk.to_string()])
}

fn serve_on_host() -> Vec<String> {
    serve(Carrier::Soft, rdma_v4(MONITOR), service_v4(MONITOR))
}

fn ask(carrier: Carrier, local: Ipv4Addr, peer: Ipv4Addr) -> Vec<String> {
    words(&["ask", "--carrier", carrier.name(), "--local", &local.to_string(), "--peer", &peer.to_string()])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Cells that passed, of how many, by direction and path.
#[derive(Default)]
struct Table(BTreeMap<(u8, u8), (String, usize, usize)>);

impl Table {
    fn note(&mut self, direction: Direction, path: Path, passed: bool) {
        let name = format!("{direction:?} {path:?}");
        let row = self.0.entry((direction as u8, path as u8)).or_insert((name, 0, 0));
        row.1 += usize::from(passed);
        row.2 += 1;
    }

    fn totals(&self) -> (usize, usize) {
        let passed: usize = self.0.values().map(|row| row.1).sum();
        let all = self.0.values().map(|row| row.2).sum();
        (all, all - passed)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, passed, all) in self.0.values() {
            let _ = writeln!(text, "{name:24} {passed:4} of {all:4} passed");
        }
        text
    }
}
