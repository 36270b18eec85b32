//! The agent's process: arguments, logs, threads, the signal that ends it.

use std::fs;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use contbox::reader::BadPool;
use contbox::service::BoxService;
use contbox::shared::PoolError;
use contbox::{Geometry, Pool};
use killtable::layout::{ANSWERS, ANSWERS_BYTES, ORDERS, ORDERS_BYTES, SPARED_MAX};
use locktable::layout::{LOCK, LOCKED};
use nix::sys::signal::{SigSet, Signal};
use proctable::layout::{HEAD_RECORDS, PROCESSES, RECORD_BYTES};
use rdma::verbs::{Adapter, Choice};
use sensorbox::Sensor;
use service::capabilities::{self, Capability};
use service::metrics::{Endpoint, text_of};
use target_agent::ebpf::Maps;
use target_agent::maps::{BoxMap, CONTINUATION_BOXES, SENSOR_BOX, page_entries};
use target_agent::nic::{self, Board};
use target_agent::pins::Pins;
use target_agent::shared::PAGE_BYTES;
use target_agent::{census, ebpf, fence, metrics, mirror, random_number, records, registration, roster, sweep};
use tcptable::layout::SLOT_BYTES;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// The variable that filters the log.
const LOG_VARIABLE: &str = "BACKDOORS_LOG";

/// It includes what eBPF needs, CAP_BPF and CAP_PERFMON.
const NEEDS: [(Capability, &str); 1] =
    [(Capability::SysAdmin, "eBPF programs and the numbers of the physical pages in which boxes lie")];

/// A map that is one box has one entry.
const ONE: u32 = 1;

/// The table of connections has its header in the place of one.
const HEADER: u32 = 1;

/// What this machine calls itself.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Between two advances of the agent's own sensor.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// The process in a target machine that makes its sensors and boxes and tells the backdoor where they lie.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Unix socket at which applications ask for boxes.
    #[arg(long, default_value = "/run/backdoors/box.sock")]
    box_socket: PathBuf,
    /// Continuation Boxes in the pool, 24 KiB each. A pool that exists keeps its size.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_900))]
    pool_slots: u32,
    /// Folder in a bpffs for what outlives the agent.
    #[arg(long, default_value = "/sys/fs/bpf/backdoors")]
    pin_dir: PathBuf,
    /// Milliseconds without a tick after which a processor hangs.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..))]
    tick_deadline_ms: u64,
    /// User whose processes no monitor ends through the kill table, whatever it orders; several times for several. Root
    /// is one unless others are named.
    #[arg(long, value_name = "UID", default_values_t = [0])]
    spare_uid: Vec<u32>,
    /// Take no orders: monitors are not shown the kill table.
    #[arg(long)]
    no_kill_table: bool,
    /// Processes that the process table has room for, a power of two; 64 bytes each. A table that exists keeps its
    /// size.
    #[arg(long, default_value_t = 4096, value_parser = power_of_two)]
    processes: u32,
    #[command(flatten)]
    guarded: fence::Guarded,
    /// Local port of a service whose TCP connections the kernel keeps in a table, for a spare that cannot read this
    /// machine's memory; several times for several. Connections that exist already are not kept.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    mirror_port: Vec<u16>,
    /// Connections in that table, 68 KiB each. A table that exists keeps its size.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    mirror_slots: u32,
    /// KiB of output that each Continuation Box keeps until its client has acknowledged it, for such a spare; 0 for
    /// none. A pool that exists keeps its size.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16_384))]
    send_log_kib: u32,
    /// By what monitors reach this machine's memory: a backdoor on its hypervisor, or its own RDMA adapter.
    #[arg(long, value_enum, default_value_t = Nic::Backdoor)]
    nic: Nic,
    /// Address of the RDMA adapter, where the control plane listens as well. With `--nic verbs`.
    #[arg(long, value_name = "ADDRESS", required_if_eq("nic", "verbs"))]
    listen: Option<Ipv4Addr>,
    /// TCP port of the control plane. With `--nic verbs`.
    #[arg(long, default_value_t = control::backdoor::PORT, value_parser = clap::value_parser!(u16).range(1..))]
    control_port: u16,
    /// Address that may use the control plane; several times for several, all if there is none. With `--nic verbs`.
    #[arg(long, value_name = "ADDRESS")]
    peer: Vec<IpAddr>,
    /// Name of this machine, as monitors know it; its host name without it. With `--nic verbs`.
    #[arg(long)]
    target: Option<String>,
    /// Name of the RDMA adapter, where several have the address. With `--nic verbs`.
    #[arg(long)]
    device: Option<String>,
    /// Port of the RDMA adapter, where it has several. With `--nic verbs`.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    device_port: Option<u8>,
    /// Serve Prometheus metrics here, at /metrics; nothing listens without it.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Log as JSON.
    #[arg(long)]
    log_json: bool,
    /// Say whether this machine can run the agent, and end.
    #[arg(long)]
    check: bool,
}

