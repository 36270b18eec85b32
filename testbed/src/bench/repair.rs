//! Table 3.3 of the dissertation: how long diagnosis and repair of a fork bomb take, by the number of its processes. A
//! real guest stands still for the whole of it, from the order to lock it to its running on; its processes sleep, so
//! each of them has to be marked and woken. The limit is what is not ours: the hypervisor's stop and its going on, and
//! a round trip for each that the repair made.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use control::backdoor::{LockToken, RegionEntry};
use healing_modules::{ForkBomb, Plan, Safety};
use introspect::linux::kill::Fate;
use link::{Link, LinkFailure, Options};
use monitor::config::Hook;
use monitor::repair::{self, Cure, Operation, Table, Treated, Waking};
use remote_memory::{RemoteAddr, RemoteKey, RemoteRead, RemoteWrite};

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
};
use crate::{
    scenario::{BACKDOOR_CONTROL, Installation, Order, Progress},
    topology::{MONITOR, rdma_v4},
};

/// The user whose processes they are.
const USER: u32 = 1000;

/// Processes that are no bomb yet.
const PROCESSES_MAX: usize = 20;

/// Memory of the guest for itself, and for each process.
const GUEST_MIB: u32 = 256;
const KIB_FOR_PROCESS: u32 = 220;

/// For an emulated guest to make its processes, or to end them.
const BOUND: Duration = Duration::from_secs(600);

/// A shell with more children takes its time over each.
const PROCESSES_OF_A_SHELL: usize = 250;

/// Locks that are taken and given back.
const LOCKS: usize = 30;

/// The paper's milliseconds by the number of processes, and our goals.
const PAPER: [(usize, f64); 4] = [(100, 140.0), (500, 263.0), (1000, 350.0), (1500, 426.0)];
const GOALS: [(usize, f64); 2] = [(1500, 10.0), (30_000, 100.0)];

const BARE: &str = "the hypervisor's stop and its going on, and so many round trips of 8 bytes";
const BARE_LOCK: &str = "the hypervisor's own command";

/// What one size came to.
struct Size {
    processes: usize,
    /// Milliseconds of each standstill that one cure took, added up.
    locked_ms: Vec<f64>,
    rounds: Vec<f64>,
}

pub(super) fn measure(effort: &Effort, order: &Order, progress: Progress) -> Result<Vec<Line>> {
    let most = effort.crowds.iter().copied().max().context("no number of processes")?;
    let memory_mib = GUEST_MIB + most as u32 * KIB_FOR_PROCESS / 1024;
    let mut installation = Installation::build_with(order, progress, |spec, _| {
        spec.memory_mib = memory_mib;
        Ok(())
    })?;
    let passwd = format!("echo 'u:x:{USER}:{USER}::/tmp:/bin/sh' >> /etc/passwd; chmod 1777 /tmp");
    installation.vm.run(&passwd)?;
    let (stop_ms, go_on_ms) = bare(&mut installation)?;
    let place = installation.topology.monitor.try_clone()?;
    let (mut lines, read_ms) = place.run(|| locks(stop_ms, go_on_ms))?;
    for processes in &effort.crowds {
        let repetitions = if *processes > 2000 { 1 } else { effort.cures };
        let mut size = Size { processes: *processes, locked_ms: Vec::new(), rounds: Vec::new() };
        for _ in 0..repetitions {
            progress.step(format_args!("a bomb of {processes} processes"));
            spawn(&mut installation, *processes)?;
            place.run(|| cured(&mut size, &progress))?;
        }
        lines.extend(size.lines(stop_ms + go_on_ms, read_ms));
    }
    Ok(lines)
}

impl Size {
    fn lines(self, bare_ms: f64, read_ms: f64) -> [Line; 2] {
        let Self { processes, locked_ms, rounds } = self;
        let rounds = Sample::of(rounds);
        let limit = bare_ms + rounds.median * read_ms;
        let name = format!("repair of {processes} processes");
        let mut time = Line::new(Group::Repair, name, Unit::Millis, &Sample::of(locked_ms), limit, BARE);
        time.paper = PAPER.iter().find(|(size, _)| *size == processes).map(|(_, paper)| *paper);
        if let Some((_, goal)) = GOALS.iter().find(|(size, _)| *size == processes) {
            time = time.goal(Goal::AtMost(*goal));
        }
        let name = format!("its round trips, {processes}");
        [time, Line::new(Group::Repair, name, Unit::Rounds, &rounds, rounds.median, "themselves")]
    }
}

/// Milliseconds of the hypervisor's own stop and of its going on.
fn bare(installation: &mut Installation) -> Result<(f64, f64)> {
    let (mut stops, mut conts) = (Vec::new(), Vec::new());
    for _ in 0..LOCKS {
        let begin = Instant::now();
        installation.vm.qmp().stop()?;
        let stopped = Instant::now();
        installation.vm.qmp().cont()?;
        stops.push((stopped - begin).as_secs_f64() * 1e3);
        conts.push(stopped.elapsed().as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(20));
    }
    Ok((Sample::of(stops).median, Sample::of(conts).median))
}

fn connect() -> Result<Link> {
    let local: Ipv4Addr = rdma_v4(MONITOR);
    Ok(Link::connect(BACKDOOR_CONTROL, local, Options::new("bench"))?)
}

