//! Stops that are aimed: the guest's processor is stopped inside a chosen path, a seeded number of instructions behind
//! its beginning, and stays stopped.
//!
//! A stop from outside falls between two requests most of the time. What matters most is inside: half an export, half a
//! `send`, half an acknowledgement taken in. `testbed torn` looks at the memory there, instruction by instruction; this
//! lets the whole recovery happen from there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use crate::{
    client::Kind,
    vm::{Gdb, Vm},
};

/// Where a guest is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Aim {
    /// The application stores into a Continuation Box.
    Export,
    /// The application's `send` fills the queue.
    Send,
    /// Segments leave the queue.
    Transmit,
    /// The application's `recv` empties the queue.
    Recv,
    /// A segment is put into the queue.
    Receive,
    /// An acknowledgement frees what it covers.
    Acknowledge,
    /// A connection is handed to the application.
    Accept,
    /// A connection comes about.
    Handshake,
    /// The application closes.
    Close,
}

/// Where a path begins.
enum Beginning {
    Function(&'static str),
    /// The mapping of the boxes: address and length.
    Boxes,
}

/// Behind the beginning, at most so many instructions: through most of each path.
const INSTRUCTIONS_MAX: usize = 400;

/// A guest that is stepped takes no interrupts: it hangs already. Before the monitor says so it must be left alone, or
/// a step would start what the fence has stopped.
const STEPS_WITHIN: Duration = Duration::from_millis(80);

/// For the guest to come by. One that does not is stopped where it is.
const COMES_BY_WITHIN: Duration = Duration::from_secs(2);

/// What is known of the guest before it is stopped.
#[derive(Debug)]
pub struct Aimed {
    aim: Aim,
    address: u64,
    /// Bytes watched; 0 for an instruction.
    len: u64,
    instructions: usize,
}

impl Aim {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Send => "send",
            Self::Transmit => "transmit",
            Self::Recv => "recv",
            Self::Receive => "receive",
            Self::Acknowledge => "acknowledge",
            Self::Accept => "accept",
            Self::Handshake => "handshake",
            Self::Close => "close",
        }
    }

    /// What a lone client does so that the guest comes by.
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Export => &[Kind::Paced, Kind::Small, Kind::Upload],
            Self::Send | Self::Transmit | Self::Acknowledge => &[Kind::Paced, Kind::Fast, Kind::Small],
            Self::Recv | Self::Receive => &[Kind::Upload, Kind::Small],
            Self::Accept | Self::Handshake | Self::Close => &[Kind::Fresh],
        }
    }

    fn beginning(self) -> Beginning {
        match self {
            Self::Export => Beginning::Boxes,
            Self::Send => Beginning::Function("tcp_sendmsg_locked"),
            Self::Transmit => Beginning::Function("tcp_write_xmit"),
            Self::Recv => Beginning::Function("tcp_recvmsg_locked"),
            Self::Receive => Beginning::Function("tcp_data_queue"),
            Self::Acknowledge => Beginning::Function("tcp_ack"),
            Self::Accept => Beginning::Function("inet_csk_accept"),
            Self::Handshake => Beginning::Function("tcp_check_req"),
            Self::Close => Beginning::Function("tcp_close"),
        }
    }

    /// Asks the guest where that is.
    ///
    /// # Errors
    /// When it does not know.
    pub fn take(self, vm: &mut Vm, seed: u64) -> Result<Aimed> {
        let instructions = StdRng::seed_from_u64(seed ^ 0x0061_696d).random_range(0..INSTRUCTIONS_MAX);
        let hex = |text: &str| u64::from_str_radix(text, 16).with_context(|| format!("{text:?} is no address"));
        let (address, len) = match self.beginning() {
            Beginning::Function(name) => {
                let line = vm.run(&format!("grep ' {name}$' /proc/kallsyms"))?.text();
                let address = line.split(' ').next().filter(|address| !address.is_empty());
                (hex(address.with_context(|| format!("the guest's kernel has no function {name}"))?)?, 0)
            }
            Beginning::Boxes => {
                let line = vm.run("grep -h bpf-map /proc/$(pidof file-server)/maps")?.text();
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                let (begin, end) = range.with_context(|| format!("the server has no boxes mapped: {line:?}"))?;
                (hex(begin)?, hex(end)? - hex(begin)?)
            }
        };
        Ok(Aimed { aim: self, address, len, instructions })
    }
}

impl Aimed {
    /// Stops the guest there. Returns what was hit, in words, and the connection that keeps it stopped.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn stop(&self, vm: &mut Vm) -> Result<(String, Gdb)> {
        let mut gdb = Gdb::attach(vm)?;
        self.set(&mut gdb)?;
        gdb.resume()?;
        let hit = gdb.stopped_within(COMES_BY_WITHIN)?;
        if !hit {
            gdb.interrupt()?;
        }
        self.clear(&mut gdb)?;
        if !hit {
            return Ok((format!("missed {}", self.aim.name()), gdb));
        }
        let (hit, mut executed) = (Instant::now(), 0);
        while executed < self.instructions && hit.elapsed() < STEPS_WITHIN {
            gdb.nudge()?;
            executed += 1;
        }
        let at = gdb.registers()?.rip;
        Ok((format!("{}+{executed} at {at:#x}", self.aim.name()), gdb))
    }

    fn set(&self, gdb: &mut Gdb) -> Result<()> {
        match self.len {
            0 => gdb.break_at(self.address),
            len => gdb.watch(self.address, len),
        }
    }

    fn clear(&self, gdb: &mut Gdb) -> Result<()> {
        match self.len {
            0 => gdb.clear(self.address),
            len => gdb.unwatch(self.address, len),
        }
    }
}
