//! What an operator does to a live target from outside: `ps`, `lock`, `unlock`, `kill`. Nothing of it needs a program
//! in the target, a login, or its help.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use control::backdoor::LockToken;
use healing_modules::{Culprit, Evidence, Plan, Process, Safety};
use introspect::Kernel;
use introspect::linux::kill::{self, Fate};
use link::Link;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use remote_memory::{PAGE_BYTES, RemoteKey};
use serde::Serialize;

use crate::config::{Config, Target};
use crate::inspect;
use crate::kernel::Listing;
use crate::kernel::recipe::{READY_MADE, ready_made};
use crate::repair::{Findings, Operation, PATIENCE, discover, look, look_at, operate, survivors};

/// A lock that is held is renewed so many times before its lease would end.
const RENEWALS_PER_LEASE: u32 = 4;

/// What to do, to which target.
#[derive(Subcommand)]
pub enum Action {
    /// List the processes of a target, as its memory has them.
    Ps(Ps),
    /// Read the kernel sensors of a target once: those configured, or every ready-made one if none is; and say what its
    /// kernel lacks. Nothing runs in the target for that.
    Sensors(Sensors),
    /// Stop a target for as long as this runs, or for a lease; it goes on by itself should this die.
    Lock(Lock),
    /// End a lock that was left with `lock --leave`.
    Unlock(Unlock),
    /// End processes of a target by writing into its memory: sleeping ones too, whoever they belong to. Never the first
    /// process, never threads of the kernel.
    Kill(Kill),
}

/// Where the target is found.
#[derive(Args)]
pub struct Place {
    /// The target's name.
    pub target: String,
    /// Configuration file.
    #[arg(long)]
    pub config: PathBuf,
}

/// The order of a list.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// By process id.
    Pid,
    /// Those with most resident memory first.
    Rss,
    /// Those with most memory first, swapped out or not: what `memhog` goes by.
    Memory,
    /// The youngest first.
    Young,
}

