//! The virtio-serial port to the host. Source: drivers/char/virtio_console.c.
//!
//! The port is a character device with two habits: while nobody holds the host's end, poll reports a hang-up, reads
//! end at once and writes block; and bytes of a broken conversation stay in it until it is closed. So every
//! conversation opens the port anew, and no read or write starts before poll has said that it will not block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const PORTS: &str = "/sys/class/virtio-ports";

/// An answer takes the backdoor milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The open port.
#[derive(Debug)]
pub struct Port {
    file: File,
}

/// What became of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The event asked for is there.
    Ready,
    /// Nobody holds the host's end.
    HungUp,
    /// Nothing happened.
    TimedOut,
}

impl Port {
    /// Opens the port called `name`.
    ///
    /// # Errors
    /// `NotFound` if the machine has none, `ResourceBusy` if another process holds it.
    pub fn open(name: &str) -> io::Result<Self> {
        let device = find(Path::new(PORTS), name)?;
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(device)? })
    }

    /// Waits for bytes from the host.
    ///
    /// # Errors
    /// Those of poll.
    pub fn wait_for_bytes(&self, patience: Duration) -> io::Result<Waited> {
        self.wait(PollFlags::POLLIN, patience)
    }

    /// Whether somebody holds the host's end.
    ///
    /// # Errors
    /// Those of poll.
    pub fn has_host(&self) -> io::Result<bool> {
        Ok(self.wait(PollFlags::empty(), Duration::ZERO)? != Waited::HungUp)
    }

    fn wait(&self, events: PollFlags, patience: Duration) -> io::Result<Waited> {
        let mut watched = [PollFd::new(self.file.as_fd(), events)];
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut watched, patience)? == 0 {
            return Ok(Waited::TimedOut);
        }
        let seen = watched[0].revents().unwrap_or(PollFlags::POLLERR);
        // Bytes that were sent before a hang-up are still to be read.
        Ok(if seen.intersects(events) { Waited::Ready } else { Waited::HungUp })
    }

    fn ready_for(&self, events: PollFlags) -> io::Result<()> {
        match self.wait(events, PATIENCE)? {
            Waited::Ready => Ok(()),
            Waited::HungUp => Err(io::ErrorKind::ConnectionReset.into()),
            Waited::TimedOut => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Port {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.ready_for(PollFlags::POLLIN)?;
        self.file.read(into)
    }
}

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ready_for(PollFlags::POLLOUT)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn find(ports: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(ports)? {
        let entry = entry?;
        // A port that is going away has no name any more.
        let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("this machine has no virtio port {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name_and_not_by_its_number() {
        let ports = std::env::temp_dir().join(format!("agent-ports-{}", std::process::id()));
        for (port, name) in [("vport0p1", "other\n"), ("vport0p2", "org.backdoors.agent\n")] {
            fs::create_dir_all(ports.join(port)).unwrap();
            fs::write(ports.join(port).join("name"), name).unwrap();
        }
        let (found, missing) = (find(&ports, "org.backdoors.agent"), find(&ports, "absent"));
        fs::remove_dir_all(&ports).unwrap();
        assert_eq!(found.unwrap(), Path::new("/dev/vport0p2"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
