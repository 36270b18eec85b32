//! After an evacuation: the target is looked at, reset behind its fence, and given its address back, as the
//! configuration or an operator says.
//!
//! ```text
//!   fenced ──► reset, links down ──► back: registered, sensors move ──► spare without connections ──► address gone
//!     │        by policy or order                                       or the time is over           from the spare
//!     └─ `monitor inspect`                                                                                  │
//!   watched again ◄── fence ends, links up, neighbours told ◄───────────────────────────────────────────────┘
//! ```
//!
//! Invariants: nothing is done but under this watch's own token; the target's links come up only when every spare that
//! may have its addresses has said that they are gone (or an operator took that on himself with `plug`); every step
//! may be repeated, and is, by a successor that finds it begun in the journal.
//!
//! Deliberately absent: a target that comes back beside its spare, each with the addresses that are its own. What a
//! guest configures when it boots, nobody outside can promise away; see decision 0008.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use control::backdoor::{Afterwards, FenceState, FenceToken};

use crate::clock::Clock;
use crate::config::{Address, Reset};
use crate::evacuate::Left;
use crate::journal::Event;
use crate::sample::Door;
use crate::watch::{Standing, Watch, nanos};

/// Between two looks at a target that boots or waits for its address.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Between two questions to spares whether the sessions have ended, and after a step that failed.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What an operator may order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Reset the target behind its fence now.
    Reset,
    /// Reset it if that has not been done, and give it its addresses back as soon as the spare has drained.
    Return,
    /// Take its links up now, whoever has the addresses: only for a target that does not configure them itself.
    Plug,
}

impl Order {
    fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Return => "return",
            Self::Plug => "plug",
        }
    }

    /// Leaves the order beside the journal for the monitor that writes it. Whoever may do that may read its tokens.
    ///
    /// # Errors
    /// Those of the file.
    pub fn leave(self, journal: &Path, target: &str) -> io::Result<PathBuf> {
        let path = place(journal, target);
        let fresh = path.with_added_extension("new");
        fs::write(&fresh, self.word())?;
        fs::rename(&fresh, &path)?;
        Ok(path)
    }

    fn found(journal: &Path, target: &str) -> Option<Self> {
        let text = fs::read_to_string(place(journal, target)).ok()?;
        [Self::Reset, Self::Return, Self::Plug].into_iter().find(|order| order.word() == text.trim())
    }

    fn forget(journal: &Path, target: &str) {
        let _ = fs::remove_file(place(journal, target)); // usually there is none
    }
}

/// Where an order for `target` lies.
fn place(journal: &Path, target: &str) -> PathBuf {
    let name: String = target.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect();
    journal.with_added_extension(format!("{name}.order"))
}

/// How far things are after an evacuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Fenced, to be looked at.
    #[default]
    Fenced,
    /// Reset; its agent has not registered, or its sensors have not moved yet.
    Boots,
    /// Back behind its fence.
    Back,
    /// The spares have nothing more of it; its links are to come up.
    Free,
}

/// What is remembered of an evacuated target.
#[derive(Clone, Debug, Default)]
pub(crate) struct After {
    pub stage: Stage,
    /// Spares that may have its addresses; all of them if this is empty.
    pub holders: Vec<String>,
    /// When it was evacuated.
    pub done_ns: u64,
    /// When it was reset.
    pub reset_ns: u64,
    /// When its new life was seen.
    pub back_ns: u64,
    pub is_drained: bool,
    /// Values of its new life.
    pub seen: Vec<Option<u64>>,
    /// What was said last of what stands in the way.
    pub said: String,
}

impl<D: Door, C: Clock> Watch<D, C> {
    /// What comes after an evacuation begins.
    pub(crate) fn begin_after(&mut self, holders: Vec<String>) {
        Order::forget(&self.journal_path, &self.target.name); // it was meant for an earlier incident
        self.after = After { holders, done_ns: self.tools.clock.now_ns(), ..After::default() };
    }

    /// Between two looks at a target that is not being watched for hangs.
    pub(crate) fn looks_after_every(&self) -> Option<Duration> {
        let is_evacuated = matches!(self.standing, Standing::Evacuated { token: Some(_) });
        (is_evacuated && self.after.stage != Stage::Fenced).then_some(LOOK_EVERY)
    }

    /// Whether a new life of the target's machine is one that was ordered.
    pub(crate) fn has_reset_it(&self) -> bool {
        self.looks_after_every().is_some()
    }

    /// Does the next step, if one is due.
    pub(crate) fn look_after(&mut self) {
        let Standing::Evacuated { token: Some(token) } = &self.standing else { return };
        let (token, now_ns) = (token.clone(), self.tools.clock.now_ns());
        if now_ns < self.quiet_until_ns {
            return;
        }
        let outcome = match self.after.stage {
            Stage::Fenced => self.reset_if_due(&token),
            Stage::Boots => {
                self.see_it_back();
                Ok(())
            }
            Stage::Back => self.wind_up(&token),
            Stage::Free => self.plug(&token),
        };
        match outcome {
            Ok(()) => self.after.said.clear(),
            Err(why) => {
                self.quiet_until_ns = now_ns + nanos(ASK_EVERY);
                if self.after.said != why {
                    tracing::warn!(target_name = %self.target.name, %why, "delayed after the evacuation");
                    self.note(now_ns, Event::Delayed { why: why.clone() });
                    self.after.said = why;
                }
            }
        }
    }

    /// What an operator wants.
    fn wanted(&self) -> Option<Order> {
        Order::found(&self.journal_path, &self.target.name)
    }

