//! What one peer is answered, and what it holds.

use control::VERSION;
use control::backdoor::{FURTHER_PAIRS, MemoryWindow, QueuePair, Reply, Request};
use reception::{Guest, Pairs, Speaker};
use remote_memory::Window;

use super::Plane;

/// What a peer holds.
pub(super) struct Peer {
    plane: Plane,
    /// The incarnation it was told.
    incarnation: u64,
    pairs: Pairs<Pair>,
}

/// Our end of a queue pair, by number, and the pair's window.
struct Pair {
    plane: Plane,
    number: u32,
    window: Window,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.plane.pairs.remove(self.number);
        self.plane.target.memory().close_window(&self.window);
    }
}

impl Guest for Peer {
    fn welcome(&self) -> Reply {
        Reply::Welcome {
            version: VERSION,
            target: self.plane.target.name().to_owned(),
            incarnation: self.incarnation,
            fenced: self.plane.target.is_fenced(),
        }
    }

    /// Whether the keys this peer knows are of another machine.
    fn is_stale(&self) -> bool {
        self.incarnation != self.plane.target.incarnation()
    }

    fn answer(&mut self, speaker: &Speaker<'_>, request: Request) -> Result<Reply, String> {
        match request {
            Request::Connect { pair, keep } => self.connect(&pair, &keep),
            request => self.command(speaker, request),
        }
    }
}

impl Peer {
    pub fn new(plane: &Plane) -> Self {
        Self { plane: plane.clone(), incarnation: plane.target.incarnation(), pairs: Pairs::default() }
    }

    /// What concerns the target.
    fn command(&self, speaker: &Speaker<'_>, request: Request) -> Result<Reply, String> {
        let target = &self.plane.target;
        let said = |error: crate::target::TargetError| error.to_string();
        match request {
            Request::Regions { token } => {
                let (epoch, regions) = target.regions(token.as_ref()).map_err(said)?;
                Ok(Reply::Regions { epoch, regions })
            }
            Request::Fence { reason, claim } => {
                let (token, took) = target.fence(claim).map_err(said)?;
                let reason: String = reason.chars().take(200).collect();
                let epoch = token.epoch;
                tracing::warn!(from = %speaker.from, peer = speaker.name, reason, ?took, epoch, "target fenced");
                Ok(Reply::Fenced { token, took_us: took.as_micros() as u64 })
            }
            Request::Lock { reason, claim, lease_ms } => {
                let (token, took) = target.lock(claim, lease_ms).map_err(said)?;
                let reason: String = reason.chars().take(200).collect();
                self.plane.note_lock(speaker.name, &reason);
                tracing::warn!(from = %speaker.from, peer = speaker.name, reason, ?took, lease_ms, "target locked");
                Ok(Reply::Locked { token, took_us: took.as_micros() as u64 })
            }
            Request::Unlock { token } => {
                target.unlock(&token).map_err(said)?;
                tracing::info!(from = %speaker.from, peer = speaker.name, "target unlocked");
                Ok(Reply::Unlocked)
            }
            Request::LockHolder => Ok(Reply::LockHolder { holder: self.plane.lock_holder() }),
            Request::Release { token, then } => {
                target.release(&token, then).map_err(said)?;
                let epoch = token.epoch;
                tracing::warn!(from = %speaker.from, peer = speaker.name, ?then, epoch, "target released");
                Ok(Reply::Released)
            }
            Request::Reset { token } => {
                target.reset(&token).map_err(said)?;
                let epoch = token.epoch;
                tracing::warn!(from = %speaker.from, peer = speaker.name, epoch, "reset behind its fence");
                Ok(Reply::Reset)
            }
            Request::Standing { token } => Ok(Reply::Standing { state: target.fence_state(&token) }),
            Request::Stats => Ok(Reply::Stats(self.plane.stats())),
            Request::Hello(_) | Request::Connect { .. } => unreachable!("answered by the caller"),
        }
    }

    fn connect(&mut self, theirs: &QueuePair, keep: &[u32]) -> Result<Reply, String> {
        self.pairs.make_room(theirs, keep)?;
        let ours = self.plane.pairs.add((*theirs).into()).map_err(|error| error.to_string())?;
        let window = self.plane.target.memory().open_window(&mut rand::rng());
        self.pairs.add(theirs, Pair { plane: self.plane.clone(), number: ours.number, window });
        let Window { list, data, pieces_max } = window;
        let window = Some(MemoryWindow { list: list.raw(), data: data.raw(), pieces_max });
        Ok(Reply::Connected { pair: ours.into(), window, further: FURTHER_PAIRS })
    }
}
