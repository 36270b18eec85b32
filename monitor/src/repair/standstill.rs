//! When a target stands still for a repair, so that nobody takes its sensors' rest for a hang.
//!
//! ```text
//!   lock ───────────── unlock ───────── a deadline ─────────►
//!   [ sensors rest, by our doing ][ they move, or it hangs ][ it hangs
//!        nothing is made of it         not known yet            found, whatever the treatment still waits for
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control::backdoor::{LockToken, RegionEntry};
use link::LinkFailure;
use remote_memory::RemoteWrite;

use super::Table;
use crate::clock::{Clock, Monotonic};
use crate::watch::nanos;

/// The last standstill of a target, shared by who makes it and who watches.
#[derive(Clone, Debug, Default)]
pub struct Standstill {
    /// When it ended, or will have at the latest; 0 before the first one.
    until_ns: Arc<AtomicU64>,
}

impl Standstill {
    /// It may begin now, and lasts for `lease` at most.
    pub fn begin(&self, now_ns: u64, lease: Duration) {
        self.until_ns.store(now_ns.saturating_add(nanos(lease)), Ordering::Release);
    }

    /// It is over.
    pub fn end(&self, now_ns: u64) {
        self.until_ns.store(now_ns, Ordering::Release);
    }

    /// Whether a sensor that was allowed `deadline` may owe its rest to the standstill.
    pub fn excuses(&self, now_ns: u64, deadline: Duration) -> bool {
        let until_ns = self.until_ns.load(Ordering::Acquire);
        until_ns > 0 && now_ns < until_ns.saturating_add(nanos(deadline))
    }
}

/// A table that says when its target stands still.
pub struct Announced<'a> {
    table: &'a mut dyn Table,
    standstill: &'a Standstill,
}

impl<'a> Announced<'a> {
    /// `table`, whose locks are told to `standstill`.
    pub fn new(table: &'a mut dyn Table, standstill: &'a Standstill) -> Self {
        Self { table, standstill }
    }
}

impl Table for Announced<'_> {
    fn lock(&mut self, reason: &str, lease_ms: u32) -> Result<LockToken, LinkFailure> {
        let lease = Duration::from_millis(lease_ms.into());
        self.standstill.begin(Monotonic.now_ns(), lease);
        let outcome = self.table.lock(reason, lease_ms);
        match &outcome {
            // The lease began at some time before this.
            Ok(_) => self.standstill.begin(Monotonic.now_ns(), lease),
            Err(failure) if failure.is_path() => {} // it may stand still, and nobody knows
            Err(_) => self.standstill.end(Monotonic.now_ns()),
        }
        outcome
    }

    fn unlock(&mut self, token: &LockToken) -> Result<(), LinkFailure> {
        let outcome = self.table.unlock(token);
        if !outcome.as_ref().is_err_and(LinkFailure::is_path) {
            self.standstill.end(Monotonic.now_ns());
        }
        outcome
    }

    fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
        self.table.ram()
    }

    fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
        self.table.region(name)
    }

    fn resets(&mut self) -> Result<u64, LinkFailure> {
        self.table.resets()
    }

    fn memory(&mut self) -> &mut dyn RemoteWrite {
        self.table.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_excused_until_a_deadline_after_the_standstill_and_not_for_the_treatment() {
        let (standstill, deadline) = (Standstill::default(), Duration::from_nanos(20));
        assert!(!standstill.excuses(0, deadline) && !standstill.excuses(10, deadline), "there was none");
        standstill.begin(100, Duration::from_nanos(2000));
        assert!(standstill.excuses(101, deadline) && standstill.excuses(2119, deadline), "while the lease may last");
        standstill.end(150);
        assert!(standstill.excuses(169, deadline));
        assert!(!standstill.excuses(170, deadline), "the treatment may wait on for its culprits");
    }
}
