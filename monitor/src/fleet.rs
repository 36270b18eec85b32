//! One thread for many targets: their samples are posted together, go out in a few system calls and are taken as they
//! come back. Nothing in the common round waits for one target.
//!
//! ```text
//!   due? ─► post ─► post ─► … ─► flush ─► receive ─► take, take, …      the common round
//!                                             │
//!          anything but a good sample ────────┴──► a thread of its own (its ward) until the target is calm again
//! ```
//!
//! A target that is not connected yet, whose sample failed, or that hangs leaves the round: opening, fencing and
//! ordering wait for other machines. In its ward a target is watched as a target with a thread of its own is, by the
//! same code; nothing is decided differently here.
//!
//! Invariants: a target is in the round or in its ward, never in both; a read that was given up is never taken for a
//! later one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope};
use std::time::Duration;

use rdma::soft::Hub;

use crate::clock::Clock;
use crate::detect::Finding;
use crate::sample::{Door, Flight};
use crate::watch::{Watch, nanos};

/// Targets that are due within this are sampled along: less than a timer is late anyway.
const ALONG: Duration = Duration::from_micros(100);

/// Posts after which what has arrived is received, so that answers do not fill the socket's buffer.
const POSTS_PER_RECEIVE: usize = 64;

/// Answers come in the order of the questions, more or less: how far beyond a missing one is looked.
const LOOKAHEAD: usize = 64;

/// The longest sleep, so that the end of the process and returning targets are noticed.
const NAP: Duration = Duration::from_millis(20);

/// A ward opens a connection and parses a box; the main thread's stack is not needed for that.
const WARD_STACK_BYTES: usize = 512 * 1024;

/// A sample on its way.
struct Aloft {
    member: usize,
    begin_ns: u64,
    flight: Flight,
}

/// Watches that share a thread.
pub struct Fleet<D, C> {
    members: Vec<Option<Watch<D, C>>>,
    aloft: VecDeque<Aloft>,
    hub: Hub,
    clock: C,
    patience_ns: u64,
}

/// What a ward begins with.
enum Call {
    Findings(Vec<Finding>),
    /// A sample, posted then, that does not come back.
    Missing(u64),
}

impl<D: Door + Send, C: Clock + Clone + Send> Fleet<D, C> {
    /// A fleet of `watches` whose doors are at `hub`; a sample counts as lost after `patience`.
    pub fn new(watches: Vec<Watch<D, C>>, hub: Hub, clock: C, patience: Duration) -> Self {
        let members = watches.into_iter().map(Some).collect();
        Self { members, aloft: VecDeque::new(), hub, clock, patience_ns: nanos(patience) }
    }

    /// Watches until `stop` is set.
    ///
    /// # Errors
    /// If the shared socket fails, or no thread can be started for a target that needs one.
    pub fn run(&mut self, stop: &AtomicBool) -> std::io::Result<()> {
        std::thread::scope(|scope| {
            let (home, returning) = channel();
            while !stop.load(Ordering::Relaxed) {
                self.admit(&returning);
                self.post_due(scope, &home, stop)?;
                self.hub.flush()?;
                self.take_until(self.next_due_ns(), scope, &home, stop)?;
                self.clock.sleep_until(self.next_due_ns());
            }
            Ok(())
        })
    }

    /// Lets targets back into the round.
    fn admit(&mut self, returning: &Receiver<(usize, Watch<D, C>)>) {
        while let Ok((member, watch)) = returning.try_recv() {
            self.members[member] = Some(watch);
        }
    }

