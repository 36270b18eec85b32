//! Counters for Prometheus, over the least HTTP that a scraper needs: one request, one reply, close.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::control::Plane;

/// How long a scraper may take to ask and to listen. One at a time is served.
const PATIENCE: Duration = Duration::from_secs(2);

/// How soon a request to stop is noticed.
const NOTICE: Duration = Duration::from_millis(200);

/// The longest request head, in bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;

const FOUND: &str = "200 OK";
const NOT_FOUND: &str = "404 Not Found";

/// Everything there is to count, looked up when it is asked for.
struct Source(Plane);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (stats, target) = (self.0.stats(), self.0.target());
        for (name, help, value) in [
            ("reads", "READs answered", stats.reads),
            ("read_bytes", "Bytes that READs returned", stats.read_bytes),
            ("writes", "WRITEs carried out", stats.writes),
            ("atomics", "Atomics carried out", stats.atomics),
            ("refused", "Requests refused by the guard", stats.refused),
            ("dropped_packets", "Packets dropped unanswered", stats.dropped),
            ("fences", "Fences so far", stats.fences),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let regions = target.regions(None).map_or(0, |(_, regions)| regions.len());
        for (name, help, value) in [
            ("queue_pairs", "Queue pairs alive", stats.queue_pairs as f64),
            ("regions", "Regions that can be reached", regions as f64),
            ("memory_served", "Whether there is a machine's memory to serve", f64::from(target.has_memory())),
            ("hypervisor_reached", "Whether the machine can be stopped", f64::from(target.has_hypervisor())),
            ("fenced", "Whether a fence stands", f64::from(target.is_fenced())),
            ("last_fence_seconds", "Time the last fence took", target.fence_took().as_secs_f64()),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// The text of all metrics of `plane`.
pub fn registry(plane: Plane) -> Registry {
    let labels = vec![("target".into(), plane.target().name().to_owned().into())];
    let mut registry = Registry::with_prefix_and_labels("backdoor", labels.into_iter());
    registry.register_collector(Box::new(Source(plane)));
    registry
}

/// Serves `registry` at `/metrics` until `stop` is set.
pub fn serve(listener: &TcpListener, registry: &Registry, stop: &AtomicBool) {
    if let Err(error) = listener.set_nonblocking(true) {
        tracing::error!(%error, "metrics");
        return;
    }
    let timeout = PollTimeout::try_from(NOTICE).unwrap_or(PollTimeout::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
        if let Ok((stream, from)) = listener.accept()
            && let Err(error) = answer(stream, registry)
        {
            tracing::debug!(%from, %error, "metrics");
        }
    }
}

fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = [0; REQUEST_BYTES_MAX];
    let mut len = 0;
    while !head[..len].windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut head[len..])? {
            0 => return Ok(()), // closed, or too long a head
            more => len += more,
        }
    }
    let mut body = String::new();
    let status = if head.starts_with(b"GET /metrics ") {
        text::encode(&mut body, registry).map_err(io::Error::other)?;
        FOUND
    } else {
        NOT_FOUND
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
