//! As much of HTTP/1.1 as a checking client needs: one request at a time, bodies of announced length.
//!
//! It refuses what it does not expect (another status, chunked bodies, a head that does not end): for a check, a
//! lenient parser would hide the very corruption it is there to find.

use std::io::{self, Read, Write};

/// The longest response head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Why an exchange failed. Everything here counts as a lost session.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection broke, was reset, or stayed silent for longer than any recovery takes.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// The server closed in the middle.
    #[error("the server closed the connection with {missing_bytes} bytes still to come")]
    Closed {
        /// What was announced and did not come.
        missing_bytes: u64,
    },
    /// What came is no response we asked for.
    #[error("the response is wrong: {0}")]
    Response(String),
}

/// What a response's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Length of the body in bytes.
    pub body_bytes: u64,
}

/// A connection with what was read beyond the current message.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    ahead: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    /// Wraps a connected stream.
    pub fn new(stream: S) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    /// The stream underneath.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Sends the head of a request; for `body_bytes` above zero the body follows by [`Self::send`].
    ///
    /// # Errors
    /// [`HttpError::Connection`].
    pub fn request(&mut self, method: &str, target: &str, body_bytes: u64) -> Result<(), HttpError> {
        let length = if method == "PUT" { format!("Content-Length: {body_bytes}\r\n") } else { String::new() };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: testbed\r\nUser-Agent: testbed\r\n{length}\r\n");
        Ok(self.stream.write_all(head.as_bytes())?)
    }

    /// Sends bytes of a request's body.
    ///
    /// # Errors
    /// [`HttpError::Connection`].
    pub fn send(&mut self, body: &[u8]) -> Result<(), HttpError> {
        Ok(self.stream.write_all(body)?)
    }

    /// Waits for the head of a response and checks that it is a success of known length.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn head(&mut self) -> Result<Head, HttpError> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = parse(&self.ahead[..end])?;
                self.ahead.drain(..end + 4);
                return Ok(head);
            }
            if self.ahead.len() > HEAD_BYTES_MAX {
                return Err(HttpError::Response(format!("its head does not end within {HEAD_BYTES_MAX} bytes")));
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(HttpError::Closed { missing_bytes: 0 }),
                read => self.ahead.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Reads `body_bytes` of a body, handing every piece to `take` with its offset as it arrives.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn body(&mut self, body_bytes: u64, mut take: impl FnMut(u64, &[u8])) -> Result<(), HttpError> {
        let mut chunk = vec![0; 64 * 1024];
        let mut offset = 0;
        while offset < body_bytes {
            let want = usize::try_from(body_bytes - offset).unwrap_or(usize::MAX).min(chunk.len());
            let got = if self.ahead.is_empty() {
                self.stream.read(&mut chunk[..want])?
            } else {
                let got = self.ahead.len().min(want);
                chunk[..got].copy_from_slice(&self.ahead[..got]);
                self.ahead.drain(..got);
                got
            };
            if got == 0 {
                return Err(HttpError::Closed { missing_bytes: body_bytes - offset });
            }
            take(offset, &chunk[..got]);
            offset += got as u64;
        }
        Ok(())
    }
}

fn parse(head: &[u8]) -> Result<Head, HttpError> {
    let wrong = |what: &str| HttpError::Response(format!("{what} in {:?}", String::from_utf8_lossy(head)));
    let text = std::str::from_utf8(head).map_err(|_| wrong("bytes that are no text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or_else(|| wrong("no status line"))?;
    let status = status.get(..3).and_then(|code| code.parse().ok()).ok_or_else(|| wrong("no status code"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim().parse());
    match length {
        Some(Ok(body_bytes)) if (200..300).contains(&status) => Ok(Head { status, body_bytes }),
        Some(Err(_)) => Err(wrong("a strange length")),
        None if status == 204 => Ok(Head { status, body_bytes: 0 }),
        None => Err(wrong("no length")),
        Some(Ok(_)) => Err(wrong("an error status")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn head_of(text: &str) -> Result<Head, HttpError> {
        parse(text.as_bytes())
    }

    #[test]
    fn a_success_of_known_length_is_taken() {
        let head = head_of("HTTP/1.1 200 OK\r\ncontent-length: 12\r\nserver: x").unwrap();
        assert_eq!(head, Head { status: 200, body_bytes: 12 });
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0",
            "HTTP/1.1 200 OK",
            "xx",
            "HTTP/1.1 200 OK\r\nContent-Length: x",
        ] {
            assert!(matches!(head_of(wrong), Err(HttpError::Response(_))), "{wrong}");
        }
    }

    #[test]
    fn a_body_that_ends_early_says_how_much_is_missing() {
        let mut connection = Connection::new(Cursor::new(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec()));
        let head = connection.head().unwrap();
        let mut got = Vec::new();
        let error = connection.body(head.body_bytes, |offset, bytes| got.push((offset, bytes.to_vec()))).unwrap_err();
        assert!(matches!(error, HttpError::Closed { missing_bytes: 6 }), "{error}");
        assert_eq!(got, [(0, b"abc".to_vec())]);
    }
}
