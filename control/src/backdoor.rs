//! What monitors and spares say to a `backdoor` daemon, over TCP. One request, one reply, in order.

use std::net::Ipv4Addr;

use remote_memory::{Epoch, Fenced, Region, RemoteKey, Rights};
use serde::{Deserialize, Serialize};

use crate::Hello;

/// The default TCP port of a backdoor's control plane.
pub const PORT: u16 = 4790;

/// Queue pairs of one conversation, beside the first: those that stand by, with one that is about to go.
pub const FURTHER_PAIRS: u16 = 3;

/// The longest lease of a lock: clients of a target that stands still for longer give up.
pub const LEASE_MS_MAX: u32 = 10_000;

/// A request to a backdoor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Opens the conversation; answered by [`Reply::Welcome`].
    Hello(Hello),
    /// Asks for a queue pair for the caller's end; answered by [`Reply::Connected`]. It lives as long as this control
    /// connection, or until the caller asks for another one on it and does not say that this one is kept.
    Connect {
        /// The caller's end.
        #[serde(flatten)]
        pair: QueuePair,
        /// Numbers of the caller's other ends that are still in use: connections that stand by. No more of them than
        /// [`Reply::Connected`] has said.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        keep: Vec<u32>,
    },
    /// Asks for the region table; answered by [`Reply::Regions`]. With a token of a standing fence, the table has the
    /// fenced memory with its writable key.
    Regions {
        /// Proof of a fence, if the caller acts under one.
        token: Option<FenceToken>,
    },
    /// Stops the target: vCPUs, then its links. Answered by [`Reply::Fenced`] when it is done and verified. A target
    /// already fenced answers with the standing fence only to the caller that made it, otherwise with a refusal.
    Fence {
        /// For the log of the backdoor.
        reason: String,
        /// Random number of the caller that names this fence: asked again with the same one, a standing fence answers
        /// with its token, so that a lost answer is not a lost token.
        #[serde(default)]
        claim: Option<u64>,
    },
    /// Stops the target's vCPUs for a while, to look at it undisturbed or to repair it; its links stay as they are, and
    /// it goes on by itself when the lease ends, so that a holder who dies does not leave it frozen. Answered by
    /// [`Reply::Locked`] when it stands still. Asked again under the same claim, the lease begins anew; a
    /// [`Request::Fence`] under that claim makes a fence of the lock.
    Lock {
        /// For the log of the backdoor.
        reason: String,
        /// Random number of the caller that names this lock.
        claim: u64,
        /// How long the target stands still at most, in milliseconds; see [`LEASE_MS_MAX`].
        lease_ms: u32,
    },
    /// Ends a lock before its lease does: its key is dead and the target runs. Answered by [`Reply::Unlocked`], refused
    /// if the lease has ended before.
    Unlock {
        /// The lock's token.
        token: LockToken,
    },
    /// Asks whether the target is locked, and by whom: what stands still by somebody's will has not hung. Answered by
    /// [`Reply::LockHolder`].
    LockHolder,
    /// Resets a fenced target behind its fence: every key is dead, it boots anew and runs, its links stay down.
    /// Answered by [`Reply::Reset`]. Idempotent: a target that was reset under this fence is not reset again. The fence
    /// stands until a [`Request::Release`], which takes the links up.
    Reset {
        /// The fence's token.
        token: FenceToken,
    },
    /// Asks how a fence stands; answered by [`Reply::Standing`].
    Standing {
        /// The fence's token.
        token: FenceToken,
    },
    /// Ends a fence; answered by [`Reply::Released`].
    Release {
        /// The fence's token.
        token: FenceToken,
        /// What becomes of the target.
        then: Afterwards,
    },
    /// Asks for the counters; answered by [`Reply::Stats`].
    Stats,
}

/// Who holds a target locked. The words are the holder's own, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Its name.
    pub peer: String,
    /// What it says it does.
    pub reason: String,
    /// How long its lease lasts, in milliseconds.
    pub left_ms: u64,
}

