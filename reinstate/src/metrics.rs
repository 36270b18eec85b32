//! Counters for Prometheus, over the least HTTP a scraper needs: one request, one reply, close.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::daemon::Counts;

/// How long a scraper may take. One at a time is served.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Source(Arc<Counts>);

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = &self.0;
        for (name, help, value) in [
            ("evacuations", "Evacuations carried out", &counts.evacuations),
            ("sessions_resumed", "Sessions that went on here", &counts.resumed),
            ("sessions_lost", "Sessions that were given up", &counts.lost),
            ("sessions_mute", "Sessions that went on here whose clients acknowledged nothing", &counts.mute),
            ("orders_refused", "Orders refused", &counts.refused),
        ] {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in [
            ("prepared_targets", "Targets stood by for", &counts.prepared),
            ("last_evacuation_us", "Duration of the last evacuation in microseconds", &counts.last_us),
        ] {
            let gauge = ConstGauge::new(value.load(Ordering::Relaxed) as f64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Serves `/metrics` at `at`, for as long as the process lives.
///
/// # Errors
/// If nothing can listen there.
pub fn serve(at: SocketAddr, counts: Arc<Counts>) -> io::Result<()> {
    let mut registry = Registry::with_prefix("reinstate");
    registry.register_collector(Box::new(Source(counts)));
    let listener = TcpListener::bind(at)?;
    let work = move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer(stream, &registry) {
                tracing::debug!(%error, "a scraper has gone");
            }
        }
    };
    std::thread::Builder::new().name("metrics".into()).spawn(work).map(drop)
}

fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = [0; 1024];
    let len = stream.read(&mut head)?;
    let mut body = String::new();
    let status = if head[..len].starts_with(b"GET /metrics ") {
        text::encode(&mut body, registry).map_err(io::Error::other)?;
        "200 OK"
    } else {
        "404 Not Found"
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
