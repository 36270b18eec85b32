//! Repair: the target is locked, read, judged again, written to and let go; then it is watched whether that helped.
//!
//! ```text
//!   lock ──► evidence ──► decide ──► bounds ──► edits ──► written, read back ──► unlock ──► gone?
//!    │           in the standstill, so that what is judged is what is written to        │
//!    └── a lease: should this monitor die in between, the target goes on by itself ─────┘
//! ```
//! Marked sleepers for whom there was no timer are woken in further, shorter standstills ([`waking`]).
//!
//! Where the target's agent has a kill table, an order in it does the same without a standstill ([`table`]): the
//! target's own kernel ends whom it names.
//!
//! This is the only place that writes to a target's memory. Decisions are made elsewhere ([`healing_modules`]) and so
//! are places ([`introspect::linux::kill`]); what is written is compared with what the plan expects to be there before
//! the first byte, and read back after the last.
//!
//! Invariants: nothing but orders is written without a lock; a plan that leaves its bounds is not carried out, not even
//! in part (`tests/repair.rs`, `tests/kill_table.rs`); every edit is harmless by itself and after those before it, so
//! that a path that breaks half-way leaves a healthy kernel.

mod contain;
mod evidence;
mod known;
mod listed;
mod patient;
mod prefault;
mod program;
mod standstill;
mod surgery;
mod table;
mod treat;
mod waking;
mod ward;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use control::backdoor::{LockToken, RegionEntry};
use healing_modules::{Culprit, Evidence, Plan, Safety, Unanswered, Unsafe};
use introspect::linux::contain::{Contained, Means};
use introspect::linux::kill::{self, Fate, KillPlan};
use introspect::linux::task::Task;
use introspect::{Damage, Kernel};
use killtable::OrderError;
use killtable::layout::Refusal;
use link::{Link, LinkFailure};
use remote_memory::{LinkError, RemoteKey, RemoteWrite, WriteError};

use crate::inspect;
use contain::Case;
pub use contain::{Ways, give_back, is_of, standard};
use evidence::look_for;
pub use evidence::{Findings, look};
pub use program::{Outside, Program};
pub use standstill::{Announced, Standstill};
pub use surgery::carry_out;
pub use table::{OrderLine, conclude, operate_by};
pub use treat::{Cure, Treated, treat};
pub use waking::Waking;
pub use ward::Ward;

/// How long the target stands still at most: a repair takes a few milliseconds, and clients wait meanwhile.
pub const LEASE_MS: u32 = 2_000;

/// How long the marked may take until the next of them dies. They see their signal within a tick; a machine that is
/// drowned has many.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How many patiences all of them may take together: 30 000 of an emulated guest take half a minute.
const PATIENCES_MAX: u32 = 12;

/// How long the dead may take to be buried by their parents. Until then their user still has them by number, and what
/// looks again counts them; a parent that never does is the next culprit.
const BURIAL: Duration = Duration::from_secs(1);

/// How often it is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Where a target's processes are looked at.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// In its kernel's structures, anywhere in its memory.
    Memory(&'a Kernel),
    /// In the process table that its agent has registered; nothing else of it is read.
    Processes,
}

impl<'a> From<&'a Kernel> for Sight<'a> {
    fn from(kernel: &'a Kernel) -> Self {
        Self::Memory(kernel)
    }
}

impl<'a> Sight<'a> {
    /// The kernel, for what cannot be done without its structures.
    fn kernel(self) -> Result<&'a Kernel, RepairError> {
        match self {
            Self::Memory(kernel) => Ok(kernel),
            Self::Processes => Err(RepairError::NoMemory),
        }
    }
}

/// A target that can be held still and written to.
pub trait Table {
    /// Stops it for `lease_ms` at most.
    ///
    /// # Errors
    /// [`LinkFailure::Refused`] if somebody else holds it; else see [`LinkFailure`].
    fn lock(&mut self, reason: &str, lease_ms: u32) -> Result<LockToken, LinkFailure>;

