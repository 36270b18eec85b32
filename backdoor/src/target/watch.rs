//! Looks after the machine of a target: finds it, follows its events, notices its end.
//!
//! Everything slow (connecting, searching) is done without a lock, so that an order never waits for it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Machine, Target};
use crate::fence::{self, Stopped};
use crate::guest_ram::Mapping;
use crate::guest_ram::find::{FindError, Found, find};
use crate::qmp::Qmp;

/// How long QEMU may take for one command. A healthy one takes a tenth of a millisecond; `stop` also waits for its
/// disks.
const QMP_PATIENCE: Duration = Duration::from_secs(2);

/// How often a missing machine is looked for, and how soon a machine that comes back under a standing fence is stopped.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long the memory of a QEMU that ended without being shut down is kept for an evacuation.
const DEAD_MEMORY_KEPT: Duration = Duration::from_secs(600);

impl Target {
    /// Runs until `stop` is set.
    pub fn watch(&self, stop: &AtomicBool) {
        let mut said = String::new();
        while !stop.load(Ordering::Relaxed) {
            match self.hypervisor_socket() {
                Some(socket) => {
                    self.wait(Some(&socket));
                    self.follow_events();
                }
                None => {
                    let trouble = self.look_for_machine();
                    if trouble != said && !trouble.is_empty() {
                        tracing::warn!(target = self.name, %trouble, "no machine");
                    }
                    said = trouble;
                    self.wait(None);
                }
            }
            self.end_lease();
        }
    }

