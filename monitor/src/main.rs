//! The monitor daemon: watches targets through their backdoors, and looks back at what it decided.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use control::reinstate::Assignment;
use monitor::absent::Absent;
use monitor::after::Order;
use monitor::clock::{Clock, Monotonic};
use monitor::config::{self, Config, Target};
use monitor::door::{self, LinkDoor};
use monitor::evacuate::{Readiness, Standby};
use monitor::fleet::Fleet;
use monitor::inspect;
use monitor::journal::replay::Again;
use monitor::journal::{Journal, Line, heritage, replay, timeline};
use monitor::kernel::Surveyor;
use monitor::metrics::{Metrics, TargetMetrics};
use monitor::operate;
use monitor::partner::{Deputy, Herald, Partner};
use monitor::recording;
use monitor::repair::Ward;
use monitor::sample::Sensors;
use monitor::watch::{Tools, Watch};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rdma::soft::Hub;
use service::capabilities::{self, Capability};
use service::metrics::Endpoint;

/// How often spares that are not ready are asked again.
const PREPARE_AGAIN: Duration = Duration::from_secs(1);

/// How long a recording waits for the kernel's sensors: some megabytes are read for them.
const SURVEY_PATIENCE: Duration = Duration::from_secs(60);

/// How often a sleeping thread looks whether the daemon is to end.
const STOP_POLL: Duration = Duration::from_millis(100);

/// Without it no target can be looked at, and every path would seem lost.
const NEEDS: [(Capability, &str); 1] = [(Capability::NetRaw, "the raw socket over which targets' memory is read")];