    /// Lets it go.
    ///
    /// # Errors
    /// [`LinkFailure::Refused`] if its lease has ended; else see [`LinkFailure`].
    fn unlock(&mut self, token: &LockToken) -> Result<(), LinkFailure>;

    /// The region that is all of its memory, as everybody may read it.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    fn ram(&mut self) -> Result<RegionEntry, LinkFailure>;

    /// A region that its agent registered. A target without an agent has none.
    ///
    /// # Errors
    /// [`LinkFailure::NoRegion`] if there is none of that name; else see [`LinkFailure`].
    fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
        Err(LinkFailure::NoRegion(name.to_owned()))
    }

    /// How often it was reset: each leaves a kernel in its memory that is not the one that lives.
    ///
    /// # Errors
    /// See [`LinkFailure`].
    fn resets(&mut self) -> Result<u64, LinkFailure> {
        Ok(0)
    }

    /// Its memory.
    fn memory(&mut self) -> &mut dyn RemoteWrite;
}

impl Table for Link {
    fn lock(&mut self, reason: &str, lease_ms: u32) -> Result<LockToken, LinkFailure> {
        let claim = rand::random();
        match Self::lock(self, reason, claim, lease_ms) {
            // The answer was lost; whether the lock stands, the same claim tells.
            Err(failure) if failure.is_path() => Self::lock(self, reason, claim, lease_ms),
            outcome => outcome,
        }
    }

    fn unlock(&mut self, token: &LockToken) -> Result<(), LinkFailure> {
        Self::unlock(self, token)
    }

    fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
        self.region("ram")
    }

    fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
        Self::region(self, name)
    }

    fn resets(&mut self) -> Result<u64, LinkFailure> {
        Ok(self.stats()?.resets)
    }

    fn memory(&mut self) -> &mut dyn RemoteWrite {
        Self::memory(self)
    }
}