    /// Until there may be something to do: an event, a lease that begins or ends, the time to look.
    fn wait(&self, socket: Option<&OwnedFd>) {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        // A millisecond more than is left: rounded down it would be asked for again and again.
        let time = self.lease_left().map_or(LOOK_EVERY, |left| (left + Duration::from_millis(1)).min(LOOK_EVERY));
        let _ = poll(&mut fds, PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO)); // whatever it says
        let _ = self.wake.read(); // it does not block
    }

    /// Tries once to find the machine; returns what stands in the way, empty if nothing.
    pub fn look_for_machine(&self) -> String {
        let trouble = match self.search() {
            Ok((qmp, found, cards)) => self.attach(qmp, found, cards),
            Err(error) => error.to_string(),
        };
        let mut machine = self.machine();
        machine.trouble.clone_from(&trouble);
        self.forget_the_dead(&mut machine);
        trouble
    }

    fn search(&self) -> Result<(Qmp, Found, Vec<String>), FindError> {
        let mut qmp = Qmp::connect(&self.places.qmp, QMP_PATIENCE)?;
        let pid = match &self.places.pid_file {
            None => None,
            Some(path) => {
                let broken = |source| FindError::File { path: path.clone(), source };
                let text = std::fs::read_to_string(path).map_err(broken)?;
                Some(text.trim().parse().map_err(|_| FindError::NoProcess)?)
            }
        };
        let found = find(&mut qmp, self.places.ram.as_deref(), pid)?;
        let cards = fence::cards(&mut qmp)?;
        Ok((qmp, found, cards))
    }

    /// Takes over a machine that was found. The same one as before keeps its keys.
    fn attach(&self, mut qmp: Qmp, found: Found, cards: Vec<String>) -> String {
        let mut machine = self.machine();
        let known = machine.process == Some(found.process) && machine.identity == found.identity;
        let same = known && self.has_memory();
        if !same {
            let mapping = match Mapping::of(&found.file) {
                Ok(mapping) => mapping,
                Err(error) => return format!("its memory cannot be mapped: {error}"),
            };
            // One that runs behind its fence since it was reset goes on with that.
            if self.is_fenced() && !(known && machine.is_reset) {
                match fence::stop(&mut qmp, &cards) {
                    // What is to be undone is what was done first: by now it stands still anyway.
                    Ok(stopped) if !known || machine.stopped.is_none() => machine.stopped = Some(stopped),
                    Ok(_) => {}
                    Err(error) => return format!("a machine under a standing fence cannot be stopped: {error}"),
                }
                // The new life that was ordered: it may run, and nobody may hear it.
                if machine.is_reset
                    && let Err(error) = fence::run_on(&mut qmp)
                {
                    return format!("a machine that was reset behind its fence does not run: {error}");
                }
                tracing::warn!(target = self.name, known, "the machine found is under a standing fence, and stopped");
            }
            let bytes = mapping.len();
            let mut state = self.memory.change();
            if !known && state.guard.unlock(None).is_ok() {
                // The machine that stood still is no more; this one never did.
                (machine.stopped, machine.lease_until) = (None, None);
            }
            state.guard.attach(found.layout, &mut rand::rng());
            if known && !machine.is_reset {
                state.guard.reopen();
            }
            state.mapping = Some(mapping);
            drop(state);
            if machine.process.is_some() {
                self.incarnation.store(rand::random(), Ordering::Release); // before the first one there were no keys
            }
            tracing::info!(target = self.name, bytes, "machine found, its memory is served");
        }
        machine.process = Some(found.process);
        machine.identity = found.identity;
        machine.qmp = Some(qmp);
        machine.cards = cards;
        machine.gone_since = None;
        machine.shut_down = false;
        String::new()
    }

    /// A second handle of the open connection, to wait on without the lock.
    fn hypervisor_socket(&self) -> Option<OwnedFd> {
        self.machine().qmp.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    fn follow_events(&self) {
        let mut machine = self.machine();
        let Some(qmp) = &mut machine.qmp else { return };
        match qmp.events() {
            Ok(events) => events.iter().for_each(|event| self.follow(&mut machine, event)),
            Err(error) => machine.lose_hypervisor(&error),
        }
    }

    fn follow(&self, machine: &mut Machine, event: &str) {
        match event {
            "RESET" => {
                tracing::info!(target = self.name, "the machine was reset, its boxes are forgotten");
                self.memory.change().guard.machine_reset();
                self.resets.fetch_add(1, Ordering::Relaxed);
            }
            "SHUTDOWN" => machine.shut_down = true,
            "STOP" if self.is_fenced() && !machine.is_reset => self.close_links(machine),
            "RESUME" if self.is_fenced() && !machine.is_reset => self.keep_stopped(machine),
            "RESUME" if self.is_locked() => self.keep_paused(machine),
            _ => {}
        }
    }

    fn keep_stopped(&self, machine: &mut Machine) {
        tracing::error!(target = self.name, "somebody let the fenced machine run; it is stopped again");
        let Some(qmp) = &mut machine.qmp else { return };
        if let Err(error) = fence::stop_again(qmp) {
            tracing::error!(target = self.name, %error, "it cannot be stopped again: it needs an operator");
        }
    }

    fn keep_paused(&self, machine: &mut Machine) {
        tracing::warn!(target = self.name, "somebody let the locked machine run; it is stopped again");
        if let Err(error) = machine.qmp.as_mut().map_or(Ok(Stopped::gone()), fence::pause) {
            tracing::error!(target = self.name, %error, "it cannot be stopped again");
        }
    }

    /// What a fence left for later.
    fn close_links(&self, machine: &mut Machine) {
        let Some(qmp) = &mut machine.qmp else { return };
        if let Err(error) = fence::close(qmp) {
            tracing::error!(target = self.name, %error, "a link of the fenced machine may be up; it stands still");
        }
    }

    /// Gives the memory of a machine back that has ended: at once if it was shut down, later if it died.
    fn forget_the_dead(&self, machine: &mut Machine) {
        if machine.qmp.is_some() || !machine.is_gone() || !self.has_memory() || self.is_fenced() || self.is_locked() {
            return;
        }
        let since = *machine.gone_since.get_or_insert_with(Instant::now);
        if machine.shut_down || since.elapsed() > DEAD_MEMORY_KEPT {
            let mut state = self.memory.change();
            state.guard.detach(&mut rand::rng());
            state.mapping = None;
            drop(state);
            self.incarnation.store(rand::random(), Ordering::Release);
            tracing::info!(target = self.name, "the machine has ended, its memory is given back");
        }
    }
}
