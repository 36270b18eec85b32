//! The longest times for which a processor's tick stood still in a recording, each beside what the host gave that
//! processor meanwhile.

use monitor::recording::{Recording, Sample};
use serde::Serialize;

use super::host::{HostRecord, Share};

/// Stalls that are reported.
const REPORTED_MAX: usize = 5;

/// Sensors that are looked at; their number is the processor's.
const TICKS: &str = "tick.cpu";

/// A tick that stood still.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stall {
    /// The sensor.
    pub sensor: String,
    /// Seconds since the recording began.
    pub at_s: f64,
    /// Between the samples that saw it move, in milliseconds.
    pub stood_ms: f64,
    /// What the host gave its virtual processor then; a little more than the stall is looked at.
    pub vcpu: Option<Share>,
}

/// The longest stalls, longest first.
pub(super) fn longest(recordings: &[Recording], host: &HostRecord) -> Vec<Stall> {
    let mut stalls = Vec::new();
    for recording in recordings {
        for (index, sensor) in recording.head.sensors.iter().enumerate() {
            let Some(cpu) = sensor.name.strip_prefix(TICKS).and_then(|number| number.parse().ok()) else { continue };
            stalls.extend(of_sensor(recording, index).into_iter().map(|(begin_ns, end_ns, at_s)| Stall {
                sensor: sensor.name.clone(),
                at_s,
                stood_ms: (end_ns - begin_ns) as f64 / 1e6,
                vcpu: host.share(cpu, begin_ns, end_ns),
            }));
        }
    }
    stalls.sort_by(|one, other| other.stood_ms.total_cmp(&one.stood_ms));
    stalls.truncate(REPORTED_MAX);
    stalls
}

/// Begin, end (monotonic) and place in the recording of the longest stalls of one sensor.
fn of_sensor(recording: &Recording, index: usize) -> Vec<(u64, u64, f64)> {
    let mut seen = recording
        .samples
        .iter()
        .filter_map(|Sample(at_ns, _, values)| Some((*at_ns, values.as_ref()?.get(index).copied()??)));
    let Some(first) = seen.next() else { return Vec::new() };
    let (mut moved, mut stalls) = (first, Vec::new());
    let mut note = |from_ns: u64, to_ns: u64| stalls.push((from_ns, to_ns, (from_ns - first.0) as f64 / 1e9));
    let mut last_ns = first.0;
    for (at_ns, value) in seen {
        if value != moved.1 {
            note(moved.0, at_ns);
            moved = (at_ns, value);
        }
        last_ns = at_ns;
    }
    note(moved.0, last_ns);
    stalls.sort_by_key(|(from_ns, to_ns, _)| std::cmp::Reverse(to_ns - from_ns));
    stalls.truncate(REPORTED_MAX);
    stalls
}

#[cfg(test)]
mod tests {
    use monitor::{
        detect::{Class, DescribedSensor},
        recording::Head,
    };

    use super::*;

    #[test]
    fn the_longest_stall_comes_first_also_when_it_lasts_to_the_end() {
        let sensor =
            DescribedSensor { name: "tick.cpu0".into(), class: Class::Progress, limit: 1, period_ns: 0, floor: false };
        // Moves with every sample, each 10 ms, but stands from 100 to 150 ms and from 400 ms on.
        let value = |step: u64| if step < 10 { step } else { step.clamp(15, 40) };
        let samples = (0..=60).map(|step| Sample(step * 10_000_000, 1, Some(vec![Some(value(step))]))).collect();
        let head = Head { target: "web".into(), period_ns: 10_000_000, sensors: vec![sensor] };
        let stalls = longest(&[Recording { head, samples }], &HostRecord::default());
        assert_eq!((stalls[0].at_s, stalls[0].stood_ms), (0.4, 200.0));
        assert_eq!((stalls[1].at_s, stalls[1].stood_ms), (0.1, 60.0));
        assert_eq!(stalls.len(), REPORTED_MAX);
    }
}
