//! What a monitor counts, for Prometheus.
//!
//! Every target's handles are made once; counting is an atomic addition and never waits for a scrape.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use service::metrics::text_of;

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
    /// Samples that brought no sensors.
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
    /// Sensors that are kernel variables, found in the kernel that lives now.
    pub kernel_sensors: Gauge,
    /// Those that it does not have.
    pub kernel_sensors_missing: Gauge,
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
    /// Standstills in which the target was written to.
    pub repairs: Counter,
    /// Processes that ended of it.
    pub processes_ended: Counter,
    /// Treatments after which nothing was found any more.
    pub cures: Counter,
    /// Treatments that failed.
    pub failed_cures: Counter,
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
    unreadable_samples: Counter, "Samples that brought no sensors";
    late_samples: Counter, "Samples that began more than half a period late";
    repetitions: Counter, "Requests for samples that had to be sent again: the path lost a packet, or an end was busy";
    path_lossy: Gauge, "1 while more samples need that than a busy machine explains; says nothing about the target";
    suspicious_sensors: Gauge, "Sensors beyond their bounds now";
    kernel_sensors: Gauge, "Sensors that are variables of the target's kernel, found";
    kernel_sensors_missing: Gauge, "Those that the configuration asks for and this kernel does not have";
    path_lost: Gauge, "1 while no sample succeeds; says nothing about the target";
    verdicts: Counter, "Targets found hung";
    refuted: Counter, "Alarms that a second look refuted";
    fences: Counter, "Fences that stand";
    failed_fences: Counter, "Fences that failed";
    evacuations: Counter, "Evacuations that a spare reported finished";
    sessions_resumed: Counter, "Sessions that live on after an evacuation";
    sessions_lost: Counter, "Sessions lost in an evacuation";
    spares_ready: Gauge, "Spares ready to take over";
    repairs: Counter, "Standstills in which the target was repaired";
    processes_ended: Counter, "Processes that ended of a repair";
    cures: Counter, "Treatments after which the target was well";
    failed_cures: Counter, "Treatments that failed";
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
        text_of(&self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted_for_each_target() {
        let metrics = Metrics::default();
        metrics.of("web").samples.inc_by(3);
        metrics.of("web").sample_seconds.observe(15e-6);
        metrics.of("db").path_lost.set(1);
        let text = metrics.text();
        for line in [
            "backdoors_monitor_samples_total{target=\"web\"} 3",
            "backdoors_monitor_path_lost{target=\"db\"} 1",
            "backdoors_monitor_sample_seconds_bucket{le=\"0.00002\",target=\"web\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
