//! Stops a machine so that nothing of it acts any more, and lets it go again.
//!
//! ```text
//!   pause     stop, query-status                                       for a lock: one round trip, links as they are
//!   resume    cont
//!   fence     stop, query-status, set_link … off for the cards        one round trip
//!   close     info network | set_link … off for everything there is   soon after, and before a reset
//!   release   (keys are dead already) [system_reset] | info network | set_link … on | cont | announce-self   or quit
//!   reset     (keys are dead already) close | system_reset | cont     the links stay down until a release
//! ```
//!
//! Processors first, then links: a link that goes down under running processors could still make them act. A card whose
//! machine stands still sends nothing; its link is down so that it stays like that should somebody let the machine run.
//! If any of it fails, the machine is put back as it was found, because nobody gets a token then.
//!
//! Every command takes QEMU half a millisecond, and clients wait meanwhile: so whether the machine ran is told by the
//! event that a stop raises, and links that appeared after the cards were listed are closed when the token is out.
//!
//! Deliberately without state: what a release needs is in [`Stopped`]. Every step may be repeated.

use control::backdoor::Afterwards;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError};

/// Asks whether the processors run.
const STATUS: &str = "query-status";

/// What QEMU says when the processors stop that ran before.
const STOPPED: &str = "STOP";

/// What QEMU says when the processors run again.
const RESUMED: &str = "RESUME";

/// Asks for the names of both ends of every link.
const NETWORK: &str = "info network";

/// Why a machine was not fenced. It then runs on as before, unless QEMU has stopped answering.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// QEMU did not obey.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU obeyed `stop`, and says that the machine runs.
    #[error("QEMU says that the machine still runs after `stop`")]
    StillRunning,
}

/// What was done to a machine, and has to be undone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stopped {
    /// Whether its processors ran before.
    was_running: bool,
}

impl Stopped {
    /// A machine whose process is gone: nothing runs and nothing can be undone.
    pub fn gone() -> Self {
        Self { was_running: false }
    }
}

/// The names of a machine's network cards, to be known before there is a hurry.
///
/// # Errors
/// [`QmpError`].
pub fn cards(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    qmp.human(NETWORK).map(|text| names(&text, |about| about.contains("type=nic")))
}

/// Stops the processors, makes sure of it, and takes the links of `cards` down; see [`close`] for the others.
///
/// # Errors
/// See [`FenceError`].
pub fn stop(qmp: &mut Qmp, cards: &[String]) -> Result<Stopped, FenceError> {
    let stops = qmp.waiting(STOPPED);
    let outcome = halt(qmp, cards);
    let was_running = qmp.waiting(STOPPED) > stops;
    if let Err(error) = outcome {
        tracing::error!(%error, "the machine cannot be fenced: it is put back as it was");
        // QEMU obeys in order: what has not been answered may still be carried out.
        put_back(qmp, was_running || matches!(error, FenceError::Qmp(QmpError::Silent { .. })));
        return Err(error);
    }
    Ok(Stopped { was_running })
}

/// Stops the processors for a lock and makes sure of it. A machine that stands still sends nothing.
///
/// # Errors
/// See [`FenceError`].
pub fn pause(qmp: &mut Qmp) -> Result<Stopped, FenceError> {
    let stops = qmp.waiting(STOPPED);
    let outcome = halt(qmp, &[]);
    let was_running = qmp.waiting(STOPPED) > stops;
    if let Err(error) = outcome {
        if was_running || matches!(error, FenceError::Qmp(QmpError::Silent { .. })) {
            resume(qmp, &Stopped { was_running: true })?;
        }
        return Err(error);
    }
    Ok(Stopped { was_running })
}

/// Lets a paused machine go on, if it ran before.
///
/// # Errors
/// [`QmpError`]; may be repeated.
pub fn resume(qmp: &mut Qmp, stopped: &Stopped) -> Result<(), QmpError> {
    if stopped.was_running {
        qmp.execute("cont", json!({}))?;
        // It is told before the answer; whoever holds the machine next must not take it for somebody else's doing.
        qmp.forget(RESUMED);
    }
    Ok(())
}

fn halt(qmp: &mut Qmp, cards: &[String]) -> Result<(), FenceError> {
    let links = cards.iter().map(|name| set_link(name, false));
    let commands: Vec<_> = [("stop", json!({})), (STATUS, json!({}))].into_iter().chain(links).collect();
    let mut replies = qmp.replies_to(&commands)?.into_iter();
    let mut next = || replies.next().expect("one reply for each command");
    next()?;
    if says_running(&next()?)? {
        return Err(FenceError::StillRunning);
    }
    for card in cards {
        match next() {
            // A card that was unplugged since sends nothing.
            Err(error @ QmpError::Refused { .. }) => tracing::debug!(card, %error, "no link to take down"),
            other => drop(other?),
        }
    }
    Ok(())
}