/// Why a repair was not made, or is not known to have been.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The control plane failed or refused; nothing was written.
    #[error("the target cannot be locked: {0}")]
    NotLocked(#[source] LinkFailure),
    /// The memory could not be reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Asked for a region, the backdoor failed.
    #[error(transparent)]
    Region(LinkFailure),
    /// The plan leaves its bounds; nothing was written.
    #[error("not carried out: {0}")]
    Unsafe(#[from] Unsafe),
    /// The module did not say what is to be done; nothing was written.
    #[error("the module does not answer: {0}")]
    Unanswered(#[from] Unanswered),
    /// A place does not hold what the plan expects; nothing was written.
    #[error("{what} at {at:#x} is not what was planned for; nothing was written")]
    Changed {
        /// What the place is.
        what: String,
        /// Where it is.
        at: u64,
    },
    /// A write was refused: most likely the lease has ended, and the target runs with what was written before.
    #[error("{what} could not be written ({error}); {written} edits before it were")]
    NotWritten {
        /// What was to be written.
        what: String,
        /// Edits that were written.
        written: usize,
        /// Why.
        error: WriteError,
    },
    /// What was written is not what is there.
    #[error("{what} at {at:#x} does not hold what was written")]
    NotHeld {
        /// What the place is.
        what: String,
        /// Where it is.
        at: u64,
    },
    /// Only the target's process table may be looked at; nothing was written.
    #[error("this needs the target's memory, of which only the process table is looked at (look = \"table\")")]
    NoMemory,
    /// The target takes no orders; nothing was written.
    #[error("the target takes no orders: {why}")]
    NoTable {
        /// Why.
        why: String,
    },
    /// The plan cannot be put into an order; nothing was written.
    #[error("no order can be made of the plan: {0}")]
    NoOrder(#[from] OrderError),
    /// The target's own configuration spares a user of whom the plan would end processes; nothing was written.
    #[error("the target's agent spares user {uid}, of whom processes were to be ended")]
    SparedByTarget {
        /// The user.
        uid: u32,
    },
    /// An order could not be written, or does not stand there as it was written. It was not committed.
    #[error("an order could not be written: {why}")]
    NotOrdered {
        /// Why.
        why: String,
    },
    /// The target did not take the order up in time; it was withdrawn.
    #[error("no processor of the target took the order up within {0:?}")]
    NotAcknowledged(Duration),
    /// The target looked at the order and refused it; it was withdrawn.
    #[error("the target refused the order: {0}")]
    OrderRefused(Refusal),
    /// The lease ended before the target was let go: another may have acted in between.
    #[error("the lock ended before it was given back: {0}")]
    NotUnlocked(#[source] LinkFailure),
}

impl RepairError {
    /// Whether the path is at fault, so that the same over a new connection may do.
    pub fn is_path(&self) -> bool {
        match self {
            Self::NotLocked(failure) | Self::Region(failure) | Self::NotUnlocked(failure) => failure.is_path(),
            Self::Link(error) | Self::NotWritten { error: WriteError::Link(error), .. } => {
                matches!(error, LinkError::Lost { .. })
            }
            _ => false,
        }
    }

    /// Whether it says that the target cannot be cured in place. A path that fails says nothing of the target, nor does
    /// a module that names what it must not or nobody, or somebody else's lock; another try may succeed then.
    pub fn speaks_of_the_target(&self) -> bool {
        match self {
            Self::NotLocked(_) | Self::Link(_) | Self::Region(_) | Self::NotUnlocked(_) | Self::Unanswered(_) => false,
            Self::Unsafe(reason) => matches!(reason, Unsafe::TooMany { .. }),
            Self::NotWritten { error, .. } => !matches!(error, WriteError::Link(_)),
            // An agent that is not there, or that was told otherwise, is no illness.
            Self::NoMemory | Self::NoTable { .. } | Self::NoOrder(_) | Self::SparedByTarget { .. } => false,
            Self::NotOrdered { .. } | Self::OrderRefused(_) => false,
            Self::Changed { .. } | Self::NotHeld { .. } | Self::NotAcknowledged(_) => true,
        }
    }
}

/// What was done to a target: in one standstill, and in those that wake for whom that one had no room.
#[derive(Debug, Default)]
pub struct Operation {
    /// What was seen in the standstill.
    pub evidence: Evidence,
    /// What was decided on it; `None` if there was nothing to do, and nothing was written.
    pub plan: Option<Plan>,
    /// What was written, and what it means for each process.
    pub kill: KillPlan,
    /// How those were woken for whom there was no room in the first standstill.
    pub wakings: Vec<Waking>,
    /// How culprits were contained that do not end at once.
    pub contained: Vec<Contained>,
    /// Why nobody was ended, and culprits were only contained.
    pub beyond: Option<Unsafe>,
    /// How long the target stood still, in all.
    pub locked: Duration,
    /// The order that was given instead, if one was.
    pub order: Option<OrderLine>,
    /// Why there is no order although one was wanted.
    pub not_by_table: Option<String>,
    /// What was wrong in memory.
    pub damage: Vec<Damage>,
}

impl Operation {
    /// What became of each process in the end.
    pub fn fates(&self) -> Vec<(u32, Fate)> {
        let mut fates = self.kill.fates.clone();
        for (pid, fate) in self.wakings.iter().flat_map(|waking| &waking.kill.fates) {
            if let Ok(at) = fates.binary_search_by_key(pid, |(pid, _)| *pid) {
                fates[at].1 = fate.clone();
            }
        }
        fates
    }
}

/// What a repair is made for.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// What whoever asks for the lock is told.
    pub reason: &'a str,
    /// Whether processes are judged by what memory they have; it is not read otherwise.
    pub judges_memory: bool,
}

impl<'a> From<&'a str> for Occasion<'a> {
    fn from(reason: &'a str) -> Self {
        Self { reason, judges_memory: true }
    }
}

/// Holds the target still, has `decide` judge it, and ends the processes that the plan names.
///
/// # Errors
/// See [`RepairError`].
pub fn operate<'a>(
    table: &mut dyn Table,
    kernel: &Kernel,
    occasion: impl Into<Occasion<'a>>,
    safety: &Safety,
    decide: &mut dyn FnMut(&Evidence) -> Option<Plan>,
) -> Result<Operation, RepairError> {
    operate_and_contain(table, kernel, occasion, safety, &BTreeSet::new(), decide)
}

/// As [`operate`], and contains those of them who will not end at once; where the plan is beyond the blast cap, ends
/// nobody and contains all of them.
///
/// # Errors
/// See [`RepairError`].
pub fn operate_and_contain<'a>(
    table: &mut dyn Table,
    kernel: &Kernel,
    occasion: impl Into<Occasion<'a>>,
    safety: &Safety,
    contain: &BTreeSet<Means>,
    decide: &mut dyn FnMut(&Evidence) -> Option<Plan>,
) -> Result<Operation, RepairError> {
    let ram = table.ram().map_err(RepairError::Region)?;
    let occasion @ Occasion { reason, .. } = occasion.into();
    let begin = Instant::now();
    let token = table.lock(reason, LEASE_MS).map_err(RepairError::NotLocked)?;
    let bounds = Bounds { safety, contain };
    let outcome = in_the_standstill(table, (kernel, RemoteKey::new(ram.key)), &token, occasion, &bounds, decide);
    // Also after a failure: the lease is for those who die.
    let unlocked = table.unlock(&token).map_err(RepairError::NotUnlocked);
    let locked = begin.elapsed();
    let (mut operation, tasks) = outcome?;
    // Giving the memory of thirty thousand back takes a while, too.
    drop(tasks);
    unlocked?;
    operation.locked = locked;
    let Operation { kill, damage, .. } = &mut operation;
    operation.wakings = waking::wake_rest(table, kernel, reason, kill, damage);
    operation.locked += operation.wakings.iter().map(Waking::locked).sum::<Duration>();
    Ok(operation)
}

