//! Which sessions a run has. Everything follows from the seed.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

/// What a session does with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Downloads at the pace the server was asked to keep: the server is idle between two pieces.
    Paced,
    /// Downloads from a server that writes as fast as it can; the client reads at a pace of its own, so that queues are
    /// full and a crowd costs a bounded part of the machine.
    Fast,
    /// Uploads: the state that counts is what the server has already taken.
    Upload,
    /// Many small GETs on one connection: a stop falls between requests, and inside heads.
    Small,
    /// Sends one request, stays silent for the whole fault, and sends another.
    Idle,
    /// Asks for much and reads nothing until the recovery is over: the window is closed at the stop.
    Stalled,
    /// Says that nothing more will come, right after its request: the server's end is in CLOSE_WAIT.
    HalfClosed,
    /// A new connection for each small GET: a stop falls into accepting, closing, and what is between them.
    Fresh,
    /// As fresh, one more than the server takes at a time: the kernel has it connected, the application has not
    /// accepted it. See [`Signals::others`](super::Signals).
    Queued,
    /// Asks for 1 KiB and leaves it with the server until the recovery is over: a measured state, for figures.
    Unread1,
    /// The same with 5 KiB.
    Unread5,
    /// The same with 10 KiB.
    Unread10,
}

impl Kind {
    /// For labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paced => "download",
            Self::Fast => "fast",
            Self::Upload => "upload",
            Self::Small => "small",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::HalfClosed => "half-closed",
            Self::Fresh => "fresh",
            Self::Queued => "queued",
            Self::Unread1 => "unread 1 KiB",
            Self::Unread5 => "unread 5 KiB",
            Self::Unread10 => "unread 10 KiB",
        }
    }

    /// What it leaves with the server, in KiB, if that is measured.
    pub fn unread_kib(self) -> Option<u64> {
        match self {
            Self::Unread1 => Some(1),
            Self::Unread5 => Some(5),
            Self::Unread10 => Some(10),
            _ => None,
        }
    }

    /// Whether it does nothing while the fault is near: thousands of these can share a thread.
    pub fn is_silent(self) -> bool {
        self == Self::Idle || self.unread_kib().is_some()
    }

    /// Whether each exchange has a connection of its own.
    pub fn reconnects(self) -> bool {
        matches!(self, Self::HalfClosed | Self::Fresh | Self::Queued)
    }
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it does.
    pub kind: Kind,
    /// Seed of its content.
    pub seed: u64,
    /// Bytes of one download or upload.
    pub bytes: u64,
    /// Bytes per second: asked of the server, or kept by the client itself, see [`Kind`].
    pub rate: Option<u64>,
    /// Between two exchanges.
    pub rest: Duration,
}

/// What all sessions of one kind move in a second, and what one of them does at most: a crowd must leave the emulated
/// guest time to breathe, and the machine time for other runs.
const CROWD_BYTES_PER_SECOND: u64 = 6_000_000;
const SESSION_BYTES_PER_SECOND: u64 = 250_000;
const UPLOAD_BYTES_PER_SECOND: u64 = 1_000_000;
const FAST_BYTES_PER_SECOND: u64 = 4_000_000;

/// What all stalled sessions leave with the server. An emulated guest of 256 MiB has 18 MB for the queues of all its
/// sockets (`tcp_mem`); beyond that its kernel drops what comes, and the clients' timers back off before any fault.
const CROWD_QUEUED_BYTES: u64 = 5_000_000;

/// What a client takes whose receive buffer is the smallest there is, less the response's head.
const NARROW_BYTES: u64 = 1000;

/// Between two small exchanges of one session, and of all sessions of a kind.
const REST: Duration = Duration::from_millis(5);
const CROWD_REST: Duration = Duration::from_millis(8);

/// The sessions of a run: `kinds` in turn.
pub fn mix(kinds: &[Kind], sessions: usize, seed: u64) -> Vec<Plan> {
    let mut random = StdRng::seed_from_u64(seed ^ 0x636c_6965_6e74);
    let order: Vec<Kind> = kinds.iter().copied().cycle().take(sessions).collect();
    let alike = |kind: Kind| order.iter().filter(|other| **other == kind).count() as u64;
    order.iter().map(|&kind| plan(kind, alike(kind), &mut random)).collect()
}

/// A session of `kind`, one of `alike`.
fn plan(kind: Kind, alike: u64, random: &mut StdRng) -> Plan {
    let seed = random.random::<u32>().into();
    let share = |most: u64| Some((CROWD_BYTES_PER_SECOND / alike.max(1)).min(most));
    let (bytes, rate) = match kind {
        Kind::Paced | Kind::HalfClosed => (random.random_range(100_000..350_000), share(SESSION_BYTES_PER_SECOND)),
        Kind::Fast => (random.random_range(1_000_000..4_000_000), share(FAST_BYTES_PER_SECOND)),
        Kind::Upload => (random.random_range(100_000..500_000), share(UPLOAD_BYTES_PER_SECOND)),
        Kind::Stalled => {
            let most = (CROWD_QUEUED_BYTES / alike.max(1)).clamp(200_000, 3_000_000);
            (random.random_range(most / 2..most), None)
        }
        Kind::Small | Kind::Fresh | Kind::Queued => (random.random_range(200..3_000), None),
        Kind::Idle => (random.random_range(1_000..20_000), None),
        Kind::Unread1 | Kind::Unread5 | Kind::Unread10 => (kind.unread_kib().unwrap_or(0) * 1024 + NARROW_BYTES, None),
    };
    let rest = match kind {
        Kind::Small | Kind::Fresh | Kind::Queued => REST.max(CROWD_REST * u32::try_from(alike).unwrap_or(u32::MAX)),
        _ => Duration::ZERO,
    };
    Plan { kind, seed, bytes, rate, rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_one_kind_shares_what_one_may_move() {
        let crowd = |sessions| mix(&[Kind::Fast], sessions, 1).iter().filter_map(|plan| plan.rate).sum::<u64>();
        assert_eq!(crowd(1), FAST_BYTES_PER_SECOND);
        assert_eq!(crowd(100), CROWD_BYTES_PER_SECOND);
    }

    #[test]
    fn the_same_seed_gives_the_same_sessions() {
        let kinds = [Kind::Paced, Kind::Upload];
        assert_eq!(mix(&kinds, 5, 7), mix(&kinds, 5, 7));
        assert_ne!(mix(&kinds, 5, 7), mix(&kinds, 5, 8));
        assert_eq!(
            mix(&kinds, 3, 7).iter().map(|plan| plan.kind).collect::<Vec<_>>(),
            [Kind::Paced, Kind::Upload, Kind::Paced]
        );
    }
}
