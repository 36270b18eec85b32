//! A target as its ward knows it: the link to it, and what is looked at of it: the kernel that lives in its memory, or
//! the process table of its agent.

use std::time::{Duration, Instant};

use control::backdoor::RegionEntry;
use introspect::Kernel;
use link::{Link, LinkFailure};
use proctable::Table as Processes;
use remote_memory::RemoteKey;

use super::known::Known;
use super::table::persistently;
use super::{Sight, discover, listed};
use crate::config::Look;
use crate::sample::Life;

/// How long a kernel that lives may leave its clock alone: one that idles without a tick does, for some seconds.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

/// A target that is known.
pub(super) struct Patient {
    pub link: Link,
    pub eyes: Eyes,
    pub life: Life,
    /// When it was met.
    pub met: Instant,
    /// Its regions as they were then; none of a target that is looked at in its memory.
    pub regions: Vec<RegionEntry>,
}

/// What is looked at of a target.
pub(super) enum Eyes {
    /// Its kernel, and what the clock of it said when it was found.
    Memory(Box<Kernel>, Option<u64>),
    /// Its process table, as it was found.
    Processes(Processes),
}

impl Eyes {
    pub fn sight(&self) -> Sight<'_> {
        match self {
            Self::Memory(kernel, _) => Sight::Memory(kernel),
            Self::Processes(_) => Sight::Processes,
        }
    }

    /// For people.
    pub fn what(&self) -> String {
        match self {
            Self::Memory(kernel, _) => kernel.release.clone(),
            Self::Processes(table) => format!("a table of {} processes", table.processes.len()),
        }
    }
}

impl Patient {
    pub fn meet(mut link: Link, look: Look) -> Result<Self, String> {
        let life = Life::of(&mut link).map_err(|failure| failure.to_string())?;
        let has_ram = match link.region("ram") {
            Ok(_) => true,
            Err(LinkFailure::NoRegion(_)) => false,
            Err(failure) => return Err(failure.to_string()),
        };
        let eyes = match look {
            Look::Auto if has_ram => Self::kernel(&mut link)?,
            Look::Memory => Self::kernel(&mut link)?,
            Look::Auto | Look::Table => Eyes::Processes(listed::read(&mut link).map_err(|error| error.to_string())?),
        };
        let regions = match eyes {
            Eyes::Memory(..) => Vec::new(),
            Eyes::Processes(_) => link.regions(None).map_err(|failure| failure.to_string())?,
        };
        Ok(Self { link, eyes, life, met: Instant::now(), regions })
    }

    fn kernel(link: &mut Link) -> Result<Eyes, String> {
        let kernel = discover(link)?;
        let clock_s = clock_s(link, &kernel)?;
        Ok(Eyes::Memory(Box::new(kernel), clock_s))
    }

    /// Whether the kernel is still the one that lives. A machine that was started anew, or reset, has another one, or
    /// the same elsewhere; and what looked like the living one after a reset may have been what that has left.
    pub fn is_the_same(&mut self) -> bool {
        match &self.eyes {
            Eyes::Memory(kernel, was) => {
                let now = self.link.ping().ok().and_then(|_| Life::of(&mut self.link).ok());
                let Some(life) = now else { return false };
                let was = Seen { life: self.life, clock_s: *was };
                let clock_s = || clock_s(&mut self.link, kernel).ok().flatten();
                lives_on(was, self.met.elapsed(), life, clock_s)
            }
            // Each boot makes another table under another key: what is read tells, and nobody need be asked who may
            // have no processor to answer with.
            Eyes::Processes(table) => {
                let is_new = self.met.elapsed() < ALIVE_WITHIN;
                let mut known = Known::new(&mut self.link, &self.regions);
                let now = persistently(|| listed::read(&mut known));
                now.is_ok_and(|now| now.target == table.target && (is_new || listed::lives_on(table, &now)))
            }
        }
    }
}

/// What a kernel's clock says; `None` if it has none that is known.
fn clock_s(link: &mut Link, kernel: &Kernel) -> Result<Option<u64>, String> {
    let ram = link.region("ram").map_err(|failure| failure.to_string())?;
    kernel.wall_clock_s(link.memory(), RemoteKey::new(ram.key)).map_err(|error| error.to_string())
}

/// What was seen of a target.
#[derive(Clone, Copy)]
struct Seen {
    life: Life,
    clock_s: Option<u64>,
}

/// Whether the kernel that was seen `since` ago is the one that lives, in the life that the target has now.
fn lives_on(was: Seen, since: Duration, now: Life, clock_s: impl FnOnce() -> Option<u64>) -> bool {
    let may_be_dead = was.life.resets > 0 && was.clock_s.is_some() && since >= ALIVE_WITHIN;
    was.life == now && (!may_be_dead || clock_s() > was.clock_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(resets: u64, clocks: [Option<u64>; 2], since_s: u64, now: (u64, u64), expected: bool) {
        let was = Seen { life: Life { incarnation: 7, resets }, clock_s: clocks[0] };
        let now = Life { incarnation: now.0, resets: now.1 };
        assert_eq!(lives_on(was, Duration::from_secs(since_s), now, || clocks[1]), expected);
    }

    #[test]
    fn a_kernel_is_forgotten_after_a_reset_and_when_its_clock_stands_still_after_one() {
        check(0, [Some(100); 2], 60, (7, 0), true);
        check(0, [Some(100), Some(101)], 1, (7, 1), false);
        check(0, [Some(100), Some(101)], 1, (8, 0), false);
        check(1, [Some(100), Some(101)], 60, (7, 1), true);
        check(1, [Some(100); 2], 60, (7, 1), false);
        check(1, [Some(100), None], 60, (7, 1), false);
        check(1, [Some(100); 2], 1, (7, 1), true);
        check(1, [None; 2], 60, (7, 1), true);
    }
}
