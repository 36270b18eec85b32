//! What can be said on the command line.

mod adapters;

use std::path::PathBuf;

use auction::clients::Mix;
use clap::{Args, Parser, Subcommand};
use testbed::{
    bench,
    client::Kind,
    fault::Fault,
    scenario::{
        Aim, Order, Stage, drown, hang_download,
        rubis::{Peers, TierFault},
        series,
    },
    topology::Wire,
    torn,
};

pub use adapters::{Interop, RxeMonitorArguments};

/// Breaks real virtual machines and proves that their clients never notice.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Subcommand)]
pub enum Action {
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
        /// Numbers of clients of the auction; from 1 to 128 if none is said.
        #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
        clients: Vec<u32>,
        /// Numbers of processes of the bombs that are cured; from 100 to 30000 if none is said.
        #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
        processes: Vec<u32>,
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
    /// Drowns guests in all ways, by round and seed, and has them repaired; goes on where it was stopped.
    RepairCampaign(RepairCampaignArguments),
    /// Breaks the tiers of an auction in all ways, by round and seed, with clients; goes on where it was stopped.
    RubisCampaign(RubisCampaignArguments),
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
    /// Runs a command in an empty sandbox: for tests that build machines and networks of their own.
    Inside {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
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
pub enum Scenario {
    /// Clients are served by a guest, the guest hangs, every client must get every byte exactly once.
    HangDownload(HangDownload),
    /// Clients are served by two processes of a guest with a channel between them, the guest breaks, every client must
    /// get every answer exactly once.
    Relay(RelayArguments),
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
    /// Our RoCEv2 and Linux' rxe work on each other's memory, over good paths and bad ones; every byte is checked. One
    /// line for each cell of the matrix.
    Interop(Interop),
    /// A machine without a hypervisor is watched by another through its RDMA adapter: sampled, locked, rid of a fork
    /// bomb; then its user space stops and its clients go on with the other.
    RxeMonitor(RxeMonitorArguments),
    /// Clients of an auction in three tiers: every reply must be its request's own, the database what they were told.
    Rubis(Rubis),
}

#[derive(Args)]
pub struct Rubis {
    /// All tiers are processes on this machine; otherwise there are two of each, the first of them in virtual machines.
    #[arg(long)]
    pub native: bool,
    /// What is done to the tiers.
    #[arg(long, value_enum, default_value = "none")]
    pub fault: TierFault,
    /// How a machine breaks; if it is not said, the seed decides.
    #[arg(long, value_enum)]
    pub crash: Option<Fault>,
    /// Where the peers of the virtual machines are: processes of this machine, or virtual machines themselves.
    #[arg(long, value_enum, default_value = "host")]
    pub peers: Peers,
    /// The front end's machine has two service addresses, and two peers share its evacuation.
    #[arg(long)]
    pub share: bool,
    /// Tiers without Continuation Boxes: what they had in hand is lost with them.
    #[arg(long)]
    pub plain: bool,
    /// Emulated users, each with a connection.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// What they do.
    #[arg(long, value_enum, default_value = "bid")]
    pub mix: Mix,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long; with virtual machines, from when the clients are under way, and without the recovery.
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// They think so many times as long: 7 s on the average with 1, and never more than 70.
    #[arg(long, default_value_t = 1.0)]
    pub slow_down: f64,
    /// Items on sale; half as many users, about five times as many bids.
    #[arg(long, default_value_t = 4000)]
    pub items: i64,
    /// Front ends, if native.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub front_ends: u16,
    /// Mid tiers, if native.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub mid_tiers: u16,
    /// Line of guest kernels, as scripts/setup fetches them.
    #[arg(long, default_value = "6.1", value_parser = ["6.1", "6.12", "6.1-rt"])]
    pub kernel: String,
    /// Virtual CPUs of each machine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub vcpus: u32,
    /// Silence of a CPU's tick that counts as a hang: two busy emulated guests beside everything else may be silent for
    /// a while and live.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub deadline_ms: u64,
    /// Where result, drawings and, after a failure, logs are left.
    #[arg(long, default_value = "out/rubis")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct RelayArguments {
    /// What is done to the guest.
    #[arg(long, value_enum, default_value = "stop")]
    pub fault: Fault,
    /// How many clients, each with a worker process.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=12))]
    pub sessions: u16,
    /// A Unix socket between front end and worker; otherwise two pipes.
    #[arg(long)]
    pub socket: bool,
    /// Have workers make up part of each reply.
    #[arg(long)]
    pub stamps: bool,
    #[command(flatten)]
    pub guest: Guest,
    /// Where result, drawings and, after a failure, logs are left.
    #[arg(long, default_value = "out/relay")]
    pub out: PathBuf,
    /// Leave the logs there after a success, too.
    #[arg(long)]
    pub keep_logs: bool,
}

#[derive(Args)]
pub struct RescueAndReturn {
    /// What is done to the guest.
    #[arg(long, value_enum, default_value = "panic")]
    pub fault: Fault,
    /// How many clients are carried over.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub sessions: u16,
    #[command(flatten)]
    pub guest: Guest,
    /// Where result, timeline and, after a failure, logs are left.
    #[arg(long, default_value = "out/rescue-and-return")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct Forkbomb {
    /// What the processes do.
    #[arg(long, value_enum, default_value = "cpu")]
    pub variant: drown::Variant,
    /// How many there are; the shell's has no number.
    #[arg(long, default_value_t = 200)]
    pub procs: u32,
    #[command(flatten)]
    pub drowning: Drowning,
}

#[derive(Args)]
pub struct Memhog {
    /// How many processes take memory.
    #[arg(long, default_value_t = 4)]
    pub procs: u32,
    /// How much each of them takes, in MiB. The guest has 256.
    #[arg(long, default_value_t = 96)]
    pub mib: u32,
    /// What the guest can swap to, in MiB; 0 for none: its OOM killer comes when its memory is full then.
    #[arg(long, default_value_t = 512)]
    pub swap_mib: u32,
    /// How long memory may be short before anything is done, in milliseconds: hogs are swapped out meanwhile.
    #[arg(long, default_value_t = drown::HOLD.as_millis() as u64)]
    pub hold_ms: u64,
    /// Their controller makes those anew that die.
    #[arg(long)]
    pub respawn: bool,
    #[command(flatten)]
    pub drowning: Drowning,
}

#[derive(Args)]
pub struct Drowning {
    /// By what the monitor ends processes.
    #[arg(long, value_enum, default_value = "raw")]
    pub hook: drown::Hook,
    /// Repair nothing and watch for so many seconds.
    #[arg(long)]
    pub unrepaired_s: Option<u64>,
    /// A fork bomb is treated by this program, which takes the settings of `crowd.py`, and not by the monitor's module.
    #[arg(long)]
    pub own_module: Option<PathBuf>,
    /// Nothing of ours runs in the guest: it is watched by variables of its kernel.
    #[arg(long)]
    pub no_agent: bool,
    /// How long a piece of useful work takes alone, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub piece_ms: u64,
    #[command(flatten)]
    pub guest: Guest,
    /// Where result, journal and, after a failure, logs are left.
    #[arg(long, default_value = "out/drown")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct RepairSeries {
    /// What drowns the guests.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cpu,io,sleepers,hog,respawn")]
    pub kinds: Vec<series::Kind>,
    /// How many processes a bomb has.
    #[arg(long, value_delimiter = ',', default_value = "50,100,200,400")]
    pub procs: Vec<u32>,
    /// How many hogs there are.
    #[arg(long, value_delimiter = ',', default_value = "8,12,16,24")]
    pub hogs: Vec<u32>,
    /// How long a guest that is not repaired is watched, in seconds.
    #[arg(long, default_value_t = 20)]
    pub unrepaired_s: u64,
    /// Nothing of ours runs in the guests: they are watched by variables of their kernels.
    #[arg(long)]
    pub no_agent: bool,
    /// How long a piece of useful work takes alone, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub piece_ms: u64,
    #[command(flatten)]
    pub guest: Guest,
    /// Where figures and numbers are left.
    #[arg(long, default_value = "out/repair")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct SoakArguments {
    /// What keeps the guest busy; `all` is each in turn, in a guest of its own.
    #[arg(long, default_value = "all", value_parser = ["idle", "cpu", "memory", "network", "all"])]
    pub load: String,
    /// How long, all loads together.
    #[arg(long, default_value_t = 30.0)]
    pub minutes: f64,
    /// From one recorded sample to the next: a stall is seen shorter than it was by up to two of them.
    #[arg(long, default_value_t = 1.0)]
    pub period_ms: f64,
    #[command(flatten)]
    pub guest: Guest,
    /// Where result and figures are left, and logs of what failed.
    #[arg(long, default_value = "out/soak")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct HangDownload {
    /// What is done to the guest.
    #[arg(long, value_enum, default_value = "panic")]
    pub fault: Fault,
    /// How many clients.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub sessions: u16,
    /// What they do, in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "paced")]
    pub kinds: Vec<Kind>,
    /// So many of them keep a connection alive, silent during the fault, whatever the others do: an emulated guest
    /// carries thousands of these.
    #[arg(long, default_value_t = 0)]
    pub idle: u16,
    /// Every second client uses IPv6.
    #[arg(long)]
    pub ipv6: bool,
    /// The spare is killed here, and a second one has to finish.
    #[arg(long, value_enum)]
    pub spare_dies: Option<Stage>,
    /// How the clients' cable treats packets around the fault.
    #[arg(long, value_enum, default_value = "good")]
    pub wire: Wire,
    /// Where a stop shall fall; with one vCPU.
    #[arg(long, value_enum)]
    pub aim: Option<Aim>,
    /// How long sessions go on after the recovery.
    #[arg(long, default_value_t = hang_download::AFTERWARDS.as_millis() as u64)]
    pub afterwards_ms: u64,
    /// Continuation Boxes in the guest; enough for the sessions if it is not said.
    #[arg(long)]
    pub pool_slots: Option<u32>,
    /// The spare reads the guest's tables only, as of a target whose memory cannot be read; with pools of 64 boxes.
    #[arg(long, conflicts_with_all = ["pool_slots", "saved"])]
    pub tables: bool,
    /// A guest saved by `save-guest` with the same kernel, vCPUs and pool; it is booted without one.
    #[arg(long)]
    pub saved: Option<PathBuf>,
    #[command(flatten)]
    pub guest: Guest,
    /// Where result, drawing and, after a failure, logs are left.
    #[arg(long, default_value = "out/hang-download")]
    pub out: PathBuf,
    /// Leaves the logs there after a success, too.
    #[arg(long)]
    pub keep_logs: bool,
    /// Records the RDMA network into this file (pcap).
    #[arg(long)]
    pub capture: Option<PathBuf>,
}

#[derive(Args)]
pub struct CampaignArguments {
    /// Runs in all, those already in the file included.
    #[arg(long, default_value_t = 1000)]
    pub runs: usize,
    /// The results, one JSON line per run.
    #[arg(long, default_value = "out/campaign.jsonl")]
    pub results: PathBuf,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Lines of guest kernels.
    #[arg(long, value_delimiter = ',', default_value = "6.1,6.1-rt,6.12")]
    pub kernels: Vec<String>,
    /// What is done to the guest.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "panic,stop,softlock,hardlock")]
    pub faults: Vec<Fault>,
    /// Virtual CPUs.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub vcpus: Vec<u32>,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,20,200")]
    pub sessions: Vec<u16>,
    /// What they do, in turn.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "paced,fast,upload,small,idle,stalled,half-closed,fresh,queued"
    )]
    pub kinds: Vec<Kind>,
    /// How the clients' cable is around the fault; one is drawn for each run.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "good,good,good,lossy,shuffled,rough")]
    pub wires: Vec<Wire>,
    /// Where stops are aimed, beside the faults.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "export,send,transmit,recv,receive,acknowledge,accept,handshake,close"
    )]
    pub aims: Vec<Aim>,
    /// No aimed stops.
    #[arg(long, conflicts_with = "aims")]
    pub no_aims: bool,
    /// Silence that counts as a hang.
    #[arg(long, default_value_t = 200)]
    pub deadline_ms: u64,
    /// Runs at the same time.
    #[arg(long, default_value_t = 2)]
    pub parallel: usize,
    /// Runs that begin with the same boot of a guest.
    #[arg(long, default_value_t = 25)]
    pub runs_per_boot: usize,
    /// A command put before that of each run, in words separated by commas: a lock, `taskset,-c,0`, …
    #[arg(long, value_delimiter = ',')]
    pub through: Vec<String>,
}

