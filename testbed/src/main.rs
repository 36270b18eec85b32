//! The command line of the testbed. Everything runs inside a [`sandbox`]; nothing is left behind.

mod arguments;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Parser, ValueEnum};
use testbed::{
    bench::{self, Bench, Effort},
    campaign::{self, Campaign, Matrix, Runs},
    client::Kind,
    demo,
    fault::Fault,
    sandbox,
    scenario::{
        self, Order, Progress, Run, drown, hang_download, interop,
        relay::{self, Relay},
        rubis::{self, Machines, TierFault, Tiers},
        rxe_monitor, series,
        soak::{self, Load, Soak},
    },
    timeline::Timeline,
    topology::Topology,
    torn,
};

use arguments::{
    Action, Arguments, CampaignArguments, Drowning, Forkbomb, HangDownload, Interop, Memhog, RelayArguments,
    RepairCampaignArguments, RepairSeries, RescueAndReturn, Rubis, RubisCampaignArguments, RxeMonitorArguments,
    Scenario, SoakArguments,
};

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
    // Each run of a campaign has a sandbox of its own.
    if let Action::Campaign(arguments) = arguments.action {
        return run_campaign(arguments);
    }
    if let Action::RepairCampaign(arguments) = arguments.action {
        return run_repair_campaign(arguments);
    }
    if let Action::RubisCampaign(arguments) = arguments.action {
        return run_rubis_campaign(arguments);
    }
    sandbox::enter()?;
    match arguments.action {
        Action::Draw { .. }
        | Action::Campaign(_)
        | Action::RepairCampaign(_)
        | Action::RubisCampaign(_)
        | Action::Figures { .. } => unreachable!("done outside a sandbox"),
        Action::Demo { out, guest } => {
            let pass = demo::demo(&out, guest.order(), guest.seed)?;
            Ok(if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Bench { out, only, runs, brief, clients, processes, guest } => {
            let effort = if brief { Effort::brief() } else { Effort::full(runs) };
            let effort = effort.with_auction_clients(clients).with_crowds(&processes);
            bench::bench(&Bench { out, order: guest.order(), only, effort })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Run { scenario: Scenario::HangDownload(arguments) } => run_hang_download(arguments),
        Action::Run { scenario: Scenario::Relay(arguments) } => run_relay(arguments),
        Action::Run { scenario: Scenario::Soak(arguments) } => run_soak(arguments),
        Action::Run { scenario: Scenario::Rubis(arguments) } => run_rubis(arguments),
        Action::Run { scenario: Scenario::Interop(arguments) } => run_interop(arguments),
        Action::Run { scenario: Scenario::RxeMonitor(arguments) } => run_rxe_monitor(arguments),
        Action::SaveGuest { file, pool_slots, guest } => {
            let order = Order { pool_slots, lockup_module: true, ..guest.order() };
            scenario::save_guest(&order, &file, Progress::begin())?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Run { scenario: Scenario::RescueAndReturn(arguments) } => rescue_and_return(arguments),
        Action::Run { scenario: Scenario::Forkbomb(Forkbomb { variant, procs, drowning }) } => {
            drown(drown::Illness::ForkBomb { variant, procs }, (0, drown::HOLD), drowning)
        }
        Action::Run { scenario: Scenario::RepairSeries(arguments) } => repair_series(arguments),
        Action::Run { scenario: Scenario::Memhog(Memhog { procs, mib, swap_mib, hold_ms, respawn, drowning }) } => {
            let hog = drown::Illness::MemHog { procs, mib, respawn };
            drown(hog, (swap_mib, Duration::from_millis(hold_ms)), drowning)
        }
        Action::Torn { kernel, paths, visits, stride, phase, narrow } => {
            let order = torn::Order { kernel, paths, visits, stride: stride as usize, phase, narrow };
            let report = torn::explore(&order, Progress::begin())?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Inside { command } => {
            let [program, arguments @ ..] = &command[..] else { bail!("which command?") };
            let status =
                Command::new(program).args(arguments).status().with_context(|| format!("running {program}"))?;
            Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
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
    order.only_tables = arguments.tables;
    order.pool_slots = match arguments.tables {
        true => scenario::MIRRORED_SLOTS,
        false => arguments.pool_slots.unwrap_or_else(|| scenario::pool_for(sessions)),
    };
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

/// Boxes in the guest: each process takes some dozens in stock.
const RELAY_SLOTS: u32 = 1024;

fn run_relay(arguments: RelayArguments) -> Result<ExitCode> {
    let RelayArguments { fault, sessions, socket, stamps, guest, out, keep_logs } = arguments;
    let (seed, relay) = (guest.seed, Relay { socket, stamps });
    let order = Order { relay: Some(relay), pool_slots: RELAY_SLOTS, ..guest.order() };
    let (sessions, afterwards) = (usize::from(sessions), hang_download::AFTERWARDS);
    let kinds = vec![relay::KIND; sessions];
    let (ipv6, aim, capture) = (false, None, None);
    let run = Run { fault, sessions, kinds, ipv6, aim, afterwards, seed, order, out, keep_logs, capture };
    let (verdict, timeline) = relay::run(&run, relay, Progress::begin())?;
    eprint!("\n{}", timeline.text(100));
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn repair_series(arguments: RepairSeries) -> Result<ExitCode> {
    let RepairSeries { kinds, procs, hogs, unrepaired_s, no_agent, piece_ms, guest, out } = arguments;
    let order = Order { agent: !no_agent, ..guest.order() };
    let (unrepaired_for, piece) = (Duration::from_secs(unrepaired_s), Duration::from_millis(piece_ms));
    let series = series::Series { illnesses: kinds, procs, hogs, unrepaired_for, piece, order, out };
    let points = series::run(&series)?;
    println!("{}", serde_json::to_string(&points)?);
    Ok(if points.iter().all(|point| point.pass) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is done to a guest with so much swap, and how long it may be out of its bounds.
fn drown(illness: drown::Illness, (swap_mib, hold): (u32, Duration), drowning: Drowning) -> Result<ExitCode> {
    let Drowning { hook, unrepaired_s, no_agent, own_module, piece_ms, guest, out } = drowning;
    let own_module = own_module.map(fs::canonicalize).transpose().context("the module's program")?;
    let order = Order { rogue: true, agent: !no_agent, swap_mib, ..guest.order() };
    let (unrepaired_for, piece) = (unrepaired_s.map(Duration::from_secs), Duration::from_millis(piece_ms));
    let run = drown::Run { illness, hook, unrepaired_for, hold, own_module, piece, order, out };
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

fn run_rubis(arguments: Rubis) -> Result<ExitCode> {
    let Rubis { native, fault, clients, mix, seed, seconds, slow_down, items, front_ends, mid_tiers, out, .. } =
        arguments;
    ensure!(!native || fault == TierFault::None, "--fault breaks virtual machines: leave --native out");
    ensure!(!arguments.plain || fault == TierFault::None, "--plain tiers do not survive a fault");
    let tiers = if native {
        Tiers::Native { front_ends, mid_tiers }
    } else {
        let crash = arguments.crash.unwrap_or_else(|| rubis::crash_of(seed));
        let Rubis { kernel, vcpus, deadline_ms, plain, peers, share: is_shared, .. } = arguments;
        Tiers::Machines(Machines { kernel, vcpus, deadline_ms, crash, recoverable: !plain, peers, is_shared })
    };
    let length = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    let run = rubis::Run { fault, clients, mix, length, slow_down, items, tiers, seed, out };
    let verdict = rubis::run(&run, Progress::begin())?;
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_rxe_monitor(arguments: RxeMonitorArguments) -> Result<ExitCode> {
    let RxeMonitorArguments { kernel, stop, sessions, deadline_ms, seed, out } = arguments;
    let run = rxe_monitor::Run { kernel, stop, sessions: sessions.into(), deadline_ms, seed, out };
    let (verdict, timeline) = rxe_monitor::run(&run, Progress::begin())?;
    eprint!("\n{timeline}");
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_interop(arguments: Interop) -> Result<ExitCode> {
    let Interop { kernel, directions, paths, mtus, slice, seed, out } = arguments;
    let order = interop::Order { kernel, directions, paths, mtus, slice, seed, out };
    let (verdict, table) = interop::run(&order, Progress::begin())?;
    eprint!("\n{table}");
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(if verdict.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_campaign(arguments: CampaignArguments) -> Result<ExitCode> {
    let CampaignArguments { runs: count, results, seed, deadline_ms, parallel, runs_per_boot, through, .. } = arguments;
    let CampaignArguments { kernels, faults, vcpus, sessions, kinds, wires, .. } = arguments;
    let aims = if arguments.no_aims { Vec::new() } else { arguments.aims };
    let matrix = Matrix { kernels, faults, vcpus, sessions, aims, kinds, wires };
    let runs = Runs { results, parallel, through };
    let summary = campaign::crashes(&Campaign { runs, count, seed, matrix, deadline_ms, runs_per_boot })?;
    print!("{summary}");
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_repair_campaign(arguments: RepairCampaignArguments) -> Result<ExitCode> {
    let RepairCampaignArguments { runs: count, results, seed, kernels, procs, piece_ms, .. } = arguments;
    let RepairCampaignArguments { deadline_ms, parallel, through, .. } = arguments;
    let runs = Runs { results, parallel, through };
    let order = campaign::repair::Campaign { runs, count, seed, kernels, procs, piece_ms, deadline_ms };
    let summary = campaign::repair::repairs(&order)?;
    print!("{summary}");
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_rubis_campaign(arguments: RubisCampaignArguments) -> Result<ExitCode> {
    let RubisCampaignArguments { runs: count, results, seed, kernels, clients, seconds, slow_down, .. } = arguments;
    let RubisCampaignArguments { deadline_ms, parallel, through, .. } = arguments;
    let runs = Runs { results, parallel, through };
    let order = campaign::rubis::Campaign { runs, count, seed, kernels, clients, seconds, slow_down, deadline_ms };
    let summary = campaign::rubis::crashes(&order)?;
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