/// By what monitors reach this machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Nic {
    /// A backdoor on the hypervisor, which is told where the boxes lie.
    Backdoor,
    /// This machine's own RDMA adapter.
    Verbs,
}

impl Arguments {
    /// Where memory is served, if it is by this machine itself.
    fn nic(&self) -> Result<Option<nic::Settings>> {
        let Some(local) = self.listen.filter(|_| self.nic == Nic::Verbs) else { return Ok(None) };
        let own_name = || fs::read_to_string(HOST_NAME).map(|name| name.trim().to_owned());
        let target = self.target.clone().map_or_else(own_name, Ok).context("--target: this machine has no name")?;
        let choice = Choice { local, device: self.device.clone(), port: self.device_port };
        Ok(Some(nic::Settings { target, choice, control_port: self.control_port, peers: self.peer.clone() }))
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    start_log(arguments.log_json);
    let nic = arguments.nic()?;
    if arguments.check {
        return check(nic.as_ref());
    }
    let spared = arguments.spare_uid.len();
    ensure!(spared <= SPARED_MAX, "--spare-uid: {spared} users, the kill table has room for {SPARED_MAX}");
    capabilities::require(&NEEDS)?;
    // Blocked before any thread exists, so that only the wait below takes them.
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    end.thread_block()?;

    let pins = Pins::open(&arguments.pin_dir)?;
    let cpus = census::online_cpus()?;
    let sensor_box = BoxMap::open(&pins, SENSOR_BOX, sensorbox::layout::RECORD_BYTES as u32, records::CAPACITY + 1)?;
    let heartbeat = census::take(sensor_box.mapping(), &cpus, Duration::from_millis(arguments.tick_deadline_ms))?;
    let orders = BoxMap::open(&pins, ORDERS, ORDERS_BYTES as u32, ONE)?;
    let answers = BoxMap::open(&pins, ANSWERS, ANSWERS_BYTES as u32, ONE)?;
    // Whom it spares stands in the table before the kernel takes any order out of it.
    let ledger = sweep::open(&orders, &answers, &arguments.spare_uid)?;
    let rooms = HEAD_RECORDS as u32 + arguments.processes;
    let processes = BoxMap::open(&pins, PROCESSES, RECORD_BYTES as u32, rooms)?;
    let keeper = roster::open(&processes, census::ram_pages()?)?;
    let lock = BoxMap::open(&pins, LOCK, locktable::layout::BYTES as u32, ONE)?;
    let locked = BoxMap::open(&pins, LOCKED, locktable::layout::BYTES as u32, ONE)?;
    let lists = fence::Lists::open(&pins)?;
    let sign = fence::open(&locked, &lists, &arguments.guarded, &cpus)?;
    let mut maps = vec![(ebpf::SENSOR_BOX_IN_OBJECT, sensor_box.as_fd())];
    maps.extend([&orders, &answers, &processes, &lock, &locked].map(|map| (map.name(), map.as_fd())));
    maps.extend([(fence::ADDRESSES, lists.addresses.as_fd()), (fence::STOPPED, lists.stopped.as_fd())]);
    let placed = ebpf::attach(&pins, Maps(&maps), &cpus)?;
    if arguments.guarded.is_wanted() {
        fence::guard(&sign, &placed, &arguments.guarded)?;
    }
    let wanted = Geometry::standard(arguments.pool_slots).keeping_output(arguments.send_log_kib << 10);
    let boxes = BoxMap::open(&pins, CONTINUATION_BOXES, PAGE_BYTES as u32, page_entries(wanted.length_bytes()))?;
    let service = Arc::new(serve_boxes(&boxes, wanted, &arguments.box_socket)?);
    let board = nic.is_some().then(Arc::<Board>::default);
    let scraped = arguments.metrics.map(|at| show_metrics(&service, board.as_ref(), at)).transpose()?;
    let mut regions = vec![registration::of(&sensor_box)?, registration::of(&boxes)?, registration::of(&processes)?];
    if !arguments.no_kill_table {
        regions.extend([registration::of_orders(&orders)?, registration::of(&answers)?]);
    }
    if let Some(table) = mirror_connections(&pins, &arguments)? {
        regions.push(registration::of(&table)?);
    }
    sweep::protect();
    thread::Builder::new().name("sweep".into()).spawn(move || sweep::keep(ledger, &placed.condemned))?;
    let (all, stopped) = (placed.all, placed.stopped);
    thread::Builder::new().name("roster".into()).spawn(move || roster::keep(keeper, &all))?;
    if arguments.guarded.is_wanted() {
        regions.extend([registration::of_words(&lock)?, registration::of(&locked)?]);
        thread::Builder::new().name("fence".into()).spawn(move || fence::keep(sign, &lists, &stopped))?;
    }

    let (running, stopped) = mpsc::channel();
    let registrar = thread::Builder::new().name("registration".into()).spawn(move || match (nic, board) {
        (Some(settings), Some(board)) => nic::keep(&settings, &regions, &board, &stopped),
        _ => registration::keep(&regions, &stopped),
    })?;
    thread::Builder::new().name("heartbeat".into()).spawn(move || beat(heartbeat))?;
    info!(processors = cpus.len(), slots = service.pool().geometry().slots, "the agent is up");

    let signal = end.wait()?;
    info!(%signal, "the agent ends; sensors and boxes stay");
    drop(running);
    // The registrar may be waiting for the host for seconds; the process need not wait for it. Of an adapter the kernel
    // takes back whatever is left.
    if registrar.is_finished() {
        let _ = registrar.join();
    }
    drop(scraped);
    drop(service);
    Ok(())
}

/// Opens the pool in `boxes`, or formats it if nobody has, and serves it to applications.
fn serve_boxes(boxes: &BoxMap, wanted: Geometry, socket: &Path) -> Result<BoxService> {
    let len = boxes.mapping().len_bytes();
    let pool = match Pool::open(boxes.as_fd(), len) {
        Ok(pool) => {
            info!(slots = pool.geometry().slots, "the pool of boxes of an earlier agent is kept");
            pool
        }
        // Fresh BPF memory is zero. Anything else may hold somebody's sessions.
        Err(PoolError::Bad(BadPool::Magic { found: 0 })) => make_pool(boxes, wanted)?,
        Err(refused) => return Err(refused).context("remove the pin `cb` to give the old boxes up"),
    };
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    BoxService::start(socket, pool, boxes.descriptor()?)
        .with_context(|| format!("cannot serve boxes at {}", socket.display()))
}

/// Has the connections of services kept, where that is asked for.
fn mirror_connections(pins: &Pins, arguments: &Arguments) -> Result<Option<BoxMap>> {
    if arguments.mirror_port.is_empty() {
        mirror::give_up(pins)?;
        return Ok(None);
    }
    let table = BoxMap::open(pins, tcptable::layout::NAME, SLOT_BYTES, arguments.mirror_slots + HEADER)?;
    mirror::keep(pins, &table, &arguments.mirror_port)?;
    Ok(Some(table))
}

fn make_pool(boxes: &BoxMap, wanted: Geometry) -> Result<Arc<Pool>> {
    let name = random_number().context("cannot read /dev/urandom")?;
    let geometry = wanted.filling(boxes.mapping().len_bytes() as u64);
    Ok(Pool::create(boxes.as_fd(), geometry, name)?)
}

fn show_metrics(boxes: &Arc<BoxService>, board: Option<&Arc<Board>>, at: SocketAddr) -> Result<Endpoint> {
    let registry = metrics::registry(boxes, board);
    Endpoint::start(at, move || text_of(&registry)).with_context(|| format!("metrics cannot be served at {at}"))
}

/// The agent's sign of life: that user processes still get to run.
fn beat(sensor: Sensor<'static>) {
    loop {
        sensor.advance(1);
        thread::sleep(HEARTBEAT);
    }
}

fn check(nic: Option<&nic::Settings>) -> Result<()> {
    if let Some(settings) = nic {
        let adapter = Adapter::open(&settings.choice)?;
        println!("memory can be served by {:?}", adapter.chosen());
    }
    capabilities::require(&NEEDS)?;
    for (path, why) in [
        ("/sys/kernel/btf/vmlinux", "the kernel was built without BTF"),
        ("/sys/fs/bpf", "the kernel was built without BPF"),
        ("/proc/self/pagemap", "the kernel was built without /proc/PID/pagemap"),
    ] {
        ensure!(Path::new(path).exists(), "{path} is missing: {why}");
    }
    println!("this machine can run the agent; {} processors", census::online_cpus()?.len());
    Ok(())
}

fn power_of_two(text: &str) -> Result<u32, String> {
    let count = text.parse().map_err(|error| format!("{error}"))?;
    let (fewest, most) = (64, proctable::layout::CAPACITY_MAX as u32);
    match u32::is_power_of_two(count) && (fewest..=most).contains(&count) {
        true => Ok(count),
        false => Err(format!("a power of two from {fewest} to {most}")),
    }
}

fn start_log(json: bool) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json {
        log.json().init();
    } else {
        log.init();
    }
}