/// How a fence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceState {
    /// The target stands still, its links are down.
    Stands,
    /// The target was reset and runs behind the fence: its links are down.
    Reset,
    /// There is no such fence, or no longer.
    Ended,
}

/// What becomes of a target whose fence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Afterwards {
    /// It goes on where it was stopped, links up. Never after its sessions were taken over, unless it was reset since
    /// ([`Request::Reset`]).
    Resume,
    /// It is reset and boots anew.
    Reset,
    /// Its machine is powered off.
    PowerOff,
}

/// One end of a reliable connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePair {
    /// Queue pair number, 24 bits.
    pub number: u32,
    /// First packet sequence number this end sends, 24 bits.
    pub first_psn: u32,
    /// Address this end's packets come from.
    pub address: Ipv4Addr,
    /// UDP port this end listens on (4791 unless configured).
    pub port: u16,
    /// Largest payload per packet this end takes, in bytes: 256, 512, 1024, 2048 or 4096.
    pub path_mtu: u16,
    /// READs and atomics this end answers at the same time.
    pub reads_in_flight: u16,
}

/// A window of a queue pair: many small stretches of memory read or written as one. Its keys open nothing by
/// themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryWindow {
    /// Key of the list, into which the caller writes which stretches it means.
    pub list: u32,
    /// Key of their bytes, one stretch after the other from address 0 on.
    pub data: u32,
    /// Stretches that a list may have.
    pub pieces_max: u32,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The conversation is open.
    Welcome {
        /// The responder's version of the messages.
        version: u32,
        /// Name of the target behind this backdoor.
        target: String,
        /// Random number made when the backdoor started: a change means keys and queue pairs are gone.
        incarnation: u64,
        /// Whether the target is fenced now.
        fenced: bool,
    },
    /// The responder's end of the queue pair; its `path_mtu` is the smaller of both.
    Connected {
        /// The backdoor's end.
        pair: QueuePair,
        /// The pair's window, which lives as long as it does; absent where there is none.
        #[serde(default)]
        window: Option<MemoryWindow>,
        /// Queue pairs that this conversation may have beside this one; none where nothing is said of it.
        #[serde(default)]
        further: u16,
    },
    /// The regions this caller may reach.
    Regions {
        /// Current epoch.
        epoch: u64,
        /// The table; names are unique.
        regions: Vec<RegionEntry>,
    },
    /// The target is stopped and its links are down.
    Fenced {
        /// Hand this to the spare.
        token: FenceToken,
        /// How long the hypervisor took, in microseconds.
        took_us: u64,
    },
    /// The target stands still until its lease ends.
    Locked {
        /// The right to write to it until then.
        token: LockToken,
        /// How long the hypervisor took, in microseconds.
        took_us: u64,
    },
    /// The lock has ended, the target runs as it did before.
    Unlocked,
    /// Who holds the target still; `None` if it is not locked.
    LockHolder {
        /// See [`LockHolder`].
        holder: Option<LockHolder>,
    },
    /// The target has been reset and boots behind its fence.
    Reset,
    /// How the fence stands.
    Standing {
        /// See [`FenceState`].
        state: FenceState,
    },
    /// The fence has ended.
    Released,
    /// Counters since start.
    Stats(Stats),
    /// Not done, and why, in a sentence for people.
    Refused {
        /// The sentence.
        why: String,
    },
}

/// A region as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionEntry {
    /// `ram`, or the name under which the agent registered it.
    pub name: String,
    /// The key.
    pub key: u32,
    /// Address of its first byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// Bits of [`Rights`].
    pub rights: u8,
    /// The stretches of it that exist, ascending: RAM has holes where devices live. Empty means all of it.
    #[serde(default)]
    pub extents: Vec<Extent>,
}

/// A stretch of a region that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Address of its first byte, counted as the region's addresses are.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl RegionEntry {
    /// The stretches of it that exist, ascending.
    pub fn stretches(&self) -> Vec<Extent> {
        match self.extents.as_slice() {
            [] => vec![Extent { start: self.base, len: self.len }],
            some => some.to_vec(),
        }
    }
}