    /// Why the target is to be reset now, if it is.
    fn reason_to_reset(&mut self) -> Result<Option<String>, String> {
        let now_ns = self.tools.clock.now_ns();
        if self.target.after.reset == Reset::Never {
            return Ok(None);
        }
        if let Some(order @ (Order::Reset | Order::Return)) = self.wanted() {
            return Ok(Some(format!("ordered by an operator: {}", order.word())));
        }
        Ok(match self.target.after.reset {
            Reset::After(time) if now_ns.saturating_sub(self.after.done_ns) >= nanos(time) => {
                Some(format!("{time:?} after the evacuation"))
            }
            Reset::Drained => {
                self.quiet_until_ns = now_ns + nanos(ASK_EVERY);
                let left = Arc::clone(&self.tools.standby).wind_up(&self.after.holders, None)?;
                self.note_drained(&left);
                self.after.is_drained.then(|| "its sessions have come to their end".to_owned())
            }
            _ => None,
        })
    }

    fn reset_if_due(&mut self, token: &FenceToken) -> Result<(), String> {
        let Some(why) = self.reason_to_reset()? else { return Ok(()) };
        match self.tools.door.fence_state(token).map_err(|failure| failure.to_string())? {
            FenceState::Stands | FenceState::Reset => {}
            FenceState::Ended => return self.end(FenceState::Ended),
        }
        let now_ns = self.tools.clock.now_ns();
        tracing::warn!(target_name = %self.target.name, %why, "the target is reset behind its fence");
        // On disk first: a successor must know that what boots there is ours.
        let event = Event::ResetOrdered { token: token.clone(), why };
        self.tools.journal.commit(&self.target.name, now_ns, event);
        self.tools.door.reset(token).map_err(|failure| failure.to_string())?;
        self.note(self.tools.clock.now_ns(), Event::Reset);
        if self.wanted() == Some(Order::Reset) {
            Order::forget(&self.journal_path, &self.target.name);
        }
        (self.after.stage, self.after.reset_ns) = (Stage::Boots, now_ns);
        self.after.seen.clear();
        self.forget_box();
        Ok(())
    }

    /// Every box of before is forgotten at the backdoor: one that can be read is the new life's.
    fn see_it_back(&mut self) {
        let values = self.newest_values().to_vec();
        let moved = self.after.seen.len() == values.len() && self.after.seen != values;
        if values.is_empty() || !moved {
            self.after.seen = values;
            return;
        }
        let identity = self.detector.identity().unwrap_or(0);
        tracing::warn!(target_name = %self.target.name, "the target is back behind its fence");
        self.note(self.tools.clock.now_ns(), Event::TargetBack { identity });
        (self.after.stage, self.after.back_ns) = (Stage::Back, self.tools.clock.now_ns());
    }

    /// Gives the address back, if it is to be.
    fn wind_up(&mut self, token: &FenceToken) -> Result<(), String> {
        match (self.target.after.address, self.wanted()) {
            (_, Some(Order::Plug)) => {
                tracing::warn!(target_name = %self.target.name, "its links come up by an operator's order");
                self.after.stage = Stage::Free;
                return self.plug(token);
            }
            (Address::Returns, _) | (_, Some(Order::Return)) => {}
            (Address::Stays, _) => return Ok(()),
        }
        let now_ns = self.tools.clock.now_ns();
        if now_ns.saturating_sub(self.after.back_ns) < nanos(self.target.after.settle) {
            return Ok(());
        }
        let waited = Duration::from_nanos(now_ns.saturating_sub(self.after.reset_ns));
        let left_time = self.target.after.drain.saturating_sub(waited);
        let left = Arc::clone(&self.tools.standby).wind_up(&self.after.holders, Some(left_time))?;
        self.note_drained(&left);
        if !left.is_given_back {
            return Ok(());
        }
        let aborted = left.aborted;
        tracing::warn!(target_name = %self.target.name, aborted, "the spare has given the addresses back");
        self.note(self.tools.clock.now_ns(), Event::AddressReturned { aborted });
        self.after.stage = Stage::Free;
        self.plug(token)
    }

    fn note_drained(&mut self, left: &Left) {
        if left.recovered == 0 && !std::mem::replace(&mut self.after.is_drained, true) {
            let others = left.others;
            tracing::info!(target_name = %self.target.name, others, "the carried-over sessions have ended");
            self.note(self.tools.clock.now_ns(), Event::Drained);
        }
    }

    fn plug(&mut self, token: &FenceToken) -> Result<(), String> {
        if let Err(failure) = self.tools.door.plug(token) {
            // Its answer may have been lost the last time.
            return match self.tools.door.fence_state(token) {
                Ok(FenceState::Ended) => self.end(FenceState::Ended),
                _ => Err(failure.to_string()),
            };
        }
        self.end(FenceState::Reset)
    }

    /// The fence has ended: by our order, or (`was` ended) by somebody else's.
    fn end(&mut self, was: FenceState) -> Result<(), String> {
        let now_ns = self.tools.clock.now_ns();
        let event = match was {
            FenceState::Ended => Event::Succeeded { stands: false },
            _ => Event::Released { then: Afterwards::Resume },
        };
        self.note(now_ns, event);
        tracing::warn!(target_name = %self.target.name, "the fence has ended; the target is watched again");
        Order::forget(&self.journal_path, &self.target.name);
        self.after = After::default();
        self.watch_again();
        Ok(())
    }

    /// What an earlier life of this monitor had got to.
    pub(crate) fn take_up_after(&mut self, after: After, state: FenceState) {
        self.after = After { stage: if state == FenceState::Reset { Stage::Boots } else { Stage::Fenced }, ..after };
    }
}
