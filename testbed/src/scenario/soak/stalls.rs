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
    /// The longest time within it for which nothing was sampled, in milliseconds: then nobody knows what the tick did.
    pub blind_ms: f64,
    /// What the host gave its virtual processor then; a little more than the stall is looked at.
    pub vcpu: Option<Share>,
    /// And QEMU's main thread, which wakes processors that sleep.
    pub main_thread: Option<Share>,
}

/// The longest stalls, longest first.
pub(super) fn longest(recordings: &[Recording], host: &HostRecord) -> Vec<Stall> {
    let mut stalls = Vec::new();
    for recording in recordings {
        for (index, sensor) in recording.head.sensors.iter().enumerate() {
            let Some(cpu) = sensor.name.strip_prefix(TICKS).and_then(|number| number.parse().ok()) else { continue };
            let first_ns = recording.samples.first().map_or(0, |sample| sample.0);
            stalls.extend(of_sensor(recording, index).into_iter().map(|stand| Stall {
                sensor: sensor.name.clone(),
                at_s: (stand.begin_ns - first_ns) as f64 / 1e9,
                stood_ms: stand.length_ns() as f64 / 1e6,
                blind_ms: stand.blind_ns as f64 / 1e6,
                vcpu: host.share(cpu, stand.begin_ns, stand.end_ns),
                main_thread: host.main_thread(stand.begin_ns, stand.end_ns),
            }));
        }
    }
    stalls.sort_by(|one, other| other.stood_ms.total_cmp(&one.stood_ms));
    stalls.truncate(REPORTED_MAX);
    stalls
}

/// One value that a sensor showed, from the first sample that brought it to the first that brought another.
struct Stand {
    begin_ns: u64,
    end_ns: u64,
    blind_ns: u64,
}

impl Stand {
    fn length_ns(&self) -> u64 {
        self.end_ns - self.begin_ns
    }
}

/// The longest stalls of one sensor.
fn of_sensor(recording: &Recording, index: usize) -> Vec<Stand> {
    let value_of = |Sample(at_ns, _, values): &Sample| Some((*at_ns, values.as_ref()?.get(index).copied()??));
    let mut stands: Vec<Stand> = Vec::new();
    let mut shown = None;
    for (at_ns, value) in recording.samples.iter().filter_map(value_of) {
        if let Some(stand) = stands.last_mut() {
            stand.blind_ns = stand.blind_ns.max(at_ns - stand.end_ns);
            stand.end_ns = at_ns;
        }
        if shown.replace(value) != Some(value) {
            stands.push(Stand { begin_ns: at_ns, end_ns: at_ns, blind_ns: 0 });
        }
    }
    stands.sort_by_key(|stand| std::cmp::Reverse(stand.length_ns()));
    stands.truncate(REPORTED_MAX);
    stands
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
        let sensor = DescribedSensor {
            name: "tick.cpu0".into(),
            class: Class::Progress,
            limit: 1,
            period_ns: 0,
            floor: false,
            sleep: None,
        };
        // Moves with every sample, each 10 ms, but stands from 100 to 150 ms and from 400 ms on.
        let value = |step: u64| if step < 10 { step } else { step.clamp(15, 40) };
        let samples = (0..=60).map(|step| Sample(step * 10_000_000, 1, Some(vec![Some(value(step))]))).collect();
        let head = Head { target: "web".into(), period_ns: 10_000_000, sensors: vec![sensor] };
        let stalls = longest(&[Recording { head, samples }], &HostRecord::default());
        assert_eq!((stalls[0].at_s, stalls[0].stood_ms), (0.4, 200.0));
        assert_eq!((stalls[1].at_s, stalls[1].stood_ms, stalls[1].blind_ms), (0.1, 60.0, 10.0));
        assert_eq!(stalls.len(), REPORTED_MAX);
    }
}
