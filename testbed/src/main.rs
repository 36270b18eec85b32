//! The command line of the testbed. Everything runs inside a [`sandbox`]; nothing is left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use testbed::{
    bench::{self, Bench, Effort},
    campaign::{self, Campaign, Matrix},
    client::Kind,
    demo,
    fault::Fault,
    sandbox,
    scenario::{
        self, Aim, Order, Progress, Run, Stage, drown, hang_download, series,
        soak::{self, Load, Soak},
    },
    timeline::Timeline,
    topology::{Topology, Wire},
    torn,
};

/// Breaks real virtual machines and proves that their clients never notice.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// One curl, one panic, one checksum.
    Demo {
        /// Where drawing and result are left.
        #[arg(long, default_value = "out/demo")]
        out: PathBuf,
        #[command(flatten)]
        guest: Guest,
    },
    /// Measures what the parts cost on this machine and prints a table, each figure beside its limit and its goal.
    Bench {
        /// Where the drawings of the recoveries are left; the result beside it, as OUT.json and OUT.svg.
        #[arg(long, default_value = "out/bench")]
        out: PathBuf,
        /// Only these.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<bench::Group>,
        /// Recoveries for each number of sessions.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
        runs: u64,
        /// Everything once and briefly: shows that it runs, the figures mean nothing.
        #[arg(long)]
        brief: bool,
        #[command(flatten)]
        guest: Guest,
    },
    /// Runs a scenario; its last line on standard output is the result, as JSON.
    Run {
        #[command(subcommand)]
        scenario: Scenario,
    },
    /// Boots a guest, saves it and ends it; runs can begin there instead of booting, see `run hang-download --saved`.
    SaveGuest {
        /// Where it is saved.
        file: PathBuf,
        /// Continuation Boxes in its pool.
        #[arg(long, default_value_t = 256)]
        pool_slots: u32,
        #[command(flatten)]
        guest: Guest,
    },
    /// Runs the matrix of faults, kernels, processors and sessions again and again; goes on where it was stopped.
    Campaign(CampaignArguments),
    /// Stops a guest's processor at each instruction of the kernel's TCP paths and reads its memory there; the last
    /// line on standard output is the result, as JSON.
    Torn {
        /// Line of guest kernels.
        #[arg(long, default_value = "6.1", value_parser = ["6.1", "6.12", "6.1-rt"])]
        kernel: String,
        /// Kernel functions to go through.
        #[arg(long, value_delimiter = ',', default_values_t = torn::PATHS.map(str::to_owned))]
        paths: Vec<String>,
        /// How often each is gone through.
        #[arg(long, default_value_t = 2)]
        visits: usize,
        /// Every how many instructions the memory is read.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        stride: u32,
        /// Which of these instructions is the first.
        #[arg(long, default_value_t = 0)]
        phase: usize,
        /// The client that downloads has a window so small that the guest's kernel splits buffers.
        #[arg(long)]
        narrow: bool,
    },
    /// Draws a timeline that was saved as JSON: as SVG on standard output, as text on standard error.
    Draw {
        /// The file.
        timeline: PathBuf,
    },
    /// Draws the figures of detection from what soaks have left.
    Figures {
        /// The files `detection.json` of soaks.
        #[arg(required = true)]
        from: Vec<PathBuf>,
        /// Where the drawings are left.
        #[arg(long, default_value = "docs/figures")]
        out: PathBuf,
    },
    /// Runs a command in a machine of a fresh topology, to look around: hypervisor, spare, monitor or client.
    Enter {
        /// The machine.
        place: String,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Scenario {
    /// Clients are served by a guest, the guest hangs, every client must get every byte exactly once.
    HangDownload(HangDownload),
    /// A guest hangs and is evacuated; then it is looked at, reset, and given its address back, with clients all along.
    RescueAndReturn(RescueAndReturn),
    /// An ordinary user of a guest sets off a fork bomb; the monitor ends it from outside, and nothing else is harmed.
    Forkbomb(Forkbomb),
    /// An ordinary user of a guest takes its memory; the monitor ends that from outside, and nothing else is harmed.
    Memhog(Memhog),
    /// How long useful work takes in a guest that is drowned, repaired and not, against how many processes do it.
    RepairSeries(RepairSeries),
    /// A healthy guest under a load must not be taken for one that hangs; at the end it does hang, and must be.
    Soak(SoakArguments),
}

#[derive(Args)]
struct RescueAndReturn {
    /// What is done to the guest.
    #[arg(long, value_enum, default_value = "panic")]
    fault: Fault,
    /// How many clients are carried over.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=200))]
    sessions: u16,
    #[command(flatten)]
    guest: Guest,
    /// Where result, timeline and, after a failure, logs are left.
    #[arg(long, default_value = "out/rescue-and-return")]
    out: PathBuf,
}

#[derive(Args)]
struct Forkbomb {
    /// What the processes do.
    #[arg(long, value_enum, default_value = "cpu")]
    variant: drown::Variant,
    /// How many there are; the shell's has no number.
    #[arg(long, default_value_t = 200)]
    procs: u32,
    #[command(flatten)]
    drowning: Drowning,
}

#[derive(Args)]
struct Memhog {
    /// How many processes take memory.
    #[arg(long, default_value_t = 4)]
    procs: u32,
    /// How much each of them takes, in MiB.
    #[arg(long, default_value_t = 40)]
    mib: u32,
    /// Their controller makes those anew that die.
    #[arg(long)]
    respawn: bool,
    #[command(flatten)]
    drowning: Drowning,
}

#[derive(Args)]
struct Drowning {
    /// By what the monitor ends processes.
    #[arg(long, value_enum, default_value = "raw")]
    hook: drown::Hook,
    /// Repair nothing and watch for so many seconds.
    #[arg(long)]
    unrepaired_s: Option<u64>,
    /// A fork bomb is treated by this program, which takes the settings of `crowd.py`, and not by the monitor's module.
    #[arg(long)]
    own_module: Option<PathBuf>,
    /// Nothing of ours runs in the guest: it is watched by variables of its kernel.
    #[arg(long)]
    no_agent: bool,
    /// How long a piece of useful work takes alone, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    piece_ms: u64,
    #[command(flatten)]
    guest: Guest,
    /// Where result, journal and, after a failure, logs are left.
    #[arg(long, default_value = "out/drown")]
    out: PathBuf,
}

#[derive(Args)]
struct RepairSeries {
    /// What drowns the guests.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cpu,io,sleepers,respawn")]
    kinds: Vec<series::Kind>,
    /// How many processes do it.
    #[arg(long, value_delimiter = ',', default_value = "25,50,100,200")]
    procs: Vec<u32>,
    /// How long a guest that is not repaired is watched, in seconds.
    #[arg(long, default_value_t = 20)]
    unrepaired_s: u64,
    /// Nothing of ours runs in the guests: they are watched by variables of their kernels.
    #[arg(long)]
    no_agent: bool,
    /// How long a piece of useful work takes alone, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    piece_ms: u64,
    #[command(flatten)]
    guest: Guest,
    /// Where figures and numbers are left.
    #[arg(long, default_value = "out/repair")]
    out: PathBuf,
}

#[derive(Args)]
struct SoakArguments {
    /// What keeps the guest busy; `all` is each in turn, in a guest of its own.
    #[arg(long, default_value = "all", value_parser = ["idle", "cpu", "memory", "network", "all"])]
    load: String,
    /// How long, all loads together.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// From one recorded sample to the next: a stall is seen shorter than it was by up to two of them.
    #[arg(long, default_value_t = 1.0)]
    period_ms: f64,
    #[command(flatten)]
    guest: Guest,
    /// Where result and figures are left, and logs of what failed.
    #[arg(long, default_value = "out/soak")]
    out: PathBuf,
}

#[derive(Args)]
struct HangDownload {
    /// What is done to the guest.
    #[arg(long, value_enum, default_value = "panic")]
    fault: Fault,
    /// How many clients.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    sessions: u16,
    /// What they do, in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paced")]
    kinds: Vec<Kind>,
    /// So many of them keep a connection alive, silent during the fault, whatever the others do: an emulated guest
    /// carries thousands of these.
    #[arg(long, default_value_t = 0)]
    idle: u16,
    /// Every second client uses IPv6.
    #[arg(long)]
    ipv6: bool,
    /// The spare is killed here, and a second one has to finish.
    #[arg(long, value_enum)]
    spare_dies: Option<Stage>,
    /// How the clients' cable treats packets around the fault.
    #[arg(long, value_enum, default_value = "good")]
    wire: Wire,
    /// Where a stop shall fall; with one vCPU.
    #[arg(long, value_enum)]
    aim: Option<Aim>,
    /// How long sessions go on after the recovery.
    #[arg(long, default_value_t = hang_download::AFTERWARDS.as_millis() as u64)]
    afterwards_ms: u64,
    /// Continuation Boxes in the guest; enough for the sessions if it is not said.
    #[arg(long)]
    pool_slots: Option<u32>,
    /// A guest saved by `save-guest` with the same kernel, vCPUs and pool; it is booted without one.
    #[arg(long)]
    saved: Option<PathBuf>,
    #[command(flatten)]
    guest: Guest,
    /// Where result, drawing and, after a failure, logs are left.
    #[arg(long, default_value = "out/hang-download")]
    out: PathBuf,
    /// Leaves the logs there after a success, too.
    #[arg(long)]
    keep_logs: bool,
    /// Records the RDMA network into this file (pcap).
    #[arg(long)]
    capture: Option<PathBuf>,
}

#[derive(Args)]
struct CampaignArguments {
    /// Runs in all, those already in the file included.
    #[arg(long, default_value_t = 1000)]
    runs: usize,
    /// The results, one JSON line per run.
    #[arg(long, default_value = "out/campaign.jsonl")]
    results: PathBuf,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Lines of guest kernels.
    #[arg(long, value_delimiter = ',', default_value = "6.1,6.1-rt,6.12")]
    kernels: Vec<String>,
    /// What is done to the guest.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "panic,stop,softlock,hardlock")]
    faults: Vec<Fault>,
    /// Virtual CPUs.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    vcpus: Vec<u32>,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,20,200")]
    sessions: Vec<u16>,
    /// What they do, in turn.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "paced,fast,upload,small,idle,stalled,half-closed,fresh,queued"
    )]
    kinds: Vec<Kind>,
    /// How the clients' cable is around the fault; one is drawn for each run.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "good,good,good,lossy,shuffled,rough")]
    wires: Vec<Wire>,
    /// Where stops are aimed, beside the faults.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "export,send,transmit,recv,receive,acknowledge,accept,handshake,close"
    )]
    aims: Vec<Aim>,
    /// No aimed stops.
    #[arg(long, conflicts_with = "aims")]
    no_aims: bool,
    /// Silence that counts as a hang.
    #[arg(long, default_value_t = 200)]
    deadline_ms: u64,
    /// Runs at the same time.
    #[arg(long, default_value_t = 2)]
    parallel: usize,
    /// Runs that begin with the same boot of a guest.
    #[arg(long, default_value_t = 25)]
    runs_per_boot: usize,
    /// A command put before that of each run, in words separated by commas: a lock, `taskset,-c,0`, …
    #[arg(long, value_delimiter = ',')]
    through: Vec<String>,
}

