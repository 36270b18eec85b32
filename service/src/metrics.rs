//! Counters for Prometheus, over the least HTTP that a scraper needs: one request, one reply, close.
//!
//! What there is to count is each daemon's own; here is only the way out. One scraper is served at a time, and each for
//! [`PATIENCE`] at most: a scraper that says nothing keeps the next one waiting, never the daemon.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// How long a scraper may take to ask, and again to listen.
const PATIENCE: Duration = Duration::from_secs(2);

/// How soon the end of an [`Endpoint`] is noticed.
const NOTICE: Duration = Duration::from_millis(200);

/// The longest request head, in bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The text of everything in `registry`.
pub fn text_of(registry: &Registry) -> String {
    let mut all = String::new();
    // Writing to a string fails only if a metric's own encoder does.
    text::encode(&mut all, registry).unwrap_or_else(|_| all.clear());
    all
}

/// `/metrics`, served by a thread of its own until this is dropped.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Serves what `text` returns at `at`.
    ///
    /// # Errors
    /// Nothing can listen there, or there is no thread.
    pub fn start(at: SocketAddr, text: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        let (address, stop) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let work = move || serve(&listener, &text, &stopped);
        let thread = Some(std::thread::Builder::new().name("metrics".into()).spawn(work)?);
        Ok(Self { address, stop, thread })
    }

    /// Where, also if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the metrics thread had panicked");
        }
    }
}

fn serve(listener: &TcpListener, text: &impl Fn() -> String, stop: &AtomicBool) {
    let timeout = PollTimeout::try_from(NOTICE).unwrap_or(PollTimeout::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
        match listener.accept() {
            Ok((stream, from)) => {
                if let Err(error) = answer(stream, text) {
                    tracing::debug!(%from, %error, "a scrape failed");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(%error, "a scraper could not be accepted");
                std::thread::sleep(NOTICE); // descriptors may have run out: no reason to spin
            }
        }
    }
}

fn answer(mut stream: TcpStream, text: &impl Fn() -> String) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = [0; REQUEST_BYTES_MAX];
    let (begin, mut len) = (Instant::now(), 0);
    // The whole head is read, so that closing does not reset the connection under the answer.
    while !head[..len].windows(4).any(|window| window == b"\r\n\r\n") {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut head[len..])? {
            0 => return Ok(()), // closed, or too long a head
            more => len += more,
        }
    }
    let (status, body) = match head.starts_with(b"GET /metrics ") {
        true => ("200 OK", text()),
        false => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
    };
    let (kind, len) = ("application/openmetrics-text; version=1.0.0; charset=utf-8", body.len());
    let head = format!("Content-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("HTTP/1.1 {status}\r\n{head}{body}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint::start("127.0.0.1:0".parse().unwrap(), || "all_is_well 1\n".to_owned()).unwrap()
    }

    fn asked(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    }

    #[test]
    fn a_scrape_gets_the_metrics_and_nothing_else_is_served() {
        let endpoint = endpoint();
        let said = asked(endpoint.address(), b"GET /metrics HTTP/1.1\r\nHost: m\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nall_is_well 1\n"), "{said}");
        for other in ["GET / HTTP/1.1\r\n\r\n", "POST /metrics HTTP/1.1\r\n\r\n", "\r\n\r\n"] {
            assert!(asked(endpoint.address(), other.as_bytes()).starts_with("HTTP/1.1 404"), "{other}");
        }
    }

    #[test]
    fn a_scraper_that_says_nothing_or_too_much_does_not_end_the_service() {
        let endpoint = endpoint();
        let mut mute = TcpStream::connect(endpoint.address()).unwrap();
        mute.write_all(b"GET /met").unwrap();
        let mut loud = TcpStream::connect(endpoint.address()).unwrap();
        let _ = loud.write_all(&[b'a'; 2 * REQUEST_BYTES_MAX]);
        let said = asked(endpoint.address(), b"GET /metrics HTTP/1.1\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
    }

    #[test]
    fn a_port_in_use_is_an_error_and_a_dropped_endpoint_is_gone() {
        let first = endpoint();
        let at = first.address();
        let second = Endpoint::start(at, String::new).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(TcpStream::connect(at).is_err());
    }
}
