//! What an agent counts, for Prometheus: above all how full the pool of boxes is, and for whom.

use std::fmt;
use std::sync::{Arc, Weak};

use contbox::service::{BoxService, Share, Usage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::nic::Board;

/// Looked up when it is asked for. Does not keep the service alive: its socket goes with the agent.
#[derive(Debug)]
struct Source(Weak<BoxService>);

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(usage) = self.0.upgrade().map(|service| service.usage()) else { return Ok(()) };
        for (name, help, value) in [
            ("boxes", "Boxes in the pool", usage.boxes),
            ("boxes_free", "Boxes that no application has", usage.free),
            ("boxes_orphaned", "Boxes of applications that have not come back since the agent started", usage.orphaned),
        ] {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let of: fn(&Share) -> usize = |share| share.boxes;
        shares(&mut encoder, "application_boxes", "Boxes that the application has", &usage, of)?;
        let help = "Boxes of the application in which a connection is";
        shares(&mut encoder, "application_boxes_open", help, &usage, |share| share.open)?;
        refusals(&mut encoder, &usage)
    }
}

fn shares(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    usage: &Usage,
    of: impl Fn(&Share) -> usize,
) -> Result<(), fmt::Error> {
    let zero = ConstGauge::new(0i64);
    let mut family = encoder.encode_descriptor(name, help, None, zero.metric_type())?;
    for (application, share) in &usage.applications {
        let labels = [("application", application.as_str())];
        ConstGauge::new(of(share) as i64).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn refusals(encoder: &mut DescriptorEncoder<'_>, usage: &Usage) -> Result<(), fmt::Error> {
    let help = "Requests of the application for boxes that found the pool full: connections without a box are \
                unprotected. More boxes: --pool-slots, with a new pool";
    let zero = ConstCounter::new(0u64);
    let mut family = encoder.encode_descriptor("refused_requests", help, None, zero.metric_type())?;
    for (application, share) in &usage.applications {
        let labels = [("application", application.as_str())];
        ConstCounter::new(share.refused).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What is known of the adapter, where memory is served by one.
#[derive(Debug)]
struct Adapter(Arc<Board>);

impl Collector for Adapter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let pairs = self.0.queue_pairs();
        for (name, help, value) in [
            ("adapter_up", "Whether an RDMA adapter serves this machine's memory", usize::from(pairs.is_some())),
            ("queue_pairs", "Queue pairs of monitors and spares on the adapter", pairs.unwrap_or(0)),
        ] {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let opened = ConstCounter::new(self.0.lives());
        let help = "How often an RDMA adapter was opened: more than once, it was gone in between";
        opened.encode(encoder.encode_descriptor("adapter_opened", help, None, opened.metric_type())?)
    }
}

/// All metrics of the agent that serves boxes by `service`, and memory by an adapter if there is a `board`.
pub fn registry(service: &Arc<BoxService>, board: Option<&Arc<Board>>) -> Registry {
    let mut registry = Registry::with_prefix("target_agent");
    registry.register_collector(Box::new(Source(Arc::downgrade(service))));
    if let Some(board) = board {
        registry.register_collector(Box::new(Adapter(Arc::clone(board))));
    }
    registry
}
