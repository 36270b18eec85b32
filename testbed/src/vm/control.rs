//! The testbed's command line into the guest; the other end is `guest/init.sh`, which documents the protocol.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guest::READY;

/// Output of one command that is kept; a guest gone mad must not fill the testbed's memory.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// A wait is cut into pieces so that its owner can look after the process between them.
const SLICE: Duration = Duration::from_millis(200);

/// What a command in the guest left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status as the shell reports it.
    pub status: u8,
    /// Standard output and standard error, mixed.
    pub bytes: Vec<u8>,
}

impl Output {
    /// The output as text, without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim_end().to_owned()
    }
}

/// One connection to init.
#[derive(Debug)]
pub(super) struct Control {
    stream: BufReader<UnixStream>,
    sent: u64,
    line: Vec<u8>,
}

impl Control {
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("no control port at {}", socket.display()))?;
        stream.set_read_timeout(Some(SLICE))?;
        Ok(Self { stream: BufReader::new(stream), sent: 0, line: vec![] })
    }

    /// Waits for a slice of time; true once init has said that it is ready.
    pub fn heard_ready(&mut self) -> Result<bool> {
        Ok(self.heard_line()?.is_some_and(|line| line == READY))
    }

    /// Sends a command and returns its number. Commands run one after the other.
    pub fn send(&mut self, command: &str) -> Result<u64> {
        ensure!(!command.contains('\n'), "a command is one line: {command:?}");
        self.sent += 1;
        let line = format!("{} {command}\n", self.sent);
        self.stream.get_mut().write_all(line.as_bytes()).context("control port")?;
        Ok(self.sent)
    }

    /// Waits for a slice of time for the output of command `number`; answers to earlier ones are dropped.
    pub fn heard_output(&mut self, number: u64) -> Result<Option<Output>> {
        let Some(line) = self.heard_line()? else { return Ok(None) };
        let mut words = line.split(' ').map(str::parse::<u64>);
        let (Some(Ok(answered)), Some(Ok(status)), Some(Ok(len))) = (words.next(), words.next(), words.next()) else {
            bail!("init said {line:?}");
        };
        ensure!(len <= OUTPUT_BYTES_MAX as u64, "init announced {len} bytes of output");
        let bytes = self.read_fully(len as usize)?;
        Ok((answered == number).then(|| Output { status: u8::try_from(status).unwrap_or(u8::MAX), bytes }))
    }

    fn heard_line(&mut self) -> Result<Option<String>> {
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(0) => bail!("the machine closed its control port"),
            Ok(_) if self.line.ends_with(b"\n") => {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
                Ok(Some(line))
            }
            Ok(_) => Ok(None),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error).context("control port"),
        }
    }

    /// The header promised these bytes: only a guest that dies between the two keeps us here, and then QEMU's end
    /// or the caller's kill closes the socket.
    fn read_fully(&mut self, len: usize) -> Result<Vec<u8>> {
        let (mut bytes, mut filled) = (vec![0; len], 0);
        let mut idle = 0;
        while filled < len {
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => bail!("the machine closed its control port inside an answer"),
                Ok(more) => (filled, idle) = (filled + more, 0),
                Err(error) if is_timeout(&error) && idle < IDLE_SLICES_MAX => idle += 1,
                Err(error) => return Err(error).context("the guest stopped inside an answer"),
            }
        }
        Ok(bytes)
    }
}

/// A minute without a byte inside an answer: the guest has died.
const IDLE_SLICES_MAX: u32 = 300;

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(SLICE)).unwrap();
        (Control { stream: BufReader::new(ours), sent: 0, line: vec![] }, theirs)
    }

    #[test]
    fn ready_is_heard_also_when_it_comes_in_pieces() {
        let (mut control, mut init) = pair();
        init.write_all(b"rea").unwrap();
        assert!(!control.heard_ready().unwrap());
        init.write_all(b"dy\n").unwrap();
        assert!(control.heard_ready().unwrap());
    }

    #[test]
    fn an_answer_to_an_earlier_command_is_not_taken_for_this_ones() {
        let (mut control, mut init) = pair();
        control.send("sleep 9").unwrap();
        let number = control.send("echo hi").unwrap();
        init.write_all(b"1 0 3\nxyz2 7 3\nhi\n").unwrap();
        assert_eq!(control.heard_output(number).unwrap(), None);
        let output = control.heard_output(number).unwrap().unwrap();
        assert_eq!((output.status, output.text().as_str()), (7, "hi"));
    }

    #[test]
    fn nonsense_and_a_closed_port_are_errors() {
        let (mut control, mut init) = pair();
        init.write_all(b"1 0 99999999999\n").unwrap();
        assert!(control.heard_output(1).is_err());
        drop(init);
        assert!(control.heard_ready().is_err());
        assert!(pair().0.send("two\nlines").is_err());
    }
}