/// The lines of lock and unlock, and the milliseconds of one round trip.
fn locks(stop_ms: f64, go_on_ms: f64) -> Result<(Vec<Line>, f64)> {
    let mut link = connect()?;
    let (mut locks, mut unlocks, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..LOCKS {
        let begin = Instant::now();
        let token = Table::lock(&mut link, "bench", repair::LEASE_MS)?;
        let locked = Instant::now();
        let ram = link.region("ram")?;
        let at = RemoteAddr::new(RemoteKey::new(ram.key), 0);
        for _ in 0..LOCKS {
            let begin = Instant::now();
            link.memory().read_one(at, &mut [0; 8])??;
            reads.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let looked = Instant::now();
        Table::unlock(&mut link, &token)?;
        locks.push((locked - begin).as_secs_f64() * 1e3);
        unlocks.push(looked.elapsed().as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(20));
    }
    let line = |name: &str, of: Vec<f64>, limit| {
        Line::new(Group::Repair, name.to_owned(), Unit::Millis, &Sample::of(of), limit, BARE_LOCK)
    };
    let lines = vec![line("lock", locks, stop_ms), line("unlock", unlocks, go_on_ms)];
    Ok((lines, Sample::of(reads).median))
}

/// Has the guest make so many processes of an ordinary user, which sleep.
fn spawn(installation: &mut Installation, processes: usize) -> Result<()> {
    let shells = processes.div_ceil(PROCESSES_OF_A_SHELL);
    let each = processes / shells;
    let sleepers = format!("(i=1; while [ $i -lt {each} ]; do sleep 99999 & i=$((i+1)); done; wait) &");
    let bomb = format!("n=0; while [ $n -lt {shells} ]; do {sleepers} n=$((n+1)); done");
    let begin = format!("(ulimit -u unlimited; su u -s /bin/sh -c '{bomb}') </dev/null >/dev/null 2>&1 &");
    installation.vm.run(&begin)?;
    let begin = Instant::now();
    let count = "cat /proc/loadavg | cut -d/ -f2 | cut -d' ' -f1";
    loop {
        let found: usize = installation.vm.run_within(count, BOUND)?.text().trim().parse().context("a count")?;
        if found >= shells * each {
            return Ok(());
        }
        ensure!(begin.elapsed() < BOUND, "{found} of {processes} processes after {BOUND:?}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Treats the guest as the monitor does. Each standstill is counted, the looks before and after it are not: the guest
/// runs meanwhile.
fn cured(size: &mut Size, progress: &Progress) -> Result<()> {
    let mut table = Counted { link: connect()?, in_standstill: None, of_standstills: 0 };
    let kernel = repair::discover(&mut table).map_err(|why| anyhow!(why))?;
    let bomb = ForkBomb { too_many_procs: Some(PROCESSES_MAX), ..ForkBomb::default() };
    let safety = Safety { blast_cap: size.processes * 2, ..Safety::default() };
    let mut locked = Duration::ZERO;
    let mut repairs = 0;
    let note = |treated: &Treated| {
        locked += treated.operation.locked;
        repairs += 1;
        if repairs > 1 || !treated.operation.wakings.is_empty() {
            progress.step(format_args!("repair {repairs}: {}", told(treated)));
        }
    };
    let cure = repair::treat(&mut table, &kernel, &bomb, &safety, Hook::Raw, false, note)?;
    ensure!(cure == Cure::Healthy, "not cured: {cure:?}");
    size.locked_ms.push(locked.as_secs_f64() * 1e3);
    size.rounds.push(table.of_standstills as f64);
    Ok(())
}

/// What a repair was for, of whom, and how long the target stood still each time.
fn told(treated: &Treated) -> String {
    let Operation { plan, locked, wakings, .. } = &treated.operation;
    let Some(Plan { proof, culprits, .. }) = plan else { return "of nobody".to_owned() };
    let some: Vec<String> = culprits.iter().take(3).map(|one| format!("{} ({})", one.comm, one.pid)).collect();
    let woken = |waking: &Waking| {
        let woken = waking.kill.fates.iter().filter(|(_, fate)| *fate == Fate::Woken).count();
        format!("; {woken} woken in {:.1?}", waking.locked())
    };
    let wakings: String = wakings.iter().map(woken).collect();
    format!("{proof}; {} ended, {} among them; stood still for {locked:.1?}{wakings}", culprits.len(), some.join(", "))
}

/// A link that counts its round trips.
struct Counted {
    link: Link,
    /// Of all before the standstill that is, and of all standstills that were.
    in_standstill: Option<u64>,
    of_standstills: u64,
}

impl Table for Counted {
    fn lock(&mut self, reason: &str, lease_ms: u32) -> Result<LockToken, LinkFailure> {
        let token = Table::lock(&mut self.link, reason, lease_ms)?;
        self.in_standstill = Some(self.link.memory().rounds());
        Ok(token)
    }

    fn unlock(&mut self, token: &LockToken) -> Result<(), LinkFailure> {
        let rounds = self.link.memory().rounds();
        self.of_standstills += self.in_standstill.take().map_or(0, |before| rounds - before);
        Table::unlock(&mut self.link, token)
    }

    fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
        self.link.region("ram")
    }

    fn memory(&mut self) -> &mut dyn RemoteWrite {
        self.link.memory()
    }
}
