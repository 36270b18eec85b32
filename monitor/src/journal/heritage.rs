//! What a monitor inherits from the one that wrote its journal before: the claim under which targets are fenced, and
//! the incident that was not brought to its end.
//!
//! ```text
//!   killed …            journal ends with          the successor
//!   before the fence    opened (claim)             detects anew; its fence is the same claim's
//!   fence asked         opened (claim)             detects anew; the standing fence answers with its token
//!   fenced              fenced (token)             orders under the token
//!   order leaving       committed (token, spare)   orders that spare again, and no other
//!   order refused       passed                     orders under the token
//!   evacuated           evacuated                  leaves the target fenced until its policy says otherwise
//!   reset ordered       reset_ordered (token)      asks the backdoor, which resets once under one fence
//!   address returned    address_returned           asks the spares again, who have nothing more to give, and goes on
//!   fence ended         released                   watches
//! ```
//!
//! `committed` is written by the deciding thread itself and may stand before lines that happened earlier; everything
//! here therefore goes by the token and not by the order of lines alone. A line that does not parse is passed over:
//! it can be the torn end of an earlier life.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::time::Duration;

use control::backdoor::FenceToken;

use super::{Event, Line};
use crate::clock::wall_ns;

/// Clocks that went by more than this since a line was written, one against the other, belong to two boots of this
/// machine: its monotonic times mean nothing then.
const DRIFT_MAX: Duration = Duration::from_secs(2);

/// What is known of one target before the first look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heritage {
    /// Names the fences of this monitor.
    pub claim: Option<u64>,
    /// Identity of the box that was watched last.
    pub identity: Option<u64>,
    /// The fence that was made last, unless the target has had a new life since.
    pub incident: Option<Incident>,
}

/// A fence of an earlier life, or of another monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Its token.
    pub token: FenceToken,
    /// Name of the illness.
    pub illness: String,
    /// Which spare may have which part of the work.
    pub holders: BTreeMap<u32, String>,
    /// Whether the evacuation was reported finished.
    pub is_done: bool,
    /// Whether the sessions that were carried over have come to their end.
    pub is_drained: bool,
    /// Time since the evacuation was reported finished.
    pub done_age: Duration,
    /// Time since the target was last ordered to be reset.
    pub reset_age: Duration,
    /// The last sign of life on this machine's monotonic clock, if it still counts from the same zero.
    pub alive_after_ns: Option<u64>,
    /// Time since the fence was written down.
    pub age: Duration,
}

