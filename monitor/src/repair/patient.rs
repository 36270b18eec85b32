//! A target as its ward knows it: the link to it, and the kernel that lives in its memory.

use std::time::{Duration, Instant};

use introspect::Kernel;
use link::Link;
use remote_memory::RemoteKey;

use super::discover;
use crate::sample::Life;

/// How long a kernel that lives may leave its clock alone: one that idles without a tick does, for some seconds.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

/// A target that is known.
pub(super) struct Patient {
    pub link: Link,
    pub kernel: Kernel,
    pub life: Life,
    /// When its kernel was found, and what its clock said then.
    pub met: Instant,
    pub clock_s: Option<u64>,
}

impl Patient {
    pub fn meet(mut link: Link) -> Result<Self, String> {
        let life = Life::of(&mut link).map_err(|failure| failure.to_string())?;
        let kernel = discover(&mut link)?;
        let clock_s = clock_s(&mut link, &kernel)?;
        Ok(Self { link, kernel, life, met: Instant::now(), clock_s })
    }

    /// Whether the kernel is still the one that lives. A machine that was started anew, or reset, has another one, or
    /// the same elsewhere; and what looked like the living one after a reset may have been what that has left.
    pub fn is_the_same(&mut self) -> bool {
        let now = self.link.ping().ok().and_then(|_| Life::of(&mut self.link).ok());
        let was = Seen { life: self.life, clock_s: self.clock_s };
        let clock_s = || clock_s(&mut self.link, &self.kernel).ok().flatten();
        now.is_some_and(|life| lives_on(was, self.met.elapsed(), life, clock_s))
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
