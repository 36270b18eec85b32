//! A memory hog: a controller whose children take memory, touch it all the time, and are started anew when they die.

use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

const MIB: usize = 1 << 20;

/// Bytes of a page: one byte of each is touched.
const PAGE_BYTES: usize = 4096;

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

/// Takes memory a MiB at a time, and touches all of it again and again.
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
        if taken.len() >= mib {
            thread::sleep(LOOK_EVERY);
        }
    }
}