/// Takes every link of a stopped machine down, at both ends, also those that nobody knew of.
///
/// # Errors
/// [`QmpError`]; may be repeated.
pub fn close(qmp: &mut Qmp) -> Result<(), QmpError> {
    set_all_links(qmp, false)
}

/// Lets a stopped machine go. Its keys must be dead before.
///
/// # Errors
/// [`QmpError`]; may be repeated.
pub fn release(qmp: &mut Qmp, stopped: &Stopped, then: Afterwards) -> Result<(), QmpError> {
    if then == Afterwards::PowerOff {
        return match qmp.execute("quit", json!({})) {
            // QEMU may be gone before its answer is.
            Err(QmpError::Ended(_)) => Ok(()),
            outcome => outcome.map(drop),
        };
    }
    if then == Afterwards::Reset {
        qmp.execute("system_reset", json!({}))?;
    }
    set_all_links(qmp, true)?;
    if stopped.was_running || then == Afterwards::Reset {
        qmp.execute("cont", json!({}))?;
    }
    announce(qmp);
    Ok(())
}

/// Resets a stopped machine and lets it run, links down: the reset empties the queues of its cards, so that nothing of
/// its earlier life leaves when they come up again.
///
/// # Errors
/// [`QmpError`]; may be repeated.
pub fn reset(qmp: &mut Qmp) -> Result<(), QmpError> {
    close(qmp)?;
    qmp.execute("system_reset", json!({}))?;
    qmp.execute("cont", json!({})).map(drop)
}

/// Lets a machine run that was found under the fence of a reset one, as QEMU does not know of it: links stay down.
///
/// # Errors
/// [`QmpError`].
pub fn run_on(qmp: &mut Qmp) -> Result<(), QmpError> {
    qmp.execute("cont", json!({})).map(drop)
}

/// Has the machine tell its neighbours where its addresses are, which somebody else had meanwhile: as after a live
/// migration, by the guest itself where its card can ask it to.
fn announce(qmp: &mut Qmp) {
    let rounds = json!({ "initial": 20, "max": 500, "rounds": 6, "step": 100 });
    if let Err(error) = qmp.execute("announce-self", rounds) {
        tracing::warn!(%error, "the machine is not announced; its neighbours learn where it is by asking");
    }
}

/// Stops the processors again, and takes the links down: somebody else let a fenced machine run, and may have given it
/// its links back.
///
/// # Errors
/// See [`FenceError`].
pub fn stop_again(qmp: &mut Qmp) -> Result<(), FenceError> {
    halt(qmp, &[])?;
    Ok(close(qmp)?)
}

/// Undoes what [`halt`] may have done. QEMU obeys in order, so this also undoes a `stop` that it has yet to get to.
fn put_back(qmp: &mut Qmp, was_running: bool) {
    let outcome = set_all_links(qmp, true);
    let resumed = if was_running { qmp.execute("cont", json!({})).map(drop) } else { Ok(()) };
    if let Err(error) = outcome.and(resumed) {
        tracing::error!(%error, "the machine could not be put back: it needs an operator");
    }
}

fn says_running(status: &Value) -> Result<bool, QmpError> {
    let running = status.get("running").and_then(Value::as_bool);
    running.ok_or_else(|| QmpError::Nonsense(format!("a status without `running`: {status}")))
}

fn set_all_links(qmp: &mut Qmp, up: bool) -> Result<(), QmpError> {
    let links = names(&qmp.human(NETWORK)?, |_| true);
    let commands: Vec<_> = links.iter().map(|name| set_link(name, up)).collect();
    qmp.execute_all(&commands).map(drop)
}

fn set_link(name: &str, up: bool) -> (&'static str, Value) {
    ("set_link", json!({ "name": name, "up": up }))
}

/// Takes names out of the text of `info network`, whose lines are ` \ NAME: index=0,type=…`, by what follows them.
fn names(text: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let name = |line: &str| {
        let (name, about) = line.split_once(": index=")?;
        wanted(about).then(|| name.trim_start_matches([' ', '\\']).to_owned())
    };
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_every_link_is_named() {
        let text = "hub 0\r\n \\ hub0port0: index=0,type=hubport,\r\n\
                    nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n \
                    \\ n0: index=0,type=tap,ifname=tap0\r\n\
                    e1000.0: index=0,type=nic,model=e1000\r\n";
        assert_eq!(names(text, |_| true), ["hub0port0", "nic0", "n0", "e1000.0"]);
        assert_eq!(names(text, |about| about.contains("type=nic")), ["nic0", "e1000.0"]);
        assert!(names("", |_| true).is_empty());
    }
}