#[derive(Parser)]
#[command(version, about = "Watches targets through their backdoors; fences and evacuates those that hang")]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Report what would be done, whatever the configuration says, and touch nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write logs as JSON, one object per line.
    #[arg(long)]
    log_json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Draw the verdicts of a journal again from its samples; fails if one comes out differently.
    Replay {
        /// The journal.
        journal: PathBuf,
        /// Ask modules that are programs of their own once more, too: runs what the journal names, with your rights.
        #[arg(long)]
        run_modules: bool,
    },
    /// Record what the sensors of a target show, until the time is over or a signal comes.
    Record {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The target's name.
        #[arg(long)]
        target: String,
        /// Time from one sample to the next, in milliseconds; the configuration's if left out.
        #[arg(long)]
        period_ms: Option<f64>,
        /// How long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The recording's file.
        #[arg(long)]
        out: PathBuf,
    },
    /// Say, as JSON, how many false verdicts each deadline would have given on a recording of a healthy target.
    Judge {
        /// The recording.
        recording: PathBuf,
        /// The sensors of the rule.
        #[arg(long, default_value = "tick.cpu*")]
        sensors: String,
        /// Deadlines in milliseconds.
        #[arg(long, value_delimiter = ',', default_value = "5,6,8,10,12,15,20,30,50,75,100,150,200,300,500")]
        deadlines_ms: Vec<f64>,
    },
    /// Say what the memory of a target tells: its log, what its processors were at, tasks, connections. Reads only.
    Inspect {
        /// The target's name.
        target: String,
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The newest records of the kernel's log, this many.
        #[arg(long, default_value_t = 100)]
        log: usize,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Save the whole memory to this file first, each byte at its guest-physical address.
        #[arg(long)]
        save_image: Option<PathBuf>,
    },
    /// Leave an order about an evacuated target for the monitor that runs with this configuration.
    Order {
        /// What is to be done.
        #[arg(value_enum)]
        order: Order,
        /// The target's name.
        target: String,
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    #[command(flatten)]
    Operate(operate::Action),
    /// Print the incidents of a journal.
    Timeline {
        /// The journal.
        journal: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    service::start_logs(arguments.log_json);
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("monitor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Some(Command::Replay { journal, run_modules }) => return replayed(&read(&journal)?, run_modules),
        Some(Command::Record { config, target, period_ms, seconds, out }) => {
            let period = period_ms.map(|ms| Duration::try_from_secs_f64(ms / 1e3)).transpose()?;
            record(&config::load(&config)?, &target, period, Duration::from_secs(seconds), &out)?;
        }
        Some(Command::Judge { recording, sensors, deadlines_ms }) => {
            let file = File::open(&recording).with_context(|| format!("{} cannot be opened", recording.display()))?;
            let recordings = recording::read(BufReader::new(file)).with_context(|| recording.display().to_string())?;
            let deadlines = deadlines_ms.iter().map(|ms| Duration::try_from_secs_f64(ms / 1e3));
            let deadlines = deadlines.collect::<Result<Vec<_>, _>>().context("a deadline")?;
            println!("{}", serde_json::to_string(&recording::false_verdicts(&recordings, &sensors, &deadlines))?);
        }
        Some(Command::Inspect { target, config, log, json, save_image }) => {
            let config = config::load(&config)?;
            let mut link = inspect::connect(&config, named(&config, &target)?)?;
            if let Some(path) = save_image {
                let written = inspect::save_image(&mut link, &path)?;
                eprintln!("{}: {} MiB that are not zero", path.display(), written >> 20);
            }
            let found = inspect::inspect(&mut link, log)?;
            match json {
                true => println!("{}", serde_json::to_string(&found)?),
                false => print!("{}", found.text()),
            }
        }
        Some(Command::Order { order, target, config }) => {
            let config = config::load(&config)?;
            let after = named(&config, &target)?.after;
            if after.reset == config::Reset::Never {
                bail!("target.after.reset is \"never\" for {target}: this monitor resets it for nobody");
            }
            let left = order.leave(&config.journal, &target).context("the order cannot be left")?;
            println!("{}: taken when {target} is evacuated and it is its turn", left.display());
        }
        Some(Command::Operate(action)) => {
            let config = config::load(&action.place().config)?;
            action.run(&config, named(&config, &action.place().target)?)?;
        }
        Some(Command::Timeline { journal }) => print!("{}", timeline::text(&read(&journal)?)),
        None => {
            let Some(file) = arguments.config else { bail!("--config FILE is missing") };
            let mut config = config::load(&file)?;
            if arguments.dry_run {
                config.touch_nothing();
            }
            match arguments.check {
                true => println!(
                    "{}: right; {} targets, a sample every {:?}",
                    file.display(),
                    config.targets.len(),
                    config.period
                ),
                false => watch_all(&config)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn named<'a>(config: &'a Config, target: &str) -> Result<&'a Target> {
    let found = config.targets.iter().find(|one| one.name == target);
    found.with_context(|| format!("the configuration has no target {target}"))
}

fn record(config: &Config, target: &str, period: Option<Duration>, time: Duration, out: &Path) -> Result<()> {
    let named = named(config, target)?;
    let file = File::create(out).with_context(|| format!("{} cannot be written", out.display()))?;
    let period_ns = u64::try_from(period.unwrap_or(config.period).as_nanos()).context("a period of centuries")?;
    let mut door = LinkDoor::new(config, named);
    let metrics = Metrics::default().of(target);
    let stop = Arc::new(AtomicBool::new(false));
    let (surveyor, surveying) = Surveyor::open(config, named, &metrics, &stop).context("no thread")?;
    let mut sensors = Sensors::new(named, surveyor);
    if surveying.is_some() {
        sensors.wait(SURVEY_PATIENCE).map_err(anyhow::Error::msg)?;
    }
    let begin = Instant::now();
    let is_over = || begin.elapsed() >= time;
    let mut out = BufWriter::new(file);
    let recorded =
        recording::record((target, &mut sensors), &mut door, &Monotonic, period_ns.max(1), &mut out, is_over);
    stop.store(true, Ordering::Relaxed);
    if surveying.is_some_and(|thread| thread.join().is_err()) {
        bail!("a thread panicked; its message is above");
    }
    let count = recorded?;
    println!("{count} samples");
    Ok(())
}

fn served(metrics: &Metrics, address: SocketAddr) -> Result<Endpoint> {
    let metrics = metrics.clone();
    let endpoint = Endpoint::start(address, move || metrics.text());
    endpoint.with_context(|| format!("metrics cannot be served at {address}"))
}

fn read(journal: &Path) -> Result<Vec<Line>> {
    let file = File::open(journal).with_context(|| format!("{} cannot be opened", journal.display()))?;
    replay::lines(BufReader::new(file)).with_context(|| journal.display().to_string())
}

fn replayed(lines: &[Line], run_modules: bool) -> Result<ExitCode> {
    let redrawn = replay::replay(lines);
    for one in &redrawn {
        let word = if one.agrees() { "agrees" } else { "DIFFERS" };
        println!(
            "{} {} at {}: {word}; journaled {:?}, derived {:?}",
            one.target, one.rule, one.raised_ns, one.journaled, one.derived
        );
    }
    let repairs = replay::reconsider(lines, run_modules);
    repairs.iter().for_each(print_repair);
    println!("{} verdicts, {} repairs", redrawn.len(), repairs.len());
    let agrees = redrawn.iter().all(replay::Redrawn::agrees) && repairs.iter().all(replay::Reconsidered::agrees);
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_repair(one: &replay::Reconsidered) {
    let said = |plan: &Option<healing_modules::Plan>| match plan {
        Some(plan) => format!("{} ({}), {} culprits", plan.policy, plan.proof, plan.culprits.len()),
        None => "nothing to do".to_owned(),
    };
    let again = match &one.again {
        Again::Decided(plan) => format!("derived {}", said(plan)),
        Again::Checked { is_in_bounds: true } => "within bounds; its program was not run again".to_owned(),
        Again::Checked { is_in_bounds: false } => "OUT OF BOUNDS; its program was not run again".to_owned(),
        Again::Unanswered { why } => why.clone(),
    };
    let word = if one.agrees() { "agrees" } else { "DIFFERS" };
    let contained = match (one.contained, one.is_contained_rightly) {
        (0, _) => String::new(),
        (count, true) => format!("; {count} limits and scores contained its culprits"),
        (count, false) => format!("; {count} limits and scores CONTAINED OTHERS or by other means"),
    };
    println!(
        "{} repair at {}: {word}; journaled {}, {again}{contained}",
        one.target,
        one.mono_ns,
        said(&one.journaled)
    );
}

/// Runs until SIGTERM or SIGINT.
fn watch_all(config: &Config) -> Result<()> {
    capabilities::require(&NEEDS)?;
    // Blocked before the first thread starts, so that only the wait below ever takes them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("signals cannot be blocked")?;

    let metrics = Metrics::default();
    let _scraped = config.metrics.map(|address| served(&metrics, address)).transpose()?;
    let inherited = heritage::inherit(&config.journal, Monotonic.now_ns());
    let mut inherited = inherited.with_context(|| format!("journal {}", config.journal.display()))?;
    let opened = Journal::open(&config.journal);
    let (journal, writer) = opened.with_context(|| format!("journal {}", config.journal.display()))?;
    let partner = partner(config)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let mut shares: Vec<Share> = Vec::new();
    for index in 0..config.threads {
        shares.push(Share::new(config, config.targets.len() > config.threads, index)?);
    }
    let absent = Arc::<Absent>::default();
    for (index, target) in config.targets.iter().enumerate() {
        let metrics = metrics.of(&target.name);
        let standby = Arc::new(standby(config, target, &absent));
        threads.push(prepare_in_background(target, &standby, &metrics, &stop)?);
        let share = &mut shares[index % config.threads];
        let door = LinkDoor::new(config, target);
        let door = share.hub.iter().fold(door, |door, hub| door.at(hub));
        let (journal, partner) = (journal.clone(), partner.clone());
        let ward = Ward::open(config, target, &journal, &metrics, &partner, &stop);
        let (ward, treating) = ward.context("no thread")?;
        threads.extend(treating);
        let (surveyor, surveying) = Surveyor::open(config, target, &metrics, &stop).context("no thread")?;
        threads.extend(surveying);
        let tools = Tools { door, clock: Monotonic, journal, metrics, standby, partner, ward };
        let watch = Watch::succeed(config, target, tools, inherited.remove(&target.name).unwrap_or_default());
        share.watches.push(watch.with_surveyor(surveyor));
    }
    for share in shares {
        threads.push(watch_in_background(share, config, &stop)?);
    }
    drop(journal);
    tracing::info!(monitor = %config.name, targets = config.targets.len(), period = ?config.period, "watching");
    service::notify("READY=1");
    let signal = signals.wait().context("signals cannot be waited for")?;
    tracing::info!(%signal, "ending");
    stop.store(true, Ordering::Relaxed);
    for thread in threads.into_iter().chain([writer]) {
        if thread.join().is_err() {
            bail!("a thread panicked; its message is above");
        }
    }
    Ok(())
}

fn partner(config: &Config) -> Result<Partner> {
    match config.partner {
        config::Partner::None => Ok(Partner::None),
        config::Partner::First { listen } => {
            let herald = Herald::listen(&config.name, listen);
            let herald = herald.with_context(|| format!("the second monitor cannot be listened for at {listen}"))?;
            Ok(Partner::First(herald))
        }
        config::Partner::Second { first, silence } => {
            Ok(Partner::Second(Deputy::follow(first, silence).context("no thread")?))
        }
    }
}

fn standby(config: &Config, target: &Target, absent: &Arc<Absent>) -> Standby {
    let (name, backdoor, services) = (target.name.clone(), target.backdoor, target.services.clone());
    let assignment = Assignment { target: name, backdoor, services };
    let spares = Standby::sharing(&config.name, assignment, &target.spares, target.evacuation_patience, target.share);
    spares.among(Arc::clone(absent), target.speaks_from())
}

/// Ends the daemon when a thread panics: a target that nobody watches any more must not look watched.
struct EndWithMe;

impl Drop for EndWithMe {
    fn drop(&mut self) {
        if thread::panicking() && kill(Pid::this(), Signal::SIGTERM).is_err() {
            std::process::abort();
        }
    }
}

/// What one thread watches.
struct Share {
    watches: Vec<Watch<LinkDoor, Monotonic>>,
    /// The sockets, if the thread's targets share them.
    hub: Option<Hub>,
    cpu: Option<usize>,
}

impl Share {
    fn new(config: &Config, is_shared: bool, index: usize) -> Result<Self> {
        let open = || Hub::open(config.local, rdma::soft::PORT, &rdma::soft::Options::default());
        let hub = is_shared.then(open).transpose().context("the sockets for the targets' memory")?;
        Ok(Self { watches: Vec::new(), hub, cpu: config.cpu.map(|first| first + index) })
    }

    fn run(mut self, patience: Duration, stop: &AtomicBool) {
        match (&mut self.watches[..], self.hub) {
            ([watch], _) => watch.run(stop),
            (_, Some(hub)) => {
                if let Err(error) = Fleet::new(self.watches, hub, Monotonic, patience).run(stop) {
                    panic!("the targets can no longer be watched: {error}"); // ends the daemon, see EndWithMe
                }
            }
            _ => unreachable!("several watches have a hub"),
        }
    }
}

/// A plain thread for one target or for many, so that nothing else is ever scheduled between its samples.
fn watch_in_background(share: Share, config: &Config, stop: &Arc<AtomicBool>) -> Result<JoinHandle<()>> {
    let (stop, patience) = (Arc::clone(stop), door::read_patience(config));
    let body = move || {
        let _guard = EndWithMe;
        if let Some(cpu) = share.cpu {
            pin(cpu);
        }
        // A timer of this thread is late by what the CPU needs to wake and not by the usual 50 us more.
        if let Err(error) = prctl::set_timerslack(1) {
            tracing::debug!(%error, "timers stay slack");
        }
        share.run(patience, &stop);
    };
    thread::Builder::new().name("watch".into()).spawn(body).context("no thread")
}

fn pin(cpu: usize) {
    let count = thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    let pinned = set.set(cpu % count).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(cpu, %error, "not pinned");
    }
}

/// Keeps a target's spares warm: asks them to get ready, soon again while one is not.
fn prepare_in_background(
    target: &Target,
    standby: &Arc<Standby>,
    metrics: &TargetMetrics,
    stop: &Arc<AtomicBool>,
) -> Result<JoinHandle<()>> {
    let (standby, stop, ready) = (Arc::clone(standby), Arc::clone(stop), metrics.spares_ready.clone());
    let (name, every) = (target.name.clone(), target.prepare_every);
    let body = move || {
        let _guard = EndWithMe;
        let mut last = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let now: Vec<_> = standby.prepare().into_iter().map(|(spare, state)| (spare.to_owned(), state)).collect();
            let count = now.iter().filter(|(_, state)| matches!(state, Readiness::Ready { .. })).count();
            ready.set(count as i64);
            for (spare, state) in now.iter().filter(|one| !last.contains(*one)) {
                match state {
                    Readiness::Ready { kernel } => tracing::info!(target_name = %name, %spare, %kernel, "ready"),
                    Readiness::NotReady { why } => tracing::warn!(target_name = %name, %spare, %why, "not ready"),
                }
            }
            let pause = if count == now.len() { every } else { every.min(PREPARE_AGAIN) };
            last = now;
            let mut slept = Duration::ZERO;
            while slept < pause && !stop.load(Ordering::Relaxed) {
                thread::sleep(STOP_POLL);
                slept += STOP_POLL;
            }
        }
    };
    thread::Builder::new().name(format!("spares {}", target.name)).spawn(body).context("no thread")
}
