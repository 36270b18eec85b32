//! Those for whom a standstill had no timers: woken in further, short ones.
//!
//! ```text
//!   ■■■■■■■■■■■ all are read, judged, marked; as many as there is room for are woken
//!                 ticks: timers fire, their slots are free again
//!                               ■ the next are looked at once more and woken          ■ and so on
//! ```
//! Who is marked cannot fork and does nothing any more, so there is nothing to judge again. But the machine ran: each
//! is read again, and is woken only if it is the task that was marked.

use std::mem;
use std::time::{Duration, Instant};

use introspect::linux::kill::{self, KillPlan};
use introspect::linux::task::Task;
use introspect::{Damage, Kernel};
use remote_memory::RemoteKey;
use serde::{Deserialize, Serialize};

use super::{LEASE_MS, LOOK_EVERY, PATIENCE, RepairError, Table, carry_out};

/// Standstills of one repair in which marked sleepers are woken: enough for a hundred thousand.
const WAKINGS_MAX: usize = 16;

/// A standstill in which those were woken who had been marked in an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Waking {
    /// What was written, and what it means for each process that it is about.
    pub kill: KillPlan,
    /// How long the target stood still, in nanoseconds.
    pub locked_ns: u64,
    /// Why not all of that is known to have been written, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Wakes whom `kill` has left waiting, in as many standstills as it takes. Who is left at the end stays in
/// `kill.waiting`: the next repair finds them.
pub(super) fn wake_rest(
    table: &mut dyn Table,
    kernel: &Kernel,
    reason: &str,
    kill: &mut KillPlan,
    damage: &mut Vec<Damage>,
) -> Vec<Waking> {
    let mut wakings = Vec::new();
    while !kill.waiting.is_empty() && wakings.len() < WAKINGS_MAX {
        match wake_some(table, kernel, reason, &mut kill.waiting, damage) {
            Ok(waking) => {
                let has_failed = waking.failed.is_some();
                wakings.push(waking);
                if has_failed {
                    break;
                }
            }
            Err(why) => {
                tracing::warn!(%why, waiting = kill.waiting.len(), "marked sleepers are not woken yet");
                break;
            }
        }
    }
    wakings
}

/// Wakes as many of `waiting` as there is room for, and leaves the others there.
fn wake_some(
    table: &mut dyn Table,
    kernel: &Kernel,
    reason: &str,
    waiting: &mut Vec<Task>,
    damage: &mut Vec<Damage>,
) -> Result<Waking, Why> {
    let room = room(table, kernel, waiting.len())?;
    if room == 0 {
        return Err(Why::NoRoom);
    }
    let later = waiting.split_off(room.min(waiting.len()));
    let now = mem::replace(waiting, later);
    match wake(table, kernel, reason, &now) {
        Ok((mut waking, more)) => {
            damage.extend(more);
            waiting.append(&mut waking.kill.waiting);
            Ok(waking)
        }
        Err(why) => {
            waiting.extend(now);
            Err(why.into())
        }
    }
}

/// Why nobody was woken.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("the timers of before have not fired within {PATIENCE:?}")]
    NoRoom,
    #[error(transparent)]
    Failed(#[from] RepairError),
}

/// Waits, while the target runs, until the timers of the last standstill have fired, and says how many there is room
/// for then.
fn room(table: &mut dyn Table, kernel: &Kernel, waiting: usize) -> Result<usize, RepairError> {
    let ram = RemoteKey::new(table.ram().map_err(RepairError::Region)?.key);
    let begin = Instant::now();
    let (mut last, mut most) = (0, 0);
    loop {
        let room = kill::room(kernel, table.memory(), ram)?;
        // They fire at one tick: when no more of them do, all have.
        let have_fired = room > 0 && room == last && room >= most;
        most = most.max(room);
        if room >= waiting || have_fired || begin.elapsed() >= PATIENCE {
            return Ok(room);
        }
        last = room;
        std::thread::sleep(LOOK_EVERY);
    }
}

fn wake(
    table: &mut dyn Table,
    kernel: &Kernel,
    reason: &str,
    marked: &[Task],
) -> Result<(Waking, Vec<Damage>), RepairError> {
    let ram = RemoteKey::new(table.ram().map_err(RepairError::Region)?.key);
    let begin = Instant::now();
    let token = table.lock(reason, LEASE_MS).map_err(RepairError::NotLocked)?;
    let planned = kill::wake_marked(kernel, table.memory(), ram, marked);
    let looked = begin.elapsed();
    let outcome = planned.map_err(RepairError::from).map(|(kill, damage)| {
        let written = carry_out(table.memory(), &token.fenced(), &kill.edits);
        (kill, damage, written)
    });
    let carried_out = begin.elapsed();
    let unlocked = table.unlock(&token).map_err(RepairError::NotUnlocked);
    let locked = begin.elapsed();
    let (kill, damage, written) = outcome?;
    tracing::debug!(marked = marked.len(), ?looked, ?carried_out, ?locked, "marked sleepers woken");
    let failed = written.and(unlocked).err().map(|error| error.to_string());
    Ok((Waking { kill, locked_ns: locked.as_nanos() as u64, failed }, damage))
}

impl Waking {
    /// How long the target stood still.
    pub fn locked(&self) -> Duration {
        Duration::from_nanos(self.locked_ns)
    }
}
