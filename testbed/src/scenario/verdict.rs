//! What a run of a scenario came to: one line of JSON.

use std::fs;

use serde::Serialize;

use crate::{client::Outcome, fault::Fault, topology::Wire, vm::Accel};

/// The result of one `hang-download`. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Nothing was lost, no byte was wrong, and the recovery really happened.
    pub pass: bool,
    /// Client connections.
    pub sessions: usize,
    /// Connections that did not come to their end.
    pub lost: usize,
    /// Connections that the spare carried on.
    pub resumed: usize,
    /// Bytes that the spare put back: queues and logs of boxes.
    pub bytes_carried: u64,
    /// Bytes compared with what belongs there.
    pub bytes_checked: u64,
    /// Bytes that differed.
    pub wrong_bytes: u64,
    /// Those among them that had come before.
    pub doubled_bytes: u64,
    /// Verdicts or fences before the fault, and signs of the guest after its fence.
    pub false_takeovers: usize,
    /// From the last sign of life to the verdict.
    pub detect_ms: Option<f64>,
    /// The fence, request to answer.
    pub fence_ms: Option<f64>,
    /// Reading everything out of the dead memory.
    pub extract_ms: Option<f64>,
    /// The whole order to the spare, extraction included: all sessions live.
    pub reinstate_ms: Option<f64>,
    /// From the verdict to the end of the order: the last session lives.
    pub verdict_to_live_ms: Option<f64>,
    /// The middle one of the clients' gaps.
    pub gap_ms_p50: Option<f64>,
    /// Nearly the longest gap.
    pub gap_ms_p99: Option<f64>,
    /// The longest gap.
    pub gap_ms_max: Option<f64>,
    /// What was done to the guest.
    pub fault: Fault,
    /// Where an aimed stop fell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aimed: Option<String>,
    /// How the clients' cable was around the fault.
    pub wire: Wire,
    /// Packets that it lost, delayed or doubled.
    pub packets_harmed: u64,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Everything random follows from it.
    pub seed: u64,
    /// The monitor's deadline.
    pub deadline_ms: u64,
    /// Where it ran.
    pub host: Host,
    /// Why it did not pass, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// The machine of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Its kernel.
    pub kernel: String,
    /// Its processors.
    pub cpus: usize,
    /// How guests are executed: `kvm` or `tcg`.
    pub accelerator: &'static str,
}

impl Host {
    /// This machine.
    pub fn here() -> Self {
        let accelerator = match Accel::choose() {
            Ok(Accel::Kvm) => "kvm",
            _ => "tcg",
        };
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        Self { kernel, cpus: std::thread::available_parallelism().map_or(1, usize::from), accelerator }
    }
}

/// The gaps of a run: median, 99th percentile, longest; in milliseconds.
pub fn gaps(outcomes: &[Outcome], fault: std::time::Duration) -> Option<(f64, f64, f64)> {
    let lengths = outcomes.iter().filter_map(|outcome| outcome.gap(fault));
    let mut lengths: Vec<f64> = lengths.map(|(begin, end)| (end - begin).as_secs_f64() * 1e3).collect();
    lengths.sort_by(f64::total_cmp);
    Some((percentile(&lengths, 50)?, percentile(&lengths, 99)?, *lengths.last()?))
}

/// The smallest value that at least `percent` of the sorted values do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(10.0));
        assert_eq!(percentile(&values, 99), Some(20.0));
        assert_eq!(percentile(&values[..1], 50), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
