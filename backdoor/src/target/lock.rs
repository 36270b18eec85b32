//! Locks: the machine stands still for the time of a lease, its links as they are.
//!
//! ```text
//!   lock ──► stopped, key given out ──► unlock, or the end of the lease ──► key dead ──► the machine runs
//!                 │        ▲ lock again under the same claim: the lease begins anew
//!                 └──► fence under the same claim: links down, no lease any more
//! ```
//!
//! Two phases from the holder's view: it asks, and acts only after the answer that the machine was seen to stand still.
//! An answer that is lost is asked for again under the same claim. A holder that is late finds its key dead before the
//! machine has run: what it writes then is refused.

use std::time::{Duration, Instant};

use control::backdoor::{LEASE_MS_MAX, LockToken};

use super::record;
use super::{Machine, Target, TargetError};
use crate::fence::{self, FenceError, Stopped};

/// How soon a machine that could not be let go is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

impl Target {
    /// Stops the machine until the lease ends; asked again under the same `claim`, the lease begins anew.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn lock(&self, claim: u64, lease_ms: u32) -> Result<(LockToken, Duration), TargetError> {
        if lease_ms == 0 || lease_ms > LEASE_MS_MAX {
            return Err(TargetError::BadLease { lease_ms });
        }
        let begin = Instant::now();
        let lease = Duration::from_millis(lease_ms.into());
        let mut machine = self.machine();
        {
            let state = self.memory.look();
            if let Some(token) = state.guard.locked_by(Some(claim)) {
                machine.lease_until = Some(begin + lease);
                return Ok((token, Duration::ZERO));
            }
            if state.guard.is_fenced() || state.guard.is_locked() {
                return Err(TargetError::FencedAlready { epoch: state.guard.epoch().raw() });
            }
            if state.mapping.is_none() {
                return Err(TargetError::NoMachine);
            }
        }
        let stopped = machine.pause()?;
        machine.stopped.get_or_insert(stopped);
        // From here on: what the stop took is not the holder's time.
        machine.lease_until = Some(Instant::now() + lease);
        let token = self.memory.change().guard.lock(claim, &mut rand::rng());
        machine.record(token.inner(), Some(claim), Some(lease_ms)).keep(self.places.record.as_deref());
        let _ = self.wake.write(1); // a full counter wakes as well
        Ok((token, begin.elapsed()))
    }

    /// Ends a lock: its key is dead, then the machine runs.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn unlock(&self, token: &LockToken) -> Result<(), TargetError> {
        let mut machine = self.machine();
        self.memory.change().guard.unlock(Some(token)).map_err(|_| TargetError::NoSuchLock)?;
        self.let_run(&mut machine)
    }

    /// How long the lock that stands lasts, if one does; nothing, if its lease has just ended.
    pub fn lock_left(&self) -> Option<Duration> {
        self.is_locked().then(|| self.lease_left().unwrap_or_default())
    }

    /// Lets the machine of a lock go whose lease has ended.
    pub(super) fn end_lease(&self) {
        let mut machine = self.machine();
        if machine.lease_until.is_none_or(|until| Instant::now() < until) {
            return;
        }
        if self.memory.change().guard.unlock(None).is_ok() {
            tracing::warn!(target = self.name, "the lease of a lock has ended: the machine goes on");
        }
        if let Err(error) = self.let_run(&mut machine) {
            tracing::error!(target = self.name, %error, "lock");
        }
    }

    /// When a lease ends next.
    pub(super) fn lease_left(&self) -> Option<Duration> {
        self.machine().lease_until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    fn let_run(&self, machine: &mut Machine) -> Result<(), TargetError> {
        let outcome = machine.resume();
        match outcome {
            Ok(()) => {
                (machine.stopped, machine.lease_until) = (None, None);
                record::forget(self.places.record.as_deref());
            }
            Err(_) => machine.lease_until = Some(Instant::now() + TRY_AGAIN),
        }
        outcome
    }
}

impl Machine {
    /// Stops the processors; those of a machine whose process is gone stand still already.
    fn pause(&mut self) -> Result<Stopped, TargetError> {
        let Some(qmp) = &mut self.qmp else {
            return if self.is_gone() { Ok(Stopped::gone()) } else { Err(self.no_hypervisor()) };
        };
        match fence::pause(qmp) {
            Err(FenceError::Qmp(error)) if error.is_fatal() => {
                self.lose_hypervisor(&error);
                Err(TargetError::NotFenced(error.into()))
            }
            outcome => outcome.map_err(TargetError::NotFenced),
        }
    }

    fn resume(&mut self) -> Result<(), TargetError> {
        let Some(qmp) = &mut self.qmp else {
            return if self.is_gone() { Ok(()) } else { Err(self.no_hypervisor()) };
        };
        let stopped = self.stopped.clone().unwrap_or_else(Stopped::gone);
        let outcome = fence::resume(qmp, &stopped);
        if let Err(error) = &outcome
            && error.is_fatal()
        {
            self.lose_hypervisor(error);
        }
        outcome.map_err(TargetError::NotUnlocked)
    }
}
