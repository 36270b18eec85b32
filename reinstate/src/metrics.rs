//! What a spare counts, for Prometheus.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::daemon::Counts;

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

/// All metrics of this spare.
pub fn registry(counts: Arc<Counts>) -> Registry {
    let mut registry = Registry::with_prefix("reinstate");
    registry.register_collector(Box::new(Source(counts)));
    registry
}
