//! Which sessions a run has. Everything follows from the seed.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

/// What a session does with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Downloads at the pace the server was asked to keep: the server is idle between two pieces.
    Paced,
    /// Downloads as fast as it goes: queues are full, and a stop falls inside `send` with some luck.
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
        }
    }

    /// Whether each exchange has a connection of its own.
    pub fn reconnects(self) -> bool {
        matches!(self, Self::HalfClosed | Self::Fresh)
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
    /// Pace asked of the server, in bytes per second.
    pub rate: Option<u64>,
}

/// Pace of one paced session: twenty of them are what an emulated guest serves without strain.
const PACED_BYTES_PER_SECOND: u64 = 250_000;

/// The sessions of a run: `kinds` in turn.
pub fn mix(kinds: &[Kind], sessions: usize, seed: u64) -> Vec<Plan> {
    let mut random = StdRng::seed_from_u64(seed ^ 0x636c_6965_6e74);
    kinds.iter().cycle().take(sessions).map(|&kind| plan(kind, &mut random)).collect()
}

fn plan(kind: Kind, random: &mut StdRng) -> Plan {
    let seed = random.random::<u32>().into();
    let (bytes, rate) = match kind {
        Kind::Paced => (random.random_range(400_000..900_000), Some(PACED_BYTES_PER_SECOND)),
        Kind::Fast => (random.random_range(4_000_000..9_000_000), None),
        Kind::Upload => (random.random_range(300_000..800_000), None),
        Kind::Stalled => (random.random_range(1_000_000..3_000_000), None),
        Kind::HalfClosed => (random.random_range(400_000..900_000), Some(PACED_BYTES_PER_SECOND)),
        Kind::Small | Kind::Fresh => (random.random_range(200..3_000), None),
        Kind::Idle => (random.random_range(1_000..20_000), None),
    };
    Plan { kind, seed, bytes, rate }
}

#[cfg(test)]
mod tests {
    use super::*;

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
