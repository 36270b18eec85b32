//! The kernel's side of a channel: one frame in, one frame out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockFlag, recv, send, setsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use zerocopy::FromBytes;

use super::frame::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FrameHead, PAYLOAD_BYTES_MAX};
use super::record::{ARRIVING, File};
use crate::shared::Slot;

/// A Unix socket keeps a frame as one buffer if its send buffer has room for two and what the kernel adds.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Room for what another machine's pipe or socket held: most that an unprivileged process gets as a rule
/// (`net.core.wmem_max`). The kernel doubles it for its own overhead, as it does the above.
const LAID_BUFFER_BYTES: usize = 208 * 1024;

/// Carries frames. A trait so that tests can stop a process inside.
pub trait Wire {
    /// Sends one frame, whole or not at all.
    ///
    /// # Errors
    /// Those of the operating system, `WouldBlock` among them.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Receives one frame: its head into the slot's place for it, its payload into the log at stream offset `at`, where
    /// there is room for any. Returns its length, 0 if there will never be another.
    ///
    /// # Errors
    /// Those of the operating system, `WouldBlock` among them.
    fn receive(&mut self, slot: &Slot, at: u64) -> io::Result<usize>;

    /// What input and output are, for those who look for them from outside.
    fn files(&self) -> [File; 2];
}

/// Two descriptors: of two pipes in packet mode, or twice of one Unix stream socket.
#[derive(Debug)]
pub struct Descriptors {
    input: OwnedFd,
    output: OwnedFd,
    is_socket: bool,
}

impl Descriptors {
    /// Both ends of a channel made of two pipes.
    ///
    /// # Errors
    /// Those of `pipe2`.
    pub fn pipes() -> io::Result<[Self; 2]> {
        // In packet mode each write is read by one read.
        let flags = nix::fcntl::OFlag::O_DIRECT | nix::fcntl::OFlag::O_CLOEXEC;
        let (there_input, here_output) = nix::unistd::pipe2(flags)?;
        let (here_input, there_output) = nix::unistd::pipe2(flags)?;
        let end = |input, output| Self { input, output, is_socket: false };
        Ok([end(here_input, here_output), end(there_input, there_output)])
    }

    /// Both ends of a channel made of a Unix socket.
    ///
    /// # Errors
    /// Those of `socketpair`.
    pub fn sockets() -> io::Result<[Self; 2]> {
        use nix::sys::socket::{AddressFamily, SockType, socketpair};
        let (here, there) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        Ok([Self::of_socket(here)?, Self::of_socket(there)?])
    }

    /// An end that somebody handed over.
    ///
    /// # Errors
    /// If the descriptors are not two pipes in packet mode or one Unix stream socket.
    pub fn adopt(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let is =
            |fd: &OwnedFd, kind: SFlag| Ok::<_, io::Error>(fstat(fd)?.st_mode & SFlag::S_IFMT.bits() == kind.bits());
        if is(&input, SFlag::S_IFSOCK)? {
            return Self::of_socket(input);
        }
        let mode = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&output, nix::fcntl::F_GETFL)?);
        if is(&input, SFlag::S_IFIFO)? && is(&output, SFlag::S_IFIFO)? && mode.contains(nix::fcntl::OFlag::O_DIRECT) {
            return Ok(Self { input, output, is_socket: false });
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "a channel needs two pipes in packet mode, or a Unix socket"))
    }

    fn of_socket(socket: OwnedFd) -> io::Result<Self> {
        setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        Ok(Self { output: socket.try_clone()?, input: socket, is_socket: true })
    }

    /// Input and output, to hand this end to another process.
    pub fn into_files(self) -> (OwnedFd, OwnedFd) {
        (self.input, self.output)
    }

    /// Sends frames to an end that nobody reads from yet.
    ///
    /// # Errors
    /// `WouldBlock` if they do not fit; the others of the operating system.
    pub(crate) fn send_now(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        setsockopt(&self.output, sockopt::SndBuf, &LAID_BUFFER_BYTES)?;
        for frame in frames {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let sent = retry(|| send(self.output.as_raw_fd(), frame, flags))?;
            if sent != frame.len() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }

    /// The descriptor that input is read from.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// The descriptor that output is written to.
    pub fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// The length of the payload that comes next: of a stream no more than one frame is to be read.
    fn next_payload(&self) -> io::Result<usize> {
        let mut head = [0; FRAME_HEAD_BYTES];
        let count = match retry(|| recv(self.input.as_raw_fd(), &mut head, MsgFlags::MSG_PEEK)) {
            // The other end has gone and had not read all of ours. What it had sent before has been read by now: a
            // socket tells this when its queue is empty. Of a pipe that is the end and no more.
            Err(why) if why.kind() == io::ErrorKind::ConnectionReset => 0,
            count => count?,
        };
        if count == 0 {
            return Ok(0);
        }
        let length = FrameHead::read_from_bytes(&head).ok().map_or(0, |head| head.length.get() as usize);
        if count == FRAME_HEAD_BYTES && (1..=PAYLOAD_BYTES_MAX).contains(&length) {
            Ok(length)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "what arrives on a channel's socket is no frame"))
        }
    }
}

impl Wire for Descriptors {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        debug_assert!(frame.len() <= FRAME_BYTES_MAX, "a frame of {} bytes would be split", frame.len());
        let sent = retry(|| match self.is_socket {
            true => send(self.output.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL),
            false => nix::unistd::write(&self.output, frame),
        })?;
        if sent == frame.len() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took part of a frame: its buffer is too small"))
    }

    fn receive(&mut self, slot: &Slot, at: u64) -> io::Result<usize> {
        let room = if self.is_socket { self.next_payload()? } else { PAYLOAD_BYTES_MAX };
        if room == 0 {
            return Ok(0);
        }
        loop {
            match slot.frame_receive(self.input.as_fd(), (ARRIVING, FRAME_HEAD_BYTES as u32), at, room as u64) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    fn files(&self) -> [File; 2] {
        [&self.input, &self.output].map(|fd| File {
            fd: fd.as_raw_fd() as u32,
            // A descriptor that is open can be asked; 0 is no inode of a pipe.
            inode: fstat(fd).map_or(0, |found| found.st_ino),
        })
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            outcome => return outcome.map_err(io::Error::from),
        }
    }
}
