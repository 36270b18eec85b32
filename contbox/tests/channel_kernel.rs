//! Both kinds of channels over real pipes and sockets: what two ends leave in boxes and kernel is what they go on from.

use std::fs::File;
use std::io::Read;

use contbox::Geometry;
use contbox::channel::{ChannelEnd, Descriptors, EndError, Interval, Plan, Wire, read_end};
use contbox::shared::Pool;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const GEOMETRY: Geometry = Geometry::with(2, 3840, 16 << 10);

/// Less than a pipe takes when each write has a slot of its own, and a socket.
const WAITING_MAX: u64 = 20_000;
const WRITES_MAX: u64 = 12;

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(31) ^ at >> 9) as u8
}

/// What the kernel still has of an end's input.
fn drained(end: &ChannelEnd<Descriptors>) -> Vec<Vec<u8>> {
    let mut file = File::from(end.wire().input().try_clone_to_owned().unwrap());
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut chunks = Vec::new();
    let mut bytes = [0; 8192];
    while let Ok(count) = file.read(&mut bytes) {
        chunks.push(bytes[..count].to_vec());
    }
    // Reads of a socket are cut anywhere: the frames go on from one to the next.
    vec![chunks.concat()]
}

fn check(make: fn() -> std::io::Result<[Descriptors; 2]>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    let [here, there] = make().unwrap();
    let mut writer = ChannelEnd::open(pool.slot(0).unwrap(), 1, here, 9, 0, b"").unwrap();
    let mut reader = ChannelEnd::open(pool.slot(1).unwrap(), 1, there, 9, 1, b"").unwrap();
    let mut writes = 0;
    for _ in 0..rng.random_range(1..120) {
        let (written, read) = (writer.position().1, reader.position().0);
        match rng.random_range(0..8) {
            0 => writer.export(b"", Interval::Deterministic).unwrap(),
            1 => reader.export(b"", Interval::Deterministic).unwrap(),
            2..5 if writes < WRITES_MAX && written - read < WAITING_MAX => {
                let length = rng.random_range(1..4000);
                writer.write(&(written..written + length).map(byte).collect::<Vec<_>>()).unwrap();
                writes += 1;
            }
            _ if read < written => {
                let mut bytes = vec![0; rng.random_range(1..5000)];
                match reader.read(&mut bytes) {
                    Ok(count) => assert!((read..).zip(&bytes[..count]).all(|(at, found)| byte(at) == *found)),
                    Err(EndError::LogFull { .. }) => reader.export(b"", Interval::Deterministic).unwrap(),
                    Err(why) => panic!("seed {seed}: {why}"),
                }
                writes = if reader.position().0 == written { 0 } else { writes };
            }
            _ => {}
        }
    }
    // The machine stops.
    let image = pool.image();
    let [from, to] = [0, 1].map(|slot| read_end(&image, &GEOMETRY, slot).unwrap());
    let chunks = drained(&reader);
    let plan = Plan::of(&to, &from, &chunks).unwrap_or_else(|loss| panic!("seed {seed}: {loss}"));
    let (_fd, pool) = Pool::memfd(GEOMETRY, 2).unwrap();
    let [mut here, there] = make().unwrap();
    let (_, frames) = plan.split(GEOMETRY.log_bytes, to.identity.input());
    frames.iter().for_each(|frame| here.send(frame).unwrap());
    let discard = plan.discard_from_writer;
    let mut writer = ChannelEnd::resume(pool.slot(0).unwrap(), 1, here, &from, &Plan::default(), discard).unwrap();
    let mut reader = ChannelEnd::resume(pool.slot(1).unwrap(), 1, there, &to, &plan, 0).unwrap();
    let start = writer.position().1;
    writer.write(&(start..start.max(to.digested) + 100).map(byte).collect::<Vec<_>>()).unwrap();
    let (read, written) = (reader.position().0, writer.position().1);
    assert_eq!(read, to.digested, "seed {seed}");
    let mut bytes = vec![0; (written - read) as usize];
    let mut done = 0;
    while done < bytes.len() {
        match reader.read(&mut bytes[done..]) {
            Ok(count) => done += count,
            Err(EndError::LogFull { .. }) => reader.export(b"", Interval::Deterministic).unwrap(),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    assert!((read..).zip(&bytes).all(|(at, found)| byte(at) == *found), "seed {seed}: other bytes");
}

#[test]
fn ends_over_pipes_go_on_with_every_byte_once() {
    (0..300).for_each(|seed| check(Descriptors::pipes, seed));
}

#[test]
fn ends_over_a_unix_socket_go_on_with_every_byte_once() {
    (0..300).for_each(|seed| check(Descriptors::sockets, seed));
}

#[test]
fn a_reader_at_the_end_of_its_stream_is_told_so_and_a_stranger_is_no_channel() {
    for make in [Descriptors::pipes, Descriptors::sockets] {
        let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
        let [here, there] = make().unwrap();
        let mut writer = ChannelEnd::open(pool.slot(0).unwrap(), 1, here, 9, 0, b"").unwrap();
        let mut reader = ChannelEnd::open(pool.slot(1).unwrap(), 1, there, 9, 1, b"").unwrap();
        writer.write(b"last words").unwrap();
        drop(writer);
        let mut bytes = [0; 10];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"last words");
        assert_eq!(reader.read(&mut bytes).unwrap(), 0);
    }
    let [here, mut there] = Descriptors::pipes().unwrap();
    there.send(&[7; 100]).unwrap();
    let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    let mut reader = ChannelEnd::open(pool.slot(0).unwrap(), 1, here, 9, 0, b"").unwrap();
    assert!(matches!(reader.read(&mut [0; 8]), Err(EndError::Malformed { expected: 0 })));
}

/// Seen of workers whose session had been taken over: their channel was a socket then, and its end an error.
#[test]
fn an_end_that_leaves_without_reading_all_is_the_end_of_the_stream_over_either() {
    for make in [Descriptors::pipes, Descriptors::sockets] {
        let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
        let [here, there] = make().unwrap();
        let mut leaver = ChannelEnd::open(pool.slot(0).unwrap(), 1, here, 9, 0, b"").unwrap();
        let mut other = ChannelEnd::open(pool.slot(1).unwrap(), 1, there, 9, 1, b"").unwrap();
        other.write(b"nobody reads this").unwrap();
        leaver.write(b"last words").unwrap();
        drop(leaver);
        let mut read = [0; 10];
        other.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"last words");
        assert_eq!(other.read(&mut read).unwrap(), 0);
    }
}
