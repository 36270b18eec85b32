//! JSON lines with descriptors over a Unix stream socket, blocking, usable from any thread.
//!
//! The kernel delivers a descriptor no later than the first byte it was sent with and never out of order, so a
//! queue of received descriptors and the rule "this kind of line has one" pair them without further marks.

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

/// Longest line: a lease of every slot of a large pool fits, an endless line does not.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Descriptors per `sendmsg`; the kernel's limit (SCM_MAX_FD) is 253.
pub const BATCH_FDS: usize = 64;
/// Descriptors one `recvmsg` makes room for: the kernel's limit.
const RECEIVE_FDS: usize = 253;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side has closed.
    #[error("the other side closed the box service's socket")]
    Closed,
    /// The socket failed.
    #[error("box service socket: {0}")]
    Io(#[from] io::Error),
    /// The other side sent something that is no message.
    #[error("not a message of the box service: {0}")]
    Malformed(String),
}

/// One end of a conversation. Any thread may send; one thread receives.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    sending: Mutex<()>,
    receiving: Mutex<Receiving>,
}

#[derive(Debug, Default)]
struct Receiving {
    bytes: Vec<u8>,
    /// Bytes at the front that have been taken.
    taken: usize,
    /// Bytes known to hold no line end that is not taken.
    scanned: usize,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// Wraps a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, sending: Mutex::new(()), receiving: Mutex::new(Receiving::default()) }
    }

    /// Sends one message without a descriptor.
    ///
    /// # Errors
    /// [`ChannelError::Io`]
    pub fn send<M: Serialize>(&self, message: &M) -> Result<(), ChannelError> {
        self.send_all::<M>(std::iter::once((message, None)))
    }

    /// Sends messages in a row, as few system calls as descriptors allow.
    ///
    /// # Errors
    /// [`ChannelError::Io`]; some of them may have been sent.
    pub fn send_all<'a, M: Serialize + 'a>(
        &self,
        messages: impl IntoIterator<Item = (&'a M, Option<BorrowedFd<'a>>)>,
    ) -> Result<(), ChannelError> {
        let _one_sender = self.sending.lock().expect("no sender panics while sending");
        let (mut lines, mut fds) = (Vec::new(), Vec::new());
        for (message, fd) in messages {
            serde_json::to_writer(&mut lines, message).map_err(io::Error::from)?;
            lines.push(b'\n');
            fds.extend(fd.map(|fd| fd.as_raw_fd()));
            if fds.len() == BATCH_FDS {
                self.transmit(&lines, &fds)?;
                (lines, fds) = (Vec::new(), Vec::new());
            }
        }
        if !lines.is_empty() {
            self.transmit(&lines, &fds)?;
        }
        Ok(())
    }

    fn transmit(&self, mut lines: &[u8], mut fds: &[RawFd]) -> Result<(), ChannelError> {
        while !lines.is_empty() {
            let rights = [ControlMessage::ScmRights(fds)];
            let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(lines)], control, flags, None) {
                Ok(sent) => (lines, fds) = (&lines[sent..], &[]),
                Err(nix::Error::EINTR) => {}
                Err(why) => return Err(io::Error::from(why).into()),
            }
        }
        Ok(())
    }

    /// Waits for the next message; `carries_fd` says which have a descriptor.
    ///
    /// # Errors
    /// See [`ChannelError`]; the conversation is over.
    pub fn receive<M: DeserializeOwned>(
        &self,
        carries_fd: impl Fn(&M) -> bool,
    ) -> Result<(M, Option<OwnedFd>), ChannelError> {
        let mut receiving = self.receiving.lock().expect("no receiver panics while receiving");
        loop {
            if let Some(line) = receiving.take_line() {
                let message: M =
                    serde_json::from_slice(line).map_err(|why| ChannelError::Malformed(why.to_string()))?;
                if !carries_fd(&message) {
                    return Ok((message, None));
                }
                let missing = || ChannelError::Malformed("a descriptor is missing".into());
                let fd = receiving.fds.pop_front().ok_or_else(missing)?;
                return Ok((message, Some(fd)));
            }
            if receiving.bytes.len() > LINE_BYTES_MAX {
                return Err(ChannelError::Malformed(format!("a line longer than {LINE_BYTES_MAX} bytes")));
            }
            receiving.fill(&self.stream)?;
        }
    }

    /// Ends the conversation from any thread; a blocked receiver returns.
    pub fn shut(&self) {
        // A socket that is gone already is shut.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Receiving {
    fn take_line(&mut self) -> Option<&[u8]> {
        match self.bytes[self.scanned..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let (start, end) = (self.taken, self.scanned + at);
                (self.taken, self.scanned) = (end + 1, end + 1);
                Some(&self.bytes[start..end])
            }
            None => {
                self.bytes.drain(..self.taken);
                (self.taken, self.scanned) = (0, self.bytes.len());
                None
            }
        }
    }

    fn fill(&mut self, stream: &UnixStream) -> Result<(), ChannelError> {
        let mut chunk = [0; 16 << 10];
        let mut control = nix::cmsg_space!([RawFd; RECEIVE_FDS]);
        let count = {
            let mut vectors = [IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = match recvmsg::<()>(stream.as_raw_fd(), &mut vectors, Some(&mut control), flags) {
                Ok(message) => message,
                Err(nix::Error::EINTR) => return Ok(()),
                Err(why) => return Err(io::Error::from(why).into()),
            };
            for part in message.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(raw) = part {
                    self.fds.extend(raw.into_iter().map(crate::shared::own_received));
                }
            }
            message.bytes
        };
        if count == 0 {
            return Err(ChannelError::Closed);
        }
        self.bytes.extend_from_slice(&chunk[..count]);
        Ok(())
    }
}
