//! How counters move: per second for those that count, as they stand for amounts.

use serde::{Deserialize, Serialize};

use super::{Recording, Sample};
use crate::detect::Class;

/// One sensor over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Motion {
    /// Its name.
    pub sensor: String,
    /// Whether values are growth per second; else they are what the sensor showed.
    pub is_rate: bool,
    /// Seconds since the recording began, and the value there.
    pub points: Vec<(f64, f64)>,
    /// Longest time between two samples that saw the sensor move, in milliseconds.
    pub longest_stand_ms: f64,
}

/// The motion of every sensor of `recording`, one point for each `step_ns`.
pub fn motions(recording: &Recording, step_ns: u64) -> Vec<Motion> {
    let sensors = recording.head.sensors.iter().enumerate();
    sensors.map(|(index, sensor)| motion(recording, index, &sensor.name, sensor.class, step_ns)).collect()
}

fn motion(recording: &Recording, index: usize, name: &str, class: Class, step_ns: u64) -> Motion {
    let value_of = |Sample(begin_ns, _, brought): &Sample| Some((*begin_ns, brought.as_ref()?.get(index).copied()??));
    let mut seen = recording.samples.iter().filter_map(value_of);
    let is_rate = class != Class::Level;
    let mut motion = Motion { sensor: name.to_owned(), is_rate, points: Vec::new(), longest_stand_ms: 0.0 };
    let Some(first) = seen.next() else { return motion };
    let (mut mark, mut moved) = (first, first);
    for (at_ns, value) in seen {
        let stood_ms = at_ns.saturating_sub(moved.0) as f64 / 1e6;
        motion.longest_stand_ms = motion.longest_stand_ms.max(stood_ms);
        if value != moved.1 {
            moved = (at_ns, value);
        }
        let passed_ns = at_ns.saturating_sub(mark.0);
        if passed_ns >= step_ns {
            let seconds = passed_ns as f64 / 1e9;
            let point = if is_rate { value.saturating_sub(mark.1) as f64 / seconds } else { value as f64 };
            motion.points.push((at_ns.saturating_sub(first.0) as f64 / 1e9, point));
            mark = (at_ns, value);
        }
    }
    motion
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;
    use crate::detect::DescribedSensor;

    #[test]
    fn counters_show_their_rate_and_levels_what_they_are() {
        let sensor = |name: &str, class| DescribedSensor {
            name: name.into(),
            class,
            limit: 1,
            period_ns: 0,
            floor: false,
            sleep: None,
        };
        let sensors = vec![sensor("tick", Class::Progress), sensor("tasks", Class::Level)];
        let samples =
            (0..=20).map(|step| Sample(step * 100_000_000, 1, Some(vec![Some(step * 20), Some(7)]))).collect();
        let head = Head { target: "web".into(), period_ns: 100_000_000, sensors };
        let motions = motions(&Recording { head, samples }, 1_000_000_000);
        assert_eq!(motions[0].points, [(1.0, 200.0), (2.0, 200.0)]);
        assert_eq!(motions[1].points, [(1.0, 7.0), (2.0, 7.0)]);
        assert_eq!((motions[0].longest_stand_ms, motions[1].longest_stand_ms), (100.0, 2000.0));
    }
}