/// `monitor ps`
#[derive(Args)]
pub struct Ps {
    #[command(flatten)]
    place: Place,
    /// In which order.
    #[arg(long, value_enum, default_value = "pid")]
    by: Order,
    /// Threads of the kernel, too.
    #[arg(long)]
    all: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// `monitor sensors`
#[derive(Args)]
pub struct Sensors {
    #[command(flatten)]
    place: Place,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// `monitor lock`
#[derive(Args)]
pub struct Lock {
    #[command(flatten)]
    place: Place,
    /// How long it stands still at most without this program, in milliseconds; up to 10 s.
    #[arg(long, default_value_t = 2000)]
    lease_ms: u32,
    /// Do not stay: leave the proof that `unlock` needs in this file. The target goes on when the lease ends.
    #[arg(long)]
    leave: Option<PathBuf>,
}

/// `monitor unlock`
#[derive(Args)]
pub struct Unlock {
    #[command(flatten)]
    place: Place,
    /// The file that `lock --leave` wrote.
    #[arg(long)]
    token: PathBuf,
}

/// `monitor kill`
#[derive(Args)]
pub struct Kill {
    #[command(flatten)]
    place: Place,
    /// Process ids, as `ps` lists them.
    #[arg(required = true)]
    pids: Vec<u32>,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Action {
    /// Where its target is found.
    pub fn place(&self) -> &Place {
        match self {
            Self::Ps(Ps { place, .. }) | Self::Lock(Lock { place, .. }) => place,
            Self::Unlock(Unlock { place, .. }) | Self::Kill(Kill { place, .. }) => place,
            Self::Sensors(Sensors { place, .. }) => place,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// In sentences for an operator.
    pub fn run(&self, config: &Config, target: &Target) -> Result<()> {
        let mut link = inspect::connect(config, target)?;
        match self {
            Self::Ps(ps) => ps.run(&mut link),
            Self::Sensors(sensors) => sensors.run(&mut link, target),
            Self::Lock(lock) => lock.run(&mut link),
            Self::Unlock(unlock) => unlock.run(&mut link),
            Self::Kill(kill) => kill.run(&mut link),
        }
    }
}

impl Ps {
    fn run(&self, link: &mut Link) -> Result<()> {
        let kernel = discover(link).map_err(anyhow::Error::msg)?;
        let Findings { mut evidence, damage, .. } = look_at(link, &kernel)?;
        evidence.processes.retain(|process| self.all || !process.is_kernel);
        match self.by {
            Order::Pid => {}
            Order::Rss => evidence.processes.sort_by_key(|process| std::cmp::Reverse(process.rss_pages)),
            Order::Memory => evidence.processes.sort_by_key(|process| std::cmp::Reverse(process.taken_pages())),
            Order::Young => evidence.processes.sort_by_key(|process| std::cmp::Reverse(process.start_ns)),
        }
        match self.json {
            true => println!("{}", serde_json::to_string(&evidence)?),
            false => print!("{}", table(&evidence)),
        }
        damage.iter().take(10).for_each(|damage| eprintln!("damage: {damage}"));
        Ok(())
    }
}

impl Sensors {
    fn run(&self, link: &mut Link, target: &Target) -> Result<()> {
        let ram = link.region("ram")?;
        let (ram, extents) = (RemoteKey::new(ram.key), inspect::extents(&ram));
        let wanted = match target.kernel_sensors.as_slice() {
            [] => READY_MADE.iter().copied().filter_map(ready_made).collect(),
            some => some.to_vec(),
        };
        let listing = Listing::take(link.memory(), ram, &extents, &wanted).map_err(anyhow::Error::msg)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&listing)?),
            false => print!("{}", listing.text()),
        }
        Ok(())
    }
}

/// As text for people. Names come from a machine that is not trusted: they cannot steer a terminal.
fn table(evidence: &Evidence) -> String {
    let or_unknown = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
    let mut out = format!(
        "{:>7} {:>7} {:>6} {:>10} {:>10} {:>5} {:>12}  command\n",
        "pid", "parent", "uid", "rss KiB", "swap KiB", "depth", "started s"
    );
    for process in &evidence.processes {
        let Process { pid, parent, uid, rss_pages, swap_pages, depth, start_ns, comm, .. } = process;
        let (uid, depth) = (or_unknown(uid.map(u64::from)), or_unknown(depth.map(u64::from)));
        let kib = |pages: &Option<u64>| or_unknown(pages.map(|pages| pages.saturating_mul(PAGE_BYTES) >> 10));
        let (rss, swap) = (kib(rss_pages), kib(swap_pages));
        let started = *start_ns as f64 / 1e9;
        let ending = if process.is_exiting { " (ending)" } else { "" };
        let comm = comm.escape_debug();
        let _ = writeln!(
            out,
            "{pid:>7} {parent:>7} {uid:>6} {rss:>10} {swap:>10} {depth:>5} {started:>12.3}  {comm}{ending}"
        );
    }
    let (users, total) = (evidence.processes_of_users(), evidence.processes.len());
    let of_users: Vec<String> = users.iter().map(|(uid, count)| format!("{count} of user {uid}")).collect();
    let _ = writeln!(out, "{total} processes: {}", of_users.join(", "));
    out
}

impl Lock {
    fn run(&self, link: &mut Link) -> Result<()> {
        let claim = rand::random();
        // Blocked first: a signal that comes while the target stands still must not leave it so.
        let mut signals = SigSet::empty();
        [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|signal| signals.add(signal));
        signals.thread_block().context("signals cannot be blocked")?;
        let token = link.lock("an operator", claim, self.lease_ms).context("not locked")?;
        if let Some(path) = &self.leave {
            if let Err(error) = leave(path, &token) {
                link.unlock(&token).context("unlocking")?;
                return Err(error);
            }
            println!("locked for {} ms; sooner: monitor unlock --token {}", self.lease_ms, path.display());
            return Ok(());
        }
        println!("locked; interrupt this to let it go on");
        let mut waiting =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("signals cannot be waited for")?;
        let renew_after = Duration::from_millis((self.lease_ms / RENEWALS_PER_LEASE).max(1).into());
        while !signalled(&mut waiting, renew_after)? {
            let again = link.lock("an operator", claim, self.lease_ms).context("the lock cannot be renewed")?;
            if again != token {
                bail!("the lease ended before it was renewed: the target has run; it is locked anew until that ends");
            }
        }
        link.unlock(&token).context("unlocking")?;
        println!("unlocked");
        Ok(())
    }
}

fn signalled(signals: &mut SignalFd, within: Duration) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout).context("waiting")?;
    Ok(ready > 0)
}

