//! A spare that dies half-way: killed at a stage of its work, while a second spare stands by.
//!
//! What happens to it is what a service manager does (`Restart=always`, `ExecStopPost=reinstate --clean`): its leavings
//! are removed, and it is started again. Nothing in the spare is made for being killed: its log, at the level `debug`,
//! says when a stage has ended, and whoever reads that kills it a moment later. The moment is drawn from the seed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::daemon::Daemon;
use crate::topology::Place;

/// How long the spare may take to get there: the fault is only on its way when this begins.
const STAGE_BOUND: Duration = Duration::from_secs(120);

/// Between two looks at the log.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

/// The longest a stage is given before the spare is killed. Stages take between a tenth and some ten milliseconds.
const INTO_STAGE: Duration = Duration::from_micros(300);

/// The name in logs and files of the spare that dies.
const NAME: &str = "reinstate";

/// Where it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It has the order and extracts.
    Ordered,
    /// It has the sessions and asks clients where they stand.
    Extracted,
    /// It knows where clients stand and rebuilds sockets.
    Probed,
    /// It has rebuilt the sockets and takes the addresses.
    Rebuilt,
    /// It has the addresses and hands sessions over.
    Address,
}

impl Stage {
    /// The line of its log after which it is killed.
    fn marker(self) -> String {
        match self {
            Self::Ordered => "an order has arrived".to_owned(),
            Self::Extracted => ended("extract"),
            Self::Probed => ended("probe"),
            Self::Rebuilt => ended("rebuild"),
            Self::Address => ended("address"),
        }
    }
}

fn ended(stage: &str) -> String {
    format!("a stage has ended stage=\"{stage}\"")
}

/// A spare that has died.
#[derive(Debug)]
pub(super) struct Died {
    /// Its next life.
    pub(super) next_life: Daemon,
    /// Whether it had begun to take the addresses: clients may have heard it, or its kernel, which knows no session
    /// once it is dead. They are reset then.
    pub(super) may_have_spoken: bool,
}

/// The end of one spare, on its way.
#[derive(Debug)]
pub(super) struct Dying(JoinHandle<Result<Died>>);

impl Dying {
    /// Lets `spare`, which runs in `place` with `arguments`, die at `stage`, be cleaned up after and be started again.
    pub(super) fn begin(
        spare: Daemon,
        place: Place,
        arguments: Vec<String>,
        folder: &Path,
        stage: Stage,
        seed: u64,
    ) -> Self {
        let folder = folder.to_owned();
        Self(thread::spawn(move || kill_at(spare, &place, &arguments, &folder, stage, seed)))
    }

    /// What became of it, once it has died.
    ///
    /// # Errors
    /// When it did not get to its stage, or did not come back.
    pub(super) fn over(self) -> Result<Died> {
        self.0.join().map_err(|_| anyhow!("who was to kill the spare panicked"))?
    }
}

fn kill_at(spare: Daemon, place: &Place, arguments: &[String], folder: &Path, stage: Stage, seed: u64) -> Result<Died> {
    let (begin, marker) = (Instant::now(), stage.marker());
    while !spare.log().contains(&marker) {
        ensure!(begin.elapsed() < STAGE_BOUND, "the spare did not come to {stage:?}:\n{}", spare.tail());
        thread::sleep(LOOK_AGAIN);
    }
    let into = StdRng::seed_from_u64(seed).random_range(Duration::ZERO..INTO_STAGE);
    thread::sleep(into);
    let log = folder.join(format!("{NAME}.log"));
    drop(spare); // SIGKILL
    let said = std::fs::read_to_string(&log).with_context(|| format!("{}", log.display()))?;
    let may_have_spoken = said.contains(&Stage::Rebuilt.marker());
    let clean: Vec<OsString> = arguments.iter().map(OsString::from).chain([OsString::from("--clean")]).collect();
    let mut cleaner = Daemon::start(place, NAME, clean, &folder_of(folder, "cleaning")?)?;
    while cleaner.ended()?.is_none() {
        thread::sleep(LOOK_AGAIN);
    }
    let next_life = Daemon::start(place, NAME, arguments, &folder_of(folder, "next-life")?)?;
    Ok(Died { next_life, may_have_spoken })
}

fn folder_of(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("{}", path.display()))?;
    Ok(path)
}