#[derive(Args)]
struct Guest {
    /// Line of guest kernels, as scripts/setup fetches them.
    #[arg(long, default_value = "6.1", value_parser = ["6.1", "6.12", "6.1-rt"])]
    kernel: String,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Silence of a CPU's tick that counts as a hang. On a machine that is busy with other things, an emulated guest
    /// may be silent for a tenth of a second and live.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    deadline_ms: u64,
}

impl Guest {
    fn order(&self) -> Order {
        Order::new(&self.kernel, self.vcpus, self.deadline_ms)
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Action::Draw { timeline } = &arguments.action {
        return draw(timeline);
    }
    if let Action::Figures { from, out } = &arguments.action {
        soak::draw(&soak::read_records(from)?, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Action::Campaign(arguments) = arguments.action {
        return run_campaign(arguments); // each of its runs has a sandbox of its own
    }
    sandbox::enter()?;
    match arguments.action {
        Action::Draw { .. } | Action::Campaign(_) | Action::Figures { .. } => unreachable!("done outside a sandbox"),
        Action::Demo { out, guest } => {
            let pass = demo::demo(&out, guest.order(), guest.seed)?;
            Ok(if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Bench { out, only, runs, brief, guest } => {
            let effort = if brief { Effort::brief() } else { Effort::full(runs) };
            bench::bench(&Bench { out, order: guest.order(), only, effort })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Run { scenario: Scenario::HangDownload(arguments) } => run_hang_download(arguments),
        Action::Run { scenario: Scenario::Soak(arguments) } => run_soak(arguments),
        Action::SaveGuest { file, pool_slots, guest } => {
            let order = Order { pool_slots, lockup_module: true, ..guest.order() };
            scenario::save_guest(&order, &file, Progress::begin())?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Run { scenario: Scenario::RescueAndReturn(arguments) } => rescue_and_return(arguments),
        Action::Run { scenario: Scenario::Forkbomb(Forkbomb { variant, procs, drowning }) } => {
            drown(drown::Illness::ForkBomb { variant, procs }, drowning)
        }
        Action::Run { scenario: Scenario::RepairSeries(arguments) } => repair_series(arguments),
        Action::Run { scenario: Scenario::Memhog(Memhog { procs, mib, respawn, drowning }) } => {
            drown(drown::Illness::MemHog { procs, mib, respawn }, drowning)
        }
        Action::Torn { kernel, paths, visits, stride, phase, narrow } => {
            let order = torn::Order { kernel, paths, visits, stride: stride as usize, phase, narrow };
            let report = torn::explore(&order, Progress::begin())?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Enter { place, command } => enter(&place, &command),
    }
}

fn run_hang_download(arguments: HangDownload) -> Result<ExitCode> {
    let HangDownload { fault, sessions, idle, ipv6, wire, aim, guest, out, keep_logs, capture, .. } = arguments;
    let (seed, afterwards) = (guest.seed, Duration::from_millis(arguments.afterwards_ms));
    ensure!(aim.is_none() || (fault == Fault::Stop && guest.vcpus == 1), "--aim goes with --fault stop and one vCPU");
    let mut order = guest.order();
    order.wire = wire;
    order.spare_dies = arguments.spare_dies.map(|stage| (stage, seed));
    order.saved = arguments.saved;
    order.pool_slots = arguments.pool_slots.unwrap_or_else(|| scenario::pool_for(sessions));
    ensure!(idle <= sessions, "--idle says how many of the {sessions} sessions are idle");
    let (sessions, idle) = (usize::from(sessions), usize::from(idle));
    let busy = arguments.kinds.iter().copied().cycle().take(sessions - idle);
    let kinds = busy.chain(std::iter::repeat_n(Kind::Idle, idle)).collect();
    let run = Run { fault, sessions, kinds, ipv6, aim, afterwards, seed, order, out, keep_logs, capture };
    let (verdict, timeline) = hang_download::run(&run, Progress::begin())?;
    eprint!("\n{}", timeline.text(100));
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn repair_series(arguments: RepairSeries) -> Result<ExitCode> {
    let RepairSeries { kinds, procs, unrepaired_s, no_agent, piece_ms, guest, out } = arguments;
    let order = Order { agent: !no_agent, ..guest.order() };
    let (unrepaired_for, piece) = (Duration::from_secs(unrepaired_s), Duration::from_millis(piece_ms));
    let series = series::Series { illnesses: kinds, procs, unrepaired_for, piece, order, out };
    let points = series::run(&series)?;
    println!("{}", serde_json::to_string(&points)?);
    Ok(if points.iter().all(|point| point.pass) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn drown(illness: drown::Illness, drowning: Drowning) -> Result<ExitCode> {
    let Drowning { hook, unrepaired_s, no_agent, own_module, piece_ms, guest, out } = drowning;
    let own_module = own_module.map(fs::canonicalize).transpose().context("the module's program")?;
    let order = Order { rogue: true, agent: !no_agent, ..guest.order() };
    let (unrepaired_for, piece) = (unrepaired_s.map(Duration::from_secs), Duration::from_millis(piece_ms));
    let run = drown::Run { illness, hook, unrepaired_for, own_module, piece, order, out };
    let (report, timeline) = drown::run(&run, Progress::begin())?;
    eprint!("{timeline}");
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rescue_and_return(arguments: RescueAndReturn) -> Result<ExitCode> {
    let RescueAndReturn { fault, sessions, guest, out } = arguments;
    let (seed, order) = (guest.seed, guest.order());
    let run = scenario::rescue_and_return::Run { fault, sessions: sessions.into(), seed, order, out };
    let (report, timeline) = scenario::rescue_and_return::run(&run, Progress::begin())?;
    eprint!("\n{timeline}");
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_soak(arguments: SoakArguments) -> Result<ExitCode> {
    let SoakArguments { load, minutes, period_ms, guest, out } = arguments;
    let loads = match load.as_str() {
        "all" => Load::ALL.to_vec(),
        one => vec![Load::from_str(one, false).map_err(|error| anyhow!("{one}: {error}"))?],
    };
    let length = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")? / loads.len() as u32;
    let soak = Soak { loads, length, period_ms, seed: guest.seed, order: guest.order(), out };
    let verdict = soak::run(&soak, Progress::begin())?;
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_campaign(arguments: CampaignArguments) -> Result<ExitCode> {
    let CampaignArguments { runs, results, seed, deadline_ms, parallel, runs_per_boot, through, .. } = arguments;
    let CampaignArguments { kernels, faults, vcpus, sessions, kinds, wires, .. } = arguments;
    let aims = if arguments.no_aims { Vec::new() } else { arguments.aims };
    let matrix = Matrix { kernels, faults, vcpus, sessions, aims, kinds, wires };
    let order = Campaign { results, runs, seed, matrix, deadline_ms, parallel, runs_per_boot, through };
    let summary = campaign::campaign(&order)?;
    print!("{summary}");
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn draw(file: &Path) -> Result<ExitCode> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let timeline: Timeline = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
    print!("{}", timeline.svg());
    eprint!("{}", timeline.text(100));
    Ok(ExitCode::SUCCESS)
}

fn enter(place: &str, command: &[String]) -> Result<ExitCode> {
    let topology = Topology::build()?;
    let place = match place {
        "hypervisor" => &topology.hypervisor,
        "spare" => &topology.spare,
        "monitor" => &topology.monitor,
        "client" => &topology.client,
        other => bail!("there is no machine {other}: hypervisor, spare, monitor or client"),
    };
    let [program, arguments @ ..] = command else { bail!("which command?") };
    let status = place.spawn(Command::new(program).args(arguments))?.wait().context("waiting for the command")?;
    Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
}
