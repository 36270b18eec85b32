//! What one peer is answered, and what it holds.

use std::sync::{Arc, Weak};

use control::VERSION;
use control::backdoor::{FURTHER_PAIRS, QueuePair, Reply, Request, Stats};
use reception::{Guest, Pairs, Speaker};

use super::Life;

/// For whoever asks of this machine what a hypervisor can do.
const BY_THE_LOCK_WORD: &str = "this target is a machine of its own, without a hypervisor that could stop it: it is \
                                fenced by the lock word in its region `lock`";

/// A peer, and its queue pairs.
pub(super) struct Peer {
    life: Weak<Life>,
    pairs: Pairs<Pair>,
}

/// Our end of a queue pair; taken away when it is dropped, if the adapter is still there.
struct Pair {
    life: Weak<Life>,
    number: u32,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(life) = self.life.upgrade() {
            life.server.remove(self.number);
        }
    }
}

impl Peer {
    pub fn new(life: &Weak<Life>) -> Self {
        Self { life: Weak::clone(life), pairs: Pairs::default() }
    }

    fn connect(&mut self, life: &Arc<Life>, theirs: &QueuePair, keep: &[u32]) -> Result<Reply, String> {
        self.pairs.make_room(theirs, keep)?;
        let ours = life.server.accept(&(*theirs).into()).map_err(|error| error.to_string())?;
        self.pairs.add(theirs, Pair { life: Arc::downgrade(life), number: ours.number });
        Ok(Reply::Connected { pair: ours.into(), window: None, further: FURTHER_PAIRS })
    }
}

impl Guest for Peer {
    fn welcome(&self) -> Reply {
        match self.life.upgrade() {
            Some(life) => Reply::Welcome {
                version: VERSION,
                target: life.target.clone(),
                incarnation: life.incarnation,
                fenced: false,
            },
            None => Reply::Refused { why: "the adapter is gone".to_owned() },
        }
    }

    fn is_stale(&self) -> bool {
        self.life.strong_count() == 0
    }

    fn answer(&mut self, speaker: &Speaker<'_>, request: Request) -> Result<Reply, String> {
        let life = self.life.upgrade().ok_or("the adapter is gone")?;
        match request {
            Request::Connect { pair, keep } => {
                let reply = self.connect(&life, &pair, &keep)?;
                tracing::debug!(from = %speaker.from, peer = speaker.name, theirs = pair.number, "connected");
                Ok(reply)
            }
            Request::Regions { token: None } => Ok(Reply::Regions { epoch: 0, regions: life.regions.clone() }),
            // What the adapter does by itself nobody counts; the adapter's own counters are the kernel's to show.
            Request::Stats => Ok(Reply::Stats(Stats { queue_pairs: life.server.len() as u64, ..Stats::default() })),
            Request::LockHolder => Ok(Reply::LockHolder { holder: None }),
            Request::Regions { token: Some(_) }
            | Request::Fence { .. }
            | Request::Lock { .. }
            | Request::Unlock { .. }
            | Request::Reset { .. }
            | Request::Standing { .. }
            | Request::Release { .. } => Err(BY_THE_LOCK_WORD.to_owned()),
            Request::Hello(_) => Err("hello was said".to_owned()),
        }
    }
}
