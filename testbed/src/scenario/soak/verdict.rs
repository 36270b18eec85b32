//! What a soak came to: one line of JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    host::Summary,
    load::{Load, Seen},
    stalls::Stall,
};
use crate::scenario::Host;

/// The result of one `soak`.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// No load brought a false verdict or a lost path, the service answered, and the real faults were detected.
    pub pass: bool,
    /// Recorded time of all loads together, in minutes.
    pub minutes: f64,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The monitor's deadline.
    pub deadline_ms: u64,
    /// From one recorded sample to the next.
    pub period_ms: f64,
    /// Where it ran.
    pub host: Host,
    /// Each load.
    pub loads: Vec<Part>,
}

/// One guest under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Whether all was as it should be.
    pub pass: bool,
    /// The load.
    pub load: Load,
    /// Recorded time.
    pub seconds: f64,
    /// What the monitor counted.
    pub monitor: Watched,
    /// Samples of the recording.
    pub recorded_samples: usize,
    /// The shortest deadline from which on the recording gives no false verdict, in milliseconds.
    pub safe_deadline_ms: Option<f64>,
    /// For each sensor the longest time between two samples that saw it move, in milliseconds.
    pub silence_ms: BTreeMap<String, f64>,
    /// The longest stalls of a tick.
    pub stalls: Vec<Stall>,
    /// What the guest counted; absent if it was fenced.
    pub guest: Option<Seen>,
    /// What the host did meanwhile.
    pub host: Summary,
    /// Answers of the service before the fault.
    pub answers: usize,
    /// The slowest of them, in milliseconds.
    pub slowest_answer_ms: f64,
    /// Answers after it, from the spare, over the same connection.
    pub answers_after: usize,
    /// From the last sign of life to the verdict on the real fault, in milliseconds.
    pub detect_ms: Option<f64>,
    /// Why it did not pass, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// What the real monitor saw of a healthy guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Watched {
    /// Samples that brought values.
    pub samples: u64,
    /// Samples without an answer.
    pub lost: u64,
    /// Samples that began late.
    pub late: u64,
    /// Alarms that a second look refuted.
    pub refuted: u64,
    /// Verdicts; each is false.
    pub verdicts: u64,
    /// How often the path counted as lost.
    pub paths_lost: u64,
}

impl Watched {
    /// Reads what the monitor says of itself; paths lost are in its journal only.
    pub(super) fn parse(metrics: &str) -> Self {
        let count = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix("backdoors_monitor_")?.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix("_total{")?.split_whitespace().last()?.parse().ok()).unwrap_or(0)
        };
        Self {
            samples: count("samples"),
            lost: count("lost_samples"),
            late: count("late_samples"),
            refuted: count("refuted"),
            verdicts: count("verdicts"),
            paths_lost: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitor_s_own_counts_are_read() {
        let metrics = monitor::metrics::Metrics::default();
        let target = metrics.of("guest");
        target.samples.inc_by(12);
        target.late_samples.inc_by(3);
        target.refuted.inc();
        let seen = Watched::parse(&metrics.text());
        assert_eq!(seen, Watched { samples: 12, late: 3, refuted: 1, ..Watched::default() });
    }
}
