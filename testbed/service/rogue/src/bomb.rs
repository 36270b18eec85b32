//! A fork bomb: each process makes two, as long as the number that was ordered lasts, and makes those anew that die.

use std::fs::File;
use std::io::Write;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

/// How often a process looks whether its children live.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Written at a time by one that keeps the disk busy.
const WRITTEN_BYTES: usize = 64 * 1024;

/// What each process does besides.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Computes.
    Cpu,
    /// Writes files.
    Io,
    /// Sleeps.
    Sleepers,
}

#[derive(Args)]
pub struct Bomb {
    /// What each process does besides.
    #[arg(long, value_enum, default_value = "cpu")]
    variant: Variant,
    /// Processes in all.
    #[arg(long, default_value_t = 100)]
    procs: u32,
}

impl Bomb {
    pub fn run(self) -> Result<()> {
        let left = self.procs.saturating_sub(1);
        let halves = [left / 2, left - left / 2];
        let mut children: Vec<(u32, Option<Child>)> =
            halves.into_iter().filter(|procs| *procs > 0).map(|procs| (procs, None)).collect();
        loop {
            for (procs, child) in &mut children {
                if !crate::lives(child) {
                    *child = crate::spawn(&self.words(*procs));
                }
            }
            self.variant.exert();
        }
    }

    fn words(&self, procs: u32) -> Vec<String> {
        let variant = self.variant.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        ["bomb", "--variant", &variant, "--procs", &procs.to_string()].map(str::to_owned).to_vec()
    }
}

impl Variant {
    /// Does what it does for a moment.
    fn exert(self) {
        let begin = Instant::now();
        match self {
            Self::Sleepers => thread::sleep(LOOK_EVERY),
            Self::Cpu => while begin.elapsed() < LOOK_EVERY {},
            Self::Io => {
                let path = format!("/tmp/rogue-{}", std::process::id());
                while begin.elapsed() < LOOK_EVERY {
                    let written = File::create(&path).and_then(|mut file| {
                        file.write_all(&[7; WRITTEN_BYTES])?;
                        file.sync_all()
                    });
                    drop(written); // a full disk is what it is for
                }
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}