#[derive(Args)]
pub struct RepairCampaignArguments {
    /// Runs in all, those already in the file included: each twelve of them have every illness once with an agent in
    /// the guest, and once without.
    #[arg(long, default_value_t = 240)]
    pub runs: usize,
    /// The results, one JSON line per run.
    #[arg(long, default_value = "out/repairs.jsonl")]
    pub results: PathBuf,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Lines of guest kernels; one is drawn for each run.
    #[arg(long, value_delimiter = ',', default_value = "6.1,6.1-rt,6.12")]
    pub kernels: Vec<String>,
    /// Numbers of processes of a bomb; one is drawn for each run.
    #[arg(long, value_delimiter = ',', default_value = "60,200,500")]
    pub procs: Vec<u32>,
    /// How long a piece of useful work takes alone, in milliseconds.
    #[arg(long, default_value_t = 300)]
    pub piece_ms: u64,
    /// Silence that counts as a hang: long, since what drowns a guest makes it slow.
    #[arg(long, default_value_t = 2000)]
    pub deadline_ms: u64,
    /// Runs at the same time.
    #[arg(long, default_value_t = 1)]
    pub parallel: usize,
    /// A command put before that of each run, in words separated by commas: a lock, `taskset,-c,0`, …
    #[arg(long, value_delimiter = ',')]
    pub through: Vec<String>,
}

