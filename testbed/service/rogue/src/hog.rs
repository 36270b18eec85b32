//! A memory hog: a controller whose children take memory, touch it again and again, and are started anew when they die.
//!
//! Between two rounds they rest: what suffers from them suffers for want of memory and not of a processor.

use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

const MIB: usize = 1 << 20;

/// Bytes of a page: one byte of each is touched.
const PAGE_BYTES: usize = 4096;

/// Rest after each round.
const REST: Duration = Duration::from_millis(10);

/// How often children are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct Hog {
    /// Children.
    #[arg(long, default_value_t = 4)]
    procs: u32,
    /// Memory that each takes, in MiB.
    #[arg(long, default_value_t = 16)]
    mib: usize,
    /// Children that die are started anew.
    #[arg(long)]
    respawn: bool,
    /// Be one of the children.
    #[arg(long, hide = true)]
    child: bool,
}

impl Hog {
    pub fn run(self) -> Result<()> {
        if self.child {
            take(self.mib)
        }
        let words = ["hog", "--child", "--mib", &self.mib.to_string()].map(str::to_owned);
        let mut children: Vec<Option<Child>> = (0..self.procs).map(|_| crate::spawn(&words)).collect();
        loop {
            thread::sleep(LOOK_EVERY);
            for child in &mut children {
                // Also asked where nobody is made anew: who asks takes the ended one away.
                if !crate::lives(child) && self.respawn {
                    *child = crate::spawn(&words);
                }
            }
        }
    }
}

/// Takes memory a MiB at a time, and touches all of it in each round.
fn take(mib: usize) -> ! {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        if taken.len() < mib {
            taken.push(vec![1; MIB]);
        }
        for piece in &mut taken {
            for byte in piece.iter_mut().step_by(PAGE_BYTES) {
                *byte = byte.wrapping_add(1);
            }
        }
        thread::sleep(REST);
    }
}