    fn post_due<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        home: &Sender<(usize, Watch<D, C>)>,
        stop: &'scope AtomicBool,
    ) -> std::io::Result<()>
    where
        D: 'scope,
        C: 'scope,
    {
        // A begin that is told too early makes a stall look shorter and the last sign of life older: both are safe.
        let mut begin_ns = self.clock.now_ns();
        let horizon_ns = begin_ns + nanos(ALONG);
        let mut posts = 0;
        for member in 0..self.members.len() {
            let Some(watch) = &mut self.members[member] else { continue };
            if watch.due_ns() > horizon_ns || watch.is_aloft {
                continue;
            }
            match watch.post(begin_ns) {
                Some(flight) => {
                    watch.is_aloft = true;
                    self.aloft.push_back(Aloft { member, begin_ns, flight });
                    posts += 1;
                    if posts % POSTS_PER_RECEIVE == 0 {
                        self.hub.receive()?;
                        begin_ns = self.clock.now_ns();
                    }
                }
                None => self.send_to_ward(member, Call::Findings(Vec::new()), scope, home, stop)?,
            }
        }
        Ok(())
    }

    /// Takes samples as they come back, until all have or `until_ns`.
    fn take_until<'scope>(
        &mut self,
        until_ns: u64,
        scope: &'scope Scope<'scope, '_>,
        home: &Sender<(usize, Watch<D, C>)>,
        stop: &'scope AtomicBool,
    ) -> std::io::Result<()>
    where
        D: 'scope,
        C: 'scope,
    {
        while !self.aloft.is_empty() {
            let arrived = self.hub.receive()?;
            let taken = self.take_arrived(scope, home, stop)?;
            let now_ns = self.clock.now_ns();
            if now_ns >= until_ns {
                break;
            }
            if arrived == 0 && taken == 0 {
                self.hub.flush()?; // what was asked for again
                self.hub.wait(Duration::from_nanos(until_ns - now_ns).min(Duration::from_millis(1)))?;
            }
        }
        Ok(())
    }

    fn take_arrived<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        home: &Sender<(usize, Watch<D, C>)>,
        stop: &'scope AtomicBool,
    ) -> std::io::Result<usize>
    where
        D: 'scope,
        C: 'scope,
    {
        // Everything that can be taken below has arrived by now.
        let end_ns = self.clock.now_ns();
        let (mut missing, mut taken) = (Vec::new(), 0);
        while missing.len() < LOOKAHEAD
            && let Some(mut aloft) = self.aloft.pop_front()
        {
            let Some(watch) = &mut self.members[aloft.member] else { continue };
            match watch.collect(aloft.begin_ns, end_ns, &mut aloft.flight) {
                Some(findings) => {
                    taken += 1;
                    watch.is_aloft = false;
                    if !findings.is_empty() || !watch.is_calm() {
                        self.send_to_ward(aloft.member, Call::Findings(findings), scope, home, stop)?;
                    }
                }
                None if end_ns.saturating_sub(aloft.begin_ns) >= self.patience_ns => {
                    watch.is_aloft = false;
                    self.send_to_ward(aloft.member, Call::Missing(aloft.begin_ns), scope, home, stop)?;
                }
                None => missing.push(aloft),
            }
        }
        missing.into_iter().rev().for_each(|aloft| self.aloft.push_front(aloft));
        Ok(taken)
    }

    fn next_due_ns(&self) -> u64 {
        let nap_ns = self.clock.now_ns() + nanos(NAP);
        let due = self.members.iter().flatten().map(|watch| match watch.is_aloft {
            true => watch.next_tick_ns(),
            false => watch.due_ns(),
        });
        due.min().unwrap_or(nap_ns).min(nap_ns)
    }

    fn send_to_ward<'scope>(
        &mut self,
        member: usize,
        call: Call,
        scope: &'scope Scope<'scope, '_>,
        home: &Sender<(usize, Watch<D, C>)>,
        stop: &'scope AtomicBool,
    ) -> std::io::Result<()>
    where
        D: 'scope,
        C: 'scope,
    {
        let Some(mut watch) = self.members[member].take() else { return Ok(()) };
        let home = home.clone();
        let ward = Builder::new().name(format!("ward {}", watch.target.name)).stack_size(WARD_STACK_BYTES);
        ward.spawn_scoped(scope, move || {
            let findings = match call {
                Call::Findings(findings) => findings,
                Call::Missing(begin_ns) => watch.give_up(begin_ns),
            };
            watch.attend(findings);
            while !watch.is_calm() && !stop.load(Ordering::Relaxed) {
                watch.step();
            }
            // The fleet may have ended meanwhile; the watch ends with it then.
            let _ = home.send((member, watch));
        })?;
        Ok(())
    }
}