/// What a repair may do.
struct Bounds<'a> {
    safety: &'a Safety,
    contain: &'a BTreeSet<Means>,
}

impl Bounds<'_> {
    /// Why nobody may be ended although culprits may be contained; `None` if the plan may be carried out.
    fn beyond(&self, plan: &Plan, evidence: &Evidence) -> Result<Option<Unsafe>, Unsafe> {
        match self.safety.check(plan, evidence) {
            Ok(()) => Ok(None),
            Err(beyond @ Unsafe::TooMany { .. }) if !self.contain.is_empty() => {
                self.safety.check_each(plan, evidence)?;
                Ok(Some(beyond))
            }
            Err(other) => Err(other),
        }
    }
}

fn in_the_standstill(
    table: &mut dyn Table,
    (kernel, ram): (&Kernel, RemoteKey),
    token: &LockToken,
    occasion: Occasion<'_>,
    bounds: &Bounds<'_>,
    decide: &mut dyn FnMut(&Evidence) -> Option<Plan>,
) -> Result<(Operation, Vec<Task>), RepairError> {
    let begin = Instant::now();
    let memory = table.memory();
    let Findings { evidence, tasks, damage } = look_for(kernel, memory, ram, occasion.judges_memory)?;
    let looked = begin.elapsed();
    let Some(plan) = decide(&evidence) else {
        return Ok((Operation { evidence, damage, ..Operation::default() }, tasks));
    };
    let beyond = bounds.beyond(&plan, &evidence)?;
    let processes: Vec<u32> = plan.culprits.iter().map(|culprit| culprit.pid).collect();
    let (kill, mut more) = match beyond {
        None => kill::plan(kernel, memory, ram, &tasks, &processes)?,
        Some(_) => (KillPlan::default(), Vec::new()),
    };
    let may_end = beyond.is_none().then_some(&kill);
    let case = Case { kernel, tasks: &tasks, evidence: &evidence, safety: bounds.safety, plan: &plan, kill: may_end };
    let (contained, wrong) = case.contained(memory, ram, bounds.contain)?;
    more.extend(wrong);
    let planned = begin.elapsed();
    match beyond {
        Some(beyond) if contained.is_empty() => return Err(beyond.into()),
        _ if contained.is_empty() => {}
        _ => carry_out(memory, &token.fenced(), &contain::edits(&contained))?,
    }
    carry_out(memory, &token.fenced(), &kill.edits)?;
    tracing::debug!(?looked, ?planned, carried_out = ?begin.elapsed(), edits = kill.edits.len(), "in the standstill");
    let damage = damage.into_iter().chain(more).collect();
    let operation = Operation { evidence, plan: Some(plan), kill, contained, beyond, damage, ..Operation::default() };
    Ok((operation, tasks))
}

