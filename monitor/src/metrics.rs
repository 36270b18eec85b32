//! Metrics in the Prometheus text format, served at `/metrics`.
//!
//! Every target's handles are made once; counting is an atomic addition and never waits for a scrape.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Most bytes of a request that are looked at: a scrape is one short line and some headers.
const REQUEST_BYTES_MAX: u64 = 8 * 1024;

/// How long a scrape may take.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    target: String,
}

/// The metrics of one target.
#[derive(Clone, Debug)]
pub struct TargetMetrics {
    /// Samples that brought values.
    pub samples: Counter,
    /// Samples without an answer.
    pub lost_samples: Counter,
    /// Samples that brought no Sensor Box.
    pub unreadable_samples: Counter,
    /// Samples that began more than half a period late.
    pub late_samples: Counter,
    /// Time from posting a sample to its values.
    pub sample_seconds: Histogram,
    /// How much later than planned samples began.
    pub late_seconds: Histogram,
    /// Requests for samples that had to be sent again.
    pub repetitions: Counter,
    /// 1 while that is so for more samples than a busy machine explains.
    pub path_lossy: Gauge,
    /// Sensors beyond their bounds now.
    pub suspicious_sensors: Gauge,
    /// 1 while the path is lost.
    pub path_lost: Gauge,
    /// Verdicts.
    pub verdicts: Counter,
    /// Alarms that a second look refuted.
    pub refuted: Counter,
    /// Fences.
    pub fences: Counter,
    /// Fences that failed.
    pub failed_fences: Counter,
    /// Evacuations that a spare reported finished.
    pub evacuations: Counter,
    /// Sessions that live on.
    pub sessions_resumed: Counter,
    /// Sessions that were lost.
    pub sessions_lost: Counter,
    /// Spares that are ready now.
    pub spares_ready: Gauge,
}

/// All metrics of this monitor.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    families: Arc<Families>,
}

macro_rules! families {
    ($($field:ident: $kind:ty, $help:literal;)*) => {
        #[derive(Debug)]
        struct Families {
            sample_seconds: Family<Labels, Histogram, fn() -> Histogram>,
            late_seconds: Family<Labels, Histogram, fn() -> Histogram>,
            $($field: Family<Labels, $kind>,)*
        }

        impl Families {
            fn register(registry: &mut Registry) -> Self {
                let families = Self {
                    sample_seconds: Family::new_with_constructor(latencies),
                    late_seconds: Family::new_with_constructor(latencies),
                    $($field: Family::default(),)*
                };
                let help = "Time from posting a sample to its values";
                registry.register("sample_seconds", help, families.sample_seconds.clone());
                let help = "How much later than planned samples began";
                registry.register("late_seconds", help, families.late_seconds.clone());
                $(registry.register(stringify!($field), $help, families.$field.clone());)*
                families
            }

            fn of(&self, labels: &Labels) -> TargetMetrics {
                TargetMetrics {
                    sample_seconds: self.sample_seconds.get_or_create(labels).clone(),
                    late_seconds: self.late_seconds.get_or_create(labels).clone(),
                    $($field: self.$field.get_or_create(labels).clone(),)*
                }
            }
        }
    };
}

families! {
    samples: Counter, "Samples that brought values";
    lost_samples: Counter, "Samples without an answer";
    unreadable_samples: Counter, "Samples that brought no Sensor Box";
    late_samples: Counter, "Samples that began more than half a period late";
    repetitions: Counter, "Requests for samples that had to be sent again: the path lost a packet, or an end was busy";
    path_lossy: Gauge, "1 while more samples need that than a busy machine explains; says nothing about the target";
    suspicious_sensors: Gauge, "Sensors beyond their bounds now";
    path_lost: Gauge, "1 while no sample succeeds; says nothing about the target";
    verdicts: Counter, "Targets found hung";
    refuted: Counter, "Alarms that a second look refuted";
    fences: Counter, "Fences that stand";
    failed_fences: Counter, "Fences that failed";
    evacuations: Counter, "Evacuations that a spare reported finished";
    sessions_resumed: Counter, "Sessions that live on after an evacuation";
    sessions_lost: Counter, "Sessions lost in an evacuation";
    spares_ready: Gauge, "Spares ready to take over";
}

/// From 10 us, a round trip at its best, to 0.3 s.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(10e-6, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("backdoors_monitor");
        let families = Families::register(&mut registry);
        Self { registry: Arc::new(Mutex::new(registry)), families: Arc::new(families) }
    }
}

impl Metrics {
    /// The metrics of `target`.
    pub fn of(&self, target: &str) -> TargetMetrics {
        self.families.of(&Labels { target: target.to_owned() })
    }

    /// Everything, as Prometheus reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string fails only if a metric's own encoder does.
        encode(&mut text, &registry).unwrap_or_else(|_| text.clear());
        text
    }

    /// Serves `/metrics` at `address` on a thread of its own for the life of the process; returns where, for port 0.
    ///
    /// # Errors
    /// Those of binding the address.
    pub fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        let metrics = self.clone();
        std::thread::Builder::new().name("metrics".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = metrics.answer(stream) {
                    tracing::debug!(%error, "a scrape failed");
                }
            }
        })?;
        Ok(bound)
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(SCRAPE_PATIENCE))?;
        stream.set_write_timeout(Some(SCRAPE_PATIENCE))?;
        let mut lines = BufReader::new((&stream).take(REQUEST_BYTES_MAX)).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        // The rest of the head is read so that closing does not reset the connection under the answer.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let (status, body) = match request.split(' ').nth(1) {
            Some("/metrics") => ("200 OK", self.text()),
            _ => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        };
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let len = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_scrape_shows_what_was_counted_for_each_target() {
        let metrics = Metrics::default();
        metrics.of("web").samples.inc_by(3);
        metrics.of("web").sample_seconds.observe(15e-6);
        metrics.of("db").path_lost.set(1);
        let address = metrics.serve("127.0.0.1:0".parse().unwrap()).unwrap();
        let text = fetched(address, "/metrics");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        for line in [
            "backdoors_monitor_samples_total{target=\"web\"} 3",
            "backdoors_monitor_path_lost{target=\"db\"} 1",
            "backdoors_monitor_sample_seconds_bucket{le=\"0.00002\",target=\"web\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(fetched(address, "/").starts_with("HTTP/1.1 404"));
    }
}
