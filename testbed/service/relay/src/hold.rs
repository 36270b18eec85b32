//! Pipes and a socket with bytes in them that are known: what a reader of the kernel's memory is compared with.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::{fs::File, thread};

use anyhow::Result;
use contbox::channel::Descriptors;

use crate::mix;

/// Steps of each: after some of them a buffer is nearly full, after others nearly empty.
const STEPS: u64 = 400;
/// Less than a pipe holds even when each write has a slot of its own.
const WAITING_BYTES_MAX: u64 = 12_000;
const WAITING_WRITES_MAX: usize = 12;

/// The byte at an offset of every stream that is held.
pub fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(7) ^ offset >> 8) as u8
}

/// One stream: written and read at random, then left alone.
struct Held {
    name: &'static str,
    input: File,
    output: File,
    written: u64,
    read: u64,
    writes: usize,
}

impl Held {
    fn new(name: &'static str, input: OwnedFd, output: OwnedFd) -> Self {
        Self { name, input: input.into(), output: output.into(), written: 0, read: 0, writes: 0 }
    }

    fn step(&mut self, chance: u64) -> Result<()> {
        let waiting = self.written - self.read;
        let is_full = waiting > WAITING_BYTES_MAX || self.writes >= WAITING_WRITES_MAX;
        if is_full || waiting > 0 && chance.is_multiple_of(3) {
            // Large enough for whole writes, as packets are read.
            let mut bytes = vec![0; if chance.is_multiple_of(2) || self.name == "packets" { 4096 } else { 33 }];
            let count = self.input.read(&mut bytes)?;
            anyhow::ensure!((self.read..).zip(&bytes[..count]).all(|(at, byte)| *byte == byte_at(at)), "{}", self.name);
            self.read += count as u64;
            self.writes = self.writes.saturating_sub(1);
        } else {
            let length = 1 + chance / 16 % if chance.is_multiple_of(5) { 4096 } else { 300 };
            let bytes: Vec<u8> = (self.written..self.written + length).map(byte_at).collect();
            self.output.write_all(&bytes)?;
            self.written += length;
            self.writes += 1;
        }
        Ok(())
    }
}

/// Fills and empties, says of each stream `name input-fd output-fd inode written read`, and stays.
///
/// # Errors
/// If the operating system refuses.
pub fn hold(seed: u64) -> Result<()> {
    let (plain_input, plain_output) = std::io::pipe()?;
    let [here, there] = Descriptors::pipes()?;
    let ((packet_input, spare_output), (spare_input, packet_output)) = (here.into_files(), there.into_files());
    let (one, other) = UnixStream::pair()?;
    let mut all = [
        Held::new("plain", plain_input.into(), plain_output.into()),
        Held::new("packets", packet_input, packet_output),
        Held::new("socket", one.into(), other.into()),
        Held::new("empty", spare_input, spare_output),
    ];
    for (number, held) in (0..).zip(&mut all[..3]) {
        for step in 0..STEPS {
            held.step(mix(seed ^ number << 32, step))?;
        }
    }
    for held in &all {
        let numbers = [held.input.as_raw_fd(), held.output.as_raw_fd()];
        let inode = held.input.metadata()?.ino();
        println!("{} {} {} {inode} {} {}", held.name, numbers[0], numbers[1], held.written, held.read);
    }
    println!("pid {}", std::process::id());
    loop {
        thread::park();
    }
}
