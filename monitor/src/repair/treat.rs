//! A treatment: repair after repair, until the module that asked for it finds nothing any more.

use std::collections::HashSet;
use std::time::Duration;

use healing_modules::{Culprit, Evidence, Healer, Moment, Plan, Safety};
use introspect::linux::contain::Contained;
use introspect::linux::kill;
use remote_memory::RemoteKey;

use super::contain::{Case, give_back};
use super::prefault::Prefaulted;
use super::{
    Findings, Occasion, Operation, PATIENCE, RepairError, Sight, Table, Ways, conclude, look_at, operate_by, survivors,
};
use crate::config::Hook;

/// Repairs of one treatment. A bomb is over after one, a hog whose controller starts it anew after a few; what needs
/// more than this is not cured by more of it.
const REPAIRS_MAX: usize = 16;

/// Memory of ours that a repair takes for each process: what was read of it, what is to be written, what is reported.
const BYTES_OF_A_PROCESS: usize = 3000;

/// One repair and what came of it.
#[derive(Debug)]
pub struct Treated {
    /// The earlier look that was decided on, if one was.
    pub earlier: Option<Evidence>,
    /// What was done.
    pub operation: Operation,
    /// Culprits that live on.
    pub survivors: Vec<Culprit>,
    /// Why limits that were lent were not given back; they are owed still.
    pub not_given_back: Option<String>,
}

/// How a treatment ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Cure {
    /// The module finds nothing. Without any repair: there was nothing, or it has passed.
    Healthy,
    /// It would have been repaired, and culprits contained; nothing was written.
    DryRun(Plan, Vec<Contained>),
    /// It was repaired and is ill still.
    Ill {
        /// In a sentence.
        why: String,
    },
}

/// Treats the target until `healer` finds nothing, or nothing more can be done. `note` hears of every repair when it
/// has been made.
///
/// # Errors
/// See [`RepairError`]; repairs of before have been told to `note`.
pub fn treat<'a>(
    table: &mut dyn Table,
    sight: impl Into<Sight<'a>>,
    healer: &dyn Healer,
    safety: &Safety,
    ways: impl Into<Ways>,
    is_dry_run: bool,
    mut note: impl FnMut(&Treated),
) -> Result<Cure, RepairError> {
    let (sight, ways) = (sight.into(), ways.into());
    for repairs in 0..=REPAIRS_MAX {
        let earlier = earlier(table, sight, healer)?;
        // A look that costs the target nothing: it is locked only if something is to be done.
        let Findings { evidence, tasks, .. } = look_at(table, sight)?;
        let found = healer.consult(Moment::Running, &evidence, earlier.as_ref(), safety)?;
        let Some(plan) = found else { return Ok(Cure::Healthy) };
        if is_dry_run {
            safety.check(&plan, &evidence)?;
            let contained = match sight {
                Sight::Memory(kernel) => {
                    let case = Case { kernel, tasks: &tasks, evidence: &evidence, safety, plan: &plan, kill: None };
                    would_contain(table, case, &ways)?
                }
                // An order contains nobody.
                Sight::Processes => Vec::new(),
            };
            return Ok(Cure::DryRun(plan, contained));
        }
        if repairs == REPAIRS_MAX {
            break;
        }
        // Done while the target runs, and for nothing where an order is given to it instead. What this look took serves
        // the standstill, too.
        let bytes = evidence.processes.len() * BYTES_OF_A_PROCESS;
        let _prefaulted = (ways.hook == Hook::Raw).then(|| Prefaulted::of(bytes));
        drop((evidence, tasks));
        let mut unanswered = None;
        let mut decide = |evidence: &Evidence| {
            let found = healer.consult(Moment::Standstill, evidence, earlier.as_ref(), safety);
            found.unwrap_or_else(|error| {
                unanswered = Some(error);
                None
            })
        };
        let occasion = Occasion { reason: healer.name(), judges_memory: healer.judges_memory() };
        let mut operation = operate_by(ways.clone(), table, sight, occasion, safety, &mut decide)?;
        if let Some(error) = unanswered {
            return Err(error.into());
        }
        let Some(plan) = &operation.plan else { continue }; // it has passed before the target stood still
        if let Some(beyond) = &operation.beyond {
            let why = format!("{beyond}; of its culprits {} were contained", operation.contained.len());
            let survivors = plan.culprits.clone();
            note(&Treated { earlier, operation, survivors, not_given_back: None });
            return Ok(Cure::Ill { why });
        }
        // Who could not be woken for want of room is for the next repair.
        let later: HashSet<u32> = operation.kill.waiting.iter().map(|task| task.tgid).collect();
        let is_left = |culprit: &&Culprit| !later.contains(&culprit.pid);
        let marked: Vec<Culprit> = plan.culprits.iter().filter(is_left).cloned().collect();
        let left = survivors(table, sight, &marked, PATIENCE);
        // Whatever came of it: a limit that nobody remembers is worse than one that is set anew.
        let given_back = match sight {
            Sight::Memory(kernel) => give_back(table, kernel, &operation.contained).map(drop),
            Sight::Processes => Ok(()),
        };
        let not_given_back = given_back.err().map(|error| error.to_string());
        let (left, failed) = match left {
            Ok(left) => (left, None),
            Err(error) => (marked, Some(error)),
        };
        if let Some(order) = &mut operation.order {
            // What was done is done, and is told all the same.
            if let Err(why) = conclude(table, order) {
                tracing::warn!(%why, "an order could not be withdrawn; it ends with its lease");
            }
        }
        let treated = Treated { earlier, operation, survivors: left, not_given_back };
        note(&treated);
        if let Some(error) = failed {
            return Err(error);
        }
        if !treated.survivors.is_empty() {
            let first = &treated.survivors[0];
            let why = format!(
                "{} of {} culprits live on {PATIENCE:?} after they were marked, {} ({}) among them",
                treated.survivors.len(),
                treated.operation.plan.as_ref().map_or(0, |plan| plan.culprits.len()),
                first.comm,
                first.pid
            );
            return Ok(Cure::Ill { why });
        }
    }
    Ok(Cure::Ill { why: format!("{REPAIRS_MAX} repairs ended their culprits, and the module finds more each time") })
}

/// Who would be contained, of a target that runs: nothing is written.
fn would_contain(table: &mut dyn Table, case: Case<'_>, ways: &Ways) -> Result<Vec<Contained>, RepairError> {
    if ways.contain.is_empty() {
        return Ok(Vec::new());
    }
    let ram = RemoteKey::new(table.ram().map_err(RepairError::Region)?.key);
    let processes: Vec<u32> = case.plan.culprits.iter().map(|culprit| culprit.pid).collect();
    let (kill, _) = kill::plan(case.kernel, table.memory(), ram, case.tasks, &processes)?;
    let case = Case { kill: Some(&kill), ..case };
    Ok(case.contained(table.memory(), ram, &ways.contain)?.0)
}

/// The earlier look of a module that goes by what changed.
fn earlier(table: &mut dyn Table, sight: Sight<'_>, healer: &dyn Healer) -> Result<Option<Evidence>, RepairError> {
    let Some(apart_ns) = healer.needs_earlier_ns() else { return Ok(None) };
    let Findings { evidence, .. } = look_at(table, sight)?;
    std::thread::sleep(Duration::from_nanos(apart_ns));
    Ok(Some(evidence))
}