/// Looks at the target as it is now.
///
/// # Errors
/// See [`RepairError`].
pub fn look_at<'a>(table: &mut dyn Table, sight: impl Into<Sight<'a>>) -> Result<Findings, RepairError> {
    look_at_for(table, sight.into(), true)
}

fn look_at_for(table: &mut dyn Table, sight: Sight<'_>, with_memory: bool) -> Result<Findings, RepairError> {
    match sight {
        Sight::Memory(kernel) => {
            let ram = table.ram().map_err(RepairError::Region)?;
            Ok(look_for(kernel, table.memory(), RemoteKey::new(ram.key), with_memory)?)
        }
        Sight::Processes => Ok(Findings { evidence: listed::look(table)?, tasks: Vec::new(), damage: Vec::new() }),
    }
}

/// Looks again and again until none of `culprits` lives or `patience` has passed without the death of any; returns
/// those that live. Waits a moment longer for the dead to be buried.
///
/// # Errors
/// See [`RepairError`].
pub fn survivors<'a>(
    table: &mut dyn Table,
    sight: impl Into<Sight<'a>>,
    culprits: &[Culprit],
    patience: Duration,
) -> Result<Vec<Culprit>, RepairError> {
    let (sight, begin) = (sight.into(), Instant::now());
    let (mut all_dead, mut fewest, mut last_death) = (None, usize::MAX, begin);
    loop {
        let look = Instant::now();
        let Findings { evidence, .. } = look_at_for(table, sight, false)?;
        let found = |culprit: &Culprit| {
            let at = evidence.processes.binary_search_by_key(&culprit.pid, |process| process.pid).ok()?;
            Some(&evidence.processes[at]).filter(|process| culprit.was(process))
        };
        let present: Vec<_> = culprits.iter().filter_map(|culprit| Some((culprit, found(culprit)?))).collect();
        let living = present.iter().filter(|(_, process)| process.counts());
        let left: Vec<&Culprit> = living.map(|(culprit, _)| *culprit).collect();
        if left.len() < fewest {
            (fewest, last_death) = (left.len(), Instant::now());
        }
        let is_over = match left.is_empty() {
            true => present.is_empty() || all_dead.get_or_insert_with(Instant::now).elapsed() >= BURIAL,
            false => last_death.elapsed() >= patience || begin.elapsed() >= patience * PATIENCES_MAX,
        };
        if is_over {
            return Ok(left.into_iter().cloned().collect());
        }
        // A look at many takes as long as the deaths of some, of the same processors where the hypervisor is ours.
        std::thread::sleep(LOOK_EVERY.max(look.elapsed()));
    }
}

/// Finds the target's kernel, the one that lives.
///
/// # Errors
/// In a sentence.
pub fn discover(table: &mut dyn Table) -> Result<Kernel, String> {
    let ram = table.ram().map_err(|failure| failure.to_string())?;
    let resets = table.resets().map_err(|failure| failure.to_string())?;
    let kernel = inspect::discover(table.memory(), &ram, resets);
    kernel.map_err(|error| error.to_string())
}