/// The owner's alone: who has it may write to the target's memory.
fn leave(path: &Path, token: &LockToken) -> Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    file.write_all(&serde_json::to_vec(token)?).with_context(|| path.display().to_string())
}

impl Unlock {
    fn run(&self, link: &mut Link) -> Result<()> {
        let text = fs::read(&self.token).with_context(|| self.token.display().to_string())?;
        let token: LockToken =
            serde_json::from_slice(&text).with_context(|| format!("{} holds no lock", self.token.display()))?;
        let outcome = link.unlock(&token);
        fs::remove_file(&self.token).with_context(|| self.token.display().to_string())?;
        outcome.context("not unlocked")?;
        println!("unlocked");
        Ok(())
    }
}

/// What `monitor kill` has to say.
#[derive(Debug, Serialize)]
struct Killed {
    /// Milliseconds that the target stood still.
    locked_ms: f64,
    /// Places that were written, or would be.
    edits: usize,
    /// What becomes of each process.
    fates: Vec<(u32, Fate)>,
    /// Those that live on.
    survivors: Vec<u32>,
}

impl Kill {
    fn run(&self, link: &mut Link) -> Result<()> {
        let kernel = discover(link).map_err(anyhow::Error::msg)?;
        let wanted: HashSet<u32> = self.pids.iter().copied().collect();
        let mut unknown = Vec::new();
        // An operator may end anything but what would end the machine; that is held where places are found.
        let safety = Safety { spare_uids: Vec::new(), spare_comms: Vec::new(), blast_cap: self.pids.len() };
        if self.dry_run {
            return self.say_only(link, &kernel);
        }
        let mut decide = |evidence: &Evidence| {
            let named = evidence.processes.iter().filter(|process| wanted.contains(&process.pid));
            let culprits: Vec<Culprit> = named.filter_map(Culprit::of).collect();
            let found: HashSet<u32> = culprits.iter().map(|culprit| culprit.pid).collect();
            unknown = wanted.difference(&found).copied().collect();
            let proof = "an operator named it".to_owned();
            unknown.is_empty().then(|| Plan { policy: "OPERATOR".to_owned(), proof, culprits })
        };
        let operation = operate(link, &kernel, "an operator kills processes", &safety, &mut decide)?;
        if !unknown.is_empty() {
            unknown.sort_unstable();
            bail!("nothing was done: {unknown:?} are gone, ending, the first process, or the kernel's own");
        }
        let fates = operation.fates();
        let Operation { plan, kill, wakings, locked, .. } = operation;
        let culprits = plan.map(|plan| plan.culprits).unwrap_or_default();
        let edits = wakings.iter().map(|waking| waking.kill.edits.len()).sum::<usize>() + kill.edits.len();
        let left = survivors(link, &kernel, &culprits, PATIENCE)?;
        let killed = Killed {
            locked_ms: locked.as_secs_f64() * 1e3,
            edits,
            fates,
            survivors: left.iter().map(|culprit| culprit.pid).collect(),
        };
        println!("{}", serde_json::to_string(&killed)?);
        match killed.survivors.len() {
            0 => Ok(()),
            count => bail!("{count} live on: they are marked, and end when they leave what they wait for"),
        }
    }

    /// Of a target that runs: what is found may be of different moments, and nothing is written.
    fn say_only(&self, link: &mut Link, kernel: &Kernel) -> Result<()> {
        let ram = RemoteKey::new(link.region("ram")?.key);
        let Findings { tasks, .. } = look(kernel, link.memory(), ram)?;
        let (plan, _) = kill::plan(kernel, link.memory(), ram, &tasks, &self.pids)?;
        println!("{}", serde_json::to_string(&plan)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_calls_itself_cannot_steer_a_terminal() {
        let process = Process {
            pid: 7,
            parent: 1,
            uid: Some(1000),
            comm: "\x1b[2Jgone".into(),
            start_ns: 1_500_000_000,
            depth: None,
            rss_pages: Some(256),
            swap_pages: Some(3),
            is_kernel: false,
            is_exiting: true,
        };
        let text = table(&Evidence { processes: vec![process], ..Evidence::default() });
        assert!(text.contains("   1024         12     ?        1.500  \\u{1b}[2Jgone (ending)"), "{text}");
    }
}