impl From<&Region> for RegionEntry {
    fn from(region: &Region) -> Self {
        Self {
            name: region.name.clone(),
            key: region.key.raw(),
            base: region.base,
            len: region.len,
            rights: region.rights.bits(),
            extents: Vec::new(),
        }
    }
}

impl From<RegionEntry> for Region {
    fn from(entry: RegionEntry) -> Self {
        Self {
            name: entry.name,
            key: RemoteKey::new(entry.key),
            base: entry.base,
            len: entry.len,
            rights: Rights::from_bits(entry.rights),
        }
    }
}

/// Proof of a standing fence, to be handed on. Knowing the secret is what counts; the rest says which fence.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceToken {
    /// The fenced target.
    pub target: String,
    /// The epoch the fence began.
    pub epoch: u64,
    /// Key of the whole guest-physical memory, with all rights, dead when the fence ends.
    pub ram_key: u32,
    /// Random number only the backdoor and the token's holders know.
    pub secret: u64,
}

impl FenceToken {
    /// The value that lets its holder write.
    pub fn fenced(&self) -> Fenced {
        Fenced::attested(Epoch::new(self.epoch), RemoteKey::new(self.ram_key))
    }
}

impl std::fmt::Debug for FenceToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FenceToken({} epoch {})", self.target, self.epoch)
    }
}

/// Proof of a lock, for its holder alone. It permits writing as a fence does, and ends by itself. A type of its own, so
/// that no spare takes it for a fence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LockToken(FenceToken);

impl LockToken {
    /// The lock whose epoch, key and secret are those of `token`.
    pub fn new(token: FenceToken) -> Self {
        Self(token)
    }

    /// Its epoch, key and secret.
    pub fn inner(&self) -> &FenceToken {
        &self.0
    }

    /// The value that lets its holder write, while the lease lasts: after it the backdoor refuses.
    pub fn fenced(&self) -> Fenced {
        self.0.fenced()
    }
}

/// Counters of a backdoor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// READs answered.
    pub reads: u64,
    /// Bytes those READs returned.
    pub read_bytes: u64,
    /// WRITEs carried out.
    pub writes: u64,
    /// Atomics carried out.
    pub atomics: u64,
    /// Requests refused by the guard.
    pub refused: u64,
    /// Packets dropped: bad ICRC, unknown queue pair, malformed.
    pub dropped: u64,
    /// Queue pairs alive.
    pub queue_pairs: u64,
    /// Fences so far.
    pub fences: u64,
    /// Resets of the target's machine that its hypervisor has told of: what was in its memory before one is of an
    /// earlier life, also where it is still to be read.
    #[serde(default)]
    pub resets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: QueuePair = QueuePair {
        number: 17,
        first_psn: 5,
        address: Ipv4Addr::new(10, 0, 0, 1),
        port: 4791,
        path_mtu: 1024,
        reads_in_flight: 16,
    };

    #[test]
    fn who_keeps_no_further_queue_pairs_says_and_hears_nothing_of_them() {
        let text = r#"{"ask":"connect","number":17,"first_psn":5,"address":"10.0.0.1","port":4791,"path_mtu":1024,
                       "reads_in_flight":16}"#;
        let connect = Request::Connect { pair: PAIR, keep: vec![] };
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), connect);
        assert!(!serde_json::to_string(&connect).unwrap().contains("keep"));
        let pair = serde_json::to_string(&PAIR).unwrap();
        let reply: Reply = serde_json::from_str(&format!(r#"{{"reply":"connected","pair":{pair}}}"#)).unwrap();
        assert_eq!(reply, Reply::Connected { pair: PAIR, window: None, further: 0 });
    }

    #[test]
    fn queue_pairs_that_stay_arrive_as_sent() {
        let connect = Request::Connect { pair: PAIR, keep: vec![18, 19] };
        let text = serde_json::to_string(&connect).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), connect, "{text}");
    }
}
