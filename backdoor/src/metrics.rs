//! What a backdoor counts, for Prometheus.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::control::Plane;

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
            ("locked", "Whether a lock stands", f64::from(target.is_locked())),
            ("last_fence_seconds", "Time the last fence took", target.fence_took().as_secs_f64()),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// All metrics of `plane`.
pub fn registry(plane: Plane) -> Registry {
    let labels = vec![("target".into(), plane.target().name().to_owned().into())];
    let mut registry = Registry::with_prefix_and_labels("backdoor", labels.into_iter());
    registry.register_collector(Box::new(Source(plane)));
    registry
}
