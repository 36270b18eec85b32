//! Prints what a channel between two processes costs against the bare pipe or Unix socket that it goes over, by the
//! size of a message: `cargo run --release --example channel_cost`.
//!
//! One thread writes, another reads and exports at every eighth message, as a worker would. So the figures are of a
//! stream and not of answers: what a message takes of both sides together while neither waits for long.

use contbox::Geometry;
use contbox::channel::{ChannelEnd, Descriptors, Interval};
use contbox::shared::Pool;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of each measurement.
const BYTES: usize = 64 << 20;

/// No more messages than this, however short they are.
const MESSAGES_MAX: usize = 200_000;

/// Messages between two exports of the reader.
const EXPORT_EVERY: usize = 8;

fn main() {
    println!("{:>6} {:>12} {:>12} {:>12} {:>12}", "bytes", "pipe", "channel", "socket", "channel");
    for message in [64, 300, 1000, 4000, 16_000] {
        let messages = (BYTES / message).min(MESSAGES_MAX);
        let each = |wires: fn() -> std::io::Result<[Descriptors; 2]>, is_channel: bool| {
            let [here, there] = wires().expect("two descriptors");
            let taken =
                if is_channel { channel(here, there, message, messages) } else { bare(here, there, message, messages) };
            format!("{} ns", Duration::as_nanos(&(taken / messages as u32)))
        };
        let pipes = [false, true].map(|is_channel| each(Descriptors::pipes, is_channel));
        let sockets = [false, true].map(|is_channel| each(Descriptors::sockets, is_channel));
        println!("{message:>6} {:>12} {:>12} {:>12} {:>12}", pipes[0], pipes[1], sockets[0], sockets[1]);
    }
}

fn bare(here: Descriptors, there: Descriptors, message: usize, messages: usize) -> Duration {
    let file = |fd: OwnedFd| std::fs::File::from(fd);
    let (mut output, mut input) = (file(here.into_files().1), file(there.into_files().0));
    let started = Instant::now();
    let reader = thread::spawn(move || {
        let (mut bytes, mut left) = (vec![0; 4096.max(message)], message * messages);
        while left > 0 {
            left -= input.read(&mut bytes).expect("the writer is there");
        }
    });
    let bytes = vec![0x5a; message];
    for _ in 0..messages {
        output.write_all(&bytes).expect("the reader is there");
    }
    reader.join().expect("the reader read all");
    started.elapsed()
}

fn channel(here: Descriptors, there: Descriptors, message: usize, messages: usize) -> Duration {
    let (_fd, pool) = Pool::memfd(Geometry::standard(2), 1).expect("memory for two boxes");
    let slot = |index| pool.slot(index).expect("a pool of two slots");
    let mut writer = ChannelEnd::open(slot(0), 1, here, 7, 0, b"").expect("no words fit");
    let mut reader = ChannelEnd::open(slot(1), 1, there, 7, 1, b"").expect("no words fit");
    let started = Instant::now();
    let reading = thread::spawn(move || {
        let (mut bytes, mut unexported) = (vec![0; message], 0);
        for number in 0..messages {
            let mut at = 0;
            while at < message {
                at += reader.read(&mut bytes[at..]).expect("the writer is there");
                // What is read and not exported must fit into the log.
                unexported += 1;
                if unexported == EXPORT_EVERY || message >= 1000 {
                    reader.export(&number.to_le_bytes(), Interval::Deterministic).expect("a number fits");
                    unexported = 0;
                }
            }
        }
    });
    let bytes = vec![0x5a; message];
    for _ in 0..messages {
        writer.write(&bytes).expect("the reader is there");
    }
    reading.join().expect("the reader read all");
    started.elapsed()
}
