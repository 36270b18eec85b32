//! Clients that notice one wrong, missing or repeated byte: plain blocking HTTP/1.1 over a plain socket.

use file_server::synthetic;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any stall of a take-over; a mute connection is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection of a client.
pub struct Client {
    reader: BufReader<TcpStream>,
    stream: TcpStream,
}

/// A response head.
pub struct Head {
    pub status: u16,
    pub length: u64,
}

impl Client {
    pub fn connect(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), stream })
    }

    /// The socket, to cut it off while its server moves.
    pub fn socket(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn head(&mut self) -> Head {
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            assert!(self.reader.read_line(&mut line).unwrap() > 0, "the connection ended before a response head");
            let line = line.strip_suffix("\r\n").expect("header lines end with CRLF");
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                assert!(status.is_none(), "a status line inside a head");
                status = Some(rest[..3].parse().unwrap());
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            } else if line.is_empty() {
                return Head { status: status.expect("a head starts with a status line"), length };
            }
        }
    }

    /// Reads `length` bytes and checks them, with a rest after each piece.
    pub fn verify(&mut self, seed: u64, from: u64, length: u64, rest: Duration) {
        let (mut offset, end) = (from, from + length);
        let mut piece = vec![0; 16 << 10];
        while offset < end {
            let wanted = piece.len().min((end - offset) as usize);
            let got = self.reader.read(&mut piece[..wanted]).unwrap();
            assert!(got > 0, "the connection ended at byte {offset} of {end}");
            synthetic::verify(seed, offset, &piece[..got]).unwrap();
            offset += got as u64;
            if !rest.is_zero() {
                std::thread::sleep(rest);
            }
        }
    }

    /// One GET of synthetic content.
    pub fn download(&mut self, seed: u64, length: u64, query: &str, rest: Duration) {
        self.send(format!("GET /synthetic/{seed}/{length}{query} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes());
        let head = self.head();
        assert_eq!((head.status, head.length), (200, length));
        self.verify(seed, 0, length, rest);
    }

    /// One GET whose connection the server closes; nothing may follow the content.
    pub fn last_download(&mut self, seed: u64, length: u64, rest: Duration) {
        self.send(
            format!("GET /synthetic/{seed}/{length} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").as_bytes(),
        );
        let head = self.head();
        assert_eq!((head.status, head.length), (200, length));
        self.verify(seed, 0, length, rest);
        assert_eq!(self.reader.read(&mut [0]).unwrap(), 0);
    }

    /// One PUT of synthetic content, a piece at a time.
    pub fn upload(&mut self, name: &str, seed: u64, length: u64, expect: bool, rest: Duration) {
        let expectation = if expect { "Expect: 100-continue\r\n" } else { "" };
        self.send(
            format!("PUT /{name} HTTP/1.1\r\nHost: t\r\n{expectation}Content-Length: {length}\r\n\r\n").as_bytes(),
        );
        if expect {
            assert_eq!(self.head().status, 100);
        }
        let mut piece = vec![0; 20_000];
        let mut offset = 0;
        while offset < length {
            let count = piece.len().min((length - offset) as usize);
            synthetic::fill(seed, offset, &mut piece[..count]);
            self.send(&piece[..count]);
            offset += count as u64;
            std::thread::sleep(rest);
        }
        let head = self.head();
        let mut said = vec![0; head.length as usize];
        self.reader.read_exact(&mut said).unwrap();
        assert_eq!((head.status, String::from_utf8_lossy(&said).trim()), (201, length.to_string().as_str()));
    }
}
