//! Somebody who does no harm and looks as if: many processes, one of which holds memory. They must outlive every
//! repair.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};
use clap::Args;

const MIB: usize = 1 << 20;

/// What they are called: not as those that drown the machine.
const NAME: &str = "bystander";

/// How often each looks up, so that it is seen to live.
const WAKE_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Stay {
    /// Processes, the first included.
    #[arg(long, default_value_t = 1)]
    procs: u32,
    /// Memory that the first of them holds, in MiB.
    #[arg(long, default_value_t = 0)]
    mib: usize,
}

impl Stay {
    pub fn run(self) -> Result<()> {
        fs::write("/proc/self/comm", NAME).context("naming itself")?;
        let words = ["stay".to_owned()];
        let children: Option<Vec<_>> = (1..self.procs).map(|_| crate::spawn(&words)).collect();
        let _children = children.context("there is no room for all of them")?;
        let held = vec![1u8; self.mib * MIB];
        loop {
            thread::sleep(WAKE_EVERY);
            std::hint::black_box(&held);
        }
    }
}
