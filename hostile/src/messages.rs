//! Messages and files: control frames, what a guest's agent says, configurations.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use backdoor::agent_port::deframer::Deframer;
use backdoor::guard::Guard;
use backdoor::scatter::{Run, Scatter};
use control::agent::{FromAgent, REGIONS_MAX};
use control::{Channel, FrameError, Hello};
use rand::SeedableRng;
use rand::rngs::StdRng;
use remote_memory::{PAGE_BYTES, RemoteKey, Rights};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::program::Program;

/// Set in the first byte of an input that brings its own length prefix.
const RAW: u8 = 0x80;

/// A frame of any conversation: first byte which, then the body. What is understood is said again, and understood the
/// same way.
pub(crate) fn frame(input: &[u8]) -> bool {
    let Some((kind, body)) = input.split_first() else { return false };
    let framed = match kind & RAW {
        0 => [&(body.len() as u32).to_be_bytes(), body].concat(),
        _ => body.to_vec(),
    };
    match (kind & !RAW) % 6 {
        0 => said_again::<Hello>(&framed),
        1 => said_again::<control::backdoor::Request>(&framed),
        2 => said_again::<control::backdoor::Reply>(&framed),
        3 => said_again::<control::reinstate::Request>(&framed),
        4 => said_again::<control::reinstate::Reply>(&framed),
        _ => said_again::<FromAgent>(&framed),
    }
}

/// A stream that says what it was given and keeps what it is told.
struct Both {
    to_read: Cursor<Vec<u8>>,
    written: Vec<u8>,
}

impl Read for Both {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.to_read.read(into)
    }
}

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn channel(bytes: Vec<u8>) -> Channel<Both> {
    Channel::new(Both { to_read: Cursor::new(bytes), written: Vec::new() })
}

fn said_again<M: Serialize + DeserializeOwned>(framed: &[u8]) -> bool {
    let mut first = channel(framed.to_vec());
    let message = match first.receive::<M>() {
        Ok(message) => message,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    first.send(&message).expect("what was understood can be said");
    let said = first.stream().written.clone();
    let mut second = channel(said.clone());
    let again: Result<M, FrameError> = second.receive();
    second.send(&again.expect("what we say is understood")).expect("and can be said again");
    assert_eq!(second.stream().written, said);
    true
}

/// Pages of the machine that the agent of [`agent`] lives in: as many again lie behind a hole.
const LOW_PAGES: u64 = 16;
const HIGH_START: u64 = 64;

/// What a guest's agent says. A record: kind (u8), length (u16), bytes; kinds: 0 a message with its length put before
/// it, 1 raw bytes, 2 silence, 3 a greeting, 4 its end. Whatever is registered lies in the guest's memory.
pub(crate) fn agent(input: &[u8]) -> bool {
    let mut rng = StdRng::seed_from_u64(1);
    let low = LOW_PAGES * PAGE_BYTES;
    let runs =
        vec![Run { start: 0, offset: 0, len: low }, Run { start: HIGH_START * PAGE_BYTES, offset: low, len: low }];
    let mut guard = Guard::new("t");
    guard.attach(Scatter::new(runs).expect("a proper layout"), &mut rng);
    let (mut deframer, mut program) = (Deframer::default(), Program::new(input));
    while !program.is_over() {
        let (kind, len) = (program.byte(), program.short());
        let bytes = program.bytes(usize::from(len));
        match kind % 5 {
            0 => {
                deframer.push(&(bytes.len() as u32).to_be_bytes());
                deframer.push(bytes);
            }
            1 => deframer.push(bytes),
            2 => deframer.stalled(),
            3 => guard.agent_greets(),
            _ => guard.agent_settles(),
        }
        while let Some(message) = deframer.next() {
            if let FromAgent::Register(wanted) = message
                && let Err(error) = guard.register(&wanted, &mut rng)
            {
                assert!(!error.to_string().is_empty());
            }
        }
    }
    let regions = guard.regions(None).expect("no token, no fence");
    assert!(regions.len() <= 1 + REGIONS_MAX);
    for region in regions.iter().filter(|region| region.name != "ram") {
        let reach = guard.reach(RemoteKey::new(region.key), 0, region.len, Rights::READ);
        let pieces: Vec<_> = reach.expect("a region is readable to its end").collect();
        assert!(pieces.iter().all(|piece| piece.offset + piece.len <= 2 * low));
        assert_eq!(pieces.iter().map(|piece| piece.len).sum::<u64>(), region.len);
        assert!(guard.reach(RemoteKey::new(region.key), 0, region.len + 1, Rights::READ).is_err());
    }
    regions.len() > 1
}

/// A configuration file: first byte whose, then the text. It is good, or an error that says something.
pub(crate) fn config(input: &[u8]) -> bool {
    let Some((whose, text)) = input.split_first() else { return false };
    let text = String::from_utf8_lossy(text);
    let file = Path::new("hostile.toml");
    let error = match whose % 3 {
        0 => backdoor::config::Config::parse(file, &text).err(),
        1 => monitor::config::parse(file, &text).err(),
        _ => reinstate::config::Config::parse(file, &text).err(),
    };
    if let Some(error) = &error {
        assert!(error.to_string().contains("hostile.toml") && !error.what.is_empty(), "no place or no word: {error}");
        assert!(error.line.is_none_or(|line| line <= text.lines().count() + 1), "a line that is not there: {error}");
    }
    error.is_none()
}
