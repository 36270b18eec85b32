//! Stops a machine so that nothing of it acts any more, and lets it go again.
//!
//! ```text
//!   fence     query-status | stop, query-status, info network | set_link … off        three round trips
//!   release   (keys are dead already) [system_reset] | set_link … on | cont | announce-self   or quit
//!   reset     (keys are dead already) system_reset | cont                the links stay down until a release
//! ```
//!
//! Processors first, then links: a link that goes down under running processors could still make them act. If any of it
//! fails, the machine is put back as it was found, because nobody gets a token then.
//!
//! Deliberately without state: what a release needs is in [`Stopped`]. Every step may be repeated.

use control::backdoor::Afterwards;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError, human};

/// Asks whether the processors run.
const STATUS: &str = "query-status";

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
    /// The links that were taken down.
    links: Vec<String>,
}

impl Stopped {
    /// A machine whose process is gone: nothing runs and nothing can be undone.
    pub fn gone() -> Self {
        Self { was_running: false, links: Vec::new() }
    }
}

/// Stops the processors, makes sure of it, and takes every link down.
///
/// # Errors
/// See [`FenceError`].
pub fn stop(qmp: &mut Qmp) -> Result<Stopped, FenceError> {
    let was_running = is_running(qmp)?;
    match halt(qmp) {
        Ok(links) => Ok(Stopped { was_running, links }),
        Err(error) => {
            tracing::error!(%error, "the machine cannot be fenced: it is put back as it was");
            put_back(qmp, was_running);
            Err(error)
        }
    }
}

/// Processors, then links; returns the names of these.
fn halt(qmp: &mut Qmp) -> Result<Vec<String>, FenceError> {
    let replies = qmp.execute_all(&[("stop", json!({})), (STATUS, json!({})), human(NETWORK)])?;
    let [_, status, network] = &replies[..] else { unreachable!("one reply for each command") };
    if says_running(status)? {
        return Err(FenceError::StillRunning);
    }
    let network = network.as_str().ok_or_else(|| QmpError::Nonsense(format!("links expected, found {network}")))?;
    let links = link_names(network);
    set_links(qmp, &links, false)?;
    Ok(links)
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
    set_links(qmp, &stopped.links, true)?;
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
    halt(qmp).map(drop)
}

/// Undoes what [`halt`] may have done. QEMU obeys in order, so this also undoes a `stop` that it has yet to get to.
fn put_back(qmp: &mut Qmp, was_running: bool) {
    let outcome = qmp.human(NETWORK).and_then(|text| set_links(qmp, &link_names(&text), true));
    let resumed = if was_running { qmp.execute("cont", json!({})).map(drop) } else { Ok(()) };
    if let Err(error) = outcome.and(resumed) {
        tracing::error!(%error, "the machine could not be put back: it needs an operator");
    }
}

fn is_running(qmp: &mut Qmp) -> Result<bool, QmpError> {
    says_running(&qmp.execute(STATUS, json!({}))?)
}

fn says_running(status: &Value) -> Result<bool, QmpError> {
    let running = status.get("running").and_then(Value::as_bool);
    running.ok_or_else(|| QmpError::Nonsense(format!("a status without `running`: {status}")))
}

fn set_links(qmp: &mut Qmp, links: &[String], up: bool) -> Result<(), QmpError> {
    let commands: Vec<_> = links.iter().map(|name| ("set_link", json!({ "name": name, "up": up }))).collect();
    qmp.execute_all(&commands).map(drop)
}

/// Takes the names out of the text of `info network`, whose lines are ` \ NAME: index=0,type=…`.
fn link_names(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let (name, _) = line.split_once(": index=")?;
        Some(name.trim_start_matches([' ', '\\']).to_owned())
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
        assert_eq!(link_names(text), ["hub0port0", "nic0", "n0", "e1000.0"]);
        assert!(link_names("").is_empty());
    }
}