/// Reads what the journal in `file` leaves, for each target. A journal that does not exist leaves nothing.
///
/// # Errors
/// Those of reading the file.
pub fn inherit(file: &Path, now_ns: u64) -> std::io::Result<HashMap<String, Heritage>> {
    match File::open(file) {
        // A device or a pipe is a place to write to and has no past.
        Ok(open) if !open.metadata()?.is_file() => Ok(HashMap::new()),
        Ok(open) => from(BufReader::new(open), now_ns, wall_ns()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(HashMap::new()),
        Err(error) => Err(error),
    }
}

fn from(mut lines: impl BufRead, now_ns: u64, wall_ns: u64) -> std::io::Result<HashMap<String, Heritage>> {
    let mut estates: HashMap<String, Estate> = HashMap::new();
    let mut text = Vec::new();
    while lines.read_until(b'\n', &mut text)? > 0 {
        // Evidence is most of a journal and says nothing here.
        let is_sample = text.windows(16).any(|part| part == b"\"stage\":\"sample\"");
        if let Some(line) = (!is_sample).then(|| serde_json::from_slice::<Line>(&text).ok()).flatten() {
            estates.entry(line.target.clone()).or_default().take(line, now_ns, wall_ns);
        }
        text.clear();
    }
    Ok(estates.into_iter().map(|(target, estate)| (target, estate.heritage)).collect())
}

#[derive(Default)]
struct Estate {
    heritage: Heritage,
    illness: String,
    alive_after_ns: Option<u64>,
}

impl Estate {
    fn take(&mut self, line: Line, now_ns: u64, wall_now_ns: u64) {
        let age = Duration::from_nanos(wall_now_ns.saturating_sub(line.wall_ns));
        let mono_age = now_ns.checked_sub(line.mono_ns).map(Duration::from_nanos);
        let is_this_boot = mono_age.is_some_and(|mono| mono.abs_diff(age) <= DRIFT_MAX);
        match line.event {
            Event::Opened { claim, .. } => self.heritage.claim = claim.or(self.heritage.claim),
            Event::Watching { identity, .. } => self.heritage.identity = Some(identity),
            Event::Restarted { is, .. } => {
                self.heritage.identity = Some(is);
                self.heritage.incident = None;
            }
            Event::Succeeded { stands: false } | Event::Released { .. } => self.heritage.incident = None,
            Event::LastSign { known } => self.alive_after_ns = Some(line.mono_ns).filter(|_| known && is_this_boot),
            Event::Verdict { illness, .. } | Event::GivenUp { illness, .. } => self.illness = illness,
            Event::Fenced { token, .. } => drop(self.incident(token, age)),
            Event::Committed { token, part, spare } => drop(self.incident(token, age).holders.insert(part, spare)),
            Event::Passed { spare, .. } => {
                if let Some(incident) = &mut self.heritage.incident {
                    incident.holders.retain(|_, holder| *holder != spare);
                }
            }
            // A spare that passes when it is asked again may still have done the work: see what follows in the journal.
            Event::OutcomeUnknown { spare, .. } => {
                if let Some(incident) = self.heritage.incident.as_mut().filter(|incident| incident.holders.is_empty()) {
                    incident.holders.insert(0, spare);
                }
            }
            Event::Evacuated { .. } => {
                if let Some(incident) = &mut self.heritage.incident {
                    (incident.is_done, incident.done_age) = (true, age);
                }
            }
            Event::ResetOrdered { .. } => {
                if let Some(incident) = &mut self.heritage.incident {
                    incident.reset_age = age;
                }
            }
            Event::TargetBack { identity } => self.heritage.identity = Some(identity),
            Event::Drained => {
                if let Some(incident) = &mut self.heritage.incident {
                    incident.is_drained = true;
                }
            }
            _ => {}
        }
        if let Some(incident) = &mut self.heritage.incident {
            incident.illness.clone_from(&self.illness);
            incident.alive_after_ns = self.alive_after_ns;
        }
    }

    /// The incident of `token`, begun with this line if it is not known yet.
    fn incident(&mut self, token: FenceToken, age: Duration) -> &mut Incident {
        self.heritage.incident.take_if(|known| known.token != token);
        let (illness, alive_after_ns) = (self.illness.clone(), self.alive_after_ns);
        self.heritage.incident.get_or_insert(Incident {
            token,
            illness,
            holders: BTreeMap::new(),
            is_done: false,
            is_drained: false,
            done_age: Duration::ZERO,
            reset_age: Duration::ZERO,
            alive_after_ns,
            age,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnHang;

    const NOW: u64 = 90_000_000_000;

    fn token(epoch: u64) -> FenceToken {
        FenceToken { target: "web".into(), epoch, ram_key: 9, secret: 42 }
    }

    fn opened() -> Event {
        Event::Opened { monitor: "m".into(), period_ns: 1, on_hang: OnHang::Evacuate, claim: Some(77) }
    }

    fn committed(spare: &str) -> Event {
        Event::Committed { token: token(1), part: 0, spare: spare.into() }
    }

    fn fenced() -> Event {
        Event::Fenced { token: token(1), asked_ns: 1 }
    }

    /// What a journal of `events` leaves.
    fn left(events: &[Event]) -> Heritage {
        let line = |event: &Event| Line { wall_ns: 5 * NOW, mono_ns: NOW, target: "web".into(), event: event.clone() };
        let text: String = events.iter().map(|event| serde_json::to_string(&line(event)).unwrap() + "\n").collect();
        let mut left = from((text + "{\"wall_ns\":5,\"mo").as_bytes(), NOW + 7, 5 * NOW + 9).unwrap();
        left.remove("web").unwrap()
    }

    #[test]
    fn a_claim_is_inherited_without_an_incident() {
        assert_eq!(left(&[opened()]), Heritage { claim: Some(77), ..Heritage::default() });
    }

    #[test]
    fn a_fence_without_an_end_is_inherited_with_its_last_sign_of_life() {
        let incident = left(&[opened(), Event::LastSign { known: true }, fenced()]).incident.unwrap();
        assert_eq!((incident.token, incident.holders, incident.is_done), (token(1), BTreeMap::new(), false));
        assert_eq!(incident.alive_after_ns, Some(NOW));
        assert_eq!(left(&[Event::LastSign { known: false }, fenced()]).incident.unwrap().alive_after_ns, None);
    }

    #[test]
    fn the_spare_that_may_have_the_order_is_known_wherever_the_line_stands() {
        for events in [[fenced(), committed("a")], [committed("a"), fenced()]] {
            assert_eq!(left(&events).incident.unwrap().holders[&0], "a");
        }
        let passed = Event::Passed { spare: "a".into(), why: "no".into() };
        assert!(left(&[fenced(), committed("a"), passed.clone()]).incident.unwrap().holders.is_empty());
        let next = left(&[fenced(), committed("a"), committed("b"), passed]).incident.unwrap();
        assert_eq!(next.holders[&0], "b");
    }

    #[test]
    fn a_new_life_of_the_target_ends_the_incident() {
        assert_eq!(left(&[fenced(), Event::Restarted { was: 1, is: 2 }]).incident, None);
        assert_eq!(left(&[fenced(), Event::Succeeded { stands: false }]).incident, None);
    }

    #[test]
    fn monotonic_times_of_another_boot_are_not_believed() {
        let line = Line { wall_ns: 5, mono_ns: NOW, target: "web".into(), event: Event::LastSign { known: true } };
        let mut estate = Estate::default();
        estate.take(line, NOW + 7, 5 + 60_000_000_000);
        assert_eq!(estate.alive_after_ns, None);
    }
}
