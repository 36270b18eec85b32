//! Length-prefixed JSON over any byte stream.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The longest message, in bytes: an evacuation report of 10 000 sessions fits, a mad length does not.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the connection between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The stream failed, timed out or ended inside a message.
    #[error("control connection: {0}")]
    Stream(#[from] io::Error),
    /// The peer announced a message above [`MESSAGE_BYTES_MAX`].
    #[error("the peer announced a message of {0} bytes, more than is ever sent")]
    TooLong(usize),
    /// The peer sent what is no message of this conversation.
    #[error("the peer sent an unknown message: {0}")]
    Unknown(#[from] serde_json::Error),
}

/// Sends and receives messages over `S`. Time-outs are those of the stream.
#[derive(Debug)]
pub struct Channel<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Channel<S> {
    /// Wraps a connected stream.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The stream underneath.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Sends one message in one write.
    ///
    /// # Errors
    /// [`FrameError::Stream`], or [`FrameError::TooLong`] for a message nobody would accept.
    pub fn send<M: Serialize>(&mut self, message: &M) -> Result<(), FrameError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.buffer, message)?;
        let len = self.buffer.len() - 4;
        if len > MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLong(len));
        }
        self.buffer[..4].copy_from_slice(&(len as u32).to_be_bytes());
        self.stream.write_all(&self.buffer)?;
        Ok(self.stream.flush()?)
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn receive<M: DeserializeOwned>(&mut self) -> Result<M, FrameError> {
        let mut len = [0; 4];
        match self.stream.read(&mut len[..1])? {
            0 => return Err(FrameError::Closed),
            _ => self.stream.read_exact(&mut len[1..])?,
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLong(len));
        }
        self.buffer.clear();
        let taken = (&mut self.stream).take(len as u64).read_to_end(&mut self.buffer)?;
        if taken < len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_slice(&self.buffer)?)
    }

    /// Sends `message` and waits for the answer.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn ask<M: Serialize, A: DeserializeOwned>(&mut self, message: &M) -> Result<A, FrameError> {
        self.send(message)?;
        self.receive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::Hello;

    fn received(bytes: Vec<u8>) -> Result<Hello, FrameError> {
        Channel::new(Cursor::new(bytes)).receive()
    }

    #[test]
    fn a_message_arrives_as_sent() {
        let mut channel = Channel::new(Cursor::new(Vec::new()));
        channel.send(&Hello::new("monitor")).unwrap();
        let bytes = channel.stream.into_inner();
        assert_eq!(bytes[..4], (bytes.len() as u32 - 4).to_be_bytes());
        assert_eq!(received(bytes).unwrap(), Hello::new("monitor"));
    }

    #[test]
    fn hostile_frames_are_errors_not_allocations() {
        assert!(matches!(received(vec![]), Err(FrameError::Closed)));
        assert!(matches!(received(vec![0xff; 8]), Err(FrameError::TooLong(_))));
        assert!(matches!(received(vec![0, 0, 0, 9, b'{']), Err(FrameError::Stream(_))));
        assert!(matches!(received(vec![0, 0, 0, 2, b'{', b'}']), Err(FrameError::Unknown(_))));
    }
}