#[derive(Args)]
pub struct RubisCampaignArguments {
    /// Runs in all, those already in the file included: each twelve of them break every tier in every way.
    #[arg(long, default_value_t = 90)]
    pub runs: usize,
    /// The results, one JSON line per run.
    #[arg(long, default_value = "out/rubis.jsonl")]
    pub results: PathBuf,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Lines of guest kernels; one is drawn for each run.
    #[arg(long, value_delimiter = ',', default_value = "6.1,6.12")]
    pub kernels: Vec<String>,
    /// Emulated users.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// How long they go on, without the recovery.
    #[arg(long, default_value_t = 9.0)]
    pub seconds: f64,
    /// They think so many times as long: 0.2 s on the average, which keeps emulated tiers busy.
    #[arg(long, default_value_t = 0.03)]
    pub slow_down: f64,
    /// Silence that counts as a hang.
    #[arg(long, default_value_t = 1000)]
    pub deadline_ms: u64,
    /// Runs at the same time.
    #[arg(long, default_value_t = 1)]
    pub parallel: usize,
    /// A command put before that of each run, in words separated by commas: a lock, `taskset,-c,0`, …
    #[arg(long, value_delimiter = ',')]
    pub through: Vec<String>,
}

#[derive(Args)]
pub struct Guest {
    /// Line of guest kernels, as scripts/setup fetches them.
    #[arg(long, default_value = "6.1", value_parser = ["6.1", "6.12", "6.1-rt"])]
    pub kernel: String,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub vcpus: u32,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Silence of a CPU's tick that counts as a hang. On a machine that is busy with other things, an emulated guest
    /// may be silent for a tenth of a second and live.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub deadline_ms: u64,
}

impl Guest {
    pub fn order(&self) -> Order {
        Order::new(&self.kernel, self.vcpus, self.deadline_ms)
    }
}
