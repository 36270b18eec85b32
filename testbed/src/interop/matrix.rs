//! What is combined: who asks whom, path MTUs, what the path does to packets, kinds of operations and their sizes.
//!
//! Not every size goes over every path. An adapter repeats a READ from the packet that it misses, and everything behind
//! that was sent for nothing; so a READ of N packets on a path that loses a share p of them costs about p N²/2 packets,
//! which is gigabytes for 8 MiB in packets of 256 bytes. Over bad paths messages have up to [`BAD_PACKETS_MAX`]
//! packets, and with the largest packets those of 8 MiB are there as well.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};

use super::plan::{Cell, Kind};
use crate::topology::Harm;

/// Who asks, and who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// rxe in a guest asks our responder on the host.
    RxeToSoft,
    /// Our requester on the host asks rxe in a guest.
    SoftToRxe,
    /// rxe in one guest asks rxe in another.
    RxeToRxe,
}

impl Direction {
    /// All.
    pub const ALL: [Self; 3] = [Self::RxeToSoft, Self::SoftToRxe, Self::RxeToRxe];
}

/// What the path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Nothing.
    Good,
    /// Loses one packet in a hundred.
    Loses1,
    /// Loses one in twenty.
    Loses5,
    /// Lets one in forty be overtaken, and one in forty comes twice.
    Shuffles,
}

impl Path {
    /// All.
    pub const ALL: [Self; 4] = [Self::Good, Self::Loses1, Self::Loses5, Self::Shuffles];

    /// What happens to packets.
    pub fn harm(self) -> Harm {
        match self {
            Self::Good => Harm::NONE,
            Self::Loses1 => Harm { lost: 100, ..Harm::NONE },
            Self::Loses5 => Harm { lost: 20, ..Harm::NONE },
            Self::Shuffles => Harm { late: 40, twice: 40, ..Harm::NONE },
        }
    }
}

/// Path MTUs, in bytes: all there are.
pub const MTUS: [u16; 5] = [256, 512, 1024, 2048, 4096];

/// The longest message of a bad path, in packets, see above.
const BAD_PACKETS_MAX: u32 = 64;

/// The longest message there is.
const LONGEST: u32 = 8 << 20;

/// Bytes and operations that a cell of small messages has, over a good path and a bad one.
const GOOD: (u32, u32) = (1 << 20, 100);
const BAD: (u32, u32) = (1 << 19, 40);

/// The cells of a path and an MTU, with seeds that follow from `seed`.
pub fn cells(path: Path, mtu: u16, seed: u64) -> Vec<Cell> {
    let mut random = StdRng::seed_from_u64(seed ^ u64::from(mtu) << 32 ^ (path as u64) << 48);
    let mut cells = Vec::new();
    for kind in [Kind::Read, Kind::Write, Kind::CmpSwap, Kind::FetchAdd, Kind::Mixed] {
        for size in sizes(kind, path, mtu.into()) {
            let (bytes, most) = if path == Path::Good { GOOD } else { BAD };
            let count = bytes.checked_div(size).map_or(most, |count| count.clamp(1, most));
            cells.push(Cell { kind, size, count, mtu, seed: random.random() });
        }
    }
    cells
}

fn sizes(kind: Kind, path: Path, mtu: u32) -> Vec<u32> {
    match (kind, path) {
        (Kind::CmpSwap | Kind::FetchAdd, _) => vec![8],
        (Kind::Mixed, _) => vec![4 * mtu],
        (Kind::Read | Kind::Write, Path::Good) => {
            vec![0, 1, 7, 64, mtu - 1, mtu, mtu + 1, 2 * mtu + 13, 1 << 16, 1 << 20, LONGEST]
        }
        (Kind::Read | Kind::Write, _) => {
            let mut sizes = vec![0, 1, mtu + 1, 16 * mtu, BAD_PACKETS_MAX * mtu];
            if mtu == u32::from(MTUS[4]) {
                sizes.push(LONGEST);
            }
            sizes
        }
    }
}

/// Part of the matrix, drawn by `seed`: cells that take moments, one or two of each kind, for each direction and path.
pub fn slice(direction: Direction, path: Path, seed: u64) -> Vec<Cell> {
    let mut random = StdRng::seed_from_u64(seed ^ (direction as u64) << 8 ^ path as u64);
    let mtu = MTUS[random.random_range(0..MTUS.len())];
    let mut all = cells(path, mtu, seed);
    let packets_max = if path == Path::Good { 256 } else { 16 };
    all.retain(|cell| cell.size <= packets_max * u32::from(mtu));
    all.shuffle(&mut random);
    let kinds = [Kind::Read, Kind::Write, Kind::CmpSwap, Kind::FetchAdd, Kind::Mixed];
    kinds.iter().filter_map(|kind| all.iter().find(|cell| cell.kind == *kind).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sizes_are_there_and_no_two_cells_are_alike() {
        for mtu in MTUS {
            for kind in [Kind::Read, Kind::Write] {
                let good = sizes(kind, Path::Good, mtu.into());
                assert!(good.contains(&0) && good.contains(&u32::from(mtu)) && good.contains(&LONGEST));
            }
            let mut seeds: Vec<u64> = Path::ALL.iter().flat_map(|path| cells(*path, mtu, 5)).map(|c| c.seed).collect();
            let all = seeds.len();
            seeds.sort_unstable();
            seeds.dedup();
            assert_eq!(seeds.len(), all);
        }
    }

    #[test]
    fn a_slice_has_each_kind_once_and_follows_from_its_seed() {
        let drawn = slice(Direction::SoftToRxe, Path::Loses5, 3);
        assert_eq!(drawn.len(), 5);
        assert_eq!(drawn, slice(Direction::SoftToRxe, Path::Loses5, 3));
        assert_ne!(drawn, slice(Direction::SoftToRxe, Path::Loses5, 4));
    }
}
