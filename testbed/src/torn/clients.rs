//! Two clients whose kernel tells the truth: how much of the guest's stream has arrived, and how much of their own was
//! acknowledged.
//!
//! One thread does everything and nothing waits, so that a look at the clients while the guest is stopped is exact.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::FileExt,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::client::content;

/// Seeds of the two contents.
const DOWN_SEED: u64 = 41;
const UP_SEED: u64 = 42;

/// More than any exploration moves.
const BODY_BYTES: u64 = 1 << 30;

/// Bytes an upload is given at a time.
const UP_PIECE_BYTES: usize = 3_000;

/// Longest head of a response.
const HEAD_BYTES_MAX: usize = 4096;

/// Receive buffer of a client with a small window: a few segments, where the guest's buffers hold dozens.
const NARROW_BYTES: usize = 6_000;

/// For a connection to come about.
const CONNECT_BOUND: Duration = Duration::from_secs(30);

/// The columns of /proc/net/tcp that hold the local end and the queues.
const LOCAL: usize = 1;
const QUEUES: usize = 4;

/// What a client knows at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes of the guest's stream that arrived in order.
    pub received: u64,
    /// Bytes of its own stream that were acknowledged.
    pub acknowledged: u64,
}

/// One connection: everything sent and received is known by its offset.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Its end, as the guest sees it.
    pub address: SocketAddr,
    sent_head: Vec<u8>,
    sent: u64,
    uploads: bool,
    heard_head: Vec<u8>,
    heard: u64,
}

impl Client {
    /// Asks for a download of `rate` bytes per second.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn download(server: SocketAddr, rate: u64) -> Result<Self> {
        Self::ask_for(server, &format!("?rate={rate}"))
    }

    /// Asks for a download as fast as it will go, and has so small a window that the guest's kernel has to cut its
    /// buffers there.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn narrow(server: SocketAddr) -> Result<Self> {
        let client = Self::ask_for(server, "")?;
        setsockopt(&client.stream, sockopt::RcvBuf, &NARROW_BYTES)?;
        Ok(client)
    }

    fn ask_for(server: SocketAddr, query: &str) -> Result<Self> {
        let head = format!("GET /synthetic/{DOWN_SEED}/{BODY_BYTES}{query} HTTP/1.1\r\nHost: torn\r\n\r\n");
        Self::open(server, head, false)
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn upload(server: SocketAddr) -> Result<Self> {
        let head = format!("PUT /torn HTTP/1.1\r\nHost: torn\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
        Self::open(server, head, true)
    }

    fn open(server: SocketAddr, head: String, uploads: bool) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&server, CONNECT_BOUND).context("no server in the guest")?;
        stream.set_nodelay(true)?;
        stream.write_all(head.as_bytes())?;
        stream.set_nonblocking(true)?;
        let (address, sent) = (stream.local_addr()?, head.len() as u64);
        Ok(Self { stream, address, sent_head: head.into_bytes(), sent, uploads, heard_head: Vec::new(), heard: 0 })
    }

    /// Takes what has come, and checks it; sends a piece if this is an upload.
    ///
    /// # Errors
    /// If a byte is wrong or the connection broke.
    pub fn pump(&mut self) -> Result<()> {
        self.take()?;
        if self.uploads {
            let mut piece = [0; UP_PIECE_BYTES];
            self.sent_at(self.sent, &mut piece);
            match self.stream.write(&piece) {
                Ok(written) => self.sent += written as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("upload"),
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let read = match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the server closed"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("download"),
            };
            let mut came = &chunk[..read];
            while !self.heard_head.ends_with(b"\r\n\r\n") {
                ensure!(self.heard_head.len() < HEAD_BYTES_MAX, "a response head that does not end");
                let Some((byte, rest)) = came.split_first() else { break };
                self.heard_head.push(*byte);
                self.heard += 1;
                came = rest;
            }
            let mut expected = vec![0; came.len()];
            self.heard_at(self.heard, &mut expected);
            ensure!(came == expected, "the client got wrong bytes near offset {}", self.heard);
            self.heard += came.len() as u64;
        }
    }

    /// Where the connection stands. `table` is the client machine's /proc/net/tcp.
    ///
    /// # Errors
    /// If the connection is not in it.
    pub fn position(&mut self, table: &File) -> Result<Position> {
        self.take()?;
        let port = format!(":{:04X}", self.address.port());
        let mut text = vec![0; 64 * 1024];
        let read = table.read_at(&mut text, 0).context("/proc/net/tcp")?;
        let text = String::from_utf8_lossy(&text[..read]);
        let fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut ours = fields.filter(|fields| fields.get(LOCAL).is_some_and(|local| local.ends_with(&port)));
        let line = ours.next().context("the client's connection is gone")?;
        let (unacknowledged, unread) = line.get(QUEUES).and_then(|queues| queues.split_once(':')).context("queues")?;
        let acknowledged = self.sent - u64::from_str_radix(unacknowledged, 16)?;
        Ok(Position { received: self.heard + u64::from_str_radix(unread, 16)?, acknowledged })
    }

    /// What the guest's stream holds from `offset` on; nothing before its head has come.
    pub fn heard_at(&self, offset: u64, into: &mut [u8]) {
        fill(DOWN_SEED, &self.heard_head, offset, into);
    }

    /// What the client's stream holds from `offset` on.
    pub fn sent_at(&self, offset: u64, into: &mut [u8]) {
        fill(UP_SEED, &self.sent_head, offset, into);
    }
}

/// A stream is its head and then synthetic content.
fn fill(seed: u64, head: &[u8], offset: u64, into: &mut [u8]) {
    let begun = head.get(offset as usize..).unwrap_or_default();
    let from_head = begun.len().min(into.len());
    into[..from_head].copy_from_slice(&begun[..from_head]);
    let body = (offset + from_head as u64).saturating_sub(head.len() as u64);
    content::fill(seed, body, &mut into[from_head..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_its_head_and_its_content_at_any_offset() {
        let mut whole = [0; 64];
        fill(3, b"head: x\r\n\r\n", 0, &mut whole);
        assert!(whole.starts_with(b"head: x\r\n\r\n"));
        for from in 0..64 {
            let mut part = vec![0; 64 - from];
            fill(3, b"head: x\r\n\r\n", from as u64, &mut part);
            assert_eq!(part, whole[from..], "from {from}");
        }
    }
}
